"""What is plainly wrong with the pictures of a grid: no effect, blur, burnt colours. Each finding with what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lora_trainer.errors import Problem
from lora_trainer.inference.grid import Grid
from lora_trainer.inference.likeness import GRAY, distance
from lora_trainer.inference.rows import Stack

STILL = 0.004
"""A picture this near the base's (see `likeness.distance`) shows no effect: a level of 255, on average."""
BLURRED = 0.5
"""Of the detail that base and training pictures both have at least, a picture with less than this is blurred."""
BURNT = 0.25
"""A picture of which so much more is pure black, white or full colour than of the base's and the training pictures is burnt."""
MOST_COMPARED = 24  # training pictures that are looked at
USUAL_WEIGHT = 1.0
Pairs = list[tuple[Image.Image, Image.Image]]


@dataclass(frozen=True)
class Symptoms:
    """What was found.

    Attributes:
        problems: about the pictures.
        without_effect: LoRA files that change nothing even at the highest weight: their files should be looked at.
    """

    problems: tuple[Problem, ...]
    without_effect: tuple[Path, ...]


def find_symptoms(grid: Grid, training: Iterable[Path] = ()) -> Symptoms:
    """Returns what is wrong with the pictures that are drawn.

    Args:
        training: the training pictures: what is blurred or glaring there may be so in the pictures, too.
    """
    usual = [figures for path in list(training)[:MOST_COMPARED] if (figures := _measure_file(path)) is not None]
    problems, still = [], []
    for uses in dict.fromkeys(row.uses for row in grid.rows):
        weights = _weights_of(grid, uses)
        if not weights:
            continue
        name = " + ".join(use.path.stem for use in uses)
        if max(distance(base, picture) for base, picture in _pairs(grid, uses, max(weights))) < STILL:
            problems.append(_no_effect(name, max(weights)))
            still += [use.path for use in uses]
        else:
            problems += _look_at(name, {weight: _pairs(grid, uses, weight) for weight in weights}, usual)
    return Symptoms(tuple(problems), tuple(dict.fromkeys(still)))


def sharpness(picture: Image.Image) -> float:
    """Returns the mean steepness of light between neighbouring pixels, from 0 to 1: how much fine detail there is."""
    light = np.asarray(picture.convert("RGB"), dtype=np.float64) @ GRAY / 255
    return float(np.mean(np.hypot(*np.gradient(light))))


def glare(picture: Image.Image) -> float:
    """Returns the share of pixels with a colour at its lowest or highest value."""
    pixels = np.asarray(picture.convert("RGB"))
    return float(np.mean(((pixels <= 2) | (pixels >= 253)).any(axis=-1)))


def _weights_of(grid: Grid, uses: Stack) -> list[float]:
    """Returns the weights at which a stack is drawn, up to 1, the most that is usual, where there are such."""
    drawn = [grid.weights[column] for row, column in grid.cells if column and grid.rows[row].uses == uses]
    return sorted({weight for weight in drawn if 0 < weight <= USUAL_WEIGHT} or set(drawn))


def _pairs(grid: Grid, uses: Stack, weight: float) -> Pairs:
    """Returns the base's picture and the stack's of every row."""
    column = grid.weights.index(weight)
    rows = [row for row, other in grid.cells if other == column and grid.rows[row].uses == uses]
    return [(grid.cells[row, 0].picture, grid.cells[row, column].picture) for row in rows]


def _look_at(name: str, drawn: Mapping[float, Pairs], usual: Sequence[tuple[float, float]]) -> list[Problem]:
    """Returns what is wrong with the pictures of a stack, and from which weight on.

    Args:
        drawn: the pictures by weight.
        usual: sharpness and glare of each training picture.
    """
    blurred, burnt = [], []
    sharp, glaring = np.median(usual, axis=0) if usual else (np.inf, 0.0)
    for weight, pairs in drawn.items():
        bases, pictures = zip(*pairs, strict=True)
        if _mean(sharpness, pictures) < BLURRED * min(_mean(sharpness, bases), sharp):
            blurred.append(weight)
        if _mean(glare, pictures) > max(_mean(glare, bases), glaring) + BURNT:
            burnt.append(weight)
    found = []
    if blurred:
        message = f"the pictures are blurred from weight {min(blurred):g} on: they have less than half of the usual detail."
        hint = (
            "Take an earlier saved step or a lower weight. If the early steps are blurred too, small or enlarged pictures taught "
            "it: check the pictures in the part Captions, leave out those below the resolution, and train anew."
        )
        found.append(Problem(name, message, "warning", hint))
    if burnt:
        message = f"from weight {min(burnt):g} on much of the pictures is pure black, white or full colour: it is over-trained."
        hint = "Take an earlier saved step or a lower weight; for the next training a lower learning_rate or fewer epochs."
        found.append(Problem(name, message, "warning", hint))
    return found


def _mean(measure: Callable[[Image.Image], float], pictures: Sequence[Image.Image]) -> float:
    return sum(map(measure, pictures)) / len(pictures)


def _no_effect(name: str, weight: float) -> Problem:
    return Problem(
        name,
        f"the pictures at weight {weight:g} are those of the base: it has no effect here.",
        hint="See what the file says below. If nothing is wrong with it, it was trained too short or with too low a rate.",
    )


def _measure_file(path: Path) -> tuple[float, float] | None:
    try:
        with Image.open(path) as file:
            file.thumbnail((512, 512))
            picture = file.convert("RGB")
    except (OSError, ValueError):
        return None
    return sharpness(picture), glare(picture)
