"use strict";
/* Voices of the browser's own making (WebAudio): enough for a sketch, and nothing is loaded from anywhere. */
const SOUNDS = {
  // harmonics: strengths of the first, second, ... partial; attack, decay, release in seconds; sustain: a share of the peak
  choir: { harmonics: [1, 0.55, 0.32, 0.2, 0.1, 0.06, 0.03], attack: 0.09, decay: 0.2, sustain: 0.85, release: 0.22, detune: [-6, 5], vibrato: 5.2 },
  organ: { harmonics: [1, 0.7, 0.4, 0.5, 0, 0.25, 0, 0.3], attack: 0.02, decay: 0.02, sustain: 1, release: 0.08, detune: [0], vibrato: 0 },
  piano: { harmonics: [1, 0.45, 0.28, 0.16, 0.12, 0.07, 0.05, 0.03], attack: 0.005, decay: 1.6, sustain: 0.06, release: 0.18, detune: [-1.5, 1.5], vibrato: 0 },
};
const AHEAD = 0.06; // seconds before the first note, in which all are scheduled
const PEAK = 0.16; // of one voice; four of them must not clip
const PAN = [-0.3, -0.1, 0.1, 0.3];

class DrawnSound {
  constructor() {
    this.context = null;
    this.playing = null; // {stop}
  }

  open() {
    this.context ??= new AudioContext();
    if (this.context.state === "suspended") this.context.resume();
    return this.context;
  }

  /* Plays a piece from its beginning; `onTick` gets the tick that sounds with every frame, null at the end. */
  play(piece, sound, onTick, onEnd) {
    this.stop();
    const context = this.open();
    const out = context.createGain();
    const limiter = context.createDynamicsCompressor();
    out.connect(limiter).connect(context.destination);
    const perTick = 60 / piece.state.bpm / TICKS.quarter;
    const start = context.currentTime + AHEAD;
    for (const [onset, length, pitch, voice] of piece.state.notes) {
      this.note(out, sound, pitch, voice, start + onset * perTick, length * perTick);
    }
    const end = piece.length * perTick;
    const playing = { stop: null };
    const frame = () => {
      if (this.playing !== playing) return;
      const seconds = context.currentTime - start;
      if (seconds >= end) {
        this.stop();
        onEnd?.();
        return;
      }
      onTick(Math.max(seconds, 0) / perTick);
      requestAnimationFrame(frame);
    };
    playing.stop = () => {
      out.gain.setTargetAtTime(0, context.currentTime, 0.03);
      setTimeout(() => { out.disconnect(); limiter.disconnect(); }, 400);
      onTick(null);
    };
    this.playing = playing;
    requestAnimationFrame(frame);
  }

  stop() {
    const { playing } = this;
    this.playing = null;
    playing?.stop();
  }

  /* One note at once: what was just drawn. */
  hear(sound, [, , pitch, voice]) {
    const context = this.open();
    this.note(context.destination, sound, pitch, voice, context.currentTime + 0.01, 0.35);
  }

  note(out, name, pitch, voice, when, seconds) {
    const { context } = this;
    const { harmonics, attack, decay, sustain, release, detune, vibrato } = SOUNDS[name];
    const envelope = context.createGain();
    const pan = new StereoPannerNode(context, { pan: PAN[voice] });
    const peak = PEAK / detune.length;
    envelope.gain.setValueAtTime(0, when);
    envelope.gain.linearRampToValueAtTime(peak, when + attack);
    envelope.gain.setTargetAtTime(peak * sustain, when + attack, decay / 3);
    envelope.gain.setTargetAtTime(0, when + Math.max(seconds, attack), release / 4);
    envelope.connect(pan).connect(out);
    const wave = context.createPeriodicWave(new Float32Array(harmonics.length + 1), new Float32Array([0, ...harmonics]));
    for (const cents of detune) {
      const oscillator = new OscillatorNode(context, { frequency: 440 * 2 ** ((pitch - 69) / 12), detune: cents });
      oscillator.setPeriodicWave(wave);
      if (vibrato) {
        const depth = new GainNode(context, { gain: 9 });
        const slow = new OscillatorNode(context, { frequency: vibrato + voice * 0.17 });
        slow.connect(depth).connect(oscillator.detune);
        slow.start(when + 0.25);
        slow.stop(when + seconds + release);
      }
      oscillator.connect(envelope);
      oscillator.start(when);
      oscillator.stop(when + seconds + release);
    }
  }
}
