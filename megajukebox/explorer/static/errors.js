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

/* Data comes as scripts that call this: a page opened from disk may load scripts, but no JSON. */
const data = new Map();
function take(name, text) { data.set(name, JSON.parse(text)); }
