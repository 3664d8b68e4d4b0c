"""A real browser: Debian's Chromium, without a window, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.support.apt import found_or_installed

_AXE = Path(__file__).parent / "vendor" / "axe-4.14.1.min.js"
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
}
"""Options of a visitor: what pages must look good in."""

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def program() -> str | None:
    """Return the path of a Chromium, which apt installs where it can."""
    return found_or_installed(present, "chromium")


def present() -> str | None:
    """Return the path of a Chromium that is here."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@contextmanager
def browser(path: str) -> Iterator[Browser]:
    """Yield a browser; as root it cannot have its sandbox."""
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = playwright.chromium.launch(executable_path=path, args=arguments)
        yield started
        started.close()


class Visitor:
    """One person with a browser, whose pages load nothing from elsewhere and raise no error.

    With a token they are logged in.
    """

    def __init__(self, started: Browser, url: str, token: str = "", **options: Any) -> None:
        self.context: BrowserContext = started.new_context(base_url=url, **options)
        if token:
            form, ours = {"token": token, "next": "/login"}, {"Origin": url}
            done = self.context.request.post("/login", form=form, headers=ours)
            assert done.ok, done.text()
        self.context.set_default_timeout(60_000)
        self.page: Page = self.context.new_page()
        self.elsewhere: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda r: self._saw(r.url, url))
        self.page.on("response", lambda r: self._got(r.status, r.url))
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("console", lambda m: self._heard(m.type, m.text))

    def _saw(self, url: str, home: str) -> None:
        if not url.startswith((home, "data:")):
            self.elsewhere.append(url)

    def _got(self, status: int, url: str) -> None:
        if status >= 500 or (status >= 400 and "/static/" in url):
            self.errors.append(f"{status} {url}")

    def _heard(self, kind: str, text: str) -> None:
        left = "Failed to load resource", "htmx: htmx:error: Failed to fetch"  # as a page is left
        if kind in ("error", "warning") and not text.startswith(left):
            self.errors.append(text)

    def check(self) -> None:
        """Fail if a page did what none may do."""
        assert self.elsewhere == []
        assert self.errors == []

    def close(self) -> None:
        self.context.close()


def barriers(page: Page, *rules: str) -> list[str]:
    """Return what axe finds against WCAG 2.2 AA, each with the first element that has it.

    Parameters
    ----------
    rules
        Only these, if any.
    """
    if page.evaluate("typeof axe === 'undefined'"):
        page.evaluate(_AXE.read_text())
    tags = ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"]
    found = page.evaluate("only => axe.run(document, {runOnly: only})", [*rules] or tags)
    return [
        f"{v['id']}: {v['help']}: {v['nodes'][0]['html'][:160]} {v['nodes'][0]['failureSummary']}"
        for v in found["violations"]
    ]


def barriers_of_looks(page: Page) -> dict[str, list[str]]:
    """Return the barriers of a page in light and dark, and on a phone, which it must fit."""
    found = {"light": barriers(page)}
    page.emulate_media(color_scheme="dark")  # other colours and nothing else
    found["dark"] = barriers(page, "color-contrast")
    page.emulate_media(color_scheme="light")
    desk = page.viewport_size
    page.set_viewport_size(LOOKS["phone"]["viewport"])
    found["phone"] = barriers(page)
    wide, shown = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    if wide > shown:
        found["phone"].append(f"{wide} px wide, of which {shown} are shown")
    assert desk is not None
    page.set_viewport_size(desk)
    return {look: barred for look, barred in found.items() if barred}
