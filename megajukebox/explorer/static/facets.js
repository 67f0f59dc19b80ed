"use strict";
/* Searching, filtering, ordering and pairing entries: what the list, the comparison and the blind test share. */
function values(entry, field) {
  return [entry[field]].flat().filter((value) => value !== "" && value != null).map(String);
}

/* value -> how many of `entries` have it, in the order of the alphabet, numbers by size. */
function counted(entries, field) {
  const counts = new Map();
  for (const entry of entries) for (const value of new Set(values(entry, field))) counts.set(value, (counts.get(value) ?? 0) + 1);
  return [...counts].sort(([a], [b]) => a.localeCompare(b, undefined, { numeric: true }));
}

/* Offers the values of a field, and keeps the choice. */
function offer(select, counts, first) {
  const { value } = select;
  const options = counts.map(([name, count]) => new Option(`${name} (${count})`, name));
  if (value && !counts.some(([name]) => name === value)) options.unshift(new Option(`${value} (0)`, value));
  select.replaceChildren(...(first ? [first] : []), ...options);
  select.value = value;
  if (select.selectedIndex < 0) select.selectedIndex = 0;
}

function searchable(entry, words = "") {
  const { title, name, genres = [], moods = [], year = "", seed = "", language = "" } = entry;
  return [title, name, ...genres, ...moods, year, `seed ${seed}`, language, words].join("\n").toLowerCase();
}

const orders = {
  artist: (a, b) => a.title.localeCompare(b.title) || a.name.localeCompare(b.name, undefined, { numeric: true }),
  checkpoint: (a, b) => (a.run ?? "").localeCompare(b.run ?? "") || (a.checkpoint ?? "").localeCompare(b.checkpoint ?? "", undefined, { numeric: true }),
  seconds: (a, b) => b.seconds - a.seconds,
};

/* Samples of the same request, one with each value of `field`; same seeds together, else in the order of names. */
function pairs(entries, field, left, right) {
  const sides = new Map([[left, new Map()], [right, new Map()]]);
  const named = entries.filter((entry) => entry.levels).sort((a, b) => (a.name < b.name ? -1 : 1));
  for (const entry of named) {
    const songs = sides.get(entry[field]);
    if (songs) songs.set(entry.request_key, [...(songs.get(entry.request_key) ?? []), entry]);
  }
  const found = [];
  for (const [song, ours] of sides.get(left)) {
    const theirs = [...(sides.get(right).get(song) ?? [])];
    const met = (entry) => theirs.some((other) => other.seed === entry.seed);
    for (const entry of [...ours.filter(met), ...ours.filter((one) => !met(one))]) {
      if (!theirs.length) break;
      const at = Math.max(0, theirs.findIndex((other) => other.seed === entry.seed));
      found.push([entry, theirs.splice(at, 1)[0]]);
    }
  }
  return found;
}

/* The two values of `field` that have the most requests in common; null where no two have any. */
function likeliest(entries, field) {
  const songs = new Map();
  for (const entry of entries) if (entry.levels && entry[field]) songs.set(entry.request_key, (songs.get(entry.request_key) ?? new Set()).add(entry[field]));
  const shared = new Map();
  for (const values of songs.values()) {
    const known = [...values].sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
    for (const [n, a] of known.entries()) for (const b of known.slice(n + 1)) {
      const name = JSON.stringify([a, b]);
      shared.set(name, (shared.get(name) ?? 0) + 1);
    }
  }
  const best = [...shared].sort(([, one], [, other]) => other - one)[0];
  return best ? JSON.parse(best[0]) : null;
}

/* The form that says what two sides differ in: offers what there is, and calls `changed` when it was chosen. */
function chooseSides(form, entries, changed) {
  const fields = [...form.field.options].filter((option) => counted(entries, option.value).length > 1);
  form.field.replaceChildren(...fields);
  const telling = fields.find((option) => likeliest(entries, option.value));
  if (telling) form.field.value = telling.value;
  const sides = () => {
    const counts = fields.length ? counted(entries, form.field.value) : [];
    const [a, b] = likeliest(entries, form.field.value) ?? counts.map(([name]) => name);
    for (const [side, value] of [[form.a, a], [form.b, b]]) {
      side.replaceChildren();
      offer(side, counts);
      if (value !== undefined) side.value = value;
    }
  };
  form.field.addEventListener("change", sides);
  form.addEventListener("change", changed);
  form.addEventListener("submit", (event) => event.preventDefault());
  sides();
  return fields.length > 0;
}
