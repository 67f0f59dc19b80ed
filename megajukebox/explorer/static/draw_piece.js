"use strict";
/* The drawn piece: notes of four voices on a clock of 24 ticks a quarter, as the server takes them, and its history. */
const TICKS = { quarter: 24, whole: 96, step: 6 };
const VOICE_NAMES = ["Soprano", "Alto", "Tenor", "Bass"];
const RANGES = [[60, 81], [53, 74], [48, 69], [40, 64]]; // that voices sing, of MIDI
const SHARP_NAMES = ["C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B"];
const FLAT_NAMES = ["C", "D♭", "D", "E♭", "E", "F", "G♭", "G", "A♭", "A", "B♭", "B"];
const STEPS = { major: [0, 2, 4, 5, 7, 9, 11], minor: [0, 2, 3, 5, 7, 8, 10] };
const LETTER_PITCH = { c: 0, d: 2, e: 4, f: 5, g: 7, a: 9, b: 11 };
const MAX_HISTORY = 200;

class DrawnPiece {
  constructor() {
    this.state = { notes: [], bars: 2, metre: [4, 4], bpm: 90, key: "C major" };
    this.past = [];
    this.future = [];
    this.listeners = [];
  }

  get barTicks() { return this.state.metre[0] * TICKS.whole / this.state.metre[1]; }
  get beatTicks() { return TICKS.whole / this.state.metre[1]; }
  get length() { return this.state.bars * this.barTicks; }
  voice(number) { return this.state.notes.filter((note) => note[3] === number); }
  at(tick, voice) { return this.voice(voice).find(([onset, length]) => onset <= tick && tick < onset + length); }

  /* Every change goes through here, so that each can be undone. `joined`: one with the change before, as in a drag. */
  change(fields, joined = false) {
    if (!joined) {
      this.past.push(this.state);
      if (this.past.length > MAX_HISTORY) this.past.shift();
    }
    this.future = [];
    this.state = { ...this.state, ...fields };
    this.state.notes = this.state.notes
      .filter(([onset]) => onset < this.length)
      .map(([onset, length, pitch, voice]) => [onset, Math.min(length, this.length - onset), pitch, voice]);
    this.tell();
  }

  undo() { this.move(this.past, this.future); }
  redo() { this.move(this.future, this.past); }
  move(from, to) {
    if (!from.length) return;
    to.push(this.state);
    this.state = from.pop();
    this.tell();
  }

  tell() { for (const listener of this.listeners) listener(); }

  /* Sets a note in place of `replaced`; others of its voice make room, for a voice sings one at a time.
   * `base`: the notes among which it is set; during a drag those of its beginning, or it would eat what it crosses. */
  set(note, joined = false, replaced = null, base = this.state.notes) {
    const [onset, length, , voice] = note;
    const others = [];
    for (const other of base) {
      if (other === replaced) continue;
      const [start, long, pitch] = other;
      if (other[3] !== voice || start + long <= onset || start >= onset + length) others.push(other);
      else if (start < onset) others.push([start, onset - start, pitch, voice]);
    }
    this.change({ notes: [...others, note].sort((a, b) => a[0] - b[0] || a[3] - b[3]) }, joined);
  }

  remove(note) { this.change({ notes: this.state.notes.filter((other) => other !== note) }); }

  /* ---- Names. */
  get flat() { return /^(F|.b)/.test(this.state.key) && !this.state.key.startsWith("F#") || /^[DGC] minor/.test(this.state.key); }
  pitchName(pitch) { return `${(this.flat ? FLAT_NAMES : SHARP_NAMES)[pitch % 12]}${Math.floor(pitch / 12) - 1}`; }
  place(tick) {
    const bar = Math.floor(tick / this.barTicks);
    const beat = (tick - bar * this.barTicks) / this.beatTicks + 1;
    return { bar: bar + 1, beat: Number(beat.toFixed(3)) };
  }
  describe([onset, length, pitch, voice]) {
    const { bar, beat } = this.place(onset);
    return `${VOICE_NAMES[voice]}, ${this.pitchName(pitch)}, bar ${bar}, beat ${beat}, ${lengthName(length)}`;
  }

  /* Whether a pitch is of the key; every one is where no key is said. */
  inKey(pitch) {
    const tonic = keyTonic(this.state.key);
    return tonic === null || STEPS[this.state.key.split(" ")[1]].includes((pitch - tonic + 12) % 12);
  }

  /* The pitch of a letter, as the key has it, nearest to `near`. */
  letterPitch(letter, near) {
    let pitch = LETTER_PITCH[letter];
    if (!this.inKey(pitch)) pitch += this.flat ? -1 : 1;
    return pitch + 12 * Math.round((near - pitch) / 12);
  }
}

function keyTonic(key) {
  if (!key) return null;
  return (LETTER_PITCH[key[0].toLowerCase()] + (key[1] === "#" ? 1 : key[1] === "b" ? -1 : 0) + 12) % 12;
}

function lengthName(ticks) {
  const option = [...document.querySelectorAll("#pen [name=duration] option")].find((one) => Number(one.value) === ticks);
  return option ? option.textContent.toLowerCase() : `${Number((ticks / TICKS.quarter).toFixed(2))} quarters`;
}
