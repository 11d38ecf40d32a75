"""What the watching page does, in the browser.

It asks every two seconds, and puts what it hears in its place as text: names of sites and errors
are other people's words, and never markup. Rows stay where they are while their cells change.
"""

SCRIPT = """
"use strict";
const at = (id) => document.getElementById(id);
const POLL_MS = 2000, TICK_MS = 1000, SVG = "http://www.w3.org/2000/svg";

let heard = null;   // What the program last said.
let offset = 0;     // The program's clock less this one's.
let isLost = false; // Whether it does not answer.
let drawn = "";     // The curve that is on the screen.

// --- words --------------------------------------------------------------------------------

const span = (seconds) => {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole} s`;
  for (const [size, unit, below, smaller] of [[86400, "d", 3600, "h"], [3600, "h", 60, "min"]])
    if (whole >= size) {
      const rest = Math.floor(whole % size / below);
      return `${Math.floor(whole / size)} ${unit}` + (rest ? ` ${rest} ${smaller}` : "");
    }
  return `${Math.floor(whole / 60)} min`;
};
const age = (time) => time ? span((Date.now() + offset - Date.parse(time)) / 1000) : "";
const percent = (share) => share === null ? "" : `${(100 * share).toFixed(1)} %`;
const left = (run) => run.seconds_left === null ? ""
  : `${run.may_end_earlier ? "at most " : ""}${span(run.seconds_left)}`;
const images = (count) => `${count} image${count === 1 ? "" : "s"}`;
const look = (condition) => ({
  "waiting for labels": "waiting", "finished": "finished", "failed": "wrong", "silent": "wrong",
  "unreadable": "wrong"})[condition] ?? "";
const hasEnded = (run) => ["finished", "failed", "interrupted", "unreadable"]
  .includes(run.condition);

// --- elements -----------------------------------------------------------------------------

const make = (tag, content = "", kind = "") => {
  const element = document.createElement(tag);
  element.textContent = content;
  if (kind) element.className = kind;
  return element;
};
const put = (element, content) => {
  if (element.textContent !== content) element.textContent = content;
};
// Bring an element's children in line with what they are to be, each known by its key.
const keep = (parent, wanted, create, update) => {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  wanted.forEach(([key, value], index) => {
    const child = known.get(key) ?? create(value);
    known.delete(key);
    child.dataset.key = key;
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index]);
    update(child, value);
  });
  for (const child of known.values()) child.remove();
};
const rowOf = (columns) => {
  const row = make("tr");
  for (const [label, kind] of columns) {
    const cell = make("td", "", kind);
    if (label) cell.dataset.label = label;
    row.append(cell);
  }
  return row;
};
const fill = (row, texts) => texts.forEach((content, index) => {
  const cell = row.children[index];
  put(cell, content || "–");
  cell.classList.toggle("none", !content);
});

// --- parts of the page --------------------------------------------------------------------

const RUN = [["", ""], ["Condition", ""], ["Cycle", ""], ["Time left", ""], ["Labels", "number"],
  ["Missing", "number"], ["Accuracy", "number"]];
const showRuns = ({runs, chosen, is_one}) => {
  at("runs").hidden = is_one;
  if (is_one) return;
  const create = () => {
    const row = rowOf(RUN);
    row.firstChild.append(make("a"));
    return row;
  };
  keep(at("runs").querySelector("tbody"), runs.map((run) => [run.key, run]), create, (row, run) => {
    const [first, ...others] = row.children, link = first.firstChild;
    put(link, run.key);
    link.href = `#${encodeURIComponent(run.key)}`;
    const cycle = run.num_cycles ? `${run.cycle + 1} of ${run.num_cycles}` : "";
    const texts = [run.condition, cycle, left(run), `${run.given}`, `${run.missing}`,
      percent(run.accuracy ?? null)];
    texts.forEach((content, index) => put(others[index], content || "–"));
    others[0].className = look(run.condition);
    others[4].classList.toggle("waits", run.missing > 0);
    if (run.key === chosen) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
  });
};

const showHead = (run) => {
  put(at("name"), run.name);
  put(at("condition"), run.condition);
  at("condition").className = look(run.condition);
  put(at("about"), run.strategy
    ? `${run.strategy} on ${run.dataset}${run.oracle && `, labels by ${run.oracle}`}` : run.folder);
  at("reason").hidden = !run.reason;
  put(at("reason"), run.reason);
  document.title = `${run.condition} · ${run.name}`;
  const all = run.num_cycles * run.rounds;
  at("progress").value = run.condition === "finished" ? 1
    : all ? (run.cycle * run.rounds + run.round) / all : 0;
};

const factsOf = (run) => {
  const facts = [];
  const add = (name, value, more = "", kind = "") => value
    && facts.push([name, {name, value, more, kind}]);
  if (run.num_cycles)
    add("Cycle", `${run.cycle + 1} of ${run.num_cycles}`, `round ${run.round} of ${run.rounds}`);
  const isWaiting = run.condition === "waiting for labels";
  if (!hasEnded(run) && run.phase)
    add("Now", run.phase, `for ${age(run.phase_since)}`, isWaiting ? "waiting" : "");
  add("Time left", left(run), "of computing, without waiting for people");
  add("Labels", `${run.given} of ${run.wanted}`, run.missing
    ? `${run.missing} missing${run.missing_since ? ` for ${age(run.missing_since)}` : ""}`
    : "none missing", run.missing ? "waiting" : "");
  if (run.longest)
    add("Waiting longest", images(run.longest.images),
      `for ${age(run.longest.since)}, at ${run.longest.site}`, "waiting");
  const newest = run.curve.at(-1);
  if (newest) add("Test accuracy", percent(newest.accuracy), `with ${newest.labels} labels`);
  add("Started", run.started ? `${age(run.started)} ago` : "", run.failures
    ? `${run.failures} message${run.failures === 1 ? "" : "s"} failed` : "");
  return facts;
};
const showFacts = (run) => {
  const create = () => {
    const part = make("div"), value = make("dd");
    value.append(make("span"), make("small"));
    part.append(make("dt"), value);
    return part;
  };
  keep(at("facts"), factsOf(run), create, (part, {name, value, more, kind}) => {
    put(part.children[0], name);
    put(part.querySelector("span"), value);
    put(part.querySelector("small"), more);
    part.className = kind;
  });
};

const SITE = [["", ""], ["Last seen", ""], ["Wanted", "number"], ["Given", "number"],
  ["Missing", "number"], ["Missing since", ""], ["Waiting longest", ""], ["Failures", "number"],
  ["Version", ""]];
const showSites = ({sites}) => {
  at("sites").querySelector("table").hidden = !sites.length;
  at("no-sites").hidden = sites.length > 0;
  const rows = [];
  for (const site of sites) {
    const key = `${site.client}/${site.called}`;
    rows.push([key, site]);
    const since = site.failing_since ? ` for ${age(site.failing_since)}` : "";
    if (site.failing) rows.push([`${key}/why`, {why: `fails${since}: ${site.failing}`}]);
    else if (site.last_failure)
      rows.push([`${key}/why`, {why: `last failure: ${site.last_failure}`}]);
  }
  const create = (value) => {
    if (value.why === undefined) return rowOf(SITE);
    const row = make("tr"), cell = make("td", "", "why");
    cell.colSpan = SITE.length;
    row.append(cell);
    return row;
  };
  keep(at("sites").querySelector("tbody"), rows, create, (row, value) => {
    if (value.why !== undefined) return put(row.firstChild, value.why);
    const isKnown = value.client !== null, isMissing = value.missing > 0;
    fill(row, [value.name || value.called,
      value.last_seen ? `${age(value.last_seen)} ago` : "never",
      isKnown ? `${value.wanted}` : "", isKnown ? `${value.given}` : "",
      isKnown ? `${value.missing}` : "", isMissing ? age(value.missing_since) : "",
      isMissing && value.longest
        ? `${images(value.longest)} for ${age(value.longest_since)}` : "",
      isKnown ? `${value.failures}` : "", value.version]);
    for (const index of [4, 5, 6]) row.children[index].classList.toggle("waits", isMissing);
  });
};

// --- the curve ----------------------------------------------------------------------------

const shape = (tag, attributes, content = "") => {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (content) element.textContent = content;
  return element;
};
const STEPS = [1, 2, 5];
// Round numbers from below the least to above the most, about so many.
const ticks = (least, most, count) => {
  const raw = Math.max((most - least) / count, 1e-9), power = 10 ** Math.floor(Math.log10(raw));
  const step = power * (STEPS.find((each) => each * power >= raw * 0.999) ?? 10);
  const first = Math.floor(least / step + 1e-9), last = Math.ceil(most / step - 1e-9);
  return Array.from({length: Math.max(1, last - first) + 1}, (_, index) => (first + index) * step);
};
const showCurve = ({curve}) => {
  const points = curve.filter((point) => point.accuracy !== null);
  at("curve").hidden = !points.length;
  if (!points.length) return;
  const plot = at("plot"), width = plot.clientWidth, height = plot.clientHeight;
  const state = JSON.stringify([points, width, height]);
  if (state === drawn || !width) return;
  drawn = state;
  const labels = points.map((point) => point.labels);
  const shares = points.map((point) => 100 * point.accuracy);
  const xs = ticks(Math.min(...labels), Math.max(...labels), width < 450 ? 3 : 5);
  const ys = ticks(Math.min(...shares), Math.max(...shares), 4);
  const edge = {left: 44, right: 30, top: 32, bottom: 44};
  const scale = (values, low, high) => (value) => low + (high - low)
    * (value - values[0]) / (values.at(-1) - values[0]);
  const x = scale(xs, edge.left, width - edge.right);
  const y = scale(ys, height - edge.bottom, edge.top);
  const first = points[0], last = points.at(-1);
  const words = points.length === 1 ? `${percent(last.accuracy)} with ${last.labels} labels`
    : `from ${percent(first.accuracy)} with ${first.labels} labels to ${percent(last.accuracy)} `
      + `with ${last.labels}`;
  put(at("curve-text"), `Test accuracy, ${words}`);
  const svg = shape("svg", {viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `Learning curve: ${words}`});
  const exact = (value) => `${+value.toPrecision(6)}`;
  for (const value of ys) {
    const [x1, x2, at_y] = [edge.left, width - edge.right, y(value)];
    svg.append(shape("line", {class: "grid", x1, x2, y1: at_y, y2: at_y}),
      shape("text", {x: x1 - 8, y: at_y + 4, "text-anchor": "end"}, exact(value)));
  }
  for (const value of xs) svg.append(shape("text",
    {x: x(value), y: height - edge.bottom + 20, "text-anchor": "middle"}, exact(value)));
  svg.append(
    shape("text", {x: 0, y: 13}, "accuracy in %"),
    shape("text", {x: width - edge.right, y: height - 6, "text-anchor": "end"}, "labels"),
    shape("polyline", {class: "line",
      points: points.map((point, i) => `${x(labels[i])},${y(shares[i])}`).join(" ")}));
  points.forEach((point, i) => {
    const dot = shape("circle", {cx: x(labels[i]), cy: y(shares[i]), r: 4.5});
    dot.append(shape("title", {}, `${percent(point.accuracy)} with ${point.labels} labels`));
    svg.append(dot);
  });
  plot.replaceChildren(svg);
};

// --- all of it ----------------------------------------------------------------------------

const show = () => {
  if (heard) {
    const {run} = heard;
    showRuns(heard);
    showHead(run);
    showFacts(run);
    showSites(run);
    showCurve(run);
    keep(at("notes"), run.notes.map((note) => [note, note]), (note) => make("li", note), put);
    put(at("fresh"), run.written
      ? `The server wrote this ${age(run.written)} ago. The page updates by itself.`
      : "The page updates by itself.");
  }
  at("trouble").hidden = !isLost;
};

const ask = async () => {
  try {
    const chosen = decodeURIComponent(location.hash.slice(1));
    const answer = await fetch(`/state?run=${encodeURIComponent(chosen)}`);
    const said = await answer.json();
    if (!answer.ok) throw new Error(said.error);
    offset = Date.parse(said.now) - Date.now();
    heard = said;
    isLost = false;
  } catch (error) {
    isLost = true;
    put(at("trouble"), error instanceof TypeError
      ? "`ahfal watch` does not answer: what stands here is old." : error.message);
  }
  show();
};
const goOn = async () => {
  await ask();
  setTimeout(goOn, POLL_MS);
};
setInterval(show, TICK_MS);
addEventListener("hashchange", ask);
addEventListener("resize", show);
goOn();
"""
