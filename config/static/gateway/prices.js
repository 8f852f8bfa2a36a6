// The form of a price says in a sentence for which calls it will be, as it is filled in.
const units = { per_image: "an image", per_million_input: "a million input tokens", per_million_output: "a million output tokens" };
const field = (name) => document.querySelector(`[name="${name}"]`);
const value = (name) => field(name)?.value.trim() ?? "";

function tell() {
  const sentence = document.getElementById("price-sentence");
  if (!sentence || !value("model")) {
    return;
  }
  const tenant = field("tenant")?.selectedOptions?.[0];
  const whose = tenant?.value ? `of ${tenant.textContent.trim()}` : "of everybody who has no price of their own";
  const costs = Object.keys(units).filter((name) => value(name) !== "").map((name) => `${value(name)} ${value("currency").toUpperCase()} ${units[name]}`);
  const from = value("valid_from") ? `From ${value("valid_from")} on, calls` : "Calls";
  const what = costs.length ? `cost ${costs.join(", ")}` : "cost what you fill in below";
  sentence.textContent = `${from} ${whose} to ${value("model")}, ${value("size") || "any size"}, ${value("quality") || "any quality"}, ${what}.`;
}

document.addEventListener("DOMContentLoaded", () => {
  for (const kind of ["input", "change", "focusin"]) {
    document.addEventListener(kind, tell);
  }
  window.django?.jQuery?.(document).on("change", "select", tell); // the tenant's list tells of a choice by jQuery's events only
  tell();
});
