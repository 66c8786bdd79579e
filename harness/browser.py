"""Debian's Chromium for tests of the page, with everything that a page logs and asks for."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

LIMIT: Final = 20_000
"""Milliseconds after which a wait fails."""
RULES: Final = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    "resultTypes": ["violations"],
}
SETTLED: Final = """() => Promise.allSettled(document.getAnimations()
  .filter((each) => each.effect.getComputedTiming().endTime !== Infinity).map((each) => each.finished))"""
FAILED_LOAD: Final = "Failed to load resource"
"""Begins the line that Chromium itself logs for an answer that is an error."""


class BrowserMissingError(Exception):
    """There is no Chromium on this machine."""


class Visit:
    """A page that is open in a window of its own."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        """Opens the page.

        Args:
            browser: the browser.
            url: the address of the page.
            **options: of the browser's context, such as `color_scheme`.
        """
        self.url = url
        self.logged: list[str] = []
        """What the page has logged, errors that nobody caught included."""
        self.requests: list[str] = []
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(LIMIT)
        self.page: Page = self.context.new_page()
        self.page.on("console", self._log)
        self.page.on("pageerror", lambda error: self.logged.append(str(error)))
        self.page.on("request", self._request)
        self.page.goto(url)

    def draw(self, prompt: str) -> None:
        """Writes a prompt, and draws it by the keyboard alone."""
        self.page.fill("#prompt", prompt)
        self.page.press("#prompt", "Control+Enter")

    def violations(self) -> list[str]:
        """Returns what axe-core finds, with the places."""
        # Where it was asked for, the page may still be fading; colours are judged at rest.
        self.page.evaluate(SETTLED)
        found = Axe().run(self.page, options=RULES).response["violations"]
        return [f"{each['id']}: {[node['html'] for node in each['nodes']]}" for each in found]

    def close(self, *, expect_failures: bool = False) -> None:
        """Closes the window; fails if the page has logged anything or asked another host.

        Args:
            expect_failures: whether some requests were meant to fail, which Chromium logs by itself.
        """
        self.context.close()
        logged = [each for each in self.logged if not (expect_failures and FAILED_LOAD in each)]
        assert not logged, logged
        foreign = [
            each for each in self.requests if not re.match(rf"{re.escape(self.url)}/|data:|blob:", each)
        ]
        assert not foreign, foreign

    def _log(self, message: ConsoleMessage) -> None:
        self.logged.append(f"{message.type}: {message.text}")

    def _request(self, request: Request) -> None:
        self.requests.append(request.url)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Runs Chromium while the block runs.

    Raises:
        BrowserMissingError: it is not installed.
    """
    program = shutil.which("chromium")
    if program is None:
        raise BrowserMissingError("Chromium is not installed; apt-get install chromium")
    expect.set_options(timeout=LIMIT)
    with sync_playwright() as playwright:
        # Without its sandbox, which needs rights that containers do not have.
        browser = playwright.chromium.launch(executable_path=program, chromium_sandbox=False)
        yield browser
        browser.close()
