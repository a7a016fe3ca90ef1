"""Pictures made fit for training: cropped, resized, trimmed, brought to one tone by a colour look-up table. Pure functions.

Pictures are RGB, or RGBA where they have transparency, which stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from lora_trainer.dataset.images import flatten
from lora_trainer.dataset.measure import find_borders
from lora_trainer.dataset.tables import read_text
from lora_trainer.errors import DatasetError

Retouch = Callable[[Image.Image], Image.Image]

CENTRE = (0.5, 0.5)
_MOST_POINTS = 65  # on a side of the table; what Pillow's filter takes


def crop(ratio: float = 1.0, focus: tuple[float, float] = CENTRE) -> Retouch:
    """Returns what cuts the largest part of a shape out of a picture.

    Args:
        ratio: width / height of the part; 1 is a square.
        focus: what should be in the middle of it, as shares of width and height from the left and the top; near an edge
            it is as near to the middle as can be.

    Raises:
        DatasetError: the ratio is not positive, or the focus is outside the picture.
    """
    if not 0 < ratio < 1000:
        raise DatasetError(f"the shape of a crop ({ratio:g}) must be above 0: width / height, 1 for a square.")
    if not all(0 <= place <= 1 for place in focus):
        raise DatasetError(f"the focus ({focus[0]:g}, {focus[1]:g}) must be inside the picture: 0 to 1, from left and from top.")

    def cut(image: Image.Image) -> Image.Image:
        width = min(image.width, max(1, round(image.height * ratio)))
        height = min(image.height, max(1, round(image.width / ratio)))
        left = min(max(0, round(image.width * focus[0] - width / 2)), image.width - width)
        top = min(max(0, round(image.height * focus[1] - height / 2)), image.height - height)
        return image if (width, height) == image.size else image.crop((left, top, left + width, top + height))

    return cut


def resize(shorter_side: int, *, enlarge: bool = False) -> Retouch:
    """Returns what scales a picture by Lanczos until its shorter side has so many pixels.

    Args:
        shorter_side: in pixels.
        enlarge: whether smaller pictures are enlarged; if not, they stay.

    Raises:
        DatasetError: the side is below 16 pixels.
    """
    if shorter_side < 16:
        raise DatasetError(f"the shorter side ({shorter_side}) must be at least 16 pixels; 512 to 1024 is usual.")

    def scale(image: Image.Image) -> Image.Image:
        factor = shorter_side / min(image.size)
        if factor == 1 or (factor > 1 and not enlarge):
            return image
        return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)

    return scale


def trim_borders(image: Image.Image) -> Image.Image:
    """Returns the picture without the borders of one colour that the report names; itself where there are none."""
    left, top, right, bottom = find_borders(np.asarray(flatten(image)))
    if not any((left, top, right, bottom)):
        return image
    return image.crop((left, top, image.width - right, image.height - bottom))


def apply_table(table: ColourTable, strength: float = 1.0) -> Retouch:
    """Returns what gives pictures the tone of a colour look-up table.

    Args:
        table: see `read_cube`.
        strength: 0 leaves a picture as it is, 1 is the table's whole effect.

    Raises:
        DatasetError: the strength is outside 0 to 1.
    """
    if not 0 <= strength <= 1:
        raise DatasetError(f"the strength ({strength:g}) must be from 0 to 1.")

    def grade(image: Image.Image) -> Image.Image:
        rgb = image.convert("RGB")
        graded = Image.blend(rgb, table.apply(rgb), strength)
        if image.mode == "RGBA":
            graded.putalpha(image.getchannel("A"))
        return graded

    return grade


@dataclass(frozen=True)
class ColourTable:
    """A colour look-up table.

    Attributes:
        title: what its file calls it.
        inputs: for each channel the place in the table, 0 to 255, of each level from 0 to 255.
        cube: the filter that looks up all three channels at once; None for a table of single channels.
        curves: for each channel the output of each level; where there is no cube.
    """

    title: str
    inputs: tuple[int, ...]
    cube: ImageFilter.Color3DLUT | None = None
    curves: tuple[int, ...] = ()

    def apply(self, image: Image.Image) -> Image.Image:
        """Returns an RGB picture in the table's colours."""
        if self.cube is None:
            return image.point(self.curves)
        placed = image if self.inputs == tuple(range(256)) * 3 else image.point(self.inputs)
        return placed.filter(self.cube)


def read_cube(path: Path) -> ColourTable:
    """Reads a `.cube` file, with a three- or a one-dimensional table of 2 to 65 (65536) points.

    Source: Cube LUT Specification 1.0 (Adobe, 2013). Red changes fastest, as in Pillow's filter.

    Raises:
        DatasetError: it cannot be read, or is not such a table; the message names the line.
    """
    if path.suffix.lower() != ".cube":
        raise DatasetError(f"{path.name} is no colour look-up table that can be read: its name must end in .cube.")
    text, _ = read_text(path)
    try:
        return _parse_cube(text, path)
    except _CubeError as error:
        raise DatasetError(f"{path.name} is not a valid .cube file: {error}. Export it again.") from error


class _CubeError(ValueError):
    """What is wrong with a table."""


def _parse_cube(text: str, path: Path) -> ColourTable:
    settings: dict[str, list[str]] = {}
    rows: list[list[float]] = []
    for number, words in _words(text):
        if words[0][0].isalpha() and words[0].lower() not in ("nan", "inf"):
            settings[words[0].upper()] = words[1:]
            continue
        rows.append(_floats(words, 3, f"line {number}"))
    low, high = (
        _floats(settings.get(f"DOMAIN_{end}", [value] * 3), 3, f"DOMAIN_{end}") for end, value in (("MIN", "0"), ("MAX", "1"))
    )
    for name in ("LUT_3D_INPUT_RANGE", "LUT_1D_INPUT_RANGE"):
        if name in settings:
            first, last = _floats(settings[name], 2, name)
            low, high = [first] * 3, [last] * 3
    if any(one >= other for one, other in zip(low, high, strict=True)):
        raise _CubeError("its domain is empty (DOMAIN_MIN must be below DOMAIN_MAX)")
    levels = np.arange(256) / 255
    shares = [np.clip((levels - start) / (end - start), 0, 1) for start, end in zip(low, high, strict=True)]
    inputs = tuple(int(value) for share in shares for value in np.rint(share * 255))
    title = " ".join(settings.get("TITLE", [])).strip('"') or path.stem
    points = np.array(rows, np.float64).reshape(-1, 3)
    if "LUT_3D_SIZE" in settings:
        size = _size(settings["LUT_3D_SIZE"], _MOST_POINTS)
        _check_count(len(points), size**3)
        return ColourTable(title, inputs, cube=ImageFilter.Color3DLUT(size, points.reshape(-1).tolist()))
    if "LUT_1D_SIZE" in settings:
        size = _size(settings["LUT_1D_SIZE"], 65536)
        _check_count(len(points), size)
        places = np.linspace(0, 1, size)
        curves = [np.interp(share, places, points[:, channel]) for channel, share in enumerate(shares)]
        return ColourTable(
            title, inputs, curves=tuple(int(value) for curve in curves for value in np.rint(np.clip(curve, 0, 1) * 255))
        )
    raise _CubeError("it names no LUT_3D_SIZE and no LUT_1D_SIZE")


def _words(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if words and not words[0].startswith("#"):
            yield number, words


def _floats(words: list[str], count: int, where: str) -> list[float]:
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        raise _CubeError(f"{where}: {' '.join(words)[:40]!r} are not numbers") from error
    if len(values) != count or not np.isfinite(values).all():
        raise _CubeError(f"{where}: {' '.join(words)[:40]!r} are not {count} numbers")
    return values


def _size(words: list[str], most: int) -> int:
    if len(words) != 1 or not words[0].isdecimal() or not 2 <= int(words[0]) <= most:
        raise _CubeError(f"its size ({' '.join(words)[:20]}) must be from 2 to {most}")
    return int(words[0])


def _check_count(found: int, expected: int) -> None:
    if found != expected:
        raise _CubeError(f"it has {found} rows of colours for a size that needs {expected}")
