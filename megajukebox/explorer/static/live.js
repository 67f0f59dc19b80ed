"use strict";
/* A page of a run that lives loads itself again, but not while somebody listens to it, types in it, or points at it. */
const EVERY = 30; // seconds

function busy() {
  const listening = [...document.querySelectorAll("audio")].some((audio) => !audio.paused);
  const choosing = document.activeElement && document.activeElement.matches("select, input");
  return listening || choosing || document.hidden || String(getSelection()) !== "";
}

if (document.querySelector("[data-live]")) {
  setInterval(() => { if (!busy()) location.reload(); }, EVERY * 1000);
}
