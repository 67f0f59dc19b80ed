"use strict";
/* The page of one sample: playheads over the pictures, lyrics that follow the song, texts to copy. */
const player = new Player(document.getElementById("player"));
const strips = [...document.querySelectorAll(".strip")];
const lyrics = document.getElementById("lyrics");
const words = [...lyrics.querySelectorAll("[data-start]")].map((element) => ({
  element, start: Number(element.dataset.start), end: Number(element.dataset.end),
}));
const box = lyrics.querySelector(".words");

function showLevel() {
  for (const strip of strips) strip.classList.toggle("current", strip.dataset.level === player.level);
}

function showTime() {
  const { moment, seconds } = player;
  for (const strip of strips) strip.style.setProperty("--played", seconds ? moment / seconds : 0);
  for (const word of words) {
    const sung = word.start <= moment && moment < word.end && (moment > 0 || player.playing);
    if (word.element.classList.toggle("sung", sung) && sung) keepInView(word.element);
  }
}

/* Scrolls the lyrics in their box, never the page under the reader. */
function keepInView(element) {
  const [inner, outer] = [element.getBoundingClientRect(), box.getBoundingClientRect()];
  if (inner.top < outer.top || inner.bottom > outer.bottom) box.scrollTop += inner.top - outer.top - box.clientHeight / 3;
}

async function copy(button) {
  const text = button.nextElementSibling;
  if (navigator.clipboard && isSecureContext) await navigator.clipboard.writeText(text.textContent);
  else {
    getSelection().selectAllChildren(text);
    document.execCommand("copy"); // the only way on a page that came over plain http
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

for (const bar of document.querySelectorAll(".bar")) {
  bar.addEventListener("click", (event) => {
    player.choose(bar.dataset.level);
    player.seek(share(event, bar) * player.seconds);
    player.play();
  });
}
for (const word of words) word.element.addEventListener("click", () => { player.seek(word.start); player.play(); });
for (const button of document.querySelectorAll(".copy")) button.addEventListener("click", () => copy(button));
player.addEventListener("change", showLevel);
player.addEventListener("time", showTime);
player.load(readJson("entry"));
