"""Pages in a real browser, for the tests: Debian's chromium without a window, driven by Playwright. conftest.py has the fixtures.

    def test_it(tab, server):
        tab = tab(server.url)                         # or with a phone's width, or in the dark: viewport=…, color_scheme=…
        tab.page.get_by_role("button", name="Run").click()
        expect(tab.page.get_by_role("status")).to_contain_text("ok")
        assert tab.trouble == [] and tab.elsewhere == []

Playwright keeps a loop running in its thread for as long as it is open, in which nobody else's asyncio.run works: so a browser is
a module's, and not the session's. The browser is Debian's, of whatever version, and not what Playwright was made for: what is
used of it here is old.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, sync_playwright
from processes import HANG

CHROMIUM = "/usr/bin/chromium"
PHONE = {"width": 360, "height": 720}
# What WCAG asks of text: 4.5 of all, 3 of what is large.
READABLE, READABLE_LARGE = 4.5, 3.0

__all__ = ["PHONE", "Browser", "Tab", "chromium"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield the browser, which ends with the block, and with this process."""
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM)
        yield found
        found.close()


class Tab:
    """One page, opened by somebody who was never there. `trouble` is what the browser complained of, `asked` what it fetched."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self._context = browser.new_context(**options)
        self._context.set_default_timeout(HANG * 1000)
        self.page: Page = self._context.new_page()
        self.trouble: list[str] = []
        self.asked: list[str] = []
        self._url = url
        self.page.on("console", lambda said: self.trouble.append(said.text) if said.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url)

    def close(self) -> None:
        self._context.close()

    @property
    def elsewhere(self) -> list[str]:
        """All that was asked of anybody but the page's own server."""
        return [each for each in self.asked if urlsplit(each).netloc != urlsplit(self._url).netloc]

    def focused(self) -> str:
        """Return the id of what has the focus, or else what it is; an AssertionError where nobody could see that it has."""
        found = self.page.evaluate(_FOCUSED)
        assert found["seen"], f"the focus of {found['what']} cannot be seen"
        what: str = found["what"]
        return what

    def overflowing(self) -> list[str]:
        """Return what is wider than the window."""
        found: list[str] = self.page.evaluate(_OVERFLOWING)
        return found

    def unreadable(self) -> list[str]:
        """Return each text whose contrast to what is behind it is less than WCAG asks, with the contrast."""
        found = self.page.evaluate(_TEXTS)
        assert found, "there is some text"
        return [
            f"{each['text']}: {ratio:.2f}"
            for each in found
            if (ratio := contrast(each["colour"], each["behind"])) < (READABLE_LARGE if each["large"] else READABLE)
        ]

    def nameless(self) -> list[str]:
        """Return the role of everything that can be used and has no name for assistive technology, as the browser tells it."""
        session = self._context.new_cdp_session(self.page)
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        roles = [(each["role"]["value"], each.get("name", {}).get("value", "")) for each in nodes if not each["ignored"]]
        used = [(role, name) for role, name in roles if role in _USED]
        assert used, "there is something to use"
        return [role for role, name in used if not name.strip()]


def contrast(one: list[float], other: list[float]) -> float:
    """Return the contrast of two colours (red, green, blue, to 255), as WCAG defines it: 1 to 21."""

    def luminance(colour: list[float]) -> float:
        red, green, blue = ((c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for c in (v / 255 for v in colour))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


_USED = {
    "button",
    "textbox",
    "combobox",
    "spinbutton",
    "checkbox",
    "link",
    "table",
    "form",
    "region",
    "DisclosureTriangle",
}

_FOCUSED = """() => {
  const has = document.activeElement, style = getComputedStyle(has);
  return {what: has.id || has.tagName.toLowerCase(), seen: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2};
}"""

_OVERFLOWING = """() => {
  const wide = document.documentElement.clientWidth, hidden = document.documentElement.scrollWidth > wide ? ["the page"] : [];
  return hidden.concat([...document.querySelectorAll("body *")].filter((each) => each.getBoundingClientRect().right > wide + 0.5)
    .map((each) => each.tagName + "#" + each.id));
}"""

_TEXTS = """() => {
  const parts = (colour) => colour.match(/[0-9.]+/g).map(Number);
  const behind = (each) => {
    for (; each; each = each.parentElement) {
      const colour = parts(getComputedStyle(each).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour.slice(0, 3);
    }
    return parts(getComputedStyle(document.documentElement).colorScheme.includes("dark") ? "0 0 0" : "255 255 255");
  };
  const found = [];
  for (const each of document.querySelectorAll("body *")) {
    const own = [...each.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE).map((node) => node.data.trim()).join("");
    const text = each.value || own;
    if (!each.checkVisibility() || each.matches("script, style, option") || !(text || each.placeholder)) continue;
    const style = getComputedStyle(each, text ? null : "::placeholder"), size = parseFloat(style.fontSize);
    const large = size >= 24 || size >= 18.66 && Number(style.fontWeight) >= 700;
    found.push({text: text || each.placeholder, colour: parts(style.color).slice(0, 3), behind: behind(each), large});
  }
  return found;
}"""
