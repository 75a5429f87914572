// Sets the theme before anything is drawn; a module would come too late.
"use strict";
(() => {
  let theme = "";
  try {
    theme = localStorage.getItem("pronghorn.theme") ?? "";
  } catch {
    // Storage is switched off: the system's theme it is.
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
