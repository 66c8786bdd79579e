"""Measures the page of the web service: its weight, and the time until a visitor sees the first row of a picture."""

import gzip
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.deployment import Deployment
from benchmarks.measuring import Times
from benchmarks.report import Row
from harness.browser import BrowserMissingError, Visit, chromium
from harness.web_process import WebProcess
from smalti.registry import library
from smalti.services.web.page import FOLDER

PROMPT: Final = "a blue cat on a yellow background"
GOAL_BYTES: Final = 60 * 1024
GZIP_LEVEL: Final = 5
"""The level of the web service."""
WORK: Final = "from Enter to the first row in the page, 9 of 16 pictures of pictograms"

FIRST_ROW: Final = """() => {
  window.firstRow = new Promise((found) => {
    const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    let entered = 0;
    document.addEventListener("keydown", () => { entered = performance.now(); }, { capture: true });
    const look = () => {
      // A job that ends before its first preview shows its pictures at once.
      const pictures = entered ? [...document.querySelectorAll("[data-board] img")] : [];
      if (pictures.some((each) => each.naturalWidth > 0)) return found(performance.now() - entered);
      for (const canvas of entered ? document.querySelectorAll("[data-candidate] canvas") : []) {
        pen.clearRect(0, 0, 1, 1);
        pen.drawImage(canvas, 0, 0, canvas.width, canvas.height / 8, 0, 0, 1, 1);
        if (pen.getImageData(0, 0, 1, 1).data[3] > 0) return found(performance.now() - entered);
      }
      requestAnimationFrame(look);
    };
    look();
  });
}"""
"""Looks in every frame whether a row of a mosaic, or a finished picture, can be seen."""


def measure(repeats: int) -> Iterator[Row]:
    """Measures the page in Chromium, with the shipped model and real processes."""
    size = sum(len(gzip.compress(path.read_bytes(), GZIP_LEVEL)) for path in FOLDER.iterdir())
    verdict = f"at most {GOAL_BYTES / 1024:.0f} KiB: {'reached' if size <= GOAL_BYTES else 'missed'}"
    yield Row("the page before pictures, compressed", f"{size / 1024:.3g} KiB", goal=verdict)
    try:
        yield Row(WORK, str(_first_rows(repeats)))
    except BrowserMissingError:
        yield Row(WORK, "no Chromium here")


def _first_rows(repeats: int) -> Times:
    with (
        chromium() as browser,
        tempfile.TemporaryDirectory(prefix="smalti-bench-") as name,
        Deployment(Path(name), library.find("pictograms").path) as system,
        WebProcess(Path(name) / "web", {"SMALTI_SERVER": system.gateway}) as web,
    ):
        seconds = []
        for _ in range(1 + repeats):
            visit = Visit(browser, web.url)
            visit.page.wait_for_selector("[data-acts] button")  # The page has asked for the models.
            visit.page.evaluate(FIRST_ROW)
            visit.draw(PROMPT)
            seconds.append(visit.page.evaluate("() => window.firstRow") / 1000)
            visit.page.wait_for_function("() => document.querySelectorAll('[data-board] img').length === 9")
            visit.close()
    return Times(tuple(seconds[1:]))
