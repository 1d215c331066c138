// @ts-check
// Selection in the history: shows the count, selects all, and asks before deleting.

import { LIMITS } from "./contract.js";

const form = document.getElementById("selection");
if (form instanceof HTMLFormElement) {
  const ticks = [...form.querySelectorAll('input[name="id"]')].map(
    (node) => /** @type {HTMLInputElement} */ (node),
  );
  const all = /** @type {HTMLInputElement} */ (document.getElementById("tick-all"));
  const selected = /** @type {HTMLElement} */ (document.getElementById("selected"));
  const compare = /** @type {HTMLButtonElement} */ (document.getElementById("compare"));
  const remove = /** @type {HTMLButtonElement} */ (document.getElementById("delete"));
  const hint = selected.textContent;
  const count = () => ticks.filter((tick) => tick.checked).length;

  const show = () => {
    const chosen = count();
    const text = chosen ? `${chosen} selected` : hint;
    if (selected.textContent !== text) selected.textContent = text;
    compare.disabled = chosen < 1 || chosen > LIMITS.maxCompared;
    compare.title = chosen > LIMITS.maxCompared ? `At most ${LIMITS.maxCompared} jobs can be compared` : "";
    remove.disabled = !chosen;
    all.checked = chosen === ticks.length;
    all.indeterminate = chosen > 0 && chosen < ticks.length;
  };

  const label = all.closest("label");
  if (label) label.hidden = false;
  all.addEventListener("change", () => {
    for (const tick of ticks) tick.checked = all.checked;
    show();
  });
  form.addEventListener("change", show);
  form.addEventListener("submit", (event) => {
    if (event.submitter !== remove) return;
    const chosen = count();
    const what = chosen === 1 ? "this job" : `these ${chosen} jobs`;
    if (!confirm(`Delete ${what}? This cannot be undone.`)) event.preventDefault();
  });
  addEventListener("pageshow", show);
  show();
}

// The shortcut "/" on another page leads here with #q.
if (location.hash === "#q") document.getElementById("q")?.focus();
