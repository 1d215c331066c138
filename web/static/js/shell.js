// @ts-check
// Keyboard shortcuts of every page.

/** @param {EventTarget | null} target */
const isTyping = (target) =>
  target instanceof HTMLElement &&
  (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
  if (event.key === "?") {
    const dialog = document.getElementById("shortcuts");
    if (dialog instanceof HTMLDialogElement && !dialog.open) {
      event.preventDefault();
      dialog.showModal();
    }
  } else if (event.key === "/") {
    if (document.querySelector("dialog[open]")) return;
    event.preventDefault();
    const field = document.querySelector('input[type="search"], #prompt');
    if (field instanceof HTMLElement) field.focus();
    else location.assign("/history#q");
  }
});

export {};
