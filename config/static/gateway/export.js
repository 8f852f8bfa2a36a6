// The page of an export that is being made: asks how far it is, and loads itself again when that is over.
const told = document.querySelector("[data-export]");

async function look() {
  try {
    const answer = await fetch(told.dataset.export, { headers: { Accept: "application/json" } });
    if (!answer.ok) return location.reload();
    const { percent, over, text, rows } = await answer.json();
    if (over) return location.reload();
    told.querySelector("progress").value = percent;
    told.querySelector("[data-percent]").textContent = `${percent} %`;
    told.querySelector("[data-rows]").textContent = rows;
    const sentence = told.querySelector("[data-text]");
    if (sentence.textContent !== text) sentence.textContent = text; // else it would be read out each time
  } catch {
    // no connection just now; the next look may find one
  }
  setTimeout(look, 1000);
}
setTimeout(look, 1000);
