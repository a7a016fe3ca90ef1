"""Measures the time to the first step: from Start to the end of it, and what the time goes to.

    python -m benchmarks.first_step [--starts 3] [--tiny]

Each start is a process of its own. "from nothing" begins with Python alone; "base chosen before" has the libraries imported by
`libraries.load_ahead`, as on the page, where that is done while the rest of the form is filled in; "second" finds the cache
filled. Seconds by the clock, since waiting is what is measured: medians of the starts, taken in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import Row, format_section

KINDS = {"nothing": "from nothing", "ahead": "base chosen before", "second": "base chosen before, second start"}
MAX_RATIO = 0.6
NUM_PICTURES = 8


def run_start(folder: Path, kind: str) -> dict[str, float]:
    """Starts a run in this process. Returns the seconds from Start until each part was done."""
    import lora_trainer.libraries as libraries

    if kind != "nothing":
        libraries.load_ahead()
        libraries.wait_for_libraries()
    started = time.perf_counter()
    if kind == "nothing":
        libraries.load_ahead()  # as the command line does
    from lora_trainer.config.parse import load_config
    from lora_trainer.control import TrainControl
    from lora_trainer.events import TrainEvent
    from lora_trainer.training.run import train

    moments = {"torch and the trainer imported": time.perf_counter() - started}

    def watch(event: TrainEvent) -> None:
        moment = time.perf_counter() - started
        if event.kind == "started":
            moments["base loaded"] = moment
        elif event.kind == "phase" and event.data["done"] == event.data["total"] and event.data["name"].startswith("encoding"):
            moments["cached"] = moment
        elif event.kind == "step":
            moments["first step"] = moment

    train(load_config(folder / "train.yaml"), control=TrainControl(), watch=watch, fresh=True)
    return moments


def prepare(folder: Path, *, is_tiny: bool) -> None:
    """Writes base, pictures and settings."""
    from benchmarks.workload import FULL, TINY, make_config
    from lora_trainer.config.parse import config_to_yaml

    config = make_config(folder, TINY if is_tiny else FULL, num_pictures=NUM_PICTURES, num_steps=1)
    (folder / "train.yaml").write_text(config_to_yaml(config), encoding="utf-8")


def measure(folder: Path, num_starts: int, *, is_tiny: bool) -> dict[str, dict[str, float]]:
    """Returns the median seconds of each kind of start, by part."""

    def run(kind: str) -> dict[str, float]:
        command = [sys.executable, "-m", "benchmarks.first_step", "--child", kind, "--folder", str(folder)]
        command += ["--tiny"] if is_tiny else []
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
        moments: dict[str, float] = json.loads(answer.splitlines()[-1])
        return moments

    prepare(folder, is_tiny=is_tiny)
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(num_starts):
        for kind in KINDS:
            if kind != "second":
                for path in (folder / "cache").rglob("*.safetensors"):
                    path.unlink()
            found[kind].append(run(kind))
    return {kind: {part: statistics.median(each[part] for each in all_) for part in all_[0]} for kind, all_ in found.items()}


def make_rows(found: dict[str, dict[str, float]]) -> list[Row]:
    rows = [Row(f"{part}, {KINDS[kind]}", f"{seconds:.1f} s") for kind, parts in found.items() for part, seconds in parts.items()]
    ratio = found["ahead"]["first step"] / found["nothing"]["first step"]
    name = "first step: base chosen before / from nothing"
    return [*rows, Row(name, f"{ratio:.2f}", f"at most {MAX_RATIO}", ratio <= MAX_RATIO)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=3, help="of each kind")
    parser.add_argument("--tiny", action="store_true", help="a model of no weight, to see that the script works")
    parser.add_argument("--child", choices=tuple(KINDS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(run_start(options.folder, options.child)))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.starts, is_tiny=options.tiny)
    conditions = (
        f"{'A base of no weight' if options.tiny else 'A base of 142 million parameters'}, {NUM_PICTURES} pictures, on a CPU."
    )
    print(format_section("Time to the first step", conditions, make_rows(found)))


if __name__ == "__main__":
    main()
