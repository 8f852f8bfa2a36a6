// The page that shows a new secret. Loading it again must not issue another one, so its address becomes the token's.
const fresh = document.getElementById("fresh-secret");
history.replaceState(null, "", fresh.dataset.page);

for (const button of fresh.querySelectorAll("[data-copies]")) {
  const field = document.getElementById(button.dataset.copies);
  field.addEventListener("focus", () => field.select());
  button.addEventListener("click", async () => {
    field.select();
    try {
      await navigator.clipboard.writeText(field.value);
    } catch {
      document.execCommand("copy"); // without https there is no clipboard API
    }
    button.querySelector("span").textContent = "Copied";
  });
}
