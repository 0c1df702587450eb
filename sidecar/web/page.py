"""The page of the function service: one document, without anything from elsewhere. Its script says by text, never as markup."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Functions</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
  textarea, input, select, button { font: inherit; padding: .3rem .5rem; border: 1px solid #b6bec8; border-radius: .3rem; }
  textarea { width: 100%; box-sizing: border-box; font: 14px/1.4 ui-monospace, monospace; }
  button { background: #0b5cad; color: #fff; border-color: #0b5cad; }
  button:disabled { opacity: .5; }
  pre { background: #f4f6f8; padding: .6rem; border-radius: .3rem; white-space: pre-wrap; min-height: 1.4em; }
  table { border-collapse: collapse; } td, th { padding: .1rem .8rem .1rem 0; text-align: left; }
  .won { font-weight: 600; } .bad { color: #a40000; }
</style>
<h1>Functions</h1>
<form id="form">
  <p><label>Language <select id="function"></select></label>
     <label>Workers <input id="workers" type="number" min="1" max="5" value="2"></label>
     <label>Token <input id="token" type="password" autocomplete="off" placeholder="where one is needed"></label></p>
  <p><label>Source<br><textarea id="source" rows="12" spellcheck="false" autofocus></textarea></label></p>
  <p><label>Input<br><textarea id="stdin" rows="2" spellcheck="false"></textarea></label></p>
  <p><button id="run">Run</button> <output id="status"></output></p>
</form>
<h2>Output</h2><pre id="stdout"></pre>
<h2>Errors</h2><pre id="stderr"></pre>
<h2>Workers</h2>
<table><thead><tr><th>Worker<th>Status<th>Time</tr></thead><tbody id="table"></tbody></table>
<script>
  const at = (id) => document.getElementById(id);
  const headers = () => at("token").value ? {Authorization: "Bearer " + at("token").value} : {};
  const say = (text, bad) => { at("status").textContent = text; at("status").className = bad ? "bad" : ""; };
  async function list() {
    const answer = await fetch("v1/functions", {headers: headers()});
    if (!answer.ok) { say(answer.status === 401 ? "A token is needed." : "Status " + answer.status, true); return; }
    const chosen = at("function").value;
    at("function").replaceChildren(...(await answer.json()).functions.flatMap(({language, versions}) =>
      versions.map((version) => new Option(language + " " + version, language + ":" + version))));
    if (chosen) at("function").value = chosen;
    say("");
  }
  at("token").addEventListener("change", list);
  at("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    at("run").disabled = true; say("Runs…");
    try {
      const answer = await fetch("v1/functions/" + encodeURIComponent(at("function").value) + "/invocations", {
        method: "POST",
        headers: {"Content-Type": "application/json", ...headers()},
        body: JSON.stringify({source: at("source").value, stdin: at("stdin").value, workers: Number(at("workers").value)}),
      });
      const said = await answer.json();
      if (!answer.ok) { say(said.errors.map(({field, message}) => field + ": " + message).join("; "), true); return; }
      at("stdout").textContent = said.stdout;
      at("stderr").textContent = said.stderr;
      const how = said.signal !== null ? "signal " + said.signal : "exit " + said.code;
      say(said.status + ", " + how + ", " + said.wall_ms + " ms, worker " + said.worker, said.status !== "ok");
      at("table").replaceChildren(...said.workers.map((worker) => {
        const row = document.createElement("tr");
        if (worker.worker === said.worker) row.className = "won";
        for (const text of [worker.worker, worker.status + (worker.reason ? ": " + worker.reason : ""), worker.wall_ms + " ms"])
          row.insertCell().textContent = text;
        return row;
      }));
    } catch (error) {
      say(String(error), true);
    } finally {
      at("run").disabled = false;
    }
  });
  list();
</script>
</html>
"""
