"""Figures of one picture that tell whether it is worth training on: sharpness, borders, transparency, and a hash of its looks.

All but size and borders are taken at about the size that it will be trained at, since that is what a model sees of it: a large
photo that is a little soft is sharp enough, and an enlarged thumbnail is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lora_trainer.dataset.images import decode_for_editing, flatten, read_bytes, read_turn

TILES = 8  # on each side; sharpness is that of the sharpest tenth of the tiles
SAME_COLOUR = 24  # levels of 255: what a JPEG of quality 50 makes of one colour beside an edge
_STRAY = 0.005  # share of a border's pixels that may be another colour
_EDGE = 0.5  # share of the pixels beside a border that are another colour: a frame ends in a line, plain paper with some strokes
_HASH_SIDE = 12
_SMALL_SIDE = 32


class Borders(NamedTuple):
    """How wide a frame of one colour is on each side, in pixels."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


@dataclass(frozen=True)
class Measures:
    """What was measured of a picture.

    Attributes:
        width, height: pixels, upright.
        sharpness: variance of the Laplacian, of grey levels from 0 to 255, in the sharpest tenth of the picture.
        contrast: difference of the lightest and the darkest grey level.
        borders: of one colour.
        transparency: mean over all pixels, 0 opaque to 1 invisible; None without a transparency channel.
        turn: what EXIF says, 1 for upright.
        looks: a perceptual hash; that of pictures that look alike differs in few bits.
    """

    width: int
    height: int
    sharpness: float
    contrast: int
    borders: Borders
    transparency: float | None
    turn: int
    looks: np.ndarray


def measure(path: Path, resolution: int) -> Measures:
    """Returns the figures of a picture.

    Args:
        path: the file.
        resolution: that it will be trained at: it is measured at about resolution x resolution pixels.

    Raises:
        DatasetError: it cannot be read; `TruncatedPictureError` where its end is missing.
    """
    data = read_bytes(path)
    image = decode_for_editing(data, path)
    rgb = flatten(image)
    scale = resolution / math.sqrt(rgb.width * rgb.height)
    size = max(TILES, round(rgb.width * scale)), max(TILES, round(rgb.height * scale))
    grey = rgb.convert("L").resize(size, Image.Resampling.BICUBIC)
    levels = np.asarray(grey)
    return Measures(
        width=rgb.width,
        height=rgb.height,
        sharpness=measure_sharpness(levels),
        contrast=int(levels.max()) - int(levels.min()),
        borders=find_borders(np.asarray(rgb)),
        transparency=_transparency(image) if image.mode == "RGBA" else None,
        turn=read_turn(data, path),
        looks=hash_looks(grey),
    )


def measure_sharpness(grey: np.ndarray) -> float:
    """Returns the variance of the Laplacian in the sharpest tenth of the tiles.

    Of the whole picture it would rather tell how much plain paper there is: an ink painting is mostly that, and still sharp.

    Args:
        grey: `[H, W]`, uint8.
    """
    values = grey.astype(np.int16)
    laplacian = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:] - 4 * values[1:-1, 1:-1]
    tiles = [tile for row in np.array_split(laplacian, TILES) for tile in np.array_split(row, TILES, axis=1)]
    variances = [float(tile.var(dtype=np.float32)) for tile in tiles if tile.size]
    return float(np.quantile(variances, 0.9))


def hash_looks(grey: Image.Image) -> np.ndarray:
    """Returns the signs of the lowest frequencies but the mean, as bits: what stays when a picture is scaled or compressed.

    Source: the discrete cosine transform hash known as pHash (Zauner, 2010), with more frequencies.
    """
    small = np.asarray(grey.resize((_SMALL_SIDE, _SMALL_SIDE), Image.Resampling.BOX), np.float32)
    basis = _cosines()
    frequencies = (basis @ small @ basis.T).reshape(-1)[1:]
    return frequencies > np.median(frequencies)


def find_borders(rgb: np.ndarray) -> Borders:
    """Returns how wide a frame of one colour is on each side, which ends in a straight line; 0 where there is none.

    Args:
        rgb: `[H, W, 3]`, uint8.
    """
    top, bottom = _border(rgb), _border(rgb[::-1])
    if top + bottom >= rgb.shape[0]:
        return Borders()
    inside = rgb[top : rgb.shape[0] - bottom].swapaxes(0, 1)
    left, right = _border(inside), _border(inside[::-1])
    return Borders() if left + right >= rgb.shape[1] else Borders(left, top, right, bottom)


def _border(lines: np.ndarray) -> int:
    """Returns how many of the first lines are of one colour, 0 where they do not end in an edge."""
    colour = np.median(lines[0], axis=0).astype(np.int16)
    if _share_of_others(lines[0], colour) > _STRAY:
        return 0
    first, step = 0, 64
    while first < len(lines):
        shares = [_share_of_others(line, colour) for line in lines[first : first + step]]
        found = next((number for number, share in enumerate(shares) if share > _STRAY), None)
        if found is not None:
            end = first + found
            # Scaling and compression spread the edge over a few lines.
            return end if any(_share_of_others(line, colour) > _EDGE for line in lines[end : end + 4]) else 0
        first += step
    return 0


def _share_of_others(line: np.ndarray, colour: np.ndarray) -> float:
    return float((np.abs(line.astype(np.int16) - colour).max(axis=1) > SAME_COLOUR).mean())


def _transparency(image: Image.Image) -> float:
    counts = np.asarray(image.getchannel("A").histogram(), np.float64)
    return 1.0 - float((counts * np.arange(256)).sum() / (255 * counts.sum()))


@lru_cache(maxsize=1)
def _cosines() -> np.ndarray:
    places = (np.arange(_SMALL_SIDE) + 0.5) * math.pi / _SMALL_SIDE
    return np.cos(np.arange(_HASH_SIDE)[:, None] * places[None, :]).astype(np.float32)
