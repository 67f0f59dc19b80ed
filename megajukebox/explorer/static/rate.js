"use strict";
/* Ratings: the server numbers the recordings of a clip in an order of this listener's own, and names them afterwards. */
const player = new Player(document.getElementById("player"));
const form = document.getElementById("chosen-conditions");
const find = (id) => document.getElementById(id);
const WORDS = ["bad", "poor", "fair", "good", "excellent"]; // of each fifth of the scale
const SHORTEST_LOOP = 0.5; // seconds
const STEP = 1; // of a score that an arrow key moves
let test = null;
let conditions = [];
const heard = new Set();
const rated = new Set();

/* The name that this browser made up once, also for its votes. */
function listener() {
  const made = crypto.getRandomValues(new Uint32Array(4)).join("-").slice(0, 40);
  try {
    const kept = localStorage.getItem("voter") ?? made;
    localStorage.setItem("voter", kept);
    return kept;
  } catch { return made; } // storage may be forbidden: then one listener for each page that is loaded
}
const NAME = listener();

function say(text) {
  find("say").textContent = text;
  find("say").hidden = !text;
}

function row(number) { return document.querySelector(`.stimulus[data-number="${number}"]`); }
function numbers() { return test ? Object.keys(test.audio).filter((track) => track !== "Reference") : []; }
function words(score) { return WORDS[Math.min(Math.floor(score / 20), 4)]; }

/* A score counts once it was moved or confirmed, and its recording was heard. */
function showScore(number) {
  const slider = row(number).querySelector("input");
  const known = rated.has(number);
  row(number).querySelector("output").textContent = known ? slider.value : "–";
  row(number).classList.toggle("rated", known);
  slider.setAttribute("aria-valuetext", known ? `${slider.value}, ${words(slider.value)}` : "not rated");
  slider.disabled = !heard.has(number);
  const missing = numbers().filter((one) => !rated.has(one)).length;
  find("done").disabled = !test || missing > 0;
  find("done").textContent = missing ? `Keep ratings (${missing} to go)` : "Keep ratings";
}

function setScore(number, score) {
  if (!heard.has(number)) return;
  row(number).querySelector("input").value = score;
  rated.add(number);
  showScore(number);
}

function listen(track) {
  if (!test?.audio[track]) return;
  const { playing } = player;
  player.choose(track);
  if (!playing) player.play();
  else showHeard();
}

/* What plays counts as heard. */
function showHeard() {
  if (player.playing && player.track !== "Reference" && !heard.has(player.track)) {
    heard.add(player.track);
    showScore(player.track);
  }
  for (const button of document.querySelectorAll("[data-listen]")) {
    const current = button.dataset.listen === player.track;
    button.setAttribute("aria-pressed", String(current));
    button.closest(".stimulus")?.classList.toggle("current", current);
  }
}

/* ---- The loop: a region that plays again and again, the same for all recordings. */
function loop() { return [Number(find("loop-start").value), Number(find("loop-end").value)]; }

function setLoop(start, end) {
  const seconds = test?.seconds ?? 1;
  start = Math.max(0, Math.min(start, seconds - SHORTEST_LOOP));
  end = Math.min(seconds, Math.max(end, start + SHORTEST_LOOP));
  find("loop-start").value = start;
  find("loop-end").value = end;
  find("loop-shown").textContent = `${start.toFixed(1)} to ${end.toFixed(1)} s`;
  for (const id of ["loop-start", "loop-end"]) find(id).setAttribute("aria-valuetext", `${Number(find(id).value).toFixed(1)} seconds`);
}

function keepInLoop() {
  const [start, end] = loop();
  if (player.playing && (player.moment >= end || player.moment < start - 0.2)) player.seek(start);
}

/* ---- Tests. */
async function next() {
  test = null;
  const chosen = [...form.querySelectorAll("input:checked")].map((box) => box.value);
  const given = await ask("tests", { conditions: chosen, listener: NAME }).catch((error) => ({ refused: error.message }));
  find("test").hidden = Boolean(given.refused);
  say(given.refused ?? "");
  if (given.refused) return;
  test = given;
  heard.clear();
  rated.clear();
  const left = given.clips - given.rated;
  find("about").textContent = left ? `Clip ${given.rated + 1} of ${given.clips}. Listen to all, then rate each: 100 where you hear no difference.` : "You rated all clips. Rated again, the last ratings count.";
  for (const element of document.querySelectorAll(".stimulus")) element.hidden = !given.audio[element.dataset.number];
  player.load({ title: "Which is the reference?", seconds: given.seconds, audio: given.audio, gain: equallyLoud(given.db) });
  player.choose("Reference");
  for (const id of ["loop-start", "loop-end"]) find(id).max = given.seconds;
  setLoop(0, given.seconds);
  for (const number of numbers()) {
    row(number).querySelector("input").value = 50;
    showScore(number);
  }
  showHeard();
}

async function keep() {
  if (!test || find("done").disabled) return;
  const scores = Object.fromEntries(numbers().map((number) => [number, Number(row(number).querySelector("input").value)]));
  find("done").disabled = true;
  player.audio.pause();
  try {
    const names = await ask("ratings", { test: test.id, scores });
    find("reveal").textContent = `Last clip: ${Object.entries(names).map(([number, name]) => `${number} was ${name} (${scores[number]})`).join(", ")}.`;
    await showResults();
    await next();
  } catch (error) {
    say(error.message);
  }
}

/* ---- Results. */
function interval(score, lowest) {
  const span = 100 - lowest;
  const place = (value) => (value - lowest) / span;
  const bar = make("div", "", { class: "interval plain-scale", "aria-hidden": "true" });
  bar.style.setProperty("--share", place(score.mean));
  bar.style.setProperty("--low", place(score.low ?? score.mean));
  bar.style.setProperty("--high", place(score.high ?? score.mean));
  bar.append(make("i"), make("b"));
  return bar;
}

function lines(scores, lowest) {
  const table = make("div", "", { class: "tally ratings" });
  for (const score of scores) {
    const range = score.low === null ? "one rating" : `${score.low.toFixed(1)} to ${score.high.toFixed(1)}`;
    const people = score.listeners === 1 ? "1 listener" : `${score.listeners} listeners`;
    table.append(make("span", score.name), interval(score, lowest), make("span", `${score.mean.toFixed(1)} (${range}), ${people}, ${score.ratings} ratings`));
  }
  return table;
}

async function showResults() {
  const given = await ask("ratings");
  ({ conditions } = given);
  const parts = [];
  if (given.ratings) {
    parts.push(make("p", "Mean and 95 % interval over listeners; of a single listener over clips.", { class: "small" }), lines(given.scores, 0));
    if (given.differences.length) parts.push(make("h3", "Differences, clip by clip"), lines(given.differences, -100));
  } else parts.push(make("p", "None yet.", { class: "small" }));
  if (given.apart.length) {
    parts.push(make("h3", "Apart: listeners who missed the original or the anchor"), make("p", given.reasons.join("; "), { class: "small" }), lines(given.apart, 0));
  }
  if (given.skipped) parts.push(make("p", `${given.skipped} lines of the ratings file could not be read.`, { class: "small" }));
  find("results").replaceChildren(...parts);
  return given;
}

async function start() {
  if (!SERVED) return;
  const given = await showResults().catch((error) => ({ refused: error.message }));
  if (given.refused) return say(given.refused);
  find("unserved").hidden = given.clips > 0;
  form.hidden = !given.clips;
  if (!given.clips) return say("There are no reconstructions of real songs here, with their originals, of a minute at most.");
  const boxes = conditions.map((name, index) => {
    const label = make("label", "");
    const box = make("input", "", { type: "checkbox", value: name });
    box.checked = index < given.most;
    label.append(box, make("span", name));
    return label;
  });
  find("conditions").replaceChildren(...boxes);
  await next();
}

for (const button of document.querySelectorAll("[data-listen]")) button.addEventListener("click", () => listen(button.dataset.listen));
for (const slider of document.querySelectorAll("[data-score]")) slider.addEventListener("input", () => setScore(slider.dataset.score, slider.value));
// An arrow key on a slider moves that slider, not the song or the rating of what plays.
for (const slider of document.querySelectorAll("[data-score], .loop input")) {
  slider.addEventListener("keydown", (event) => { if (event.key.startsWith("Arrow")) event.stopPropagation(); });
}
find("loop-start").addEventListener("input", () => setLoop(loop()[0], Math.max(loop()[1], loop()[0] + SHORTEST_LOOP)));
find("loop-end").addEventListener("input", () => setLoop(Math.min(loop()[0], loop()[1] - SHORTEST_LOOP), loop()[1]));
find("done").addEventListener("click", keep);
form.addEventListener("submit", (event) => { event.preventDefault(); next(); });
player.addEventListener("change", showHeard);
player.addEventListener("time", keepInLoop);
for (let number = 1; number <= 9; number += 1) keys.set(String(number), () => listen(String(number)));
keys.set("r", () => listen("Reference"));
keys.set("[", () => setLoop(player.moment, Math.max(loop()[1], player.moment + SHORTEST_LOOP)));
keys.set("]", () => setLoop(Math.min(loop()[0], player.moment - SHORTEST_LOOP), player.moment));
for (const [key, change] of [["ArrowUp", STEP], ["ArrowDown", -STEP]]) {
  keys.set(key, () => {
    const slider = row(player.track)?.querySelector("input");
    if (slider) setScore(player.track, Math.min(100, Math.max(0, Number(slider.value) + change)));
  });
}
for (const audio of Object.values(player.audios)) {
  audio.addEventListener("ended", () => { if (audio === player.audio && test) { player.seek(loop()[0]); player.play(); } });
}
find("results").replaceChildren(make("p", SERVED ? "" : "They are counted by the server.", { class: "small" }));
start();
