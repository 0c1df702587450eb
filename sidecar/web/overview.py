"""The page of the server: images, sessions and runs, live; one document, without anything from elsewhere. Pure.

All that it shows is hostile: it becomes text, never markup (textContent), and what of it chooses a colour is looked up in a
table of known words. Nothing is drawn anew: what is there is kept by its key and changed, so the focus stays where it is, and
where what had it goes, the heading above has it. The token is kept in its field alone; because of it the events are read by
fetch, for EventSource sends no header.

Each connection tells all that there is once more, so what was not told by `ready` is gone. Images are no events, for their
providers are asked: they are asked again when a work begins or ends, now and then, and when somebody wishes.
"""

from __future__ import annotations

PAGE = r"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>sidecar</title>
<style>
  :root {
    color-scheme: light dark;
    --ground: #f6f7f9; --card: #fff; --well: #f1f3f6; --text: #1b1f24; --quiet: #57606a; --line: #d0d7de; --edge: #868f99;
    --blue: #0b5cad; --on-blue: #fff; --good: #116b34; --bad: #b3261e; --warn: #7f5000; --bar: #5b8fc7;
    --waiting: #e6e9ed; --preparing: #fbe3b0; --ready: #dcebf9; --running: #a9cdf3; --exited: #ead9f5; --saving: #bfe6ca;
  }
  @media (prefers-color-scheme: dark) {
    :root {
      --ground: #0f1318; --card: #181d24; --well: #10151b; --text: #e6e9ed; --quiet: #a0a9b4; --line: #333b45; --edge: #6e7884;
      --blue: #6cb0ff; --on-blue: #08182b; --good: #62cd86; --bad: #ff938a; --warn: #e3b458; --bar: #4a86c4;
      --waiting: #343c47; --preparing: #5c4512; --ready: #21374f; --running: #1d5490; --exited: #4b335f; --saving: #1d5a37;
    }
  }
  * { box-sizing: border-box; }
  body { margin: 0; font: 1rem/1.5 system-ui, sans-serif; color: var(--text); background: var(--ground); }
  header, main, footer { max-width: 84rem; margin: auto; padding: 0 1.25rem; }
  header { padding-block: 1.25rem; display: flex; flex-wrap: wrap; gap: .25rem 1rem; align-items: baseline; }
  h1 { font-size: 1.35rem; margin: 0; } h2 { font-size: 1.05rem; margin: 0; } h3 { font-size: 1rem; margin: 0; }
  h4, label { display: block; font-size: .875rem; font-weight: 600; margin: 0 0 .25rem; }
  h2, h3, h4, th, td, li, summary, .text { overflow-wrap: anywhere; unicode-bidi: isolate; }
  main { display: grid; gap: 1.25rem; grid-template-columns: minmax(0, 1fr); }
  section, #secret { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem; }
  section > :not(:last-child) { margin: 0 0 .75rem; } section > :is(p, ul):empty { margin: 0; } p, ul { margin: 0; }
  #secret { margin-bottom: 0; }
  .row { display: flex; flex-wrap: wrap; gap: .35rem .75rem; align-items: center; } .row > .last { margin-left: auto; }
  .head { display: flex; gap: .75rem; align-items: start; } .head > .row { flex: 1; min-width: 0; padding-top: .15rem; }
  input, textarea {
    width: 100%; font: inherit; color: inherit; background: var(--card); border: 1px solid var(--edge); border-radius: .35rem;
    padding: .4rem .5rem;
  }
  textarea, pre { font: .875rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; tab-size: 4; }
  textarea { display: block; resize: vertical; margin-bottom: .75rem; }
  #checked { margin-block: .5rem; }
  summary { font-size: .875rem; cursor: pointer; width: fit-content; max-width: 100%; }
  details[open] > summary { margin-bottom: .5rem; }
  :focus-visible { outline: 3px solid var(--blue); outline-offset: 2px; }
  [tabindex="-1"]:focus { outline: 3px solid var(--blue); }
  button {
    font: inherit; font-size: .875rem; font-weight: 600; padding: .25rem .9rem; cursor: pointer;
    border: 1px solid var(--blue); border-radius: .35rem; background: var(--blue); color: var(--on-blue);
  }
  button.plain { background: none; color: var(--blue); } button[aria-disabled=true] { opacity: .7; cursor: progress; }
  @media (pointer: coarse) {
    button { min-height: 2.75rem; } summary { padding-block: .5rem; } input, textarea { font-size: 1rem; }
  }
  .quiet { color: var(--quiet); font-size: .875rem; font-weight: 400; }
  .good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); } .word { font-weight: 600; }
  #connection::before {
    content: ""; display: inline-block; width: .6rem; height: .6rem; margin-right: .4rem; border-radius: 50%;
    background: currentcolor;
  }
  pre {
    margin: 0; padding: .5rem .75rem; border-radius: .35rem; background: var(--well); border: 1px solid var(--line);
    max-height: 24rem; overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext;
  }
  pre.error { border-left: 3px solid var(--bad); margin-bottom: .5rem; } pre:empty { display: none; }
  .wide { overflow-x: auto; }
  table { width: 100%; border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
  th, td { padding: .45rem 1rem .45rem 0; text-align: left; vertical-align: top; font-weight: 400; }
  thead th { color: var(--quiet); padding-top: 0; } tbody th { font-weight: 600; }
  tbody { border-top: 1px solid var(--line); } .more td { padding-top: 0; } td:last-child { padding-right: 0; }
  #image-table :is(th, td):not([colspan]) { min-width: 8rem; max-width: 22rem; } td > * + * { margin-top: .3rem; }
  .track { display: flex; align-items: center; gap: .5rem; font-size: .875rem; max-width: 14rem; }
  .track > span:first-child {
    flex: 1; height: .6rem; border-radius: .3rem; background: var(--well); border: 1px solid var(--edge); overflow: hidden;
  }
  .track > span > span { display: block; height: 100%; background: var(--bar); }
  .work + .work { margin-top: 1rem; }
  article { border-top: 1px solid var(--line); padding-block: .75rem; } article:last-child { padding-bottom: 0; }
  article > * + * { margin-top: .5rem; }
  svg { display: block; width: 100%; font-size: 12px; font-variant-numeric: tabular-nums; } svg text { fill: currentcolor; }
  svg .tick { color: var(--quiet); } svg .grid { stroke: var(--line); }
  svg .name { font-weight: 600; paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
  svg rect { stroke: var(--edge); fill: var(--waiting); } svg .hand { stroke: var(--text); fill: none; stroke-width: 1.25; }
  svg .wait { stroke: var(--blue); stroke-width: 2; fill: none; stroke-dasharray: 5 3; }
  svg .died { stroke: var(--bad); stroke-width: 2.5; }
  svg .end { fill: var(--good); stroke: none; } svg .end.failed { fill: var(--bad); }
  .tip { fill: var(--text); } .tip-wait { fill: var(--blue); }
  svg .waiting, .swatch.waiting { fill: var(--waiting); background: var(--waiting); }
  svg .preparing, .swatch.preparing { fill: var(--preparing); background: var(--preparing); }
  svg .ready, .swatch.ready { fill: var(--ready); background: var(--ready); }
  svg .running, .swatch.running { fill: var(--running); background: var(--running); }
  svg .exited, .swatch.exited { fill: var(--exited); background: var(--exited); }
  svg .saving, .swatch.saving { fill: var(--saving); background: var(--saving); }
  .lanes, .containers { list-style: none; padding: 0; font-size: .875rem; } .lanes li { margin-top: .15rem; }
  .lanes li > * { margin-right: .5rem; } .phase { white-space: nowrap; color: var(--quiet); margin-right: .75rem; }
  .swatch { display: inline-block; width: .75rem; height: .75rem; border: 1px solid var(--edge); border-radius: .15rem;
    vertical-align: -.05rem; margin-right: .3rem; background: var(--waiting); }
  .containers { display: grid; gap: .25rem; }
  #news { list-style: none; padding: 0; font-size: .875rem; max-height: 14rem; overflow: auto; }
  #news time { color: var(--quiet); margin-right: .75rem; font-variant-numeric: tabular-nums; }
  footer { color: var(--quiet); font-size: .875rem; padding-block: 1.25rem; } a { color: var(--blue); }
  dialog { color: inherit; background: var(--card); border: 1px solid var(--edge); border-radius: .6rem; max-width: 28rem; }
  dialog::backdrop { background: #0008; } dialog p { margin-bottom: 1rem; }
  @media (max-width: 48rem) {
    header, main, footer { padding-inline: .75rem; } .wide { overflow: visible; }
    table, tbody, tr, th, td { display: block; } tbody { padding: .5rem 0; } th, td { padding: .2rem 0; }
    thead { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
    #image-table :is(th, td):not([colspan]) { min-width: 0; max-width: none; }
    td[data-head] { display: grid; grid-template-columns: 6.5rem minmax(0, 1fr); column-gap: .5rem; }
    td[data-head]::before { content: attr(data-head); color: var(--quiet); grid-row: 1 / span 9; overflow-wrap: anywhere; }
    td[data-head] > * { grid-column: 2; } td button { justify-self: start; }
  }
  @media (prefers-reduced-motion: no-preference) { .track > span > span { transition: width .3s; } }
  [hidden] { display: none !important; }
</style>
<svg width="0" height="0" aria-hidden="true" style="position: absolute; width: 0">
  <defs>
    <marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"
      markerUnits="userSpaceOnUse"><path class="tip" d="M0 0 8 4 0 8z"/></marker>
    <marker id="tip-wait" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="10" markerHeight="10" orient="auto"
      markerUnits="userSpaceOnUse"><path class="tip-wait" d="M0 0 8 4 0 8z"/></marker>
  </defs>
</svg>
<header>
  <h1>sidecar</h1>
  <p id="connection" role="status" class="quiet">Connecting…</p>
</header>
<main>
  <form id="secret" hidden>
    <label for="token">Token</label>
    <input id="token" type="password" autocomplete="off" spellcheck="false">
  </form>
  <section id="images" aria-labelledby="images-head" hidden>
    <div class="row"><h2 id="images-head" tabindex="-1">Images</h2>
      <button id="again" type="button" class="plain last">Look again</button></div>
    <p id="images-said" class="bad text" role="alert"></p>
    <p id="pressed-said" class="bad text" role="alert"></p>
    <p id="no-images" class="quiet" hidden>There are none.</p>
    <div class="wide"><table id="image-table" aria-labelledby="images-head">
      <thead><tr id="heads"></tr></thead>
    </table></div>
    <details id="checking">
      <summary>Check a manifest</summary>
      <form id="check" aria-label="Check a manifest">
        <label for="manifest">Manifest <span class="quiet">a pod, Job or workflow, in YAML or JSON</span></label>
        <textarea id="manifest" rows="10" spellcheck="false" autocapitalize="off" autocomplete="off"></textarea>
        <div class="row"><button id="look">Check</button><button id="all" type="button" hidden></button></div>
        <p id="checked" class="text" role="status"></p>
        <div class="wide"><table id="named-table" aria-label="Images of the manifest" hidden>
          <thead><tr><th scope="col">Line<th scope="col">Image<th scope="col">How it stands<th scope="col">On offer</tr></thead>
        </table></div>
      </form>
    </details>
  </section>
  <section aria-labelledby="sessions-head">
    <h2 id="sessions-head" tabindex="-1">Sessions</h2>
    <p id="no-sessions" class="quiet">There are none.</p>
    <div id="sessions"></div>
  </section>
  <section aria-labelledby="runs-head">
    <h2 id="runs-head" tabindex="-1">Runs</h2>
    <p id="no-runs" class="quiet">There are none.</p>
    <div class="wide"><table id="runs" aria-labelledby="runs-head" hidden>
      <thead>
        <tr><th scope="col">Run<th scope="col">State<th scope="col">Begun<th scope="col">Took<th scope="col">Exit</tr>
      </thead>
    </table></div>
  </section>
  <section aria-labelledby="news-head">
    <h2 id="news-head" tabindex="-1">What happened</h2>
    <ul id="news" role="log" aria-labelledby="news-head" tabindex="0"></ul>
    <p id="no-news" class="quiet">Nothing yet, since this page was opened.</p>
  </section>
</main>
<footer><p id="functions" hidden></p><p>The same over HTTP: <a href="openapi.json">its description</a>.</p></footer>
<dialog id="ask" aria-labelledby="question">
  <p id="question" class="text"></p>
  <form method="dialog" class="row">
    <button value="no" class="plain" autofocus>Keep it</button>
    <button value="yes">Stop it</button>
  </form>
</dialog>
<script>
"use strict";
const at = (id) => document.getElementById(id);
const headers = () => at("token").value ? {Authorization: "Bearer " + at("token").value} : {};

// --- the document: what is there is kept and changed -----------------------------------------------------------------

function make(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}
const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };
const set = (node, name, text) => { if (node.getAttribute(name) !== text) node.setAttribute(name, text); };
const style = (node, names) => { if (node.className !== names) node.className = names; };

function leave(node) {  // the focus to the heading of what it is in
  if (!node.contains(document.activeElement)) return;
  const home = node.parentElement.closest("tbody, article, section");
  if (home) home.querySelector("[tabindex='-1']").focus();
}
function show(node, shown) {
  if (node.hidden !== shown) return;
  if (!shown) leave(node);
  node.hidden = !shown;
}
function each(parent, things, key, fresh, draw) {  // one child for each thing; who stays is not moved
  const old = new Map([...parent.children].filter((node) => node.key !== undefined).map((node) => [node.key, node]));
  const nodes = things.map((thing) => {
    const name = key(thing), node = old.get(name) || Object.assign(fresh(thing), {key: name});
    old.delete(name);
    draw(node, thing);
    return node;
  });
  for (const node of old.values()) { leave(node); node.remove(); }
  let next = [...parent.children].find((node) => node.key !== undefined) || null;
  for (const node of nodes) if (node === next) next = next.nextElementSibling; else parent.insertBefore(node, next);
}
function news(text) {
  show(at("no-news"), false);
  at("news").append(make("li", {className: "text"}, make("time", {textContent: new Date().toLocaleTimeString()}), text));
  while (at("news").children.length > 100) at("news").firstElementChild.remove();
  at("news").scrollTop = at("news").scrollHeight;
}

// --- words -----------------------------------------------------------------------------------------------------------

const TONES = {
  COMPLETE: "good", FAILED: "bad", STALE: "warn", MISSING: "warn", pushed: "good", absent: "warn", changed: "warn", stale: "warn",
  unreachable: "bad", Running: "good", Succeeded: "good", Failed: "bad", Unknown: "warn", running: "good", done: "good",
  failed: "bad", died: "bad", unknown: "warn", "failed-to-start": "bad",
};
const tone = (word) => Object.hasOwn(TONES, word) ? TONES[word] : "";
const PHASES = ["waiting", "preparing", "ready", "running", "exited", "saving"];
const kind = (state) => PHASES.includes(state) ? state : "";
const over = (work) => work.status === "COMPLETE" || work.status === "FAILED";

function duration(seconds) {
  if (seconds < 0.9995) return Math.max(0, seconds * 1000).toFixed(0) + " ms";
  if (seconds < 59.95) return seconds.toFixed(1) + " s";
  const minutes = Math.floor(Math.round(seconds) / 60), hours = Math.floor(minutes / 60);
  if (minutes < 60) return minutes + " min " + Math.round(seconds) % 60 + " s";
  return hours < 48 ? hours + " h " + minutes % 60 + " min" : Math.floor(hours / 24) + " d " + hours % 24 + " h";
}
const whole = (seconds) => seconds < 60 ? duration(seconds).replace(/\.\d s$/, " s") : duration(seconds);
function moment(date) {
  const today = date.toDateString() === new Date().toDateString();
  return today ? date.toLocaleTimeString() : date.toLocaleString();
}
const micro = (microseconds) => microseconds / 1e6;
const short = (digest) => digest.replace(/^\w+:/, "").slice(0, 12);
const first = (text) => text.split("\n", 1)[0].slice(0, 300);

// --- asking ----------------------------------------------------------------------------------------------------------

let skew = 0;  // how far the server's clock is ahead of ours, which Date tells to a few seconds
const clock = () => Date.now() / 1000 + skew;

async function reach(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path.replace(/^\//, ""), {...options, headers: {...headers(), ...options.headers}});
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached.");
  }
  const ahead = (Date.parse(answer.headers.get("Date")) - Date.now()) / 1000;
  skew = Math.abs(ahead) > 5 ? ahead : 0;
  if (answer.status === 401) needed();
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  const errors = (said.errors || []).map(({field, message}) => (field ? field + ": " : "") + message).join("; ");
  throw new Error(errors || "The server answers with status " + answer.status + ".");
}
const json = async (path) => (await reach(path)).json();
function needed() {
  connection(at("token").value ? "This token is not known here." : "A token is needed.", "bad");
  if (!at("secret").hidden) return;
  at("secret").hidden = false;
  at("token").focus();
}
const post = (action) => reach(action.href, {
  method: action.method,
  ...(action.method === "POST" ? {body: JSON.stringify(action.body), headers: {"Content-Type": "application/json"}} : {}),
});

const TAIL = 1 << 16;
function cut(text, more = false) {
  return more || text.length > TAIL ? "… (only the end is shown)\n" + text.slice(-TAIL) : text;
}
function endOf(path) {  // the end of what somebody wrote, asked for from where it was read to, and never more than that
  const from = path + (path.includes("?") ? "&" : "?") + "offset=";
  let next = 0, text = "", more = false, decoder;
  return async (box) => {
    const answer = await reach(from + next + "&last=" + TAIL);
    const piece = await answer.arrayBuffer(), behind = Number(answer.headers.get("X-Next-Offset"));
    if (!decoder || behind - piece.byteLength !== next) {
      more = behind > piece.byteLength;
      text = "";
      decoder = new TextDecoder();
    }
    next = behind;
    text += decoder.decode(piece, {stream: true});
    more = more || text.length > TAIL;
    text = text.slice(-TAIL);
    fill(box, cut(text, more));
  };
}
function fill(box, text) {
  const down = box.scrollTop + box.clientHeight >= box.scrollHeight - 4;
  put(box, text || "Nothing, so far.");
  if (down) box.scrollTop = box.scrollHeight;  // who has scrolled up reads
}
const tick = () => Math.floor(Date.now() / 2000);  // how often what goes on is asked for

function disclosure(load) {  // what is asked for once somebody opens it, and again when it may have changed
  const node = make("details", {}, make("summary"), make("pre", {tabIndex: 0}));
  let version = null, busy = false, rest = 0;
  node.look = async () => {
    const began = Date.now();
    if (!node.open || busy || version === node.version || began < rest) return;
    busy = true;
    version = node.version;
    try { await load(node.lastElementChild); } catch (error) { put(node.lastElementChild, error.message); }
    busy = false;
    rest = Date.now() + 5 * (Date.now() - began);  // what takes long to read is read less often
    node.look();
  };
  node.addEventListener("toggle", () => { if (node.open) { version = null; rest = 0; node.look(); } });
  return node;
}

// --- images ----------------------------------------------------------------------------------------------------------

let images = [], here = {images: false}, asking = null, next = null;
const works = new Map();
const latest = (work) => work && works.has(work.id) ? works.get(work.id) : work;

function refresh() {  // resolves with an answer to a question that was put after this was called
  if (!here.images) return Promise.resolve();
  if (!asking) return asking = look().finally(() => { asking = null; });
  return next = next || asking.then(() => { next = null; return refresh(); });
}
async function look() {
  try {
    const found = (await json("v1/images")).images;
    images = found;
    put(at("images-said"), "");
  } catch (error) { put(at("images-said"), error.message); }
  drawImages();
}
function offered(image, does) {  // what is under way is not on offer, also where that was heard before the images were asked
  const build = latest(image.build);
  return build && !over(build) ? undefined : image.actions.find(does);
}
function status(image) {
  const build = latest(image.build);
  return build && !over(build) ? build.status : image.status;
}
function presence(place) {
  const push = latest(place.push);
  return push && !over(push) ? "pushing" : place.presence;
}
function cell(head) {
  const word = make("div", {className: "word"}), note = make("div", {className: "quiet text"});
  const track = make("div", {className: "track"}, make("span", {}, make("span")), make("span"));
  const error = make("div", {className: "bad text"}), button = make("button", {type: "button"});
  // Another than what has begun it: whoever presses that twice stops nothing.
  const stop = make("button", {type: "button", className: "plain", textContent: "Stop", hidden: true});
  const td = Object.assign(make("td", {}, word, note, track, error, button, stop), {word, note, track, error, button, stop});
  set(td, "data-head", head);
  set(track.firstElementChild, "role", "progressbar");
  set(track.firstElementChild, "aria-valuemin", "0");
  set(track.firstElementChild, "aria-valuemax", "100");
  button.addEventListener("click", () => press(button));
  stop.addEventListener("click", () => end(stop));
  return td;
}
async function press(button) {
  if (button.getAttribute("aria-disabled")) return;
  set(button, "aria-disabled", "true");  // and not disabled, which would lose the focus
  put(at("pressed-said"), "");
  try { await begin(button.action); } catch (error) { put(at("pressed-said"), error.message); }
  await refresh();
  button.removeAttribute("aria-disabled");
}
async function end(button) {
  const work = button.work;
  if (button.getAttribute("aria-disabled") || !await sure("Stop the " + called(work) + "?")) return;
  set(button, "aria-disabled", "true");
  put(at("pressed-said"), "");
  const action = {method: "DELETE", href: "/v1/" + (work.kind === "build" ? "builds/" : "pushes/") + work.id};
  try { heardWork(await (await post(action)).json()); } catch (error) { put(at("pressed-said"), error.message); }
  button.removeAttribute("aria-disabled");
}
async function begin(action) {
  const work = await (await post(action)).json();
  if (!works.has(work.id)) works.set(work.id, work);  // events may have told more of it by now
  drawImages();
  return work;
}
function drawCell(td, word, note, work, error, action, label, text) {
  put(td.word, word);
  style(td.word, "word " + tone(word));
  put(td.note, note);
  show(td.note, !!note);
  const bar = work && !over(work);
  show(td.track, !!bar);
  if (bar) {
    const [outer, percent] = td.track.children;
    set(outer, "aria-valuenow", String(work.percent_complete));
    set(outer, "aria-label", label + " progress");
    outer.firstElementChild.style.width = work.percent_complete + "%";
    put(percent, work.percent_complete + " %");
  }
  put(td.error, error);
  show(td.error, !!error);
  show(td.stop, !!bar);
  if (bar) {
    td.stop.work = work;
    set(td.stop, "aria-label", "Stop the " + called(work));
  }
  td.button.action = action;
  show(td.button, !!action);
  put(td.button, text);
  set(td.button, "aria-label", label);
}
function ended(work) {
  if (!work || !over(work) || !work.finished) return "";
  const took = work.started ? ", took " + whole(micro(work.finished - work.started)) : "";
  return moment(new Date(work.finished / 1000)) + took;
}
const called = (work) => work.kind + " of " + work.image + (work.provider ? " to " + work.provider : "");
const failure = (work) => work && work.status === "FAILED" ? first(work.status_detail.error) : "";
const activity = (work) => work && !over(work) ? work.status_detail.activity : "";

function freshImage(image) {
  const row = make("tr", {className: "main"}), more = make("tr", {className: "more", hidden: true});
  const name = make("th", {scope: "row", tabIndex: -1}, make("div", {textContent: image.name}),
    make("div", {className: "quiet"}));
  const details = make("details", {}, make("summary", {textContent: "Log of " + image.name}), make("div"));
  details.addEventListener("toggle", () => drawImages());
  row.append(name, Object.assign(cell("Built"), {key: "built"}));
  more.append(make("td", {}, details));
  return Object.assign(make("tbody", {}, row, more), {row, more, name, details});
}
function drawImage(body, image) {
  const build = latest(image.build), own = status(image);
  put(body.name.lastElementChild, image.target + " " + short(image.content));
  const built = body.row.children[1];
  drawCell(built, own, activity(build) || (own === "COMPLETE" ? ended(build) : ""), build, own === "FAILED" ? failure(build) : "",
    offered(image, (action) => action.do === "build"), "Build " + image.name, "Build");
  const columns = [...at("heads").children].slice(2).map((head) => head.textContent);
  each(body.row, ["built", ...columns], (key) => key === "built" ? key : "at " + key, cell, (td, key) => {
    if (key === "built") return;
    const place = image.providers.find((each) => each.provider === key);
    if (!place) return drawCell(td, "", "", null, "", undefined, "", "");
    const push = latest(place.push), word = presence(place);
    const failed = ["absent", "changed", "stale"].includes(word) ? failure(push) : "";
    const note = activity(push) || place.reason || (word === "pushed" ? short(place.digest) : "");
    drawCell(td, word, note, push, failed, word === "pushing" ? undefined :
      offered(image, (action) => action.do === "push" && action.provider === key), "Push " + image.name + " to " + key, "Push");
  });
  const all = [build, ...image.providers.map((place) => latest(place.push))].filter(Boolean);
  body.more.firstElementChild.colSpan = columns.length + 2;
  show(body.more, all.length > 0);
  if (body.details.open) each(body.details.lastElementChild, all, (work) => work.id, freshWork, drawWork);
}
function freshWork() {
  const error = make("pre", {className: "error", tabIndex: 0}), log = make("pre", {tabIndex: 0});
  let offset = 0, text = "", busy = false, asked = "";
  const decoder = new TextDecoder();
  const node = make("div", {className: "work"}, make("h4"), error, log);
  node.more = async (work) => {  // a log is read by pieces, each behind the one before
    const now = JSON.stringify(work);
    if (busy || asked === now) return;
    busy = true;
    try {
      for (let size = 1; size;) {
        const path = "v1/" + (work.kind === "build" ? "builds/" : "pushes/") + work.id + "/log?offset=" + offset;
        const piece = new Uint8Array(await (await reach(path)).arrayBuffer());
        size = piece.length;
        offset += size;
        text = (text + decoder.decode(piece, {stream: true})).slice(-2 * TAIL);
        fill(log, cut(text));
      }
      asked = now;
    } catch (problem) { put(log, problem.message); }
    busy = false;
  };
  return node;
}
function drawWork(node, work) {
  const [head, error, log] = node.children;
  const where = work.kind === "push" ? "Push " + work.id + " to " + work.provider : "Build " + work.id;
  const labels = Object.entries(work.labels || {}).map(([name, value]) => name + "=" + value);
  const said = [where, work.target, work.status, ended(work), work.reference, short(work.digest), ...labels];
  put(head, said.filter(Boolean).join(" · "));
  put(error, work.status_detail.error);
  set(error, "aria-label", "Error of " + where);
  set(error, "role", "group");
  set(log, "aria-label", "Log of " + where);
  set(log, "role", "group");
  node.more(work);
}
function drawImages() {
  const columns = [...new Set(images.flatMap((image) => image.providers.map((place) => place.provider)))];
  each(at("heads"), ["Image", "Built", ...columns].map((text, number) => ({text, key: number < 2 ? text : "at " + text})),
    (head) => head.key, (head) => make("th", {scope: "col", textContent: head.text}), () => {});
  each(at("image-table"), images, (image) => image.name, freshImage, drawImage);
  for (const body of at("image-table").tBodies)
    for (const td of body.row.cells) if (td.key && td.key !== "built") set(td, "data-head", td.key.slice(3));
  show(at("image-table"), images.length > 0);
  show(at("no-images"), images.length === 0 && !at("images-said").textContent);
  drawNamed();
}
function heardWork(work) {
  const known = works.get(work.id);
  works.set(work.id, work);
  if (known && known.status === work.status) { drawImages(); return; }
  if (settled) {
    const what = called(work);
    news(what[0].toUpperCase() + what.slice(1) + ": " + work.status + (failure(work) ? ", " + failure(work) : ""));
    refresh().then(goOn);
  }
  drawImages();
}

// --- a manifest ------------------------------------------------------------------------------------------------------

let named = [], applying = null;
const own = (each) => each.image && (images.find((image) => image.name === each.image.name) || each.image);
const ours = () => [...new Map(named.map(own).filter(Boolean).map((image) => [image.name, image])).values()];
const says = (action) => action.do === "build" ? "build " + action.image : "push " + action.image + " to " + action.provider;
const on = (image) => image.actions.filter((action) => offered(image, (each) => each === action));

function drawNamed() {
  show(at("named-table"), named.length > 0);
  const fresh = () => {
    const reference = make("th", {scope: "row", tabIndex: -1});
    return make("tbody", {}, make("tr", {}, make("td"), reference, make("td"), make("td")));
  };
  each(at("named-table"), named, (each) => each.key, fresh, (body, each) => {
    const [line, reference, is, offer] = body.rows[0].cells, image = own(each), note = each.note ? ": " + each.note : "";
    put(line, "line " + each.line);
    put(reference, each.reference);
    const where = image ? image.providers.map((place) => place.provider + ": " + presence(place)) : [];
    put(is, (image ? [image.name + ": " + status(image), ...where].join(", ") : "none of ours") + note);
    put(offer, image ? on(image).map(says).join(", ") || "nothing" : "");
    set(is, "data-head", "Stands");
    set(offer, "data-head", "Offer");
    show(offer, !!image);
  });
  const actions = ours().flatMap(on);
  show(at("all"), actions.length > 0 || !!applying);
  if (actions.length) put(at("all"), actions.length > 3 ? "Do all " + actions.length : "Do all: " + actions.map(says).join(", "));
  if (applying) set(at("all"), "aria-disabled", "true"); else at("all").removeAttribute("aria-disabled");
}
at("check").addEventListener("submit", async (event) => {
  event.preventDefault();
  put(at("checked"), "Checking…");
  try {
    const said = {method: "POST", body: at("manifest").value, headers: {"Content-Type": "text/plain"}};
    const found = (await (await reach("v1/catalog/check", said)).json()).images;
    named = found.map((each, number) => ({...each, key: number + " " + each.line + " " + each.reference}));
    style(at("checked"), "text");
    const count = named.filter((each) => each.image).length;
    put(at("checked"), named.length ? "Images in it: " + named.length + ", of which ours: " + count + "." : "It names no image.");
    await refresh();
  } catch (error) {
    named = [];
    style(at("checked"), "text bad");
    put(at("checked"), error.message);
  }
  drawImages();
});
at("all").addEventListener("click", () => {
  if (applying) return;
  applying = {done: new Set(), works: new Set(), names: ours().map((image) => image.name)};
  goOn();
});
async function goOn() {  // what is on offer is done once; and what is on offer after that
  if (!applying || applying.busy) return;
  const going = applying;
  going.busy = true;
  const its = images.filter((image) => going.names.includes(image.name)).flatMap(on);
  const wanted = its.filter((action) => !going.done.has(says(action)));
  for (const action of wanted) {
    going.done.add(says(action));
    try { going.works.add((await begin(action)).id); } catch (error) { going.error = error.message; }
  }
  going.busy = false;
  const list = (works) => works.map((work) => says({do: work.kind, ...work})).join(", ") + ".";
  const all = [...going.works].map((id) => works.get(id)).filter(Boolean), under = all.filter((work) => !over(work));
  const failed = all.filter((work) => work.status === "FAILED"), said = [];
  if (going.error) said.push(going.error);
  if (failed.length) said.push("Failed: " + list(failed));
  style(at("checked"), said.length ? "text bad" : "text");
  if (under.length) said.push("Under way: " + list(under));
  if (!under.length && !wanted.length) applying = null;
  put(at("checked"), said.join(" ") || "All of it is done.");
  drawNamed();
  if (wanted.length && !under.length) refresh().then(goOn);  // they were over before they were heard of
}

// --- sessions --------------------------------------------------------------------------------------------------------

const sessions = new Map(), reasons = new Map();

function freshSession(session) {
  const name = make("h3", {tabIndex: -1, textContent: session.name}), phase = make("span", {className: "word"});
  const group = make("span", {className: "quiet"});
  const stop = make("button", {type: "button", className: "plain", textContent: "Stop"});
  set(stop, "aria-label", "Stop " + session.name);
  const reason = make("p", {className: "text"}), problem = make("p", {className: "bad text"}), chart = make("div");
  set(problem, "role", "alert");
  const lanes = make("ul", {className: "lanes"}), containers = make("ul", {className: "containers"});
  const head = make("div", {className: "head"}, make("div", {className: "row"}, name, phase, group), stop);
  const node = make("article", {}, head, reason, problem, chart, lanes, containers);
  set(lanes, "aria-label", "Participants of " + session.name);
  set(containers, "aria-label", "Containers of " + session.name);
  stop.addEventListener("click", async () => {
    if (stop.getAttribute("aria-disabled") || !await sure("Stop " + session.name + ", and remove all that is of it?")) return;
    set(stop, "aria-disabled", "true");
    put(stop, "Stopping…");
    put(problem, "");
    try {
      const found = await (await post(stop.action)).json();
      news("Session " + session.name + " was stopped: " + found.phase);
    } catch (error) { put(problem, error.message); }
    put(stop, "Stop");
    stop.removeAttribute("aria-disabled");
  });
  return Object.assign(node, {phase, group, stop, reason, chart, lanes, containers});
}
function sure(question) {
  put(at("question"), question);
  at("ask").returnValue = "";
  at("ask").showModal();
  return new Promise((resolve) => {
    at("ask").addEventListener("close", () => resolve(at("ask").returnValue === "yes"), {once: true});
  });
}
function drawSession(node, session) {
  put(node.phase, session.phase);
  style(node.phase, "word " + tone(session.phase));
  put(node.group, session.session);
  put(node.reason, session.reason);
  show(node.reason, !!session.reason);
  node.stop.action = (session.actions || []).find((action) => action.do === "stop");
  show(node.stop, !!node.stop.action);
  const fresh = (container) => freshContainer(session, container);
  each(node.containers, session.containers, (container) => container.name, fresh, drawContainer);
  drawHandshake(node, session);
}
function freshContainer(session, container) {
  const path = "v1/sessions/" + encodeURIComponent(session.name) + "/logs/" + encodeURIComponent(container.name);
  const details = disclosure(endOf(path)), state = make("span", {className: "word"});
  details.firstElementChild.append(make("b"), " ", state, " ", make("span", {className: "quiet"}));
  set(details.lastElementChild, "role", "group");
  set(details.lastElementChild, "aria-label", "Log of " + container.name);
  return make("li", {}, details);
}
function drawContainer(node, container) {
  const details = node.firstElementChild, [name, state, note] = details.firstElementChild.children;
  put(name, container.name);
  put(state, container.state + (container.state === "exited" && container.exit !== null ? " " + container.exit : ""));
  style(state, "word " + (container.exit ? "bad" : tone(container.state)));
  put(note, [container.restarts ? "restarted " + container.restarts + (container.restarts === 1 ? " time" : " times") : "",
    container.reason].filter(Boolean).join(" · "));
  details.version = JSON.stringify(container) + (container.state === "running" ? tick() : "");
  details.look();
}
function heardSession(session) {
  const known = sessions.get(session.name);
  sessions.set(session.name, session);
  if (settled && (!known || known.phase !== session.phase)) news("Session " + session.name + ": " + session.phase);
  const participants = session.coordination ? session.coordination.participants : [];
  if (participants.some((each) => each.standing === "failed")) whyFailed(session.name);
  drawSessions();
}
async function whyFailed(name) {  // which events do not tell
  try {
    const told = await json("v1/sessions/" + encodeURIComponent(name) + "/coordination");
    for (const each of told.participants) {
      const error = each.record && each.record.error;
      if (error) reasons.set(name + "\n" + each.name, String(error.reason));
    }
  } catch (error) { return; }
  drawSessions();
}
function drawSessions() {
  const all = [...sessions.values()].sort((one, other) => one.name < other.name ? -1 : 1);
  each(at("sessions"), all, (session) => session.name, freshSession, drawSession);
  show(at("no-sessions"), !all.length);
}

// --- the handshake of a session, drawn -------------------------------------------------------------------------------

const NAMESPACE = "http://www.w3.org/2000/svg", MOST = 40;
const STEPS = [
  .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400,
];

function shape(tag, attributes, text) {
  const node = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) {
    node.setAttribute(name, typeof value === "number" ? value.toFixed(1) : value);
  }
  if (text !== undefined) node.textContent = text;
  return node;
}
function bars(participant, now, stopped) {
  return participant.phases.map(({state, since, seconds}) => {
    const open = seconds === null && !stopped, known = seconds === null ? participant.last || since : since + seconds;
    return {state, from: since, to: Math.max(since, open ? now : known), open};
  });
}
function handOvers(lanes) {  // whose word it was that somebody went on at
  const found = [], me = lanes.findIndex((lane) => lane.name === "application");
  const when = (lane, state) => lane.bars.findLast((bar) => bar.state === state);
  if (me < 0) return found;
  const application = lanes[me], running = when(application, "running"), exited = when(application, "exited");
  const last = (states, until) => lanes
    .map((lane, number) => ({number, bar: lane.bars.findLast((bar) => states.includes(bar.state))}))
    .filter(({number, bar}) => number !== me && bar && bar.from <= until)
    .sort((one, other) => other.bar.from - one.bar.from)[0];
  if (running) {
    const ready = last(["ready"], running.from);
    if (ready) found.push({from: ready.number, start: ready.bar.from, to: me, end: running.from});
  }
  lanes.forEach((lane, number) => {
    const saving = number === me ? undefined : when(lane, "saving");
    if (saving && exited && saving.from >= exited.from) {
      found.push({from: me, start: exited.from, to: number, end: saving.from});
    }
  });
  const done = application.bars.findLast((bar) => bar.state === "done" || bar.state === "failed");
  const ended = done && last(exited ? ["done", "failed"] : ["failed"], done.from);
  if (ended && (!exited || ended.bar.from >= exited.from)) {
    found.push({from: ended.number, start: ended.bar.from, to: me, end: done.from});
  }
  return found;
}
function explained(session, lane, now, stopped) {
  const waits = stopped ? [] : lane.waits.filter((wait) => wait.for !== lane.name || wait.until !== null).map((wait) => {
    const whom = wait.for === lane.name ? "" : "waits for " + wait.for + " ";
    const most = wait.until === null ? "" : " and at most " + whole(Math.max(0, wait.until - now)) + " more";
    return whom + wait.what + ", for " + whole(Math.max(0, now - wait.since)) + most;
  });
  const {what, done, total} = lane.progress || {}, far = total > 0 ? what + ": " + Math.floor(100 * done / total) + " %" : "";
  const reason = lane.standing === "failed" ? reasons.get(session.name + "\n" + lane.name) : "";
  const said = lane.bars.length || !lane.signals.length ? "" : "has said " + lane.signals.join(", ");
  return [reason, far, ...waits, said].filter(Boolean).join("; ");
}
const spent = (bar) => bar.state + " " + (bar.open ? whole : duration)(bar.to - bar.from);

function drawHandshake(node, session) {
  const told = session.coordination, ended = session.phase === "Succeeded" || session.phase === "Failed";
  const stopped = ended || !!(told && told.over), participants = told ? told.participants.slice(0, MOST) : [], now = clock();
  node.live = participants.length > 0 && !stopped;
  const lanes = participants.map((each) => ({...each, bars: bars(each, now, stopped)}));
  const freshLane = () => make("li", {}, make("b"), make("span", {className: "word"}), make("span"), make("span"));
  const freshPhase = () => make("span", {className: "phase"}, make("span"), make("span"));
  each(node.lanes, lanes, (lane) => lane.name, freshLane, (item, lane) => {
    const [name, standing, what, phases] = item.children;
    put(name, lane.name);
    put(standing, lane.standing);
    style(standing, "word " + tone(lane.standing));
    put(what, explained(session, lane, now, stopped));
    const shown = lane.bars.filter((bar) => bar.to > bar.from || bar.open).map((bar, number) => ({...bar, number}));
    each(phases, shown, (bar) => bar.number, freshPhase, (span, bar) => {
      style(span.firstElementChild, "swatch " + kind(bar.state));
      put(span.lastElementChild, spent(bar));
    });
  });
  drawChart(node.chart, session.name, lanes, now, stopped);
}
function drawChart(box, name, lanes, now, stopped) {
  const all = lanes.flatMap((lane) => lane.bars);
  if (!all.length) return box.replaceChildren();
  const width = box.clientWidth || 600, beside = width >= 520, left = beside ? 128 : 2, right = 44, top = 24;
  const pitch = beside ? 34 : 46, above = beside ? 0 : 18, thick = 20, height = top + lanes.length * pitch + 4;
  const start = Math.min(...all.map((bar) => bar.from));
  const signs = lanes.map((lane) => lane.standing === "died" ? lane.last || 0 : 0);
  const end = Math.max(start + .02, stopped ? 0 : now, ...all.map((bar) => bar.to), ...signs), span = end - start;
  const x = (time) => left + (width - left - right) * (time - start) / span, y = (number) => top + number * pitch + above;
  const svg = box.firstElementChild || box.appendChild(shape("svg", {role: "img", "aria-label": "Timeline of " + name}));
  set(svg, "viewBox", "0 0 " + width + " " + height);
  set(svg, "height", String(height));
  svg.replaceChildren();
  const step = STEPS.find((each) => span / each <= (width - left - right) / 64) || span / 4;
  for (let number = 0; number <= 40 && number * step <= span; number++) {
    const place = x(start + number * step), text = duration(number * step).replace(".0 s", " s").replace(" 0 s", "");
    svg.append(shape("line", {class: "grid", x1: place, x2: place, y1: 18, y2: height}));
    svg.append(shape("text", {class: "tick", x: place, y: 12, "text-anchor": number ? "middle" : "start"}, number ? text : "0"));
  }
  const place = new Map(lanes.map((lane, number) => [lane.name, number]));
  lanes.forEach((lane, number) => {
    for (const bar of lane.bars) {
      const from = x(bar.from), wide = x(bar.to) - from;
      if (bar.state === "done" || bar.state === "failed") {
        const name = bar.state === "failed" ? "end failed" : "end";
        svg.append(shape("circle", {class: name, cx: from + 5, cy: y(number) + thick / 2, r: 4}));
        continue;
      }
      const rect = shape("rect", {class: kind(bar.state), x: from, y: y(number), width: Math.max(2, wide), height: thick, rx: 2});
      rect.append(shape("title", {}, spent(bar)));
      svg.append(rect);
      const fits = [spent(bar), bar.state].find((each) => each.length * 7 + 10 < wide);
      if (fits) svg.append(shape("text", {class: "in", x: from + 6, y: y(number) + 14, "data-in": kind(bar.state)}, fits));
    }
    if (lane.standing === "died") {
      const at = x(Math.max(lane.last || 0, ...lane.bars.map((bar) => bar.to))), middle = y(number) + thick / 2;
      svg.append(shape("path", {class: "died", d: `M${at - 5} ${middle - 5}l10 10m0 -10l-10 10`}));
    }
  });
  for (const {from, start: begun, to, end: went} of handOvers(lanes)) {
    const down = to > from;
    svg.append(shape("path", {class: "hand", "marker-end": "url(#tip)", "data-hand": lanes[from].name + " to " + lanes[to].name,
      d: `M${x(begun)} ${y(from) + (down ? thick : 0)}L${x(went)} ${y(to) + (down ? 0 : thick)}`}));
  }
  lanes.forEach((lane, number) => {  // last, for no arrow is to cross a name
    const label = lane.name.length > 17 ? lane.name.slice(0, 16) + "…" : lane.name;
    svg.append(shape("text", {class: "name", x: 0, y: beside ? y(number) + 14 : y(number) - 4}, label));
  });
  let beyond = 0;
  if (!stopped) lanes.forEach((lane, number) => lane.waits.forEach((wait) => {
    const other = place.get(wait.for), since = x(Math.max(start, Math.min(end, wait.since)));
    if (other === undefined || other === number) return;
    const out = width - right + 8 + 9 * (beyond++ % 4);
    const path = shape("path", {class: "wait", "marker-end": "url(#tip-wait)", "data-wait": lane.name + " for " + wait.for,
      d: `M${since} ${y(number) + thick + 4}H${out}V${y(other) + thick / 2}H${width - right + 1}`});
    path.append(shape("title", {}, lane.name + " waits for " + wait.for + " " + wait.what));
    svg.append(path);
  }));
}
setInterval(() => {  // what goes on grows
  if (document.hidden) return;
  for (const node of at("sessions").children) {
    const session = sessions.get(node.key);
    if (node.live) drawHandshake(node, session);
    for (const item of node.containers.children) drawContainer(item, session.containers.find((each) => each.name === item.key));
  }
  drawRuns();
}, 1000);
addEventListener("resize", () => drawSessions());

// --- runs ------------------------------------------------------------------------------------------------------------

const runs = new Map();
const nameOf = (run) => run.instance + "\0" + run.name;

function freshRun(run) {
  const query = "?instance=" + encodeURIComponent(run.instance) + "&name=" + encodeURIComponent(run.name);
  const details = disclosure(endOf("v1/runs/log" + query));
  put(details.firstElementChild, "Output of " + run.name);
  const command = make("p", {className: "quiet text"});
  details.insertBefore(command, details.lastElementChild);
  set(details.lastElementChild, "role", "group");
  set(details.lastElementChild, "aria-label", "Output of " + run.name);
  const head = make("th", {scope: "row", tabIndex: -1}, make("div", {textContent: run.name}),
    make("div", {className: "quiet", textContent: run.instance}));
  const cells = ["State", "Begun", "Took", "Exit"].map((text) => {
    const td = make("td", {}, make("div"));
    set(td, "data-head", text);
    return td;
  });
  const more = make("tr", {className: "more"}, make("td", {colSpan: 5}, details));
  const body = make("tbody", {}, make("tr", {}, head, ...cells), more);
  return Object.assign(body, {cells: cells.map((td) => td.firstElementChild), command, details});
}
function drawRun(body, run) {
  const [state, begun, took, exit] = body.cells, at = Date.parse(run.started_at || run.claimed_at);
  const bad = run.status || run.signal ? "bad" : "";
  put(state, run.state);
  style(state, "word " + (run.state === "finished" ? bad || "good" : tone(run.state)));
  put(begun, moment(new Date(at)));
  set(begun, "title", run.started_at || run.claimed_at);
  const end = run.finished_at ? Date.parse(run.finished_at) : run.state === "running" ? clock() * 1000 : NaN;
  put(took, Number.isNaN(end) ? "" : (run.finished_at ? duration : whole)(Math.max(0, end - at) / 1000));
  const ended = run.signal ? "signal " + run.signal : run.status === null ? "" : String(run.status);
  put(exit, [ended, run.reason].filter(Boolean).join(" · "));
  style(exit, "text " + bad);
  const words = (run.command || []).map((word) => /^[\w.\/:=@%+,-]+$/.test(word) ? word : JSON.stringify(word));
  put(body.command, words.join(" ") + (run.cut ? " — " + run.cut : ""));
  body.details.version = JSON.stringify([run.state, run.stdout, run.stderr]) + (run.state === "running" ? tick() : "");
  body.details.look();
}
function drawRuns() {
  const all = [...runs.values()].sort((one, other) => other.claimed_at.localeCompare(one.claimed_at));
  each(at("runs"), all, (run) => nameOf(run) + "\0" + run.claimed_at, freshRun, drawRun);
  show(at("runs"), all.length > 0);
  show(at("no-runs"), !all.length);
}
function heardRun(run) {
  const key = nameOf(run), known = runs.get(key);
  runs.set(key, run);
  const exit = run.status ? ", exit " + run.status : "";
  if (settled && (!known || known.state !== run.state)) news("Run " + run.name + ": " + run.state + exit);
  drawRuns();
}

// --- events ----------------------------------------------------------------------------------------------------------

const SILENCE = 45000;  // three heartbeats
let settled = false, told = new Set(), listening = null;

function connection(text, how) { put(at("connection"), text); style(at("connection"), how); }
function forget(sort, name) {
  if (sort === "session") {
    if (sessions.delete(name) && settled) news("Session " + name + " is gone.");
    drawSessions();
  } else if (sort === "run") { runs.delete(name); drawRuns(); } else if (sort === "work") works.delete(Number(name));
}
function heard(event, data) {
  if (event === "ready") {
    const known = [["session", sessions], ["run", runs], ["work", works]];
    for (const [sort, map] of known) {
      for (const name of [...map.keys()]) if (!told.has(sort + " " + name)) forget(sort, String(name));
    }
    settled = true;
    connection("Live", "good");
    refresh().then(goOn);
    return;
  }
  if (event === "gone") return forget(data.kind, data.id);
  told.add(event + " " + (event === "run" ? nameOf(data) : event === "session" ? data.name : data.id));
  if (event === "work") heardWork(data);
  else if (event === "session") heardSession(data);
  else if (event === "run") heardRun(data);
}
async function listen(end) {
  const answer = await reach("v1/events", {signal: end.signal});
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "", silent = setTimeout(() => end.abort(), SILENCE);
  told = new Set();
  settled = false;
  try {
    for (;;) {
      const {done, value} = await reader.read();
      if (done) return;
      clearTimeout(silent);
      silent = setTimeout(() => end.abort(), SILENCE);
      const parts = (text + value).split("\n\n");
      text = parts.pop();
      for (const part of parts) {
        const lines = part.split("\n"), say = (name) => (lines.find((line) => line.startsWith(name)) || "").slice(name.length);
        if (say("event: ")) heard(say("event: "), JSON.parse(say("data: ")));
      }
    }
  } finally { clearTimeout(silent); }
}
async function stay() {  // connected: whoever goes comes back
  const mine = listening = {};
  for (let pause = 500; mine === listening; pause = Math.min(2 * pause, 8000)) {
    const end = mine.end = new AbortController();
    let problem = "";
    try {
      if (!mine.known) { await parts(); mine.known = true; }
      await listen(end);
    } catch (error) { problem = error.message; }
    if (mine !== listening) return;
    if (settled) pause = 500;
    const asked = !at("secret").hidden && !settled;
    settled = false;
    if (asked) return;  // a token: its field begins anew
    connection("Not connected. " + (/reached|abort|network/i.test(problem) || !problem ? "Trying again…" : problem), "bad");
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}
async function parts() {  // what this server has: what it has not is not shown
  const paths = (await json("openapi.json")).paths;
  here = {images: "/v1/images" in paths};
  show(at("images"), here.images);
  show(at("functions"), false);
  if (!("/v1/functions" in paths)) return;
  const functions = (await json("v1/functions")).functions;
  const names = functions.map(({language, versions}) => language + " " + versions.join(", "));
  put(at("functions"), "Functions: " + (names.join("; ") || "no language is installed") + ".");
  show(at("functions"), true);
}
function anew() {
  if (listening && listening.end) listening.end.abort();
  connection("Connecting…", "quiet");
  stay();
}
at("secret").addEventListener("submit", (event) => { event.preventDefault(); anew(); });
at("again").addEventListener("click", async () => {
  if (at("again").getAttribute("aria-disabled")) return;
  set(at("again"), "aria-disabled", "true");
  await refresh();
  at("again").removeAttribute("aria-disabled");
});
document.addEventListener("visibilitychange", () => { if (!document.hidden && settled) refresh(); });
setInterval(() => { if (!document.hidden && settled) refresh(); }, 20000);  // a tag that is deleted tells nobody
stay();
</script>
</html>
"""
