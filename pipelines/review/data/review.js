// The page works without this file: it adds the keys, and fetches the pictures of the next pair in advance.
"use strict";

let busy = false;

document.addEventListener("submit", (event) => {
  if (busy) { event.preventDefault(); return; }
  busy = true;
  document.body.classList.add("busy");
});

// A page that comes back from the browser's memory can be used again.
window.addEventListener("pageshow", () => {
  busy = false;
  document.body.classList.remove("busy");
});

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
  if (event.target.matches("input, textarea, select")) return;
  const key = event.key.toLowerCase();
  for (const button of document.querySelectorAll("button[data-keys]")) {
    if (!button.disabled && button.dataset.keys.split(" ").includes(key)) {
      event.preventDefault();
      button.click();
      return;
    }
  }
});

window.addEventListener("load", () => {
  const ahead = document.body.dataset.ahead;
  if (!ahead) return;
  for (const which of ["photo", "crop"]) new Image().src = `pairs/${ahead}/${which}.jpg`;
});
