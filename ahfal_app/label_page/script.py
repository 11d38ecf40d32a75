"""What the labelling page does, in the browser.

Rules that it keeps:

- An answer is for the image that is on the screen, decoded and painted, when it is given. Until
  then nothing can be answered.
- The page goes on to the next image at once; what was answered is sent behind its back, in order,
  and again until it is confirmed. So nothing that is pressed meanwhile is lost.
- While a person goes through what they have answered, buttons are about that.
"""

SCRIPT = """
"use strict";
const at = (id) => document.getElementById(id);
const TEXTS = JSON.parse(at("texts").textContent);
const POLL_MS = 5000, RETRY_MS = 2000, STALE_MS = 20000, MOST_ZOOM = 16, SMALL = 200;
const SEAT = crypto.randomUUID();

const text = (key, words = {}) =>
  TEXTS[key].replace(/\\{(\\w+)\\}/g, (all, word) => words[word] ?? all);
const say = (message, wrong = false) => {
  at("said").textContent = message;
  at("said").classList.toggle("wrong", wrong);
};
const placeOf = (image) => image && `${image.request}/${image.sample}`;
const nameOf = (image) => image.name ?? text("number", {number: image.number});
const labelOf = (image, label) => label === null ? text("skipped") : image.classes[label].name;

// --- state ------------------------------------------------------------------------------

let hand = [];         // Images that this page holds: the one to show first, then the next ones.
let settling = false;  // Whether they are those that readers disagree on.
let current = null;    // The image that is on the screen, or about to be.
let isShown = false;   // Whether it is painted, so that it can be answered.
let hasFailed = false; // Whether it cannot be: then nobody can tell.
let turn = 0;          // Counts images, so that a late one does not take the place of another.
let own = null;        // A person's own answers, the newest first, while they go through them.
let ownAt = 0;
let canUndo = false;
let progress = null;   // How far the work is, as the program last said.
let outbox = [];       // What is not confirmed yet, in order.
let heard = 0;         // When the program last answered.
let isLost = false;    // Whether it does not.
let looks = 0;         // Counts what was told, so that an older look does not undo it.

// --- the image --------------------------------------------------------------------------

const pictures = new Map();

const pictureOf = (image) => {
  if (!pictures.has(image.image)) {
    const picture = new Image();
    picture.src = image.image;
    const loaded = picture.decode().then(() => picture);
    loaded.catch(() => pictures.delete(image.image));
    pictures.set(image.image, loaded);
  }
  return pictures.get(image.image);
};

const forgetPictures = () => {
  const wanted = new Set([...hand, current].filter(Boolean).map((image) => image.image));
  for (const address of pictures.keys()) if (!wanted.has(address)) pictures.delete(address);
};

// The second frame begins when the first one is on the screen.
const painted = () => new Promise((done) =>
  requestAnimationFrame(() => requestAnimationFrame(done)));

const clearView = () => {
  at("image")?.remove();
  at("caption").hidden = true;
};

const show = async (image) => {
  const mine = ++turn;
  current = image;
  isShown = hasFailed = false;
  clearView();
  describe();
  if (!image) return;
  let picture;
  try {
    picture = await pictureOf(image);
  } catch {
    if (mine !== turn) return;
    hasFailed = true;
    describe();
    return;
  }
  if (mine !== turn) return;
  picture.id = "image";
  picture.draggable = false;
  picture.alt = text(own ? "own_alt" : "image_alt", {name: nameOf(image)});
  picture.classList.toggle("small", Math.max(picture.naturalWidth, picture.naturalHeight) < SMALL);
  at("image")?.remove();
  at("view").append(picture);
  fit();
  describe(true);
  await painted();
  if (mine !== turn) return;
  isShown = true;
  describe();
};

// --- what stands around it --------------------------------------------------------------

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

const allow = (button, isAllowed) => button.setAttribute("aria-disabled", String(!isAllowed));
const isAllowed = (button) => button.getAttribute("aria-disabled") !== "true";
const press = (button, isPressed) => button.setAttribute("aria-pressed", String(isPressed));

const readingLine = ({annotator, label, unsure, comment}) => {
  const line = document.createElement("li");
  const said = labelOf(current, label);
  line.textContent = text("reading", {
    annotator, label: unsure ? text("unsure_said", {label: said}) : said});
  if (comment) {
    const quote = document.createElement("q");
    quote.textContent = comment;
    line.append(quote);
  }
  return line;
};

// What is said of the work goes with what is seen of it.
const describeProgress = () => {
  at("count").textContent = settling
    ? text("settling_progress", {count: progress.disagreements})
    : text("progress", {answered: progress.answered, total: progress.total});
  at("progress").hidden = settling;
  at("progress").max = Math.max(1, progress.total);
  at("progress").value = progress.answered;
};

// Called whenever anything has changed; `isThere` where an image is in its place, not yet painted.
const describe = (isThere = isShown) => {
  const mine = own ? own[ownAt] : null;
  const isOpen = mine ? isShown && mine.change !== "no" : isShown;
  const isAwaited = current ? !isThere : !heard || outbox.length > 0;
  at("waiting").hidden = !isAwaited;
  at("waiting").textContent = text(hasFailed ? "image_failed" : "image_loading");
  at("empty").hidden = Boolean(current) || isAwaited;
  at("caption").hidden = !isThere;
  at("question").hidden = !current;
  at("question").textContent =
    text(own ? "review_question" : settling ? "settle_question" : "question");
  at("classes").hidden = !current;
  at("others").hidden = Boolean(own);
  at("steps").hidden = !own;
  at("given").hidden = !mine;
  const address = current?.link ?? "";
  // The site's own program has seen to that; nothing else may be followed, whoever wrote it.
  at("link").hidden = !isThere || !/^https?:[/][/]/i.test(address);
  if (!at("link").hidden)
    Object.assign(at("link").firstElementChild, {href: address, textContent: address});
  at("guess").hidden = !isThere || Boolean(own) || (current.guess ?? null) === null;
  at("readings").hidden = !isThere || !current.readings?.length;
  allow(at("skip"), isOpen || hasFailed);
  allow(at("unsure"), isShown);
  allow(at("undo"), canUndo);
  if (own) {
    allow(at("earlier"), ownAt + 1 < own.length);
    allow(at("later"), ownAt > 0);
  }
  if (mine) {
    const when = new Intl.DateTimeFormat(
      document.documentElement.lang, {dateStyle: "medium", timeStyle: "short"});
    const how = {yes: "own_open", correct: "own_correctable", no: "own_closed"}[mine.change];
    const remarks = [mine.unsure ? text("unsure") : "", mine.comment].filter(Boolean);
    at("given").textContent = [
      text(how, {when: when.format(new Date(mine.given))}), remarks.join(" · ")].join("\\n").trim();
  }
  if (current) {
    at("caption").textContent = text("caption", {name: nameOf(current), cycle: current.cycle});
    if ((current.guess ?? null) !== null)
      at("guess").textContent = text("guess", {name: current.classes[current.guess].name});
    at("readings").replaceChildren(...(current.readings ?? []).map(readingLine));
    const names = JSON.stringify(current.classes);
    if (at("classes").dataset.names !== names) {
      at("classes").dataset.names = names;
      at("classes").replaceChildren(...current.classes.map(classButton));
    }
  }
  [...at("classes").children].forEach((button, index) => {
    allow(button, isOpen);
    if (mine) press(button, mine.label === index);
    else button.removeAttribute("aria-pressed");
  });
  at("unsaved").textContent = outbox.length ? text("saving", {count: outbox.length}) : "";
  for (const id of ["zoom-in", "zoom-out", "zoom-fit"]) allow(at(id), isThere);
  if (progress && (isShown || hasFailed || !(current || isAwaited))) describeProgress();
};

const clearRemarks = () => {
  at("comment").value = "";
  press(at("unsure"), false);
};

// --- what the program says --------------------------------------------------------------

const isSent = (image) => outbox.some(({place}) => place === placeOf(image));

const take = (state) => {
  const handed = (state.next ? [state.next, ...state.ahead] : []).filter((i) => !isSent(i));
  // While more is under way, the program does not know yet what is on the screen.
  const places = new Set(hand.map(placeOf));
  hand = outbox.length ? [...hand, ...handed.filter((i) => !places.has(placeOf(i)))] : handed;
  canUndo = state.undo || outbox.length > 0;
  at("who").textContent = text("as", {annotator: state.annotator});
  progress = state;
  at("queues").hidden = !state.settles;
  // Who still reads need not know what others make of it.
  at("note").textContent = !state.settles && !state.next && state.disagreements
    ? text("disagreements_wait", {count: state.disagreements}) : "";
  const others = state.elsewhere ? " " + text("elsewhere", {count: state.elsewhere}) : "";
  at("empty").textContent = text(settling ? "empty_settle" : "empty") + others;
  if (!own) goOn(!outbox.length);
  else describe();
  hand.forEach((image) => pictureOf(image).catch(() => {}));
};

// Shows the image that is first, unless it is there already.
const goOn = (isNews = true) => {
  const place = placeOf(current);
  const same = hand.find((image) => placeOf(image) === place);
  if (same && isNews && hasFailed) show(same);
  else if (same) describe();
  else {
    if (current && isNews && !isSent(current)) say(text("gone"), true);
    show(hand[0] ?? null);
  }
  forgetPictures();
};

const headers = {"Content-Type": "application/json"};

// Returns what the program says, or null where it says nothing; `isKept` where that is an error
// that may pass.
const ask = async (path, body) => {
  let reply, content;
  try {
    reply = await fetch(path, body === undefined ? {}
      : {method: "POST", headers, body: JSON.stringify(body)});
    const type = reply.headers.get("Content-Type") || "";
    content = type.startsWith("application/json") ? await reply.json()
      : {error: await reply.text()};
  } catch {
    say(text("no_answer"), true);
    isLost = true;
    return null;
  }
  const isStranger = reply.status === 403 && !content.code;
  if (isLost && reply.ok) say("");
  isLost = isStranger;
  heard = Date.now();
  if (isStranger) say(text("token"), true);
  else if (!reply.ok) say(content.error, true);
  return {content, isDone: reply.ok, isKept: isStranger || reply.status >= 500};
};

const about = () => ({
  seat: SEAT, settle: settling, shown: placeOf(own ? hand[0] : current) ?? ""});

const look = async () => {
  const before = looks;
  const reply = await ask("/state?" + new URLSearchParams(about()));
  // What was told meanwhile makes it out of date.
  if (reply?.isDone && before === looks && !outbox.length) take(reply.content);
  return Boolean(reply?.isDone);
};

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

// --- what people do ---------------------------------------------------------------------

let sending = null;    // While something is under way: what ends with the last of it.

const sendAll = async () => {
  while (outbox.length) {
    const [{path, body, done}] = outbox;
    const reply = await ask(path, {...about(), ...body});
    if (!reply || reply.isKept) {
      at("unsaved").textContent = text("unsaved", {count: outbox.length});
      await pause(RETRY_MS);
      continue;
    }
    outbox.shift();
    if (reply.isDone) {
      // First, since what it says goes before what a look says.
      done(reply.content);
      take(reply.content);
    } else await look();
  }
  sending = null;
  describe();
};

const send = (job) => {
  outbox.push(job);
  looks += 1;
  describe();
  sending ??= sendAll();
};

const answer = (label) => {
  if (own) return change(label);
  if (!isShown && !(hasFailed && label === null)) {
    if (current || outbox.length) say(text("too_early"), true);
    return undefined;
  }
  const image = current;
  const unsure = at("unsure").getAttribute("aria-pressed") === "true";
  const comment = at("comment").value.trim();
  const {request, sample} = image;
  const said = labelOf(image, label);
  canUndo = true;
  clearRemarks();
  say("");
  hand = hand.filter((other) => placeOf(other) !== placeOf(image));
  goOn(false);
  send({
    path: "/answers",
    place: placeOf(image),
    body: {request, sample, label, unsure, comment, settle: settling},
    done: () => say(text("said", {
      name: nameOf(image), label: unsure ? text("unsure_said", {label: said}) : said})),
  });
  return undefined;
};

const undo = () => {
  if (!canUndo || own) return;
  // Nothing can be answered until the image that comes back is on the screen.
  show(null);
  send({path: "/undo", body: {}, done: () => {
    current = null;
    say(text("undone"));
  }});
};

const flipUnsure = () => {
  if (isShown && !own) press(at("unsure"), at("unsure").getAttribute("aria-pressed") !== "true");
};

const settle = (isSettling) => {
  if (isSettling === settling && !own) return;
  settling = isSettling;
  own = null;
  press(at("queue-read"), !settling);
  press(at("queue-settle"), settling);
  clearRemarks();
  hand = [];
  looks += 1;
  show(null);
  look();
};

// --- one's own answers ------------------------------------------------------------------

const openOwn = async () => {
  const mine = turn;
  // The newest of them may be under way.
  await sending;
  const reply = await ask("/own");
  // Who has gone on meanwhile does not go back.
  if (!reply?.isDone || mine !== turn) return;
  if (!reply.content.answers.length) {
    say(text("no_own"));
    return;
  }
  own = reply.content.answers;
  ownAt = 0;
  say("");
  show(own[ownAt]);
};

const stepOwn = (by) => {
  if (!own && by > 0) openOwn();
  if (!own || ownAt + by < 0 || ownAt + by >= own.length) return;
  ownAt += by;
  say("");
  show(own[ownAt]);
};

const closeOwn = () => {
  if (!own) return;
  own = null;
  current = null;
  say("");
  goOn(false);
  look();
};

const change = async (label) => {
  const mine = own[ownAt];
  if (!isShown || mine.change === "no" || mine.label === label) return;
  const {request, sample, unsure, comment} = mine;
  looks += 1;
  const reply = await ask("/changes", {request, sample, label, unsure, comment, ...about()});
  if (!reply?.isDone) return;
  say(text(mine.change === "correct" ? "corrected" : "changed", {
    name: nameOf(mine), label: labelOf(mine, label)}));
  mine.label = label;
  mine.given = new Date().toISOString();
  take(reply.content);
};

// --- zoom -------------------------------------------------------------------------------

let zoom = 1, x = 0, y = 0;
const fingers = new Map();

const place = () => {
  const view = at("view"), image = at("image");
  if (!image) return;
  // As far as the image's edge to the middle of the view.
  const mostX = (image.offsetWidth * zoom) / 2, mostY = (image.offsetHeight * zoom) / 2;
  x = zoom === 1 ? 0 : Math.max(-mostX, Math.min(mostX, x));
  y = zoom === 1 ? 0 : Math.max(-mostY, Math.min(mostY, y));
  image.style.transform = zoom === 1 ? "" : `translate(${x}px, ${y}px) scale(${zoom})`;
  view.classList.toggle("zoomed", zoom > 1);
};

const fit = () => {
  zoom = 1;
  place();
};

// Zooms so that the point of the image under (atX, atY), from the view's middle, stays there.
const zoomBy = (factor, atX = 0, atY = 0) => {
  const to = Math.max(1, Math.min(MOST_ZOOM, zoom * factor));
  x = atX - (atX - x) * (to / zoom);
  y = atY - (atY - y) * (to / zoom);
  zoom = to;
  place();
};

const fromMiddle = ({clientX, clientY}) => {
  const box = at("view").getBoundingClientRect();
  return [clientX - box.x - box.width / 2, clientY - box.y - box.height / 2];
};

const spread = () => {
  const [first, second] = [...fingers.values()];
  return Math.hypot(first.clientX - second.clientX, first.clientY - second.clientY);
};

const view = at("view");
view.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoomBy(Math.exp(-event.deltaY / 400), ...fromMiddle(event));
}, {passive: false});
view.addEventListener("dblclick", (event) => zoom > 1 ? fit() : zoomBy(3, ...fromMiddle(event)));
view.addEventListener("pointerdown", (event) => {
  fingers.set(event.pointerId, event);
  if (zoom > 1) view.setPointerCapture(event.pointerId);
  view.classList.toggle("held", zoom > 1);
});
view.addEventListener("pointermove", (event) => {
  const before = fingers.get(event.pointerId);
  if (!before) return;
  const wide = fingers.size === 2 ? spread() : 0;
  fingers.set(event.pointerId, event);
  if (wide) zoomBy(spread() / wide, ...fromMiddle(event));
  else if (zoom > 1) {
    x += event.clientX - before.clientX;
    y += event.clientY - before.clientY;
    place();
  }
});
for (const kind of ["pointerup", "pointercancel", "pointerleave"])
  view.addEventListener(kind, (event) => {
    fingers.delete(event.pointerId);
    view.classList.remove("held");
  });
addEventListener("resize", place);

const pan = (byX, byY) => {
  x += byX * view.clientWidth / 8;
  y += byY * view.clientHeight / 8;
  place();
};

const flipFullScreen = () => {
  if (document.fullscreenElement) document.exitFullscreen();
  else document.documentElement.requestFullscreen?.().catch(() => {});
};
at("full-screen").hidden = !document.fullscreenEnabled;
document.addEventListener("fullscreenchange", () => {
  press(at("full-screen"), Boolean(document.fullscreenElement));
  place();
});

// --- buttons and keys -------------------------------------------------------------------

const ACTIONS = {
  "skip": () => answer(null), "unsure": flipUnsure, "undo": undo, "own": () => stepOwn(1),
  "earlier": () => stepOwn(1), "later": () => stepOwn(-1), "back": closeOwn,
  "zoom-in": () => zoomBy(1.5), "zoom-out": () => zoomBy(1 / 1.5), "zoom-fit": fit,
  "full-screen": flipFullScreen,
  "queue-read": () => settle(false), "queue-settle": () => settle(true),
};
for (const [id, act] of Object.entries(ACTIONS)) at(id).addEventListener("click", act);

const KEYS = {
  "backspace": undo, "s": () => answer(null), "?": flipUnsure, "#": () => at("comment").focus(),
  "arrowleft": () => stepOwn(1), "arrowright": () => stepOwn(-1), "escape": closeOwn,
  "+": ACTIONS["zoom-in"], "-": ACTIONS["zoom-out"], "=": fit, "*": flipFullScreen,
};
const PANS = {arrowleft: [1, 0], arrowright: [-1, 0], arrowup: [0, 1], arrowdown: [0, -1]};

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const key = event.key.toLowerCase();
  if (event.target === at("comment")) {
    // What is written there is no answer.
    if (key === "enter" || key === "escape") event.target.blur();
    return;
  }
  if (event.shiftKey && PANS[key]) pan(...PANS[key]);
  else if (event.repeat) return;
  else if (KEYS[key]) KEYS[key]();
  else {
    const buttons = [...at("classes").children];
    const index = buttons.findIndex((button) => button.dataset.key === key);
    if (index < 0) return;
    answer(index);
  }
  event.preventDefault();
});

// --- coming and going -------------------------------------------------------------------

// Undo ends when the site collects, new requests come in, and what is not heard of is let go.
setInterval(() => { if (!document.hidden && !sending) look(); }, POLL_MS);
document.addEventListener("visibilitychange", async () => {
  if (document.hidden || own) return;
  if (Date.now() - heard < STALE_MS || sending) return;
  // Somebody else may have the image by now.
  isShown = false;
  describe(Boolean(at("image")));
  const mine = turn;
  if (await look() && mine === turn && at("image")) isShown = true;
  describe();
});
addEventListener("pagehide", () => navigator.sendBeacon(
  "/release", new Blob([JSON.stringify({seat: SEAT})], {type: "application/json"})));
addEventListener("pageshow", (event) => { if (event.persisted) look(); });
addEventListener("beforeunload", (event) => { if (outbox.length) event.preventDefault(); });
look();
"""
