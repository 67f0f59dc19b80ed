"use strict";
/* What every page has: the reader's theme, the help, texts to copy, keys, and ways to make elements and ask the server. */
const root = document.body.dataset.root;
const SERVED = typeof served === "undefined" ? null : served; // what the pages' own server can do; null from anywhere else
document.documentElement.classList.toggle("served", SERVED !== null);

/* An element with text and attributes; whatever the text holds, it stays text. */
function make(name, text = "", attributes = {}) {
  const element = document.createElement(name);
  element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) if (value !== null) element.setAttribute(key, value);
  return element;
}

function readJson(id) { return JSON.parse(document.getElementById(id).textContent); }

function clock(seconds) {
  return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
}

/* Scripts that bring data, loaded when they are needed; the same one only once. */
const loading = new Map();
function load(url) {
  if (!loading.has(url)) {
    loading.set(url, new Promise((resolve, reject) => {
      const script = make("script", "", { src: url });
      script.addEventListener("load", resolve);
      script.addEventListener("error", () => reject(new Error(`${url} cannot be loaded`)));
      document.head.append(script);
    }));
  }
  return loading.get(url);
}

/* One call of the server. What it refuses arrives as an Error with its words. */
async function ask(path, body, method = body === undefined ? "GET" : "POST") {
  const json = body !== undefined && !(body instanceof Blob);
  const headers = body === undefined ? {} : { "Content-Type": json ? "application/json" : "application/octet-stream" };
  const answer = await fetch(`/api/${path}`, { method, headers, body: json ? JSON.stringify(body) : body });
  const given = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  if (!answer.ok) throw new Error(given.error ?? `the server answered ${answer.status}`);
  return given;
}

/* ---- Keys: pages add theirs; none works while somebody types or an overlay is open. */
const keys = new Map([["?", () => help.showModal()]]);
const help = document.getElementById("help");
document.getElementById("keys").addEventListener("click", () => help.showModal());
// A browser leaves the focus on the hidden button until it paints again, and a button keeps the keys for itself.
help.addEventListener("close", () => { if (help.contains(document.activeElement)) document.activeElement.blur(); });
help.addEventListener("click", (event) => { if (event.target === help) help.close(); });

function typing(target) { return target.matches("input:not([type=range]), select, textarea"); }

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target) || help.open) return;
  if ((event.key === " " || event.key === "Enter") && event.target.matches("button, a, summary")) return;
  const action = keys.get(event.key);
  if (!action) return;
  event.preventDefault();
  action();
});

/* ---- Theme: the system's, until the reader chooses. */
const dark = matchMedia("(prefers-color-scheme: dark)");
function theme() { return document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light"); }
function remembered() { try { return localStorage.getItem("theme"); } catch { return null; } } // storage may be forbidden
function setTheme(name) {
  document.documentElement.dataset.theme = name;
  try { localStorage.setItem("theme", name); } catch { /* then only for this page */ }
  document.dispatchEvent(new Event("theme"));
}
if (remembered() === "dark" || remembered() === "light") document.documentElement.dataset.theme = remembered();
document.getElementById("theme").addEventListener("click", () => setTheme(theme() === "dark" ? "light" : "dark"));
dark.addEventListener("change", () => document.dispatchEvent(new Event("theme")));

/* ---- Texts to copy. */
async function copy(button) {
  const text = button.nextElementSibling;
  if (navigator.clipboard && isSecureContext) await navigator.clipboard.writeText(text.textContent);
  else {
    getSelection().selectAllChildren(text);
    document.execCommand("copy"); // the only way on a page that came over plain http
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}
for (const button of document.querySelectorAll(".copy")) button.addEventListener("click", () => copy(button));

/* On the narrowest phones the pages' names are scrolled sideways: this page's must be in view. */
document.querySelector("header nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest", behavior: "instant" });
