"""The labelling page: HTML, style and script as text, since Flower's bundle has .py files only."""

from __future__ import annotations

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Label images</title>
<link rel="stylesheet" href="/page.css">
<script src="/page.js" defer></script>
</head>
<body>
<header>
<h1>Label images</h1>
<p id="who"></p>
<label for="progress" id="count">Loading …</label>
<progress id="progress" value="0" max="1"></progress>
</header>
<main>
<figure id="shown" hidden>
<img id="image" alt="">
<figcaption id="caption"></figcaption>
</figure>
<p id="empty" hidden>Nothing is left to label. New images appear here by themselves.</p>
<section aria-labelledby="question">
<h2 id="question">Which class is it?</h2>
<p id="guess" hidden></p>
<div id="classes" role="group" aria-labelledby="question"></div>
<div id="others">
<button type="button" id="skip">Nobody can tell <kbd>s</kbd></button>
<button type="button" id="undo" disabled>Undo <kbd>Backspace</kbd></button>
</div>
</section>
</main>
<p id="said" role="status" aria-live="polite"></p>
<noscript><p>This page needs JavaScript.</p></noscript>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --ink: #16202b; --paper: #ffffff; --soft: #eef1f4;
  --line: #66727f; --accent: #0b57a4; --on-accent: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eef1f4; --paper: #14181d; --soft: #232a32; --line: #97a3b0;
    --accent: #8cc2ff; --on-accent: #14181d; } }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
header { display: flex; flex-wrap: wrap; gap: .25rem 1rem; align-items: center;
  border-bottom: 1px solid var(--line); padding-bottom: .5rem; }
h1 { font-size: 1.1rem; margin: 0; } h2 { font-size: 1.1rem; margin: 0 0 .5rem; }
#who { margin: 0 auto 0 0; overflow-wrap: anywhere; }
progress { width: 12rem; max-width: 100%; accent-color: var(--accent); }
main { display: grid; gap: 1rem; padding: 1rem 0; grid-template-columns: minmax(0, 3fr) 2fr; }
@media (max-width: 45rem) { main { grid-template-columns: minmax(0, 1fr); } }
figure { margin: 0; text-align: center; background: var(--soft); padding: .75rem; }
img { display: block; margin: 0 auto; max-width: 100%; max-height: 65vh; object-fit: contain; }
img.small { width: min(100%, 20rem); image-rendering: pixelated; }
figcaption { overflow-wrap: anywhere; margin-top: .5rem; }
#classes, #others { display: grid; gap: .5rem;
  grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
#others { margin-top: 1rem; padding-top: 1rem; border-top: 1px solid var(--line); }
button { display: flex; justify-content: space-between; align-items: center; gap: .5rem;
  min-height: 2.75rem; padding: .5rem .75rem; font: inherit; text-align: left; min-width: 0;
  overflow-wrap: anywhere; color: var(--ink); background: var(--soft);
  border: 1px solid var(--line); border-radius: .375rem; cursor: pointer; }
button > span { min-width: 0; }
button:hover:enabled { background: var(--accent); color: var(--on-accent); }
button:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
button:disabled { opacity: .6; cursor: default; }
kbd { font: .875em ui-monospace, monospace; border: 1px solid currentColor;
  border-radius: .25rem; padding: 0 .35em; flex: none; }
#said { min-height: 1.5em; }
#said.wrong { font-weight: 600; border-left: .3rem solid #c62828; padding-left: .5rem; }
"""

SCRIPT = """
"use strict";
const at = (id) => document.getElementById(id);
const POLL_MS = 5000;
let current = null, busy = false, changes = 0;

const say = (text, wrong = false) => {
  at("said").textContent = text;
  at("said").classList.toggle("wrong", wrong);
};

const classButton = ({name, key}, index) => {
  const button = document.createElement("button");
  const label = document.createElement("span");
  button.type = "button";
  label.textContent = name;
  button.append(label);
  if (key) {
    const hint = document.createElement("kbd");
    hint.textContent = key;
    button.append(hint);
    button.setAttribute("aria-keyshortcuts", key);
  }
  button.dataset.key = key;
  button.addEventListener("click", () => answer(index));
  return button;
};

const show = (state) => {
  const before = current && `${current.request}/${current.sample}`;
  current = state.next;
  at("who").textContent = `as ${state.annotator}`;
  at("count").textContent = `${state.answered} of ${state.total} labelled`;
  at("progress").max = Math.max(1, state.total);
  at("progress").value = state.answered;
  at("undo").disabled = !state.undo;
  at("skip").disabled = !current;
  at("shown").hidden = !current;
  at("empty").hidden = Boolean(current);
  at("question").hidden = !current;
  at("classes").hidden = !current;
  at("guess").hidden = !current || current.guess === null;
  if (!current || before === `${current.request}/${current.sample}`) return;
  const image = at("image");
  image.src = current.image;
  image.alt = `Image ${current.name}, to be labelled`;
  at("caption").textContent = `${current.name}, cycle ${current.cycle}`;
  if (current.guess !== null)
    at("guess").textContent = `The model's guess: ${current.classes[current.guess].name}`;
  const names = JSON.stringify(current.classes);
  if (at("classes").dataset.names !== names) {
    at("classes").dataset.names = names;
    at("classes").replaceChildren(...current.classes.map(classButton));
  }
  if (state.after) new Image().src = state.after;
};

// One answer at a time: nobody answers for an image that is not shown yet.
const tell = async (path, body) => {
  if (busy) return null;
  busy = true;
  changes += 1;
  try {
    return await ask(path, body);
  } finally {
    busy = false;
  }
};

const ask = async (path, body) => {
  const before = changes;
  try {
    const options = body === undefined ? {} : {
      method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)};
    const reply = await fetch(path, options);
    const type = reply.headers.get("Content-Type") || "";
    const content = type.startsWith("application/json") ? await reply.json()
      : {error: await reply.text()};
    if (!reply.ok) { say(content.error, true); return null; }
    // What a look said is out of date if something was told meanwhile.
    if (before === changes) show(content);
    return content;
  } catch {
    say("The page's program does not answer. Is `ahfal label` still running? " +
      "What was confirmed is kept.", true);
    return null;
  }
};

const answer = async (label) => {
  if (!current || busy) return;
  const {request, sample, name, classes} = current;
  const done = await tell("/answers", {request, sample, label});
  if (done) say(`${name}: ${label === null ? "skipped" : classes[label].name}`);
};

const undo = async () => {
  if (at("undo").disabled) return;
  if (await tell("/undo", {})) say("The last answer is taken back.");
};

at("skip").addEventListener("click", () => answer(null));
at("undo").addEventListener("click", undo);
at("image").addEventListener("load", ({target}) =>
  target.classList.toggle("small", target.naturalWidth < 200));
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  const key = event.key.toLowerCase();
  if (key === "backspace") undo();
  else if (key === "s") answer(null);
  else {
    const buttons = [...at("classes").children];
    const index = buttons.findIndex((button) => button.dataset.key === key);
    if (index < 0) return;
    answer(index);
  }
  event.preventDefault();
});
ask("/state");
// Undo ends when the site collects, and new requests come in.
setInterval(() => { if (!document.hidden) ask("/state"); }, POLL_MS);
"""
