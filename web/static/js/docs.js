// @ts-check
// Copy buttons of the snippets.

for (const node of document.querySelectorAll(".js-copy")) {
  const button = /** @type {HTMLButtonElement} */ (node);
  const code = button.closest(".snippet")?.querySelector("pre");
  if (!code) continue;
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent ?? "");
    } catch {
      // Plain HTTP has no clipboard API: select the text and copy the selection.
      getSelection()?.selectAllChildren(code);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
}
