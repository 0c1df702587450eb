"""The page of the function service, in a real browser: what somebody does with it, and what nobody may do to it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from browser import PHONE, Tab, contrast
from playwright.sync_api import Page, expect
from processes import HANG, processes_that_say, until
from test_functions_web import INVOKE, RUNTIMES, TOKEN, Server

from sidecar.web.page import EXAMPLES

Opened = Callable[..., Tab]
BASH = "bash:5.2"
SECONDS = HANG * 1000
LONG = "60"
WIDE = {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    """A server that all tests of a worker share; one that a test ends is its own."""
    begun = Server("--most", "100")
    yield begun
    assert begun.end() == 0


@pytest.fixture
def server() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def begin(*words: str, **variables: str) -> Server:
        servers.append(Server(*words, **variables))
        return servers[-1]

    yield begin
    for each in servers:
        if each.process.poll() is None:
            each.end()


def says(tab: Tab, text: str | re.Pattern[str]) -> None:
    expect(tab.page.get_by_role("status")).to_have_text(text, timeout=SECONDS)


def ready(tab: Tab, language: str = BASH) -> Page:
    """Return the page once it can be used."""
    expect(tab.page.get_by_label("Language")).not_to_have_value("", timeout=SECONDS)
    tab.page.get_by_label("Language").select_option(language)
    return tab.page


def write(tab: Tab, source: str, language: str = BASH, seconds: str = LONG) -> Page:
    page = ready(tab, language)
    page.get_by_label("Seconds").fill(seconds)
    page.get_by_label("Source").fill(source)
    return page


def run(tab: Tab, source: str, language: str = BASH, seconds: str = LONG) -> Page:
    """Have a program run, as with a mouse."""
    page = write(tab, source, language, seconds)
    page.get_by_role("button", name="Run").click()
    return page


def output(page: Page) -> tuple[str | None, str | None]:
    return tuple(page.get_by_role("group", name=name, exact=True).text_content() for name in ("Output", "Errors"))  # type: ignore[return-value]


# --- what it is for ----------------------------------------------------------------------------------------------------


def test_languages_are_listed_with_their_versions(tab: Opened, shared: Server) -> None:
    opened = tab(shared.url)
    says(opened, "Ready.")
    listed = opened.page.get_by_label("Language").locator("option").all_text_contents()
    assert set(listed) == {path.name.replace("-", " ") for path in RUNTIMES.iterdir()}


def test_a_program_that_is_typed_runs_and_its_output_status_times_and_winner_are_shown(tab: Opened, shared: Server) -> None:
    opened = tab(shared.url)
    page = run(opened, 'echo "$1 and $(cat)"; echo beside >&2')
    says(opened, re.compile(r"ok · exit code 0 · [0-9.]+ ms · worker [12] won"))
    assert output(page) == (" and \n", "beside\n")
    rows = page.get_by_role("table", name="Workers").locator("tbody tr")
    assert rows.count() == 2
    winner = re.search(r"worker (\d)", page.get_by_role("status").inner_text())
    assert winner
    won = rows.filter(has_text="ok, won")
    assert won.count() == 1
    assert won.locator("th").inner_text() == winner[1]
    assert re.fullmatch(r"[0-9.]+ ms", won.locator(".time").inner_text())
    # The bars are as long as the times.
    times = [float(each.removesuffix(" ms")) for each in rows.locator(".time").all_inner_texts()]
    widths = [each.evaluate("each => parseFloat(each.style.width)") for each in rows.locator(".bar").all()]
    assert widths == pytest.approx([100 * each / max(times) for each in times], abs=1.0)
    assert (opened.trouble, opened.elsewhere) == ([], [])


def test_ctrl_enter_runs_it_too(tab: Opened, shared: Server) -> None:
    opened = tab(shared.url)
    page = write(opened, "echo by the keyboard")
    page.get_by_label("Source").press("Control+Enter")
    says(opened, re.compile("^ok"))
    assert output(page)[0] == "by the keyboard\n"


def test_input_arguments_and_workers_are_the_programs(tab: Opened, shared: Server) -> None:
    opened = tab(shared.url)
    page = write(opened, 'printf "[%s]" "$@"; cat')
    page.get_by_text("Input and arguments").click()
    page.get_by_label("Input", exact=True).fill("given\n")
    page.get_by_label("Arguments").fill("a b\n\n<c>\n")
    page.get_by_role("spinbutton", name="Workers").fill("4")
    page.get_by_role("button", name="Run").click()
    says(opened, re.compile("^ok"))
    assert output(page)[0] == "[a b][][<c>]given\n"
    assert page.get_by_role("table", name="Workers").locator("tbody tr").count() == 4


def test_a_language_begins_with_a_first_program_that_runs_and_never_in_the_place_of_ones_own(tab: Opened, shared: Server) -> None:
    opened = tab(shared.url)
    page = ready(opened)
    source = page.get_by_label("Source")
    expect(source).to_have_value(EXAMPLES["bash"])
    page.get_by_role("button", name="Run").click()
    says(opened, re.compile("^ok"))
    assert str(output(page)[0]).splitlines()[-1] == "10 squared is 100"
    page.get_by_label("Language").select_option("perl:5.36")
    expect(source).to_have_value(EXAMPLES["perl"])
    source.fill("my own")
    page.get_by_label("Language").select_option(BASH)
    expect(source).to_have_value("my own")


def test_every_runtime_of_ours_has_a_first_program() -> None:
    assert set(EXAMPLES) == {path.name.partition("-")[0] for path in RUNTIMES.iterdir()}


# --- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_program_that_fails_is_shown_with_its_status_and_its_errors(tab: Opened, shared: Server) -> None:
    opened = tab(shared.url)
    page = run(opened, "echo before; echo why >&2; exit 7")
    says(opened, re.compile(r"error · exit code 7 · [0-9.]+ ms · worker [12] answers"))
    assert output(page) == ("before\n", "why\n")
    run(opened, "kill -SEGV $$")
    says(opened, re.compile("signalled · ended by signal 11 · "))
    assert opened.trouble == []


def test_a_program_that_takes_too_long_is_told_so_and_what_it_said_is_shown(tab: Opened, shared: Server) -> None:
    opened = tab(shared.url)
    page = run(opened, "echo begun; sleep 600", seconds="0.5")
    says(opened, re.compile("^timeout · "))
    assert output(page)[0] == "begun\n"


def test_what_is_not_of_its_form_is_told_with_its_field_and_what_was_shown_is_gone(tab: Opened, shared: Server) -> None:
    opened = tab(shared.url)
    page = run(opened, "echo it")
    says(opened, re.compile("^ok"))
    run(opened, "")
    says(opened, re.compile("source: .*empty"))
    assert output(page) == ("", "")
    expect(page.get_by_role("table", name="Workers")).to_be_hidden()


def test_a_program_that_is_stopped_is_ended_and_the_focus_is_on_what_runs_the_next(tab: Opened, shared: Server) -> None:
    opened = tab(shared.url)
    token = f"attacked-{os.getpid()}-{os.urandom(4).hex()}"
    page = run(opened, f"exec -a {token} sleep 600")
    says(opened, "Running…")
    until(lambda: len(processes_that_say(token)) >= 2, "both workers run")
    # Who presses Run in the meantime does nothing, least of all begin it again.
    page.get_by_label("Source").press("Control+Enter")
    page.get_by_role("button", name="Stop").press("Enter")
    says(opened, "Stopped.")
    until(lambda: processes_that_say(token) == [], "they are ended")
    assert opened.focused() == "run"
    assert len([each for each in opened.asked if each.endswith("/invocations")]) == 1
    run(opened, "echo next")
    says(opened, re.compile("^ok"))


def test_where_there_is_no_room_it_is_said_when_to_try_again(tab: Opened, server: Callable[..., Server]) -> None:
    begun = server("--most", "1")
    opened = tab(begun.url)
    token = f"attacked-{os.getpid()}-{os.urandom(4).hex()}"
    body = json.dumps({"source": f"exec -a {token} sleep 600", "timeout": 60}).encode()
    with socket.create_connection(("127.0.0.1", begun.port)) as client:
        head = f"POST {INVOKE.format('bash')} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: bool(processes_that_say(token)), "it runs")
        run(opened, "echo it")
        says(opened, re.compile(r"Try again in \d+ s\.$"))
    until(lambda: processes_that_say(token) == [], "it is ended")


def test_where_no_worker_can_run_it_each_says_why(tab: Opened, server: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "broken-1").mkdir()
    (tmp_path / "broken-1" / "runtime.sh").write_text("#!/nowhere\n")
    (tmp_path / "broken-1" / "runtime.sh").chmod(0o755)
    opened = tab(server("--runtimes", str(tmp_path)).url, viewport=PHONE)
    page = run(opened, "x", language="broken:1")
    says(opened, "no worker could run it.")
    rows = page.get_by_role("table", name="Workers").locator("tbody tr")
    assert rows.count() >= 2
    assert all("worker-failed: bwrap: " in each for each in rows.all_inner_texts())
    assert opened.overflowing() == []


def test_on_a_phone_what_came_of_it_is_brought_into_sight(tab: Opened, shared: Server) -> None:
    opened = tab(shared.url, viewport={**PHONE, "height": 560})
    page = ready(opened)
    expect(page.get_by_role("status")).not_to_be_in_viewport()
    run(opened, "echo it")
    says(opened, re.compile("^ok"))
    expect(page.get_by_role("status")).to_be_in_viewport(ratio=1)


def test_a_token_is_asked_for_where_one_is_needed_and_nothing_is_kept_of_it(tab: Opened, server: Callable[..., Server]) -> None:
    begun = server(SIDECAR_TOKEN=TOKEN)
    opened = tab(begun.url)
    page = opened.page
    says(opened, "A token is needed.")
    assert opened.focused() == "token"
    for text, told in (("wrong", "This token is not known here."), (TOKEN, "Ready.")):
        page.get_by_label("Token").fill(text)
        page.keyboard.press("Enter")
        says(opened, told)
    run(opened, "echo it")
    says(opened, re.compile("^ok"))
    assert TOKEN not in "".join(opened.asked)
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    # The browser itself notes what is 401; nothing else is wrong.
    assert all("401" in each for each in opened.trouble)


def test_no_token_is_asked_for_where_none_is_needed(tab: Opened, shared: Server) -> None:
    opened = tab(shared.url)
    says(opened, "Ready.")
    expect(opened.page.get_by_label("Token")).to_be_hidden()


def test_where_nothing_is_installed_it_is_said(tab: Opened, server: Callable[..., Server], tmp_path: Path) -> None:
    says(tab(server("--runtimes", str(tmp_path)).url), "No language is installed here.")


def test_a_server_that_is_gone_is_told_and_when_it_is_there_again_all_goes_on(tab: Opened, server: Callable[..., Server]) -> None:
    begun = server()
    opened = tab(begun.url)
    ready(opened)
    begun.end()
    page = run(opened, "echo it")
    says(opened, "The server cannot be reached.")
    environment = {**os.environ, "SIDECAR_RUNTIMES": str(RUNTIMES)}
    begun.process = subprocess.Popen(begun.process.args, env=environment, stderr=subprocess.PIPE)
    with begun.client() as client:
        until(lambda: _answers(client), "it is there again")
    page.get_by_role("button", name="Run").click()
    says(opened, re.compile("^ok"))


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 204
    except httpx.TransportError:
        return False


# --- hostile programs --------------------------------------------------------------------------------------------------


def test_what_a_program_prints_is_text_whatever_it_says_and_nothing_of_it_is_run_or_asked(tab: Opened, shared: Server) -> None:
    hostile = (
        "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\"><b>bold</b>&amp;"
        "</pre></section><iframe src=javascript:parent.document.title='taken'></iframe>"
        "<style>*{display:none}</style><base href=//elsewhere.example>\n"
    )
    opened = tab(shared.url)
    page = write(opened, 'cat; printf %s "$1" >&2')
    page.get_by_text("Input and arguments").click()
    page.get_by_label("Input", exact=True).fill(hostile)
    page.get_by_label("Arguments").fill(hostile)
    page.get_by_role("button", name="Run").click()
    says(opened, re.compile("^ok"))
    assert output(page) == (hostile, hostile.rstrip("\n"))
    assert page.locator("pre *").count() == 0
    assert page.title() == "Functions"
    assert (opened.trouble, opened.elsewhere) == ([], [])


def test_were_there_a_way_in_the_pages_policy_would_let_nothing_out(tab: Opened, shared: Server) -> None:
    opened = tab(shared.url)
    ready(opened)
    ask = "url => fetch(url).then(() => 'answered', () => 'refused')"
    assert opened.page.evaluate(ask, "http://127.0.0.2:9/") == "refused"
    assert any("Content Security Policy" in each for each in opened.trouble)


def test_a_flood_of_output_scrolls_in_its_place(tab: Opened, shared: Server) -> None:
    opened = tab(shared.url, viewport=PHONE)
    page = run(opened, "printf '%060000d' 1; seq 500 >&2")
    says(opened, re.compile("^ok"))
    assert opened.overflowing() == []
    assert page.evaluate("document.getElementById('stdout').clientHeight < innerHeight")
    assert str(output(page)[1]).endswith("\n500\n")


# --- for everybody -----------------------------------------------------------------------------------------------------


def test_all_of_it_is_used_by_keyboard_in_the_order_that_is_seen_and_the_focus_is_visible(tab: Opened, shared: Server) -> None:
    opened = tab(shared.url, viewport=WIDE)
    page = opened.page
    says(opened, "Ready.")
    visited = []
    for _ in range(9):
        page.keyboard.press("Tab")
        visited.append(opened.focused())
    # Tab leaves the source, too.
    assert visited == ["function", "workers", "seconds", "source", "summary", "run", "stdout", "stderr", "a"]
    for _ in range(9 - 1):
        page.keyboard.press("Shift+Tab")
    assert opened.focused() == "function"
    page.keyboard.type("bash")
    page.keyboard.press("Tab")
    page.keyboard.type("3")
    for _ in range(2):
        page.keyboard.press("Tab")
    page.keyboard.press("Control+A")
    page.keyboard.type("cat; exit 4")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert opened.focused() == "stdin"
    page.keyboard.type("typed")
    for _ in range(2):
        page.keyboard.press("Tab")
    assert opened.focused() == "run"
    page.keyboard.press("Space")
    says(opened, re.compile("^error · exit code 4 · "))
    assert output(page)[0] == "typed"
    assert page.get_by_role("table", name="Workers").locator("tbody tr").count() == 3
    assert opened.focused() == "run"


def test_everything_that_can_be_used_has_a_name_for_assistive_technology(tab: Opened, shared: Server) -> None:
    opened = tab(shared.url)
    page = run(opened, "echo it")
    says(opened, re.compile("^ok"))
    page.get_by_text("Input and arguments").click()
    assert opened.nameless() == []
    assert page.locator("html").get_attribute("lang") == "en"
    for name in ("Program", "Result"):
        assert page.get_by_role("form" if name == "Program" else "region", name=name).count() == 1


def test_what_became_of_it_is_announced(tab: Opened, shared: Server) -> None:
    opened = tab(shared.url)
    ready(opened)
    session = opened.page.context.new_cdp_session(opened.page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    (status,) = [each for each in nodes if each["role"]["value"] == "status"]
    assert {each["name"]: each["value"]["value"] for each in status["properties"]}["live"] == "polite"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("source", ["echo it; echo it >&2", "echo it; exit 1"], ids=["ok", "error"])
def test_all_text_can_be_read_by_day_and_by_night(tab: Opened, shared: Server, scheme: str, source: str) -> None:
    opened = tab(shared.url, color_scheme=scheme)
    page = ready(opened)
    page.get_by_text("Input and arguments").click()
    assert opened.unreadable() == []
    run(opened, source)
    says(opened, re.compile(" · worker "))
    assert opened.unreadable() == []
    (red, *_) = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
    assert (red < 128) == (scheme == "dark")


def test_unreadable_text_would_be_noticed(tab: Opened, shared: Server) -> None:
    assert contrast([0, 0, 0], [255, 255, 255]) == pytest.approx(21)
    assert contrast([119, 119, 119], [255, 255, 255]) == pytest.approx(4.48, abs=0.01)
    opened = tab(shared.url)
    page = ready(opened)
    page.evaluate("document.querySelector('h1').style.color = '#aaa'")
    page.evaluate("document.getElementById('run').textContent = ''")
    page.evaluate("document.getElementById('form').style.width = '3000px'")
    assert [each.partition(":")[0] for each in opened.unreadable()] == ["Functions"]
    assert opened.nameless() == ["button"]
    assert "FORM#form" in opened.overflowing()


@pytest.mark.parametrize("viewport", [PHONE, {"width": 320, "height": 600}, WIDE], ids=["phone", "small", "wide"])
def test_nothing_is_wider_than_the_window(tab: Opened, shared: Server, viewport: dict[str, int]) -> None:
    opened = tab(shared.url, viewport=viewport)
    page = ready(opened)
    page.get_by_text("Input and arguments").click()
    assert opened.overflowing() == []
    page.get_by_role("spinbutton", name="Workers").fill("5")
    run(opened, f"printf '%0200d\n' 1; echo {'x' * 300} >&2; exit 1")
    says(opened, re.compile("^error"))
    assert opened.overflowing() == []


def test_on_a_wide_screen_the_program_and_what_came_of_it_stand_side_by_side(tab: Opened, shared: Server) -> None:
    for viewport, beside in ((WIDE, True), (PHONE, False)):
        opened = tab(shared.url, viewport=viewport)
        form, result = (opened.page.locator(each).bounding_box() for each in ("form", "section"))
        assert form is not None
        assert result is not None
        assert (form["x"] + form["width"] <= result["x"]) == beside
        assert (form["y"] + form["height"] <= result["y"]) == (not beside)
