// @ts-check
// Keyboard shortcuts on every page.

import { sitePath } from "./paths.js";

/** @param {EventTarget | null} target */
const isTyping = (target) =>
  target instanceof HTMLElement &&
  (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));

const showShortcuts = () => {
  const dialog = document.getElementById("shortcuts");
  if (dialog instanceof HTMLDialogElement && !dialog.open) dialog.showModal();
};
const opener = document.getElementById("shortcuts-open");
if (opener) {
  opener.hidden = false;
  opener.addEventListener("click", showShortcuts);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
  if (event.key === "?") {
    event.preventDefault();
    showShortcuts();
  } else if (event.key === "/") {
    if (document.querySelector("dialog[open]")) return;
    event.preventDefault();
    const field = document.querySelector('input[type="search"], #prompt');
    if (field instanceof HTMLElement) field.focus();
    else location.assign(sitePath("/history#q"));
  }
});

export {};
