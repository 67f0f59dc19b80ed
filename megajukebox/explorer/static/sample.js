"use strict";
/* The page of one sample: pictures that can be played from, lyrics that follow the song. */
const entry = readJson("entry");
const player = new Player(document.getElementById("player"));
const strips = new Strips(player);
const lyrics = document.getElementById("lyrics");
const words = [...lyrics.querySelectorAll("[data-start]")].map((element) => ({
  element, start: Number(element.dataset.start), end: Number(element.dataset.end),
}));
const box = lyrics.querySelector(".words");

function showWords() {
  const { moment, playing } = player;
  for (const word of words) {
    const sung = word.start <= moment && moment < word.end && (moment > 0 || playing);
    word.element.classList.toggle("past", word.end <= moment);
    if (word.element.classList.toggle("sung", sung) && sung) keepInView(word.element);
  }
}

/* Scrolls the lyrics in their box, never the page under the reader. */
function keepInView(element) {
  const [inner, outer] = [element.getBoundingClientRect(), box.getBoundingClientRect()];
  if (inner.top < outer.top || inner.bottom > outer.bottom) box.scrollTop += inner.top - outer.top - box.clientHeight / 3;
}

for (const word of words) word.element.addEventListener("click", () => { player.seek(word.start); player.play(); });
document.getElementById("compare")?.addEventListener("click", () => {
  location.href = `${root}compare.html#${new URLSearchParams({ a: entry.name })}`;
});
for (const [track, url] of Object.entries(entry.peaks ?? {})) {
  const name = decodeURIComponent(url).split("/").at(-1).replace(/\.js$/, "");
  strips.draw(track, data.get(name), entry.seconds);
}
player.addEventListener("time", showWords);
player.load({ ...entry, page: null });
