"use strict";
/* Waveform (wavesurfer.js) over spectrogram, for every track on the page: draws, follows the player, zooms both together. */
const MAX_ZOOM = 64;

class Strips {
  constructor(player) {
    this.player = player;
    this.zoom = 1;
    this.strips = [...document.querySelectorAll(".strip")].map((element) => this.strip(element));
    player.addEventListener("change", () => this.showTrack());
    player.addEventListener("time", () => this.showTime());
    document.addEventListener("theme", () => this.paint());
    keys.set("+", () => this.zoomTo(this.zoom * 2));
    keys.set("=", () => this.zoomTo(this.zoom * 2));
    keys.set("-", () => this.zoomTo(this.zoom / 2));
    keys.set("0", () => this.zoomTo(1));
  }

  strip(element) {
    const find = (selector) => element.querySelector(selector);
    const strip = { element, track: element.dataset.track, wave: null, bar: find(".bar"), scrolled: find(".scrolled"), inner: find(".inner") };
    strip.inner.addEventListener("click", (event) => this.playFrom(strip, share(event, strip.inner)));
    strip.scrolled.addEventListener("scroll", () => this.scrollTo(strip.scrolled.scrollLeft));
    find(".name")?.addEventListener("click", () => this.playFrom(strip));
    return strip;
  }

  /* Draws the waveform of a track from its peaks (hundredths, highs and lows); without any, only the spectrogram is there. */
  draw(track, drawn, seconds) {
    const strip = this.strips.find((one) => one.track === track);
    strip.wave?.destroy();
    strip.wave = null;
    strip.bar.classList.toggle("unknown", !drawn);
    if (!drawn || !seconds) return;
    strip.wave = WaveSurfer.create({
      container: strip.bar.querySelector(".wave"), height: 64, normalize: false, interact: true, dragToSeek: true,
      peaks: drawn.peaks.map((side) => side.map((value) => value / 100)), duration: seconds,
      cursorWidth: 2, cspNonce: SERVED?.nonce, hideScrollbar: true, autoScroll: false, ...this.colours(),
    });
    strip.wave.on("interaction", (moment) => this.playFrom(strip, moment / seconds));
    strip.wave.on("ready", () => { this.showTime(); if (this.zoom > 1) this.zoomTo(this.zoom); });
    strip.wave.on("scroll", (start, end, left) => this.scrollTo(left));
    strip.seconds = seconds;
  }

  colours() {
    const probe = document.body.appendChild(make("i")); // a canvas cannot read the variables of the style sheet
    const colour = (name) => { probe.style.color = `var(${name})`; return getComputedStyle(probe).color; };
    const found = { waveColor: colour("--wave"), progressColor: colour("--accent"), cursorColor: colour("--ink") };
    probe.remove();
    return found;
  }

  paint() { for (const { wave } of this.strips) wave?.setOptions(this.colours()); }

  playFrom(strip, share) {
    this.player.choose(strip.track);
    if (share !== undefined) this.player.seek(share * this.player.seconds);
    this.player.play();
  }

  showTrack() {
    for (const { element, track } of this.strips) {
      element.classList.toggle("current", track === this.player.track);
      element.querySelector(".name")?.setAttribute("aria-pressed", String(track === this.player.track));
    }
  }

  showTime() {
    const { moment, seconds } = this.player;
    for (const { element, wave } of this.strips) {
      element.style.setProperty("--played", seconds ? moment / seconds : 0);
      if (wave?.getDuration()) wave.setTime(Math.min(moment, wave.getDuration()));
    }
    if (this.zoom > 1 && this.player.playing) this.follow(seconds ? moment / seconds : 0);
  }

  /* Zoomed in, the playhead stays in the window. */
  follow(share) {
    const { scrolled } = this.strips[0];
    const at = share * scrolled.scrollWidth;
    if (at < scrolled.scrollLeft || at > scrolled.scrollLeft + scrolled.clientWidth * 0.95) this.scrollTo(at - scrolled.clientWidth * 0.1);
  }

  zoomTo(zoom) {
    this.zoom = Math.min(Math.max(zoom, 1), MAX_ZOOM);
    for (const { wave, inner, scrolled, seconds } of this.strips) {
      inner.style.width = `${this.zoom * 100}%`;
      wave?.zoom((this.zoom * scrolled.clientWidth) / seconds);
    }
    this.follow(this.player.seconds ? this.player.moment / this.player.seconds : 0);
  }

  scrollTo(left) {
    if (this.zoom === 1) return;
    for (const { wave, scrolled } of this.strips) {
      if (Math.abs(scrolled.scrollLeft - left) > 1) scrolled.scrollLeft = left;
      if (wave && Math.abs(wave.getScroll() - left) > 1) wave.setScroll(left);
    }
  }
}
