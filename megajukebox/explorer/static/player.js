"use strict";
/*
 * One player a page: the bar at its foot. A song is {title, page, seconds, audio: {track: url}, gain: {track: 0..1}}.
 * A track is a level of a song, or a side of a comparison. Each has its own <audio>, so that a switch keeps the moment.
 * Fires "change" when the song, the track or playing changes, and "time" whenever the moment does.
 */
const SKIP = 5; // seconds that an arrow key moves
const FINEST = ["refined_bottom", "bottom", "reconstruction", "original", "refined_middle", "middle", "refined_top", "top"];

class Player extends EventTarget {
  constructor(bar) {
    super();
    this.bar = bar;
    this.audios = Object.fromEntries([...bar.querySelectorAll("audio")].map((audio) => [audio.dataset.track, audio]));
    this.tracks = Object.keys(this.audios);
    this.wanted = bar.dataset.first ?? FINEST.find((track) => this.audios[track]) ?? this.tracks[0];
    this.song = null;
    this.waiting = 0; // the moment to start from, while the recording is not loaded yet
    for (const audio of Object.values(this.audios)) this.listen(audio);
    this.connectBar();
    this.connectKeys();
    this.show();
  }

  /* The track that is played: the one that was chosen, or the finest one that this song has. */
  get track() {
    if (!this.song || this.song.audio[this.wanted]) return this.wanted;
    return [...FINEST, ...this.tracks].find((track) => this.audios[track] && this.song.audio[track]) ?? this.wanted;
  }

  get audio() { return this.audios[this.track]; }
  get playing() { return !this.audio.paused; }
  get moment() { return this.audio.readyState ? this.audio.currentTime : this.waiting; }
  get seconds() { return this.audio.readyState && isFinite(this.audio.duration) ? this.audio.duration : this.song?.seconds ?? 0; }

  load(song, moment = 0) {
    if (song === this.song) return;
    for (const audio of Object.values(this.audios)) {
      audio.pause();
      audio.removeAttribute("src");
      audio.load();
    }
    this.song = song;
    this.prepare(moment);
    this.changed();
  }

  async play() {
    if (!this.song?.audio[this.track]) return;
    const audio = this.audio;
    try {
      await audio.play();
    } catch (error) {
      // AbortError: another song, track or a pause came in between. Anything else is reported by the audio's own "error".
      if (error.name === "NotAllowedError") this.tell("Press play once more: the browser held the sound back.");
    }
  }

  toggle() {
    if (this.playing) this.audio.pause();
    else this.play();
  }

  seek(moment) {
    moment = Math.min(Math.max(moment, 0), Math.max(this.seconds - 0.01, 0));
    this.waiting = moment;
    if (this.audio.readyState) this.audio.currentTime = moment;
    this.dispatchEvent(new Event("time"));
  }

  choose(track) {
    if (!this.audios[track] || (this.song && !this.song.audio[track])) return;
    const { audio: before, moment, playing } = this;
    this.wanted = track;
    if (this.audio !== before) {
      before.pause();
      this.prepare(moment);
      if (playing) this.play();
    }
    this.changed();
  }

  /* Points the audio at its file; it loads when it is played. */
  prepare(moment) {
    const { audio } = this;
    this.waiting = moment;
    const url = this.song?.audio[this.track];
    if (!url) return;
    audio.volume = this.song.gain?.[this.track] ?? 1;
    if (!audio.hasAttribute("src")) audio.setAttribute("src", url);
    else if (audio.readyState) audio.currentTime = moment;
  }

  listen(audio) {
    const mine = (action) => () => audio === this.audio && audio.hasAttribute("src") && action();
    audio.addEventListener("loadedmetadata", mine(() => this.loaded(audio)));
    for (const name of ["play", "pause", "ended"]) audio.addEventListener(name, mine(() => this.changed()));
    for (const name of ["timeupdate", "seeked"]) audio.addEventListener(name, mine(() => this.dispatchEvent(new Event("time"))));
    audio.addEventListener("error", mine(() => this.tell("This recording could not be played.")));
  }

  loaded(audio) {
    if (this.waiting > 0) audio.currentTime = this.waiting;
    const seekable = audio.seekable.length && audio.seekable.end(audio.seekable.length - 1) > 0;
    if (!seekable && location.protocol.startsWith("http")) this.loadWhole(audio);
  }

  /* Simple web servers send files only from their start; a recording held in memory can be played from anywhere. */
  async loadWhole(audio) {
    const url = audio.getAttribute("src");
    const { moment, playing } = this;
    const response = await fetch(url);
    const whole = URL.createObjectURL(await response.blob());
    if (audio.getAttribute("src") !== url) return URL.revokeObjectURL(whole);
    this.waiting = Math.max(this.waiting, moment);
    audio.src = whole;
    if (playing) this.play();
    else audio.load();
  }

  connectBar() {
    const find = (selector) => this.bar.querySelector(selector);
    this.parts = { play: find(".play"), title: find(".title"), seek: find(".seek"), time: find(".time"), trouble: find(".trouble") };
    this.parts.play.addEventListener("click", () => this.toggle());
    this.parts.seek.addEventListener("input", () => this.seek(Number(this.parts.seek.value)));
    this.buttons = [...this.bar.querySelectorAll(".tracks button")];
    for (const button of this.buttons) button.addEventListener("click", () => this.choose(button.dataset.track));
    this.addEventListener("time", () => this.showTime());
  }

  /* 1 2 3 are the buttons that can be seen: the first is the first track that this song has. */
  connectKeys() {
    keys.set(" ", () => this.toggle());
    keys.set("ArrowLeft", () => this.seek(this.moment - SKIP));
    keys.set("ArrowRight", () => this.seek(this.moment + SKIP));
    this.tracks.forEach((_, n) => keys.set(String(n + 1), () => this.choose(this.buttons.filter((one) => !one.hidden)[n]?.dataset.track)));
  }

  changed() {
    this.tell("");
    this.show();
    this.dispatchEvent(new Event("change"));
    if (this.playing) requestAnimationFrame(() => this.tick());
  }

  /* timeupdate comes four times a second; a playhead wants every frame. */
  tick() {
    if (!this.playing) return;
    this.dispatchEvent(new Event("time"));
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.tick());
  }

  show() {
    const { play, title } = this.parts;
    this.bar.classList.toggle("empty", !this.song);
    setPlaying(play, this.playing, this.song?.title ?? "");
    play.disabled = !this.song;
    title.textContent = this.song ? this.song.title : "Choose a song";
    if (this.song?.page) title.href = this.song.page;
    else title.removeAttribute("href");
    this.showButtons();
    this.showTime();
  }

  /* Levels are always there, greyed where a song lacks them; other recordings only where there are any. */
  showButtons() {
    let number = 0;
    for (const button of this.buttons) {
      const { track } = button.dataset;
      const absent = Boolean(this.song) && !this.song.audio[track];
      button.setAttribute("aria-pressed", String(track === this.track));
      button.disabled = absent;
      button.hidden = !["top", "middle", "bottom"].includes(track) && (absent || !this.song);
      if (!button.hidden) button.querySelector("kbd").textContent = String(++number);
    }
  }

  showTime() {
    const { seek, time } = this.parts;
    seek.max = this.seconds || 1;
    seek.value = this.moment;
    seek.setAttribute("aria-valuetext", `${clock(this.moment)} of ${clock(this.seconds)}`);
    time.textContent = `${clock(this.moment)} / ${clock(this.seconds)}`;
  }

  tell(text) { this.parts.trouble.textContent = text; }
}

function setPlaying(button, playing, title) {
  button.classList.toggle("playing", playing);
  button.setAttribute("aria-label", `${playing ? "Pause" : "Play"} ${title}`.trim());
}

/* How far into `element` a click went, 0 at its left to 1 at its right. */
function share(event, element) {
  const box = element.getBoundingClientRect();
  return Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
}

/* Volumes at which both sides of a comparison are equally loud: the louder one is turned down. */
function equallyLoud(decibels) {
  const known = Object.entries(decibels).filter(([, db]) => Number.isFinite(db) && db > -90);
  const quietest = Math.min(...known.map(([, db]) => db));
  return Object.fromEntries(known.map(([side, db]) => [side, 10 ** ((quietest - db) / 20)]));
}
