"use strict";
/* What differs between the settings of this run and those of another; both come from configs.js, loaded when needed. */
const other = document.getElementById("other");
const differences = document.getElementById("differences");

function show(mine, theirs, name) {
  const keys = [...new Set([...Object.keys(mine), ...Object.keys(theirs)])].sort();
  const rows = keys.filter((key) => mine[key] !== theirs[key]).map((key) => {
    const row = document.createElement("tr");
    for (const cell of [key, mine[key] ?? "—", theirs[key] ?? "—"]) row.append(make("td", cell));
    return row;
  });
  const head = document.createElement("tr");
  for (const word of ["Setting", "This run", name]) head.append(make("th", word, { scope: "col" }));
  const table = document.createElement("table");
  table.append(head, ...rows);
  differences.replaceChildren(rows.length ? table : make("p", "No setting differs."));
  differences.hidden = false;
}

if (other) {
  other.addEventListener("change", async () => {
    differences.hidden = true;
    if (!other.value) return;
    await load(`${root}configs.js`);
    const configs = data.get("configs");
    show(configs[differences.dataset.run] ?? {}, configs[other.value] ?? {}, other.value);
  });
}
