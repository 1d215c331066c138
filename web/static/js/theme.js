// @ts-check
// A classic script in the head: it sets the theme before the first paint.
"use strict";
(() => {
  const order = ["system", "light", "dark"];
  const root = document.documentElement;
  root.classList.add("js");
  let theme = "system";
  try {
    theme = localStorage.getItem("textmill.theme") ?? "system";
  } catch {
    // Storage is blocked; the theme is the system's.
  }
  if (!order.includes(theme)) theme = "system";
  root.dataset.theme = theme;
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme-toggle");
    const label = document.getElementById("theme-label");
    if (!button || !label) return;
    const show = () => {
      label.textContent = `Theme: ${theme}`;
      button.title = `Theme: ${theme}`;
    };
    show();
    button.hidden = false;
    button.addEventListener("click", () => {
      theme = order[(order.indexOf(theme) + 1) % order.length] ?? "system";
      root.dataset.theme = theme;
      try {
        localStorage.setItem("textmill.theme", theme);
      } catch {
        // Storage is blocked; the choice lasts for this page.
      }
      show();
    });
  });
})();
