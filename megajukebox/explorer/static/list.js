"use strict";
/* The list of samples: filters it, and holds only the cards that are in view. All text is set as text, never as HTML. */
const SPARE = 2; // rows drawn above and below the window

const source = readJson("list").data; // "entries", the samples, or "corpus"
const entries = data.get(source);
const player = new Player(document.getElementById("player"));
const form = document.getElementById("filters");
const list = document.getElementById("samples");
const selects = [...form.querySelectorAll(".fields select")].filter((select) => select.name !== "order");
const fields = [form.q, form.seed, form.order, ...selects].filter(Boolean);
const cards = new Map(); // place in `shown` -> card
const picked = [];
let haystacks = entries.map((entry) => searchable(entry));
let shown = entries;
let at = -1; // the card that the keys are at
let grid = { columns: 1, height: 1 };

/* ---- What is shown. */
function filter() {
  const words = form.q.value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = selects.filter((select) => select.value !== "");
  const seed = form.seed?.value.trim() ?? "";
  const fits = (entry, n, but) =>
    (seed === "" || entry.seed === seed) &&
    wanted.every((select) => select === but || values(entry, select.name).includes(select.value)) &&
    words.every((word) => haystacks[n].includes(word));
  shown = entries.filter((entry, n) => fits(entry, n));
  if (form.order.value) shown.sort(orders[form.order.value]);
  // How many there would be, had this field another value: the counts beside the choices.
  for (const select of selects) offer(select, counted(entries.filter((entry, n) => fits(entry, n, select)), select.name), new Option("all", ""));
  document.getElementById("count").textContent =
    shown.length === entries.length ? `${entries.length}` : `${shown.length} of ${entries.length}`;
  document.getElementById("none").hidden = shown.length > 0 || !entries.length;
  at = -1;
  clear();
  draw();
}

function clear() {
  for (const card of cards.values()) card.remove();
  cards.clear();
}

/* ---- Cards: all of one height, so that the place of every one is known without drawing it. */
function measure() {
  const style = getComputedStyle(list);
  const [least, gap, height] = ["--card-width", "--card-gap", "--card-height"].map((name) => parseFloat(style.getPropertyValue(name)));
  const columns = Math.max(1, Math.floor((list.clientWidth + gap) / (least + gap)));
  grid = { columns, gap, height: height + gap, width: (list.clientWidth + gap) / columns };
}

function draw() {
  const rows = Math.ceil(shown.length / grid.columns);
  list.style.height = `${Math.max(0, rows * grid.height - grid.gap)}px`;
  const top = -list.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor(top / grid.height) - SPARE) * grid.columns;
  const last = Math.min(shown.length, (Math.ceil((top + innerHeight) / grid.height) + SPARE) * grid.columns);
  for (const [place, card] of cards) {
    if ((place < first || place >= last) && !card.contains(document.activeElement)) { card.remove(); cards.delete(place); }
  }
  for (let place = first; place < last; place += 1) if (!cards.has(place)) add(place);
}

function add(place) {
  const card = cardOf(shown[place]);
  const [row, column] = [Math.floor(place / grid.columns), place % grid.columns];
  card.style.transform = `translate(${column * grid.width}px, ${row * grid.height}px)`;
  card.style.width = `${grid.width - grid.gap}px`;
  card.setAttribute("aria-posinset", place + 1);
  card.setAttribute("aria-setsize", shown.length);
  cards.set(place, card);
  const after = [...list.children].find((other) => Number(other.getAttribute("aria-posinset")) > place + 1);
  list.insertBefore(card, after ?? null); // in order, for the tab key and screen readers
  showOne(place, card);
}

function cardOf(entry) {
  const card = document.getElementById("card").content.firstElementChild.cloneNode(true);
  const part = (selector) => card.querySelector(selector);
  const link = part("h2 a");
  link.textContent = entry.title;
  link.href = entry.page;
  part(".genres").textContent = [...(entry.genres ?? []), entry.year, ...(entry.moods ?? [])].filter(Boolean).join(", ") || "no genre";
  part(".small").textContent = [
    `${entry.seconds.toFixed(1)} s`, entry.seed === undefined ? "" : `seed ${entry.seed}`, entry.checkpoint,
    entry.sampler === "autoregressive" ? "" : entry.sampler, entry.name, entry.notes ? `${entry.notes} note${entry.notes > 1 ? "s" : ""}` : "",
  ].filter(Boolean).join(" · ");
  if (entry.picture) part("img").src = entry.picture;
  else part("img").remove();
  part(".flags").append(...(entry.findings ?? []).map((finding) => make("span", finding, { class: "flag" })));
  const play = part(".play");
  play.hidden = !entry.levels;
  play.addEventListener("click", (event) => { event.stopPropagation(); listen(entry); });
  part(".picture").addEventListener("click", (event) => listen(entry, share(event, part(".picture"))));
  part(".pick").hidden = source !== "entries";
  part(".pick").addEventListener("click", () => pick(entry));
  return card;
}

function showOne(place, card) {
  const entry = shown[place];
  const current = entry === player.song;
  card.classList.toggle("current", current);
  card.classList.toggle("at", place === at);
  card.querySelector(".pick").setAttribute("aria-pressed", String(picked.includes(entry)));
  setPlaying(card.querySelector(".play"), current && player.playing, entry.title);
  if (current) card.style.setProperty("--played", player.seconds ? player.moment / player.seconds : 0);
}

function showAll() { for (const [place, card] of cards) showOne(place, card); }

/* ---- Listening. */

/* Plays a song, from a share of its length if one is given; the song that plays already is paused instead. */
function listen(entry, from) {
  if (!entry.levels) return;
  if (player.song === entry && from === undefined) return player.toggle();
  player.load(entry);
  if (from !== undefined) player.seek(from * player.seconds);
  player.play();
}

function showTime() {
  for (const [place, card] of cards) if (shown[place] === player.song) showOne(place, card);
}

/* ---- Comparing: two picks, then the page that shows both. */
function pick(entry) {
  const place = picked.indexOf(entry);
  if (place >= 0) picked.splice(place, 1);
  else picked.push(entry);
  if (picked.length > 2) picked.shift();
  showPicked();
}

function showPicked() {
  const bar = document.getElementById("chosen");
  bar.hidden = picked.length === 0;
  document.body.classList.toggle("choosing", picked.length > 0);
  bar.querySelector("span").textContent = picked.length === 1 ? `${picked[0].title}: choose one more` : picked.map((entry) => entry.title).join(" and ");
  bar.querySelector("a").hidden = picked.length < 2;
  bar.querySelector("a").href = `compare.html#${new URLSearchParams(picked.map((entry, n) => ["ab"[n], entry.name]))}`;
  showAll();
}

document.querySelector("#chosen button").addEventListener("click", () => { picked.length = 0; showPicked(); });

/* ---- Keys walk from card to card. */
function goTo(place) {
  if (!shown.length) return;
  at = Math.min(Math.max(place, 0), shown.length - 1);
  const y = list.getBoundingClientRect().top + scrollY + Math.floor(at / grid.columns) * grid.height;
  if (y < scrollY + 20 || y + grid.height > scrollY + innerHeight - 100) scrollTo({ top: y - innerHeight / 3, behavior: "instant" });
  draw();
  showAll();
}

keys.set("j", () => goTo(at + 1));
keys.set("k", () => goTo(at - 1));
keys.set("Enter", () => { if (shown[at]) location.href = shown[at].page; });
keys.set("c", () => { if (shown[at] && source === "entries") pick(shown[at]); });
keys.set("/", () => form.q.focus());
keys.set(" ", () => (shown[at] && (shown[at] !== player.song || !player.playing) ? listen(shown[at]) : player.toggle()));

/* ---- The address carries the filters, so that a filtered list can be linked to: #artist=Ada&genres=waltz&q=rain */
function readAddress() {
  const address = new URLSearchParams(location.hash.slice(1));
  for (const field of fields) {
    const value = address.get(field.name) ?? "";
    if (field.options && ![...field.options].some((option) => option.value === value)) field.add(new Option(value, value));
    field.value = value;
  }
  if (selects.some((select) => select.value)) showFields(true);
  filter();
}

function writeAddress() {
  const set = fields.filter((field) => field.value).map((field) => [field.name, field.value]);
  history.replaceState(null, "", `#${new URLSearchParams(set)}`);
}

function showFields(open) {
  form.classList.toggle("open", open);
  document.getElementById("more").setAttribute("aria-expanded", String(open));
}

for (const select of selects) {
  const counts = counted(entries, select.name);
  offer(select, counts, new Option("all", ""));
  const all = counts.length === 1 && counts[0][1] === entries.length; // one value of all leaves nothing to choose
  select.closest("label").hidden = !counts.length || all;
}
document.getElementById("more").addEventListener("click", () => showFields(!form.classList.contains("open")));
form.addEventListener("submit", (event) => event.preventDefault());
form.q.addEventListener("keydown", (event) => { if (event.key === "Escape") form.q.blur(); });
form.addEventListener("input", () => { writeAddress(); filter(); });
form.addEventListener("reset", () => setTimeout(() => { writeAddress(); filter(); })); // after the fields are empty
addEventListener("hashchange", readAddress);
addEventListener("scroll", () => draw(), { passive: true });
new ResizeObserver(() => {
  const before = grid.width;
  measure();
  if (grid.width !== before) clear();
  draw();
}).observe(list);
addEventListener("resize", () => draw());
player.addEventListener("change", showAll);
player.addEventListener("time", showTime);
list.classList.toggle("low", source === "corpus" && !entries.some((entry) => entry.findings)); // no third row is needed
measure();
readAddress();
performance.mark("drawn"); // what benchmarks/explorer.py waits for

/* Lyrics can be as long as all the rest: they come after the first cards, for the search alone. */
requestAnimationFrame(() => setTimeout(async () => {
  await load(`${source}-words.js`);
  const words = data.get(`${source}-words`);
  haystacks = entries.map((entry, n) => searchable(entry, words[n]));
  if (form.q.value) filter();
  document.body.dataset.words = "loaded";
}));
