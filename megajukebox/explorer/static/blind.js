"use strict";
/* The blind test: the server picks a pair and hides which side is which; the answer to a vote names them. */
const entries = data.get("entries");
const player = new Player(document.getElementById("player"));
const form = document.getElementById("sides");
const find = (id) => document.getElementById(id);
let trial = null;

/* A name that this browser makes up once, so that votes of one listener can be told from those of many. */
function voter() {
  const made = crypto.getRandomValues(new Uint32Array(4)).join("-").slice(0, 40);
  try {
    const kept = localStorage.getItem("voter") ?? made;
    localStorage.setItem("voter", kept);
    return kept;
  } catch { return ""; } // storage may be forbidden
}

function say(text) {
  find("say").textContent = text;
  find("say").hidden = !text;
}

/* Asks for the next pair; the one with the fewest votes comes first. */
async function next() {
  trial = null;
  const question = { field: form.field.value, a: form.a.value, b: form.b.value, voter: voter() };
  if (question.a === question.b) return say("Choose two different sides.");
  const given = await ask("trials", question).catch((error) => ({ refused: error.message }));
  find("trial").hidden = Boolean(given.refused);
  say(given.refused ?? "");
  if (given.refused) return;
  trial = given;
  find("about").textContent = `Pair ${given.voted + 1} of ${given.pairs} · ${[given.artist, ...given.genres].filter(Boolean).join(", ") || "no artist"}`;
  find("asked").textContent = given.lyrics || "None.";
  setVoting(true);
  player.load({ title: "A or B?", seconds: given.seconds, audio: given.audio, gain: equallyLoud(given.db) });
  player.choose("A");
}

function setVoting(open) { for (const button of document.querySelectorAll("[data-vote]")) button.disabled = !open; }

async function vote(choice) {
  if (!trial) return;
  const { id } = trial;
  trial = null;
  setVoting(false);
  player.audio.pause();
  try {
    const sides = await ask("votes", { trial: id, vote: choice });
    find("reveal").textContent = `Last pair: A was ${sides.A}, B was ${sides.B}.`;
    await showTally();
    await next();
  } catch (error) {
    say(error.message);
  }
}

/* One row for each two sides that were ever compared: share of votes, its 95 % interval, and the counts. */
async function showTally() {
  const { tallies, skipped } = await ask("votes");
  const rows = tallies.flatMap((tally) => {
    const bar = make("div", "", { class: "interval", role: "img", "aria-label": `${percent(tally.share)} prefer ${tally.b}` });
    for (const name of ["share", "low", "high"]) bar.style.setProperty(`--${name}`, tally[name]);
    bar.append(make("i"), make("b"));
    const count = `${tally.wins_b} of ${tally.votes} for ${tally.b}, ${tally.same} no difference: ${percent(tally.share)} (${percent(tally.low)} to ${percent(tally.high)}), p = ${tally.p.toFixed(3)}`;
    return [make("span", `${tally.field}: ${tally.a} against ${tally.b}`), bar, make("span", count)];
  });
  const table = make("div", "", { class: "tally" });
  table.append(...rows);
  const lost = skipped ? [make("p", `${skipped} lines of the votes file could not be read.`, { class: "small" })] : [];
  find("tally").replaceChildren(rows.length ? table : make("p", "None yet.", { class: "small" }), ...lost);
}

function percent(share) { return `${Math.round(share * 100)} %`; }

async function start() {
  if (!SERVED) return;
  find("unserved").hidden = true;
  const hasSides = chooseSides(form, entries.filter((entry) => entry.levels), next);
  form.hidden = !hasSides;
  await showTally();
  if (hasSides) await next();
  else say("All samples here are of one run, checkpoint and sampler: there is nothing to tell apart.");
}

for (const button of document.querySelectorAll("[data-vote]")) button.addEventListener("click", () => vote(button.dataset.vote));
keys.set("a", () => vote("a"));
keys.set("s", () => vote("same"));
keys.set("b", () => vote("b"));
find("tally").replaceChildren(make("p", SERVED ? "" : "They are counted by the server.", { class: "small" }));
start();
