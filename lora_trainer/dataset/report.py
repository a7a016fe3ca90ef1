"""What is doubtful about the pictures of a set, each finding with its reason and its figure. It judges and changes nothing."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from lora_trainer.dataset.buckets import assign_buckets, crop_geometry
from lora_trainer.dataset.journal import KEPT_FOLDER
from lora_trainer.dataset.measure import Measures, measure
from lora_trainer.dataset.scan import list_files, picture_names
from lora_trainer.errors import DatasetError, TruncatedPictureError, examples
from lora_trainer.files import write_text

Kind = Literal[
    "unreadable",
    "truncated",
    "too small",
    "one colour",
    "blurred",
    "duplicate",
    "borders",
    "transparency",
    "turned",
    "extreme aspect",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

ALIKE_BITS = 24  # of 143: near-duplicates differ in fewer, see tests/dataset/test_report.py
MUCH_ENLARGED = 1.2  # times; such a picture is blurred by that, and is told as "too small"
FEWEST_TO_COMPARE = 6  # pictures, for "blurred" by comparison
BLURRED_SHARE = 0.25  # of the set's usual sharpness; less is blurred where it also stands out
BLURRED_DEVIATIONS = 2.0
NOWHERE_SHARP = 4.0  # variance of the Laplacian: no edge anywhere, whatever the set is like
SMALL_BORDER = 0.015  # of the side, and at least 4 pixels; less may be an edge of the scanner
SMALL_TRANSPARENCY = 0.001
EXTREME_ASPECT = 3.0
ONE_COLOUR = 6  # levels of 255
_NUM_THREADS = min(4, os.cpu_count() or 1)
_BLOCK = 512


@dataclass(frozen=True)
class Finding:
    """One thing that is doubtful about a picture.

    Attributes:
        name: of the picture.
        kind: one of `KINDS`.
        reason: what was found, with its figure, and what it does to a training.
        figure: the number that it rests on, for sorting; 0 where there is none.
    """

    name: str
    kind: Kind
    reason: str
    figure: float = 0.0


@dataclass(frozen=True)
class DuplicateGroup:
    """Pictures that look alike.

    Attributes:
        names: all of them, the best first.
        best: the one to keep: the sharpest at the size of the training.
    """

    names: tuple[str, ...]
    best: str


@dataclass(frozen=True)
class QualityReport:
    """What was found in a set.

    Attributes:
        num_pictures: that were looked at.
        resolution: that they were judged for.
        findings: in the order of the names, the worst kind of a picture first.
        groups: of near-duplicates.
        sharpness: of each picture that could be read, see `Measures`.
    """

    num_pictures: int
    resolution: int
    findings: tuple[Finding, ...]
    groups: tuple[DuplicateGroup, ...]
    sharpness: dict[str, float]

    def counts(self) -> dict[Kind, int]:
        """Returns the number of findings of each kind that occurs."""
        found = Counter(finding.kind for finding in self.findings)
        return {kind: found[kind] for kind in KINDS if found[kind]}

    def of_kind(self, kind: Kind) -> frozenset[str]:
        """Returns the pictures with a finding of that kind."""
        return frozenset(finding.name for finding in self.findings if finding.kind == kind)

    def of_picture(self, name: str) -> tuple[Finding, ...]:
        """Returns the findings about a picture."""
        return tuple(finding for finding in self.findings if finding.name == name)

    def save(self, path: Path) -> None:
        """Writes the report as JSON."""
        write_text(path, json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> QualityReport | None:
        """Returns a report that was saved, None where there is none that can be read."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                num_pictures=int(data["num_pictures"]),
                resolution=int(data["resolution"]),
                findings=tuple(Finding(**entry) for entry in data["findings"]),
                groups=tuple(DuplicateGroup(tuple(entry["names"]), entry["best"]) for entry in data["groups"]),
                sharpness={str(name): float(value) for name, value in data["sharpness"].items()},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def report_path(folder: Path) -> Path:
    """Returns where the last report of a data set is kept."""
    return folder / KEPT_FOLDER / "report.json"


def report_quality(
    folder: Path, *, resolution: int = 512, on_progress: Callable[[int, int], object] | None = None
) -> QualityReport:
    """Returns what is doubtful about the pictures of a folder and its sub-folders.

    Args:
        folder: the data set.
        resolution: that it will be trained at.
        on_progress: is called with the number of pictures looked at and of all. What it raises ends the report (to cancel it).

    Raises:
        DatasetError: the folder cannot be read.
    """
    names = picture_names(list_files(folder))
    measured: dict[str, Measures] = {}
    findings: list[Finding] = []
    for done, (name, found) in enumerate(_measure_all(folder, names, resolution), 1):
        if isinstance(found, Measures):
            measured[name] = found
        else:
            findings.append(Finding(name, "truncated" if isinstance(found, TruncatedPictureError) else "unreadable", str(found)))
        if on_progress:
            on_progress(done, len(names))
    for name, measures in measured.items():
        findings += _judge(name, measures, resolution)
    plain = {finding.name for finding in findings if finding.kind == "one colour"}
    small = {finding.name for finding in findings if finding.kind == "too small" and finding.figure > MUCH_ENLARGED}
    findings += _find_blurred({name: measures for name, measures in measured.items() if name not in plain | small})
    groups = find_duplicates({name: measures for name, measures in measured.items() if name not in plain})
    findings += _describe_groups(groups, measured)
    place = {name: number for number, name in enumerate(names)}
    findings.sort(key=lambda finding: (place[finding.name], KINDS.index(finding.kind)))
    sharpness = {name: round(measures.sharpness, 2) for name, measures in measured.items()}
    return QualityReport(len(names), resolution, tuple(findings), tuple(groups), sharpness)


def find_duplicates(measured: Mapping[str, Measures]) -> list[DuplicateGroup]:
    """Returns the groups of pictures that look alike, each directly or by others between them."""
    names = list(measured)
    if not names:
        return []
    signs = np.stack([measures.looks for measures in measured.values()]).astype(np.float32) * 2 - 1
    leaders = list(range(len(names)))

    def leader(number: int) -> int:
        while leaders[number] != number:
            leaders[number] = leaders[leaders[number]]
            number = leaders[number]
        return number

    for start in range(0, len(names), _BLOCK):
        differing = (signs.shape[1] - signs[start : start + _BLOCK] @ signs.T) / 2
        for one, other in np.argwhere(differing <= ALIKE_BITS).tolist():
            if start + one < other:
                leaders[leader(other)] = leader(start + one)
    groups: dict[int, list[str]] = {}
    for number, name in enumerate(names):
        groups.setdefault(leader(number), []).append(name)
    found = []
    for group in groups.values():
        if len(group) > 1:
            pixels = {name: measured[name].width * measured[name].height for name in group}
            group.sort(key=lambda name: (-measured[name].sharpness, -pixels[name], name))
            found.append(DuplicateGroup(tuple(group), group[0]))
    return found


def _measure_all(folder: Path, names: list[str], resolution: int) -> Iterator[tuple[str, Measures | DatasetError]]:
    def measure_one(name: str) -> Measures | DatasetError:
        try:
            return measure(folder / name, resolution)
        except DatasetError as error:
            return error

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        yield from zip(names, pool.map(measure_one, names), strict=True)


def _judge(name: str, measures: Measures, resolution: int) -> Iterator[Finding]:
    """Yields what can be said of a picture by itself."""
    width, height = measures.width, measures.height
    (bucket,) = assign_buckets([(width, height)], resolution, upscale=True)
    enlarged = crop_geometry((width, height), bucket)[0][0] / width
    if enlarged > 1.0:
        reason = f"has {width} x {height} pixels, each side too short {enlarged:.2f} times for {bucket}: little detail to learn."
        yield Finding(name, "too small", reason, enlarged)
    if measures.contrast <= ONE_COLOUR:
        yield Finding(name, "one colour", f"is of one colour all over (its grey levels differ by {measures.contrast} of 255).")
    sides = dict(zip(("left", "top", "right", "bottom"), measures.borders, strict=True))
    lengths = {"left": width, "right": width, "top": height, "bottom": height}
    wide = {side: px for side, px in sides.items() if px >= max(4, SMALL_BORDER * lengths[side])}
    if wide:
        listed = ", ".join(f"{side} {px}" for side, px in wide.items())
        share = 1 - (width - sides["left"] - sides["right"]) * (height - sides["top"] - sides["bottom"]) / (width * height)
        yield Finding(
            name,
            "borders",
            f"has a border of one colour ({listed} pixels), {share:.0%} of the picture: it is learned, too.",
            share,
        )
    share = measures.transparency or 0.0
    if share >= SMALL_TRANSPARENCY:
        yield Finding(name, "transparency", f"is {_percent(share)} transparent: white there, unless alpha_mask is on.", share)
    if measures.turn != 1:
        yield Finding(
            name,
            "turned",
            f"is turned by EXIF (orientation {measures.turn}): upright here, lying in some programs.",
            measures.turn,
        )
    aspect = max(width / height, height / width)
    if aspect >= EXTREME_ASPECT:
        reason = (
            f"is {aspect:.1f} times as {'wide as high' if width > height else 'high as wide'}; it would be trained at {bucket}."
        )
        yield Finding(name, "extreme aspect", reason, aspect)


def _find_blurred(measured: Mapping[str, Measures]) -> Iterator[Finding]:
    """Yields the pictures that are far less sharp than is usual in the set, or sharp nowhere."""
    logs = {name: math.log(max(measures.sharpness, 1e-3)) for name, measures in measured.items()}
    limit = -math.inf
    usual = 0.0
    if len(logs) >= FEWEST_TO_COMPARE:
        usual = statistics.median(logs.values())
        spread = 1.4826 * statistics.median(abs(value - usual) for value in logs.values())  # a standard deviation, if normal
        limit = min(usual + math.log(BLURRED_SHARE), usual - BLURRED_DEVIATIONS * spread)
    for name, value in logs.items():
        sharpness = measured[name].sharpness
        if value < limit:
            reason = f"is blurred: its variance of the Laplacian is {sharpness:.3g}, usual in this set is {math.exp(usual):.3g}."
            yield Finding(name, "blurred", reason, sharpness)
        elif sharpness < NOWHERE_SHARP:
            reason = (
                f"is sharp nowhere: its variance of the Laplacian is {sharpness:.3g}; below {NOWHERE_SHARP:g} no edge is left."
            )
            yield Finding(name, "blurred", reason, sharpness)


def _describe_groups(groups: list[DuplicateGroup], measured: Mapping[str, Measures]) -> Iterator[Finding]:
    for group in groups:
        best = measured[group.best]
        for name in group.names:
            bits = int((measured[name].looks != best.looks).sum())
            others = [other for other in group.names if other != name]
            advice = "it is the sharpest: keep it" if name == group.best else f"{group.best} is the sharpest"
            yield Finding(
                name, "duplicate", f"looks like {examples(others)} ({bits} of {best.looks.size} bits differ); {advice}.", bits
            )


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "less than 1%"
