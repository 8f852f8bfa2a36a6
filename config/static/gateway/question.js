// Asking for a report: days that are typed in mean other days than those of the chosen period.
for (const form of document.querySelectorAll("[data-question]")) {
  const period = form.elements.period;
  const days = [form.elements.from, form.elements.to];
  for (const day of days) day.addEventListener("change", () => (period.value = "days"));
  period.addEventListener("change", () => {
    if (period.value !== "days") for (const day of days) day.value = "";
  });
  // What isn't said needn't stand in the address.
  form.addEventListener("submit", () => {
    for (const field of form.elements) if (field.name && field.value === "") field.disabled = true;
  });
  addEventListener("pageshow", () => {
    for (const field of form.elements) field.disabled = false;
  });
}
