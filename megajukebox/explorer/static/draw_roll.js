"use strict";
/* The piano roll: an SVG of the piece; and its editor, by pointer and by keys. Answers are rolls without an editor. */
const SVG = document.getElementById("roll").namespaceURI;
const ROW = 16; // pixels of a semitone in the editor
const LEFT = 44; // for the names of pitches
const LEAST_STEP = 11; // pixels of a sixteenth, or a finger misses it
const BLACK = new Set([1, 3, 6, 8, 10]);

function draw(name, attributes, text = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}

/* Pitches that are shown: of the notes, and of the voice that is drawn. */
function pitchRange(piece, voice) {
  const pitches = piece.state.notes.map((note) => note[2]);
  const [low, high] = voice === null ? [127, 0] : RANGES[voice];
  return [Math.max(0, Math.min(low, ...pitches) - 2), Math.min(127, Math.max(high, ...pitches) + 2)];
}

/* Draws the piece into `svg`. `voice`: the one that is drawn, or null for an answer. */
function drawRoll(svg, piece, { voice = null, width = 300, row = 4, left = 0, range = pitchRange(piece, voice) } = {}) {
  const [low, high] = range;
  const height = (high - low + 1) * row;
  const scale = (width - left) / piece.length;
  const x = (tick) => left + tick * scale;
  const y = (pitch) => (high - pitch) * row;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("width", width);
  svg.setAttribute("height", height);
  svg.replaceChildren();
  for (let pitch = low; pitch <= high; pitch += 1) {
    const kind = BLACK.has(pitch % 12) ? "black" : "white";
    svg.append(draw("rect", { class: `key ${kind}`, x: left, y: y(pitch), width: width - left, height: row }));
    if (left && (piece.inKey(pitch) || pitch % 12 === 0)) {
      svg.append(draw("text", { x: left - 6, y: y(pitch) + row - 4, "text-anchor": "end" }, piece.pitchName(pitch)));
    }
  }
  for (let tick = 0; tick <= piece.length; tick += piece.beatTicks) {
    const kind = tick % piece.barTicks === 0 ? "bar" : "beat";
    svg.append(draw("line", { class: kind, x1: x(tick), x2: x(tick), y1: 0, y2: height }));
  }
  const order = [...piece.state.notes].sort((a, b) => (a[3] === voice) - (b[3] === voice));
  for (const note of order) {
    const [onset, length, pitch, number] = note;
    const group = draw("g", { class: `note voice-${number}${voice === null || number === voice ? "" : " behind"}` });
    const box = { x: x(onset) + 1, y: y(pitch) + 0.5, width: Math.max(2, length * scale - 2), height: row - 1, rx: Math.min(3, row / 3) };
    group.append(draw("rect", box));
    if (row > 10) group.append(draw("text", { x: x(onset) + 4, y: y(pitch) + row - 4 }, VOICE_NAMES[number][0]));
    group.dataset.onset = onset;
    group.dataset.end = onset + length;
    svg.append(group);
  }
  svg.append(draw("line", { class: "playhead", x1: left, x2: left, y1: 0, y2: height, visibility: "hidden" }));
  return { x, y, scale, low, high, left, row };
}

/* Lights the notes that sound at `tick`, and moves the line; null: none. */
function lightRoll(svg, tick, piece) {
  for (const note of svg.querySelectorAll(".note")) {
    note.classList.toggle("sounding", tick !== null && note.dataset.onset <= tick && tick < note.dataset.end);
  }
  const line = svg.querySelector(".playhead");
  if (!line) return;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  line.setAttribute("visibility", tick === null || still ? "hidden" : "visible");
  const [, , width] = svg.getAttribute("viewBox").split(" ").map(Number);
  const left = svg.id === "roll" ? LEFT : 0;
  const at = left + (width - left) * (tick ?? 0) / piece.length;
  line.setAttribute("x1", at);
  line.setAttribute("x2", at);
}

class RollEditor {
  /* `pen()` says what is drawn: {voice, length}; `say` is for those who do not see the roll; `hear` sounds a note. */
  constructor(svg, piece, pen, say, hear) {
    Object.assign(this, { svg, piece, pen, say, hear, cursor: { tick: 0, pitch: 72 }, selected: null, drag: null });
    svg.addEventListener("pointerdown", (event) => this.press(event));
    svg.addEventListener("pointermove", (event) => this.pull(event));
    svg.addEventListener("pointerup", () => this.release());
    svg.addEventListener("pointercancel", () => this.release(true)); // a finger that scrolls the page
    svg.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.show()).observe(svg.parentElement);
  }

  get step() { const { length } = this.pen(); return length % 12 === 0 ? 12 : TICKS.step; }

  show() {
    const wanted = LEFT + this.piece.length / TICKS.step * LEAST_STEP;
    const width = Math.max(wanted, this.svg.parentElement.clientWidth);
    this.view = drawRoll(this.svg, this.piece, { voice: this.pen().voice, width, row: ROW, left: LEFT, range: this.range });
    const { tick, pitch } = this.cursor;
    const box = { x: this.view.x(tick), y: this.view.y(pitch), width: this.pen().length * this.view.scale, height: ROW };
    this.svg.append(draw("rect", { class: "cursor", ...box }));
  }

  /* What is shown stays while a note is dragged, or it would jump away from under the pointer. */
  get range() {
    if (this.drag) return this.drag.range;
    const [low, high] = pitchRange(this.piece, this.pen().voice);
    return [Math.min(low, this.cursor.pitch), Math.max(high, this.cursor.pitch)];
  }

  place(event) {
    const box = this.svg.getBoundingClientRect();
    const [, , width, height] = this.svg.getAttribute("viewBox").split(" ").map(Number);
    const x = (event.clientX - box.left) * width / box.width;
    const y = (event.clientY - box.top) * height / box.height;
    return { tick: (x - this.view.left) / this.view.scale, pitch: this.view.high - Math.floor(y / this.view.row) };
  }

  press(event) {
    if (event.button !== 0) return;
    const { tick, pitch } = this.place(event);
    if (tick < 0 || tick >= this.piece.length) return;
    this.svg.setPointerCapture(event.pointerId);
    const { voice, length } = this.pen();
    const here = this.piece.at(tick, voice);
    const begun = { base: this.piece.state.notes, moved: false, from: tick, range: [this.view.low, this.view.high] };
    if (here && here[2] === pitch) {
      this.drag = { ...begun, first: here, note: here, fresh: false };
      return;
    }
    const onset = Math.floor(tick / this.step) * this.step;
    const note = [onset, Math.min(length, this.piece.length - onset), pitch, voice];
    this.drag = { ...begun, first: note, note, fresh: true };
    this.cursor = { tick: onset, pitch };
    this.piece.set(note);
    this.hear(note);
    this.say(this.piece.describe(note));
  }

  /* Lengthens the note that was pressed by as much as the pointer moved. */
  pull(event) {
    if (!this.drag) return;
    const { first, note, from, moved, fresh, base } = this.drag;
    const [onset, length, pitch, voice] = first;
    const more = Math.round((this.place(event).tick - from) / TICKS.step) * TICKS.step;
    const long = Math.min(Math.max(length + more, TICKS.step), this.piece.length - onset);
    if (long === note[1]) return;
    const changed = [onset, long, pitch, voice];
    this.drag = { ...this.drag, note: changed, moved: true };
    this.piece.set(changed, moved || fresh, first, base);
  }

  release(cancelled = false) {
    const { drag } = this;
    this.drag = null;
    if (!drag) return;
    if (cancelled) {
      if (drag.fresh || drag.moved) this.piece.undo();
    } else if (drag.moved) this.say(this.piece.describe(drag.note));
    else if (!drag.fresh) {
      this.piece.remove(drag.first);
      this.say(`Removed: ${this.piece.describe(drag.first)}`);
    }
    this.show();
  }

  /* ---- Keys. */
  key(event) {
    if (event.altKey) return;
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (event.ctrlKey || event.metaKey) {
      if (name !== "z" && name !== "y") return;
      if (name === "y" || event.shiftKey) this.piece.redo(); else this.piece.undo();
      this.take(event);
      return;
    }
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1], PageUp: [0, 12], PageDown: [0, -12] };
    if (event.shiftKey && (name === "ArrowLeft" || name === "ArrowRight")) this.lengthen(name === "ArrowRight" ? TICKS.step : -TICKS.step);
    else if (moves[name]) this.go(...moves[name]);
    else if (name === "Home" || name === "End") this.go(name === "Home" ? -Infinity : Infinity, 0);
    else if (name === "Enter" || name === " ") this.toggle();
    else if (name === "Delete" || name === "Backspace") this.erase();
    else if (name in LETTER_PITCH) this.write(this.piece.letterPitch(name, this.cursor.pitch));
    else return;
    this.take(event);
  }

  /* The key was for the roll, not for the page. */
  take(event) {
    event.preventDefault();
    event.stopPropagation();
    this.show();
  }

  go(steps, semitones) {
    const last = this.piece.length - this.step;
    const tick = Math.min(Math.max(this.cursor.tick + steps * this.step, 0), last);
    const pitch = Math.min(Math.max(this.cursor.pitch + semitones, 24), 108);
    this.cursor = { tick, pitch };
    const note = this.piece.at(tick, this.pen().voice);
    const { bar, beat } = this.piece.place(tick);
    const there = note ? `, ${this.piece.describe(note)} sounds` : "";
    this.say(`${this.piece.pitchName(pitch)}, bar ${bar}, beat ${beat}${there}`);
  }

  toggle() {
    const { voice } = this.pen();
    const here = this.piece.at(this.cursor.tick, voice);
    if (here && here[2] === this.cursor.pitch) this.erase();
    else this.set(this.cursor.pitch);
  }

  set(pitch) {
    const { voice, length } = this.pen();
    const { tick } = this.cursor;
    const note = [tick, Math.min(length, this.piece.length - tick), pitch, voice];
    this.cursor = { tick, pitch };
    this.piece.set(note);
    this.hear(note);
    this.say(this.piece.describe(note));
    return note;
  }

  /* Sets a note at the cursor and goes behind it: letters, and a MIDI keyboard. */
  write(pitch) {
    const [onset, length] = this.set(pitch);
    this.cursor.tick = Math.min(onset + length, this.piece.length - TICKS.step);
    this.show();
  }

  erase() {
    const note = this.piece.at(this.cursor.tick, this.pen().voice);
    if (!note) return this.say("No note here");
    this.piece.remove(note);
    this.say(`Removed: ${this.piece.describe(note)}`);
  }

  lengthen(ticks) {
    const note = this.piece.at(this.cursor.tick, this.pen().voice);
    if (!note) return this.say("No note here");
    const [onset, length, pitch, voice] = note;
    const long = Math.min(Math.max(length + ticks, TICKS.step), this.piece.length - onset);
    const changed = [onset, long, pitch, voice];
    this.piece.set(changed, false, note);
    this.say(this.piece.describe(changed));
  }
}
