"use strict";
/* The page Draw: the piece, its roll, its list, its sound; and what the server does: harmonise, save, open. */
const find = (id) => document.getElementById(id);
const setup = find("setup");
const penForm = find("pen");
const askForm = find("ask");
const KEPT = "drawn"; // where the browser keeps the piece, so that a reload loses nothing
const VARIATIONS = 8; // drawn by the composer; the best
const ANSWERS = 3; // of them are shown
const NEXT_SEED = VARIATIONS;
const FIGURES = {
  parallel_fifths_per_100_chords: "parallel fifths in 100 chords",
  parallel_octaves_per_100_chords: "parallel octaves in 100 chords",
  crossed_percent: "% crossed voices",
  triad_percent: "% triads on beats",
};

const piece = new DrawnPiece();
const sound = new DrawnSound();
const pen = () => ({ voice: Number(penForm.voice.value), length: Number(penForm.duration.value) });
const say = (text) => { find("said").textContent = text; };
const hear = (note) => sound.hear(setup.sound.value, note);
const roll = find("roll");
const editor = new RollEditor(roll, piece, pen, say, hear);
let heard = null; // {svg, button} of what plays
let served_draw = null; // what the server can do

/* ---- The piece. */
function show() {
  const { bars, metre, key, bpm } = piece.state;
  setup.bars.value = bars;
  setup.metre.value = metre.join("/");
  if (setup.key.value !== key) setup.key.value = key;
  setup.bpm.value = bpm;
  for (const name of ["first", "last"]) {
    askForm[name].max = bars;
    askForm[name].value = Math.min(askForm[name].value || 1, bars);
  }
  find("undo").disabled = !piece.past.length;
  find("redo").disabled = !piece.future.length;
  editor.show();
  list();
  try { localStorage.setItem(KEPT, JSON.stringify(piece.state)); } catch { /* storage may be forbidden */ }
}

/* What the browser kept, if it is a piece: other versions of the page, and other hands, may have written it. */
function restore() {
  try {
    const { notes, bars, metre, bpm, key } = JSON.parse(localStorage.getItem(KEPT));
    const whole = (number) => Number.isInteger(number) && number >= 0;
    const fine = notes.every((note) => note.length === 4 && note.every(whole) && note[1] > 0 && note[2] < 128 && note[3] < 4);
    const known = [...setup.metre.options].some((one) => one.value === metre.join("/"));
    if (fine && known && bars >= 1 && bars <= setup.bars.length && bpm > 0 && typeof key === "string") piece.change({ notes, bars, metre, bpm, key });
  } catch { /* then the page begins empty */ }
  piece.past = [];
}

function option(label, value, chosen) { return new Option(label, value, false, chosen); }

/* The notes of the chosen voice, each a row of fields. */
function list() {
  if (!find("as-list").open) return;
  const { voice } = pen();
  const focused = document.activeElement?.dataset.field;
  find("rows").replaceChildren(...piece.voice(voice).map((note, number) => row(note, number)));
  if (focused) document.querySelector(`[data-field="${focused}"]`)?.focus();
}

function row(note, number) {
  const [onset, length, pitch, voice] = note;
  const { bar, beat } = piece.place(onset);
  const [low, high] = RANGES[voice];
  const name = `Note ${number + 1}`;
  const bars = make("input", "", { type: "number", min: 1, max: piece.state.bars, value: bar });
  const beats = make("input", "", { type: "number", min: 1, step: 0.25, max: piece.state.metre[0] + 0.75, value: beat });
  const pitches = make("select");
  for (let one = Math.max(Math.min(low - 5, pitch), 0); one <= Math.max(high + 5, pitch); one += 1) pitches.append(option(piece.pitchName(one), one, one === pitch));
  const lengths = make("select");
  const known = [...penForm.duration.options].map((one) => Number(one.value));
  for (const ticks of known.includes(length) ? known : [length, ...known]) lengths.append(option(lengthName(ticks), ticks, ticks === length));
  const remove = make("button", "Remove", { type: "button", class: "plain" });
  const fields = { bar: bars, beat: beats, pitch: pitches, length: lengths };
  for (const [field, element] of Object.entries(fields)) {
    element.setAttribute("aria-label", `${name}: ${field}`);
    element.dataset.field = `${number}-${field}`;
    element.addEventListener("change", () => {
      const tick = (Number(bars.value) - 1) * piece.barTicks + Math.round((Number(beats.value) - 1) * piece.beatTicks);
      const start = Math.min(Math.max(tick, 0), piece.length - TICKS.step);
      const long = Math.min(Number(lengths.value), piece.length - start);
      const changed = [start, long, Number(pitches.value), voice];
      piece.set(changed, false, note);
      hear(changed);
      say(piece.describe(changed));
    });
  }
  remove.setAttribute("aria-label", `Remove ${name.toLowerCase()}`);
  remove.addEventListener("click", () => { piece.remove(note); say(`Removed: ${piece.describe(note)}`); });
  const cells = make("tr");
  for (const element of [...Object.values(fields), remove]) {
    const cell = make("td");
    cell.append(element);
    cells.append(cell);
  }
  return cells;
}

function add() {
  const { voice, length } = pen();
  const last = piece.voice(voice).at(-1);
  const onset = last ? last[0] + last[1] : 0;
  if (onset >= piece.length) return say("The bars are full; choose more of them");
  const note = [onset, Math.min(length, piece.length - onset), last ? last[2] : RANGES[voice][0] + 7, voice];
  piece.set(note);
  hear(note);
  say(piece.describe(note));
}

function changeSetup() {
  const metre = setup.metre.value.split("/").map(Number);
  const bpm = Math.min(Math.max(Number(setup.bpm.value) || 90, 20), 400);
  const bars = Number(setup.bars.value);
  if (askForm.last.value === String(piece.state.bars)) askForm.last.value = bars;
  piece.change({ bars, metre, key: setup.key.value, bpm });
}

/* ---- Sound. */
function play(what, svg, button) {
  const again = heard?.button === button;
  stop();
  if (again) return;
  if (!what.state.notes.length) return say("Nothing is drawn yet");
  heard = { svg, button };
  button.textContent = "Stop";
  const onTick = (tick) => lightRoll(svg, tick, what);
  const end = () => { if (find("loop").checked) { sound.play(what, setup.sound.value, onTick, end); } else stop(); };
  sound.play(what, setup.sound.value, onTick, end);
}

function stop() {
  sound.stop();
  if (heard) heard.button.textContent = "Play";
  heard = null;
}

/* ---- A MIDI keyboard. */
function listen(message) {
  const [status, pitch, velocity] = message.data;
  if ((status & 0xf0) === 0x90 && velocity) editor.write(pitch);
}

async function useKeyboard() {
  try {
    const access = await navigator.requestMIDIAccess();
    const attach = () => {
      const inputs = [...access.inputs.values()];
      for (const input of inputs) input.onmidimessage = listen;
      say(inputs.length ? `Listening to ${inputs.map((input) => input.name).join(", ")}` : "No MIDI keyboard is connected; connect one");
    };
    access.onstatechange = attach;
    attach();
  } catch (error) {
    say(`The browser gives no MIDI: ${error.message}`);
  }
}

/* ---- The server. */
function unlocked() {
  const locked = new Set([...askForm.querySelectorAll("[name=lock]:checked")].map((box) => Number(box.value)));
  return [0, 1, 2, 3].filter((voice) => !locked.has(voice));
}

async function harmonise(first, last) {
  const voices = unlocked();
  find("trouble").textContent = "";
  if (!voices.length) return find("trouble").textContent = "All voices are locked; unlock those that are to be written.";
  const order = {
    piece: piece.state, voices: voices.map((voice) => "SATB"[voice]).join(""), first_bar: first, last_bar: last,
    seed: Math.max(0, Math.floor(Number(askForm.seed.value) || 0)), variations: VARIATIONS, keep: ANSWERS,
  };
  busy(true);
  const began = performance.now();
  try {
    const { answers } = await ask("draw/fill", order);
    showAnswers(answers);
    askForm.seed.value = order.seed + NEXT_SEED;
    find("waiting").textContent = `${answers.length} answers in ${((performance.now() - began) / 1000).toFixed(1)} s. The next question has another seed; the same seed gives the same answers.`;
  } catch (error) {
    find("trouble").textContent = error.message;
    find("waiting").textContent = "";
  }
  busy(false);
}

function busy(now) {
  for (const id of ["harmonise", "rewrite"]) find(id).disabled = now;
  if (now) find("waiting").textContent = "The composer writes … The first question may wait for it to be loaded.";
}

function showAnswers(answers) {
  const cards = answers.map((answer, number) => card(answer, number + 1));
  find("answers").replaceChildren(...cards);
  find("answers").hidden = false;
}

function card(answer, number) {
  const other = new DrawnPiece();
  other.state = answer.piece;
  const element = make("article", "", { class: "panel answer", "aria-label": `Answer ${number}` });
  const svg = draw("svg", { role: "img", "aria-label": `Answer ${number}: ${other.state.notes.length} notes`, preserveAspectRatio: "none" });
  drawRoll(svg, other, { row: 5, width: 400 });
  const buttons = make("div", "", { class: "row buttons" });
  const hearIt = make("button", "Play", { type: "button", class: "button" });
  hearIt.addEventListener("click", () => play(other, svg, hearIt));
  const take = make("button", "Take it", { type: "button", class: "plain" });
  take.addEventListener("click", () => {
    piece.change(answer.piece);
    say(`Answer ${number} was taken; Undo brings back what was there`);
  });
  buttons.append(hearIt, take);
  for (const form of served_draw.formats) buttons.append(saveButton(form, other));
  element.append(make("h3", `Answer ${number}`), svg, buttons, figures(answer));
  return element;
}

function figures(answer) {
  const known = Object.entries(FIGURES).filter(([name]) => name in answer.figures);
  const texts = known.map(([name, words]) => `${Number(answer.figures[name].toFixed(1))} ${words}`);
  return make("p", [`Seed ${answer.seed}`, ...texts].join(" · "), { class: "small" });
}

function saveButton(form, what) {
  const button = make("button", `.${form}`, { type: "button", class: "plain", "aria-label": `Save as .${form}` });
  button.addEventListener("click", () => save(form, what));
  return button;
}

async function save(form, what) {
  try {
    const headers = { "Content-Type": "application/json" };
    const answer = await fetch(`/api/draw/files/${form}`, { method: "POST", headers, body: JSON.stringify(what.state) });
    if (!answer.ok) throw new Error((await answer.json()).error);
    const address = URL.createObjectURL(await answer.blob());
    const link = make("a", "", { href: address, download: `drawn.${form}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
    say(`drawn.${form} was saved`);
  } catch (error) {
    say(error.message);
  }
}

async function open() {
  const [file] = find("open").files;
  if (!file) return;
  say(`Reading ${file.name} …`);
  try {
    const ending = file.name.split(".").pop().toLowerCase();
    const { piece: opened, told } = await ask(`draw/open/${encodeURIComponent(ending)}`, file.slice(0, file.size, "application/octet-stream"));
    piece.change(opened);
    askForm.last.value = opened.bars;
    say([`${file.name}: ${opened.notes.length} notes, ${opened.bars} bars`, ...told].join("; "));
  } catch (error) {
    say(error.message);
  }
  find("open").value = "";
}

async function meet() {
  const is_served = SERVED !== null;
  for (const element of document.querySelectorAll(".served-only")) element.hidden = !is_served;
  if (!is_served) return;
  try {
    served_draw = await ask("draw");
  } catch (error) {
    return say(`The server does not answer: ${error.message}`);
  }
  find("unserved").hidden = served_draw.composer;
  askForm.hidden = !served_draw.composer;
}

/* ---- Everything is wired here. */
piece.listeners.push(show);
setup.addEventListener("change", (event) => { if (event.target.name !== "sound") changeSetup(); });
setup.addEventListener("submit", (event) => event.preventDefault());
penForm.addEventListener("submit", (event) => event.preventDefault());
penForm.addEventListener("change", () => { editor.show(); list(); });
find("undo").addEventListener("click", () => piece.undo());
find("redo").addEventListener("click", () => piece.redo());
find("clear").addEventListener("click", () => { piece.change({ notes: [] }); say("All notes were removed; Undo brings them back"); });
find("play").addEventListener("click", () => play(piece, roll, find("play")));
find("as-list").addEventListener("toggle", list);
find("add").addEventListener("click", add);
find("open").addEventListener("change", open);
for (const button of document.querySelectorAll("[data-file]")) button.addEventListener("click", () => save(button.dataset.file, piece));
askForm.addEventListener("submit", (event) => { event.preventDefault(); harmonise(1, piece.state.bars); });
find("rewrite").addEventListener("click", () => harmonise(Number(askForm.first.value), Number(askForm.last.value)));
if (navigator.requestMIDIAccess) {
  find("midi").hidden = false;
  find("midi").addEventListener("click", useKeyboard);
}
keys.set("p", () => find("play").click());
keys.set("h", () => { if (!askForm.hidden) find("harmonise").click(); });
restore();
show();
meet();
