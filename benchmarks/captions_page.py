"""Measures the part Captions in a real browser with a large set: opening it, turning pages, changing all, checking the pictures.

    python -m benchmarks.captions_page [--pictures 1000] [--side 1024] [--no-report]

Needs playwright and Chromium. A page counts as there when all its fields are there and all pictures in view are decoded. "First"
pages have their small pictures made, those of a page turn while the page before is looked at for three seconds; later they are
kept. The script of the page looks twice a second whether it is in view, which is in the figures. On a busy machine the clock says
little; the processor time of server, browser and driver together is what an action costs.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.quality_report import MAX_SECONDS, make_pictures
from benchmarks.report import Row, describe_spread, format_section
from lora_trainer.dataset.table_writing import format_table
from lora_trainer.ui.captions import PAGE_SIZES

OPEN_SECONDS, TURN_SECONDS, BULK_SECONDS = 2.0, 0.5, 2.0
NUM_TURNS = 6
LOOK_SECONDS = 3.0
POLL_MS = 25  # to look at every frame would have the browser draw frames all the time
PATIENCE_MS = 300_000
SEEN = """(last) => {
    const cards = document.querySelector("#lora_trainer_captions_cards");
    const field = cards && cards.querySelector("textarea[data-caption]");
    if (!field || field.dataset.caption === last) return false;
    const images = [...cards.querySelectorAll("img")].filter((image) => image.getBoundingClientRect().top < innerHeight);
    return images.every((image) => image.complete && image.naturalWidth > 0);
}"""
FIRST = "() => document.querySelector('textarea[data-caption]').dataset.caption"


Seconds = tuple[float, float]
"""By the clock, and of the processors: of the page's server, the browser, and what drives it."""


class Stopwatch:
    """Takes the time from its making on."""

    def __init__(self) -> None:
        self._clock, self._processors = time.perf_counter(), _processor_seconds()

    def read(self) -> Seconds:
        return time.perf_counter() - self._clock, _processor_seconds() - self._processors


def _processor_seconds() -> float:
    """Returns what this process and all below it, the server and the browser among them, have used."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


class Browser:
    """A page with the part Captions, of which the time of actions is taken."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def timed(self, act: Callable[[], object], *, last: str = "") -> Seconds:
        """Returns the seconds from an action to the captions and pictures that follow, of which the first is not `last`."""
        watch = Stopwatch()
        act()
        self.page.wait_for_function(SEEN, arg=last, polling=POLL_MS)
        return watch.read()

    def open(self) -> Seconds:
        titles = "#lora_trainer_parts button[role=tab], #lora_trainer_parts .tab-nav > button"
        return self.timed(lambda: self.page.locator(titles, has_text="Captions").first.click())

    def turn(self, step: str) -> Seconds:
        """Presses the hidden button of a page turn, as the arrows below the pictures do."""
        time.sleep(LOOK_SECONDS)  # nobody turns a page before it was looked at; meanwhile the next one is prepared
        last = self.page.evaluate(FIRST)
        return self.timed(
            lambda: self.page.evaluate(f"() => window.loraTrainer.press('lora_trainer_captions_{step}')"), last=last
        )

    def press_and_wait(self, button: str, seen: str) -> Seconds:
        watch = Stopwatch()
        self.page.locator(f"#{button}").click()
        self.page.wait_for_selector(seen, state="attached")
        return watch.read()

    def fill(self, field: str, text: str) -> None:
        self.page.locator(f"#{field} textarea, #{field} input").first.fill(text)

    def unfold(self, title: str) -> None:
        self.page.locator("#lora_trainer .label-wrap", has_text=title).first.click()


def measure(url: str, num_pages: int, *, with_report: bool) -> dict[str, list[Seconds]]:
    """Returns the seconds of each action."""
    from playwright.sync_api import sync_playwright

    program = next(path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name)))
    found: dict[str, list[Seconds]] = {}
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        for visit in ("first", "again"):
            page = chromium.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(PATIENCE_MS)
            page.goto(url, wait_until="domcontentloaded")
            page.wait_for_selector("#lora_trainer_dataset_gallery .lora_trainer_card")
            browser = Browser(page)
            found[f"opened, {visit}"] = [browser.open()]
            found[f"page turn, {visit}"] = [browser.turn("forward") for _ in range(min(NUM_TURNS, num_pages - 1))]
            if visit == "again":
                found["bulk change of all, preview"], found["bulk change of all"] = _change_all(browser)
                if with_report:
                    browser.unfold("Check and retouch the pictures")
                    seen = "#lora_trainer_captions_report :text('pictures checked, for')"
                    found["report"] = [browser.press_and_wait("lora_trainer_captions_check", seen)]
            page.close()
        chromium.close()
    return found


def _change_all(browser: Browser) -> tuple[list[Seconds], list[Seconds]]:
    browser.unfold("Change many captions")
    browser.fill("lora_trainer_captions_find", "ink wash")
    browser.fill("lora_trainer_captions_other", "ink")
    preview = browser.press_and_wait("lora_trainer_captions_preview", ".lora_trainer_preview")
    done = browser.press_and_wait("lora_trainer_captions_apply", ".lora_trainer_message:has-text('changed.')")
    return [preview], [done]


def make_rows(found: dict[str, list[Seconds]]) -> list[Row]:
    """Returns the figures with their targets."""
    limits = {"opened": OPEN_SECONDS, "page turn": TURN_SECONDS, "bulk change of all": BULK_SECONDS, "report": MAX_SECONDS}
    rows = []
    for name, seconds in found.items():
        limit = limits.get(name.partition(",")[0])
        clock, processors = [list(column) for column in zip(*seconds, strict=True)]
        value = describe_spread(clock, 2, " s") if len(clock) > 1 else f"{clock[0]:.2f} s"
        value += f", of it {statistics.median(processors):.2f} s processor time"
        rows.append(Row(name, value, f"under {limit:g} s" if limit else "", statistics.median(clock) < limit if limit else None))
    return rows


def serve(folder: Path, count: int, side: int) -> tuple[subprocess.Popen[str], str]:
    """Starts the stand-alone page on a set of captioned pictures; returns process and address."""
    pictures = folder / "datasets" / "large"
    pictures.mkdir(parents=True)
    make_pictures(pictures, count, side)
    names = sorted(path.name for path in pictures.iterdir())
    captions = {name: f"shuimo, mountains in mist, ink wash, number {number}, 水墨" for number, name in enumerate(names)}
    (pictures / "metadata.csv").write_bytes(format_table(captions, ".csv"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "lora_trainer", "app", "--port", str(port), "--data-dir", str(folder), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("LoRA Trainer: "):
            return process, f"http://127.0.0.1:{port}/"
    raise RuntimeError("the page did not start")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--side", type=int, default=1024, help="of the square pictures, in pixels")
    parser.add_argument("--no-report", action="store_true", help="leaves out the check of the pictures")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        process, url = serve(Path(folder), options.pictures, options.side)
        try:
            found = measure(url, -(-options.pictures // PAGE_SIZES[0]), with_report=not options.no_report)
        finally:
            process.terminate()
            process.wait()
    title = f"The part Captions in Chromium: {options.pictures} pictures of {options.side} pixels"
    print(format_section(title, "12 on a page; `python -m benchmarks.captions_page`.", make_rows(found)))


if __name__ == "__main__":
    main()
