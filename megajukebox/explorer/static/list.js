"use strict";
/* The list of samples: filters it, and draws cards as they scroll into view. All text is set as text, never as HTML. */
const BATCH = 48; // cards drawn at once

const entries = readJson("entries");
const player = new Player(document.getElementById("player"));
const form = document.getElementById("filters");
const list = document.getElementById("samples");
const selects = [...form.querySelectorAll("select")];
const cards = new Map(); // entry -> its card, once drawn
let shown = entries;

function values(entry, field) {
  return [entry[field]].flat().filter((value) => value !== "" && value != null);
}

function offerChoices(select) {
  const counts = new Map();
  for (const entry of entries) for (const value of new Set(values(entry, select.name))) counts.set(value, (counts.get(value) ?? 0) + 1);
  for (const value of [...counts.keys()].sort((a, b) => a.localeCompare(b))) {
    select.add(new Option(`${value} (${counts.get(value)})`, value));
  }
}

function searchable(entry) {
  return [entry.title, entry.name, ...entry.genres, `seed ${entry.seed}`, entry.lyrics].join("\n").toLowerCase();
}

function filter() {
  const words = form.q.value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = selects.filter((select) => select.value !== "");
  shown = entries.filter((entry) =>
    wanted.every((select) => values(entry, select.name).includes(select.value)) &&
    words.every((word) => searchable(entry).includes(word)));
  document.getElementById("count").textContent =
    shown.length === entries.length ? `${entries.length}` : `${shown.length} of ${entries.length}`;
  document.getElementById("none").hidden = shown.length > 0;
  list.replaceChildren();
  drawMore();
}

function drawMore() {
  const next = shown.slice(list.children.length, list.children.length + BATCH);
  list.append(...next.map(cardOf));
}

function cardOf(entry) {
  if (!cards.has(entry)) cards.set(entry, drawCard(entry));
  return cards.get(entry);
}

function drawCard(entry) {
  const card = document.getElementById("card").content.firstElementChild.cloneNode(true);
  const part = (selector) => card.querySelector(selector);
  const link = part("h2 a");
  link.textContent = entry.title;
  link.href = entry.page;
  part(".genres").textContent = entry.genres.join(", ") || "no genre";
  part(".small").textContent = [
    `${entry.seconds.toFixed(1)} s`, entry.seed === null ? "" : `seed ${entry.seed}`, entry.name,
    entry.notes ? `${entry.notes} note${entry.notes > 1 ? "s" : ""}` : "",
  ].filter(Boolean).join(" · ");
  if (entry.picture) part("img").src = entry.picture;
  else part("img").remove();
  const play = part(".play");
  setPlaying(play, false, entry.title);
  play.hidden = Object.keys(entry.audio).length === 0;
  play.addEventListener("click", (event) => { event.stopPropagation(); listen(entry); });
  part(".picture").addEventListener("click", (event) => listen(entry, share(event, part(".picture"))));
  return card;
}

/* Plays a song, from a share of its length if one is given; the song that plays already is paused instead. */
function listen(entry, from) {
  if (player.song === entry && from === undefined) return player.toggle();
  player.load(entry);
  if (from !== undefined) player.seek(from * player.seconds);
  player.play();
}

function showPlaying() {
  for (const [entry, card] of cards) {
    card.classList.toggle("current", entry === player.song);
    setPlaying(card.querySelector(".play"), entry === player.song && player.playing, entry.title);
  }
}

function showTime() {
  const card = cards.get(player.song);
  if (card) card.style.setProperty("--played", player.seconds ? player.moment / player.seconds : 0);
}

/* The address carries the filters, so that a filtered list can be linked to: #artist=Ada&genres=waltz&q=rain */
function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  form.q.value = asked.get("q") ?? "";
  for (const select of selects) select.value = [...select.options].some((o) => o.value === asked.get(select.name)) ? asked.get(select.name) : "";
  filter();
}

function writeAddress() {
  const set = [form.q, ...selects].filter((field) => field.value).map((field) => [field.name, field.value]);
  history.replaceState(null, "", `#${new URLSearchParams(set)}`);
}

selects.forEach(offerChoices);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", () => { writeAddress(); filter(); });
form.addEventListener("reset", () => setTimeout(() => { writeAddress(); filter(); })); // after the fields are empty
window.addEventListener("hashchange", readAddress);
player.addEventListener("change", showPlaying);
player.addEventListener("time", showTime);
readAddress();

const end = document.createElement("div");
list.after(end);
new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && drawMore(), { rootMargin: "800px" }).observe(end);
