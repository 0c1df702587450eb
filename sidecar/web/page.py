"""The page of the function service: one document, without anything from elsewhere. Pure.

What a program writes is hostile: it becomes text, never markup (textContent), the page's policy (web.functions) lets nothing else
be loaded or asked, and the token is kept in its field alone. Tab leaves the source, as anywhere: who has no mouse must get on.
"""

from __future__ import annotations

import json

# A first program of each language that we have a runtime of; of others the page begins with none.
EXAMPLES = {
    "bash": 'for n in {1..10}; do echo "$n squared is $((n * n))"; done\n',
    "node": "for (let n = 1; n <= 10; n++) console.log(`${n} squared is ${n * n}`);\n",
    "perl": 'print "$_ squared is ", $_ ** 2, "\\n" for 1 .. 10;\n',
    "php": '<?php\nforeach (range(1, 10) as $n) echo "$n squared is ", $n ** 2, "\\n";\n',
    "python": 'for n in range(1, 11):\n    print(f"{n} squared is {n * n}")\n',
    "ruby": '(1..10).each { |n| puts "#{n} squared is #{n * n}" }\n',
}

_PAGE = r"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Functions</title>
<style>
  :root {
    color-scheme: light dark;
    --ground: #f6f7f9; --card: #fff; --well: #f1f3f6; --text: #1b1f24; --quiet: #57606a; --line: #d0d7de; --edge: #868f99;
    --blue: #0b5cad; --on-blue: #fff; --good: #116b34; --bad: #b3261e; --bar: #a9b4c0;
  }
  @media (prefers-color-scheme: dark) {
    :root {
      --ground: #0f1318; --card: #181d24; --well: #10151b; --text: #e6e9ed; --quiet: #a0a9b4; --line: #333b45; --edge: #6e7884;
      --blue: #6cb0ff; --on-blue: #08182b; --good: #62cd86; --bad: #ff938a; --bar: #4b5663;
    }
  }
  * { box-sizing: border-box; }
  body { margin: 0; font: 1rem/1.5 system-ui, sans-serif; color: var(--text); background: var(--ground); }
  header, main, footer { max-width: 84rem; margin: auto; padding: 0 1.25rem; }
  h1 { font-size: 1.35rem; margin: 1.25rem 0 0; }
  h2, label { display: block; font-size: .875rem; font-weight: 600; margin: 0 0 .25rem; color: var(--text); }
  header p, footer { color: var(--quiet); font-size: .875rem; margin-top: 0; }
  header p { margin-bottom: 1.25rem; }
  footer { padding-block: 1.25rem; } a { color: var(--blue); }
  main { display: grid; gap: 1.25rem; grid-template-columns: minmax(0, 1fr); align-items: start; }
  @media (min-width: 60rem) { main { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
  form, section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem; }
  form > *, section > * { margin: 0 0 1rem; } form > :last-child, section > :last-child { margin-bottom: 0; }
  .row { display: flex; flex-wrap: wrap; gap: .75rem; align-items: center; }
  .row > .wide { flex: 1 1 14rem; } .row > .narrow { flex: 1 1 5rem; }
  select, input, textarea {
    width: 100%; font: inherit; color: inherit; background: var(--card); border: 1px solid var(--edge); border-radius: .35rem;
    padding: .4rem .5rem;
  }
  select, input { height: 2.4rem; } ::placeholder { color: var(--quiet); opacity: 1; }
  textarea, pre { font: .9rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; tab-size: 4; }
  textarea { display: block; resize: vertical; }
  @media (max-width: 40rem) { textarea { font-size: 1rem; } #source { height: 14rem; } }  /* smaller text would be zoomed in on */
  @media (hover: none) { .key { display: none; } }
  summary { font-size: .875rem; cursor: pointer; } details[open] summary { margin-bottom: .75rem; }
  details textarea { margin-bottom: .75rem; }
  :focus-visible { outline: 3px solid var(--blue); outline-offset: 2px; }
  button {
    font: inherit; font-weight: 600; padding: .45rem 1.4rem; cursor: pointer;
    border: 1px solid var(--blue); border-radius: .35rem; background: var(--blue); color: var(--on-blue);
  }
  button.plain { background: none; color: var(--blue); } button[aria-disabled=true] { opacity: .7; cursor: progress; }
  .quiet { color: var(--quiet); font-size: .875rem; font-weight: 400; }
  kbd { font: inherit; border: 1px solid var(--line); border-bottom-width: 2px; border-radius: .25rem; padding: 0 .3rem; }
  #status { font-weight: 600; overflow-wrap: anywhere; min-height: 1.5em; }
  .good { color: var(--good); } .bad { color: var(--bad); }
  pre {
    margin: 0; padding: .6rem .75rem; border-radius: .35rem; background: var(--well); border: 1px solid var(--line);
    min-height: 2.8rem; max-height: 60vh; overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere;
  }
  #stderr:not(:empty) { border-left: 3px solid var(--bad); }
  table { width: 100%; border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
  th, td { padding: .2rem .75rem .2rem 0; text-align: left; vertical-align: top; font-weight: 400; overflow-wrap: anywhere; }
  thead th { color: var(--quiet); } th:first-child, .time { white-space: nowrap; } .time { text-align: right; }
  .track { width: 50%; } td:last-child { min-width: 5.5rem; padding-right: 0; }
  .bar { display: block; height: .75rem; margin-top: .3rem; min-width: 3px; border-radius: .2rem; background: var(--bar); }
  .won > * { font-weight: 600; } .won .bar { background: var(--good); } .won.failed .bar { background: var(--bad); }
  [hidden] { display: none !important; }
</style>
<header>
  <h1>Functions</h1>
  <p>Code runs at once, in a sandbox without a network. Several workers run it; the first that succeeds answers.</p>
</header>
<main>
  <form id="form" aria-label="Program">
    <div id="secret" hidden>
      <label for="token">Token</label>
      <input id="token" type="password" autocomplete="off" spellcheck="false">
    </div>
    <div class="row">
      <div class="wide"><label for="function">Language</label><select id="function"></select></div>
      <div class="narrow"><label for="workers">Workers</label>
        <input id="workers" type="number" min="1" max="5" value="2" required></div>
      <div class="narrow"><label for="seconds">Seconds</label>
        <input id="seconds" type="number" min="0.1" step="any" placeholder="3" title="How long it may take at most"></div>
    </div>
    <div>
      <label for="source">Source</label>
      <textarea id="source" rows="14" spellcheck="false" autocapitalize="off" autocomplete="off"></textarea>
    </div>
    <details>
      <summary>Input and arguments</summary>
      <label for="stdin">Input</label>
      <textarea id="stdin" rows="3" spellcheck="false" autocapitalize="off"></textarea>
      <label for="args">Arguments <span class="quiet">one a line</span></label>
      <textarea id="args" rows="2" spellcheck="false" autocapitalize="off"></textarea>
    </details>
    <div class="row">
      <button id="run">Run</button>
      <button id="stop" type="button" class="plain" hidden>Stop</button>
      <span class="quiet key"><kbd>Ctrl</kbd> <kbd>Enter</kbd> runs it, too</span>
    </div>
  </form>
  <section aria-label="Result">
    <p id="status" role="status"></p>
    <div id="who" hidden>
      <table aria-label="Workers">
        <thead><tr><th scope="col">Worker<th scope="col" colspan="2">Time<th scope="col">Came to</thead>
        <tbody id="table"></tbody>
      </table>
    </div>
    <div><h2 id="out">Output</h2><pre id="stdout" tabindex="0" role="group" aria-labelledby="out"></pre></div>
    <div><h2 id="err">Errors</h2><pre id="stderr" tabindex="0" role="group" aria-labelledby="err"></pre></div>
  </section>
</main>
<footer>The same over HTTP: <a href="openapi.json">its description</a>.</footer>
<script>
  const EXAMPLES = {};
  const at = (id) => document.getElementById(id);
  const headers = () => at("token").value ? {Authorization: "Bearer " + at("token").value} : {};
  const say = (text, how) => { at("status").textContent = text; at("status").className = how || ""; };
  let running = null, example = "";

  function begin() {  // with a first program, unless there is one already that is somebody's own
    const next = EXAMPLES[at("function").value.split(":")[0]] || "";
    if (at("source").value === example) at("source").value = next;
    example = next;
  }
  async function failed(answer) {
    const said = await answer.json().catch(() => ({}));
    if (answer.status === 401) {
      at("secret").hidden = false;
      at("token").focus();
      return say(at("token").value ? "This token is not known here." : "A token is needed.", "bad");
    }
    const again = answer.status === 429 ? " Try again in " + answer.headers.get("Retry-After") + " s." : "";
    const errors = (said.errors || []).map(({field, message}) => (field ? field + ": " : "") + message).join("; ");
    say((errors || "The server answers with status " + answer.status) + "." + again, "bad");
    draw(said.workers || [], 0);
  }
  const gone = (error) => say(error.name === "AbortError" ? "Stopped." : "The server cannot be reached.", "bad");

  async function list() {
    try {
      const answer = await fetch("v1/functions", {headers: headers()});
      if (!answer.ok) return await failed(answer);
      const chosen = at("function").value;
      at("function").replaceChildren(...(await answer.json()).functions.flatMap(({language, versions}) =>
        versions.map((version) => new Option(language + " " + version, language + ":" + version))));
      if (chosen) at("function").value = chosen;
      begin();
      if (at("function").value) say("Ready."); else say("No language is installed here.", "bad");
    } catch (error) { gone(error); }
  }
  function draw(workers, winner) {
    const most = Math.max(...workers.map((worker) => worker.wall_ms || 0), 0.001);
    at("who").hidden = !workers.length;
    at("table").replaceChildren(...workers.map((worker) => {
      const row = document.createElement("tr"), bar = document.createElement("span"), name = document.createElement("th");
      const time = worker.wall_ms === undefined ? "" : worker.wall_ms.toFixed(1) + " ms", ok = worker.status === "ok";
      const word = worker.worker !== winner ? "" : ok ? ", won" : ", answers";
      if (word) row.className = ok ? "won" : "won failed";
      name.scope = "row"; name.textContent = worker.worker;
      bar.className = "bar"; bar.style.width = 100 * (worker.wall_ms || 0) / most + "%";
      row.append(name);
      row.insertCell().append(bar);
      row.cells[1].className = "track";
      row.insertCell().textContent = time;
      row.cells[2].className = "time";
      row.insertCell().textContent = worker.status + word + (worker.reason ? ": " + worker.reason : "");
      return row;
    }));
  }
  function show(said) {
    const how = said.signal !== null ? "ended by signal " + said.signal : said.code !== null ? "exit code " + said.code : "";
    const ok = said.status === "ok", who = "worker " + said.worker + (ok ? " won" : " answers");
    say([said.status, how, said.wall_ms.toFixed(1) + " ms", who].filter(Boolean).join(" · "), ok ? "good" : "bad");
    at("stdout").textContent = said.stdout;
    at("stderr").textContent = said.stderr;
    draw(said.workers, said.worker);
  }
  async function run() {
    const asked = {source: at("source").value, stdin: at("stdin").value, workers: Number(at("workers").value)};
    if (at("args").value) asked.args = at("args").value.replace(/\n$/, "").split("\n");
    if (at("seconds").value) asked.timeout = Number(at("seconds").value);
    running = new AbortController();
    at("run").setAttribute("aria-disabled", "true");  // and not disabled, which would lose the focus
    at("stop").hidden = false;
    at("stdout").textContent = at("stderr").textContent = "";
    draw([], 0);
    say("Running…");
    try {
      const answer = await fetch("v1/functions/" + encodeURIComponent(at("function").value) + "/invocations", {
        method: "POST",
        headers: {"Content-Type": "application/json", ...headers()},
        body: JSON.stringify(asked),
        signal: running.signal,
      });
      if (answer.ok) show(await answer.json()); else await failed(answer);
    } catch (error) { gone(error); }
    at("status").scrollIntoView({block: "nearest"});  // on a phone it is below
    if (document.activeElement === at("stop")) at("run").focus();
    at("stop").hidden = true;
    at("run").removeAttribute("aria-disabled");
    running = null;
  }
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!at("function").value) list();
    else if (!running) run();
  });
  at("form").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    at("form").requestSubmit(at("run"));
  });
  at("stop").addEventListener("click", () => running && running.abort());
  at("token").addEventListener("change", list);
  at("function").addEventListener("change", begin);
  list();
</script>
</html>
"""

# A `<` of an example would end the script where a `/` follows.
PAGE = _PAGE.replace("const EXAMPLES = {};", f"const EXAMPLES = {json.dumps(EXAMPLES)};".replace("<", "\\u003c"))
