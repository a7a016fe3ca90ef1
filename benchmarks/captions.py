"""Measures what the Captions part waits for: reading a large set, saving one caption, changing all, taking that back.

python -m benchmarks.captions [--captions 1000]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import Row, format_section
from lora_trainer.dataset.advice import CaptionFilter, advise, choose, count_words
from lora_trainer.dataset.bulk import add_tags, preview, replace_pattern, replace_text
from lora_trainer.dataset.caption_store import CaptionStore
from lora_trainer.dataset.table_writing import format_table

MAX_BULK_SECONDS = 2.0
MAX_TURN_SECONDS = 0.5


def make_set(folder: Path, count: int, *, in_table: bool) -> CaptionStore:
    """Writes captions; the store takes pictures by their names, so that there are none to decode."""
    places = ("mountains in mist", "a river with two boats", "a pavilion under pines", "a bridge in the rain")
    captions = {f"{number:05}.png": f"shuimo, {places[number % 4]}, number {number}, ink wash, 水墨" for number in range(count)}
    for name, caption in captions.items():
        (folder / name).write_bytes(b"")
        if not in_table:
            (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")
    if in_table:
        (folder / "metadata.csv").write_bytes(format_table(captions, ".csv"))
    return CaptionStore(folder)


def measure(store: CaptionStore) -> dict[str, tuple[float, float]]:
    """Returns seconds by the clock, and of the processor, by what was done."""
    seconds: dict[str, tuple[float, float]] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        clock, processor = time.perf_counter(), time.process_time()
        work()
        seconds[name] = time.perf_counter() - clock, time.process_time() - processor

    def change_all() -> None:
        found = preview(store.read().captions, replace_text("ink wash", "ink"), add_tags(["song dynasty"]))
        assert len(found.changes) == len(store.read().captions)
        store.save_all(found.wanted, found.seen, title="bulk")

    captions = store.read().captions
    first = next(iter(captions))
    timed("first advice, with the tokenizer's start", lambda: advise(captions, trigger="shuimo"))
    timed("read", store.read)
    timed("advice", lambda: advise(captions, trigger="shuimo"))
    timed("filter over 75 tokens", lambda: choose(captions, CaptionFilter(over_tokens=75), {}))
    timed("frequency of words", lambda: count_words(captions.values()))
    timed("preview of a pattern", lambda: preview(captions, replace_pattern(r"number (\d+)", r"no. \1")))
    timed("save one", lambda: store.save(first, "another", seen=captions[first]))
    store.undo()
    timed("change all", change_all)
    timed("undo of all", store.undo)
    return seconds


def make_rows(place: str, seconds: dict[str, tuple[float, float]]) -> list[Row]:
    targets = {
        "change all": MAX_BULK_SECONDS,
        "undo of all": MAX_BULK_SECONDS,
        "read": MAX_TURN_SECONDS,
        "save one": MAX_TURN_SECONDS,
    }
    rows = []
    for name, (clock, processor) in seconds.items():
        value = f"{clock:.3f} s, of it {processor:.3f} s processor time"
        limit = targets.get(name)
        target = ("", None) if limit is None else (f"at most {limit:g} s", clock <= limit)
        rows.append(Row(f"{name}, {place}", value, *target))
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=1000)
    options = parser.parse_args(arguments)
    rows = []
    for place in (".txt", "metadata.csv"):
        with tempfile.TemporaryDirectory() as folder:
            rows += make_rows(place, measure(make_set(Path(folder), options.captions, in_table=place != ".txt")))
    print(format_section("Captions", f"{options.captions} captions, seconds by the clock.", rows))


if __name__ == "__main__":
    main()
