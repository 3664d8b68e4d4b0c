// The form for a backfill: its plan follows the columns of another table, and what the plan found
// wrong is told to those who do not see colours too.
"use strict";

document.addEventListener("htmx:after:swap", (event) => {
  const field = document.getElementById("where");
  field?.setAttribute("aria-invalid", String(document.getElementById("where-wrong") !== null));
  const wrong = document.querySelector("#plan [data-wrong]")?.dataset.wrong;
  for (const input of document.querySelectorAll("#submit input[name]")) {
    if (wrong && input.name === wrong) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
  }
  if (event.detail.ctx?.target?.id === "columns") htmx.trigger("#submit", "replan");
});
