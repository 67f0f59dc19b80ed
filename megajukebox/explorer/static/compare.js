"use strict";
/* Two samples at the same moment: those of the address (#a=name&b=name), or the pairs that two runs have in common. */
const entries = data.get("entries");
const player = new Player(document.getElementById("player"));
const strips = new Strips(player);
const form = document.getElementById("sides");
const FACTS = ["artist", "genres", "year", "moods", "language", "run", "checkpoint", "sampler", "mode", "seed", "seconds", "name"];
let both = []; // the two entries
let found = [];
let place = 0;

function named(name) { return entries.find((entry) => entry.name === name); }

/* The pair number `n` of what the form asks for. */
function step(n) {
  found = form.a.value && form.a.value !== form.b.value ? pairs(entries, form.field.value, form.a.value, form.b.value) : [];
  place = Math.min(Math.max(n, 0), Math.max(found.length - 1, 0));
  document.getElementById("place").textContent = found.length ? `pair ${place + 1} of ${found.length}` : "no pair";
  document.getElementById("previous").parentElement.hidden = !found.length;
  document.getElementById("previous").disabled = place === 0;
  document.getElementById("next").disabled = place >= found.length - 1;
  if (found.length) show(...found[place]);
  else say("These two have no request in common. Sample the same requests with both, or choose two samples in the list (Compare).");
}

function say(text) {
  const note = document.getElementById("say");
  note.textContent = text;
  note.hidden = !text;
}

/* Levels that both have; the finished song first. */
function levels() {
  return ["refined_bottom", "bottom", "reconstruction", "original", "refined_middle", "middle", "refined_top", "top"].filter((level) => both.every((entry) => entry.audio?.[level]));
}

function show(a, b) {
  both = [a, b];
  say("");
  form.level.closest(".row").hidden = false;
  document.getElementById("both").hidden = false;
  history.replaceState(null, "", `#${new URLSearchParams({ a: a.name, b: b.name })}`);
  const { value } = form.level;
  form.level.replaceChildren(...levels().map((level) => new Option(level)));
  form.level.value = levels().includes(value) ? value : levels()[0] ?? "";
  both.forEach((entry, n) => describe("AB"[n], entry));
  document.getElementById("differences").replaceChildren(differences());
  return listen(0);
}

function describe(side, entry) {
  const strip = document.querySelector(`.strip[data-track=${side}]`);
  strip.querySelector(".which").textContent = entry.title;
  strip.querySelector(".which").href = entry.page;
  strip.querySelector(".small").textContent = [entry.run, entry.checkpoint, entry.sampler, entry.seed && `seed ${entry.seed}`, entry.name].filter(Boolean).join(" · ");
}

/* Hands both sides' chosen level to the player, equally loud, at `moment`. */
async function listen(moment) {
  const [level, [a, b]] = [form.level.value, both];
  if (!level) return say("These two have no level in common.");
  const drawn = await Promise.all(both.map(async (entry) => {
    const url = entry.peaks?.[level];
    if (!url) return null;
    await load(url);
    return data.get(decodeURIComponent(url).split("/").at(-1).replace(/\.js$/, ""));
  }));
  if (both[0] !== a || both[1] !== b) return; // another pair was chosen meanwhile
  both.forEach((entry, n) => {
    strips.draw("AB"[n], drawn[n], entry.seconds);
    const image = document.querySelector(`.strip[data-track=${"AB"[n]}] img`);
    image.hidden = !entry.spectrogram?.[level];
    if (!image.hidden) image.src = entry.spectrogram[level];
  });
  const song = {
    title: `${a.title} / ${b.title}`, seconds: Math.max(a.seconds, b.seconds), audio: { A: a.audio[level], B: b.audio[level] },
    gain: equallyLoud({ A: drawn[0]?.db, B: drawn[1]?.db }),
  };
  const { playing } = player;
  player.load(song, moment);
  if (playing) player.play();
}

function differences() {
  const text = (entry, field) => (field === "seconds" ? entry.seconds.toFixed(2) : values(entry, field).join(", ")) || "–";
  const table = make("table");
  table.createTHead().insertRow().append(make("td", ""), make("th", "A", { scope: "col" }), make("th", "B", { scope: "col" }));
  const body = table.createTBody();
  for (const field of FACTS) {
    const cells = both.map((entry) => text(entry, field));
    if (cells.every((cell) => cell === "–")) continue;
    const row = body.insertRow();
    row.classList.toggle("different", cells[0] !== cells[1]);
    row.append(make("th", field, { scope: "row" }), ...cells.map((cell) => make("td", cell)));
  }
  if (both[0].request_key !== both[1].request_key) body.insertRow().append(make("th", "request", { scope: "row" }), make("td", "two different songs were requested", { colspan: 2 }));
  return table;
}

function readAddress() {
  const address = new URLSearchParams(location.hash.slice(1));
  const [a, b] = [named(address.get("a")), named(address.get("b"))];
  if (a && b) return show(a, b);
  if (a) return chooseOther(a);
  return hasSides ? step(0) : say("All samples here are of one run, checkpoint and sampler. Choose two in the list (Compare).");
}

/* The other side is most likely the same request by another run; else whatever comes next. */
function chooseOther(a) {
  const others = entries.filter((entry) => entry !== a && entry.levels);
  const b = others.find((entry) => entry.request_key === a.request_key) ?? others.find((entry) => entry.artist === a.artist) ?? others[0];
  if (b) show(a, b);
  else say("There is no other sample to compare with.");
}

const hasSides = chooseSides(form, entries, (event) => (event.target === form.level ? listen(player.moment) : step(0)));
form.classList.toggle("alike", !hasSides);
document.getElementById("previous").addEventListener("click", () => step(place - 1));
document.getElementById("next").addEventListener("click", () => step(place + 1));
keys.set("j", () => found.length && step(place + 1));
keys.set("k", () => found.length && step(place - 1));
addEventListener("hashchange", readAddress);
readAddress();
