// @ts-check
// Selecting in the history: how many, all at once, and a question before they are deleted.

const form = document.getElementById("selection");
if (form instanceof HTMLFormElement) {
  const ticks = [...form.querySelectorAll('input[name="id"]')].map(
    (node) => /** @type {HTMLInputElement} */ (node),
  );
  const all = /** @type {HTMLInputElement} */ (document.getElementById("tick-all"));
  const words = /** @type {HTMLElement} */ (document.getElementById("selected"));
  const compare = /** @type {HTMLButtonElement} */ (document.getElementById("compare"));
  const remove = /** @type {HTMLButtonElement} */ (document.getElementById("delete"));
  const hint = words.textContent;
  const MAX_COMPARED = 12;
  const count = () => ticks.filter((tick) => tick.checked).length;

  const show = () => {
    const chosen = count();
    const text = chosen ? `${chosen} selected` : hint;
    if (words.textContent !== text) words.textContent = text;
    compare.disabled = chosen < 1 || chosen > MAX_COMPARED;
    compare.title = chosen > MAX_COMPARED ? `At most ${MAX_COMPARED} can be compared` : "";
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
    const what = chosen === 1 ? "this text" : `these ${chosen} texts`;
    if (!confirm(`Delete ${what}? This cannot be undone.`)) event.preventDefault();
  });
  addEventListener("pageshow", show);
  show();
}

// "/" on another page leads here with #q.
if (location.hash === "#q") document.getElementById("q")?.focus();
