// The list of tokens. A whole secret in its search box is not sent as a search, which would put it into the address:
// it goes by POST to the page that finds leaked tokens.
const secret = /gemf?_[0-9A-Za-z]{46}/;

document.addEventListener(
  "submit",
  (event) => {
    const box = event.target.querySelector('input[name="q"]');
    if (!box || !secret.test(box.value)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    const form = document.createElement("form");
    form.method = "post";
    form.action = new URL("find", location.href.replace(/[?#].*/, ""));
    const fields = { pasted: box.value, csrfmiddlewaretoken: document.querySelector('[name="csrfmiddlewaretoken"]').value };
    for (const [name, value] of Object.entries(fields)) {
      const field = document.createElement("input");
      Object.assign(field, { type: "hidden", name, value });
      form.append(field);
    }
    box.value = "";
    document.body.append(form);
    form.submit();
  },
  true,
);
