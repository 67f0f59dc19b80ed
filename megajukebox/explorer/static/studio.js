"use strict";
/* The Studio: sends the form, uploads a recording first if there is one, and follows the queue. */
const POLL = 1000; // ms between looks at the queue
const form = document.getElementById("song");
const find = (id) => document.getElementById(id);
const drawn = new Map(); // id of a song -> its element and what it shows
let limits = null;
let upload = null; // the server's answer to the recording

async function open() {
  if (!SERVED?.studio) return find("unserved").hidden = false;
  find("unserved").hidden = true;
  limits = await ask("studio");
  find("run").textContent = limits.run;
  find("artists").append(...limits.artists.map((name) => new Option(name, name)));
  find("genre-names").append(...limits.genres.map((name) => new Option(name, name)));
  form.sampler.append(...limits.samplers.map((name) => new Option(name, name)));
  form.seconds.max = limits.seconds;
  form.lyrics.maxLength = limits.lyrics;
  find("upload").textContent = `At most ${limits.upload_mb} MB and ${limits.upload_seconds} seconds.`;
  form.hidden = find("queue").hidden = false;
  follow();
}

async function send(event) {
  event.preventDefault();
  find("trouble").textContent = "";
  const number = (field) => (field.value === "" ? null : Number(field.value));
  const song = {
    artist: form.artist.value.trim() || null, genres: form.genres.value.split(",").map((one) => one.trim()).filter(Boolean),
    lyrics: form.lyrics.value, seconds: number(form.seconds), seed: number(form.seed), temperature: number(form.temperature),
    sampler: form.sampler.value, upload: upload?.id ?? null, prime_seconds: upload ? number(form.prime_seconds) : null,
  };
  try {
    await ask("songs", song);
    form.seed.value = Number(form.seed.value) + 1;
    await show();
  } catch (error) {
    find("trouble").textContent = error.message;
  }
}

async function sendRecording() {
  upload = null;
  const [file] = form.recording.files;
  if (!file) return;
  find("upload").textContent = `Reading ${file.name} …`;
  try {
    upload = await ask("uploads", file.slice(0, file.size, "application/octet-stream"));
    find("upload").textContent = `${file.name}: ${upload.seconds.toFixed(1)} s`;
    form.prime_seconds.value = Math.min(upload.seconds, Math.max(1, form.seconds.value / 2)).toFixed(1);
  } catch (error) {
    form.recording.value = "";
    find("upload").textContent = error.message;
  }
}

async function follow() {
  try {
    await show();
    find("trouble").textContent = "";
  } catch (error) {
    find("trouble").textContent = `The server does not answer: ${error.message}`;
  }
  setTimeout(follow, POLL);
}

async function show() {
  const { songs, model } = await ask("songs");
  find("model").textContent = about(model);
  for (const song of songs) showSong(song);
  const order = songs.map((song) => drawn.get(song.id).element);
  if (order.some((element, n) => find("jobs").children[n] !== element)) find("jobs").replaceChildren(...order);
  if (!songs.length) find("jobs").replaceChildren(make("li", "None yet.", { class: "small" }));
}

/* Whether the model is there already, what it takes, and until when. */
function about(model) {
  if (!model.loaded) return "The model is not loaded: the first song waits for it.";
  const gigabytes = (bytes) => `${(bytes / 1e9).toFixed(2)} GB`;
  const gpu = model.gpu_memory ? ` and ${gigabytes(model.gpu_memory)} of the GPU` : "";
  const takes = model.memory ? ` (${gigabytes(model.memory)} of memory${gpu})` : "";
  return `The model is loaded${takes}. Without a song it is unloaded after ${model.idle_minutes} minutes.`;
}

/* Draws a song anew only when something of it changed: a player in it must not lose its place. */
function showSong(song) {
  const text = JSON.stringify(song);
  const before = drawn.get(song.id);
  if (before?.text === text) return;
  const element = before?.element ?? make("li", "", { class: "job", "data-id": song.id });
  drawn.set(song.id, { element, text });
  const head = make("div", "", { class: "row" });
  head.append(make("strong", song.title), make("span", song.state, { class: "small" }));
  element.replaceChildren(head, make("p", song.about, { class: "small" }), ...body(song));
}

function body(song) {
  if (song.state === "queued" || song.state === "generating") {
    const bar = make("progress", "", { max: 1, value: song.state === "generating" ? song.share : 0, "aria-label": "Progress" });
    const row = make("div", "", { class: "row" });
    const cancel = make("button", "Cancel", { type: "button", class: "plain" });
    cancel.addEventListener("click", () => ask(`songs/${song.id}/cancel`, {}).then(show, (error) => { find("trouble").textContent = error.message; }));
    row.append(make("span", song.doing, { class: "small" }), cancel);
    return [bar, row];
  }
  if (song.state === "done") {
    const link = make("a", "Open", { href: song.page });
    const audio = make("audio", "", { controls: "", preload: "none", src: song.audio });
    return [audio, link];
  }
  return [make("p", song.reason, { class: "small" })];
}

form.addEventListener("submit", send);
form.recording.addEventListener("change", sendRecording);
open();
