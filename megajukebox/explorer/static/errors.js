"use strict";
/* Shows any error of the page's scripts to the reader; a silent page helps nobody. Loaded before all others. */
function showError(message) {
  const place = document.getElementById("error");
  if (!place) return document.addEventListener("DOMContentLoaded", () => showError(message), { once: true });
  place.hidden = false;
  place.textContent = `This page has a fault: ${message}`;
}
window.addEventListener("error", (event) => showError(event.message));
window.addEventListener("unhandledrejection", (event) => showError(String(event.reason)));
