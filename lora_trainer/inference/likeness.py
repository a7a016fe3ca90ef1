"""Figures of how alike pictures are, from colour, texture and outlines alone: no network, and the same on every machine.

`style` says how a picture is painted, whatever it shows; `structure` says where its outlines are, however it is painted;
`content` recognises one and the same picture, mirrored too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

SIDE = 64  # pixels of the copies that styles and outlines are read from
COARSE = 16  # pixels of those by which a picture is recognised
NUM_TONES, NUM_HUES, NUM_SCALES = 8, 6, 3
GRAY = np.array([0.299, 0.587, 0.114])
_TINY = 1e-6


class Eye(Protocol):
    """What compares pictures when a weight is chosen.

    Attributes:
        label: by what, for people.
        measure_of_kept: what it sees kept, in words: "the base's composition".
    """

    label: str
    measure_of_kept: str

    def look(self, picture: Image.Image) -> np.ndarray:
        """Returns how a picture looks, as one row of numbers; the differences of two rows say how unlike two pictures look."""

    def kept(self, base: Image.Image, picture: Image.Image, prompt: str) -> float:
        """Returns the share of what the base made of a prompt that a picture kept: 1 for all of it, 0 for none."""


class PlainEye:
    """Colours, textures and outlines."""

    label = "colours, textures and outlines"
    measure_of_kept = "the base's composition"

    def look(self, picture: Image.Image) -> np.ndarray:
        return style(picture)

    def kept(self, base: Image.Image, picture: Image.Image, prompt: str) -> float:
        return kept(base, picture)


PLAIN = PlainEye()


def to_square(picture: Image.Image, side: int = SIDE) -> np.ndarray:
    """Returns a picture's middle square, fp64 [side, side, 3] in [0, 1]."""
    square = ImageOps.fit(picture.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
    return np.asarray(square, dtype=np.float64) / 255


def distance(one: Image.Image, other: Image.Image) -> float:
    """Returns how far two pictures are apart, from 0 to 1: the root of the mean squared difference of their colours."""
    return float(np.sqrt(np.mean((to_square(one) - to_square(other)) ** 2)))


def style(picture: Image.Image) -> np.ndarray:
    """Returns a picture's colours and textures as one row of numbers, each roughly from 0 to 1.

    Shares of tones from black to white, of hues among what is coloured, mean and spread of light and of the two colour axes, and
    the strength of detail at three scales with its directions.
    """
    pixels = to_square(picture)
    light, first, second = pixels @ GRAY, pixels[..., 0] - pixels[..., 1], pixels[..., 2] - pixels[..., :2].mean(axis=-1)
    colour = np.hypot(first, second)
    angles = np.arctan2(second, first)
    hues, _ = np.histogram(angles, NUM_HUES, (-np.pi, np.pi), weights=colour)
    tones, _ = np.histogram(light, NUM_TONES, (0, 1))
    moments = [values.mean() for values in (light, first, second, colour)] + [values.std() for values in (light, first, second)]
    return np.concatenate([tones / light.size, hues / colour.size, moments, *_textures(light)])


def structure(picture: Image.Image) -> np.ndarray:
    """Returns where a picture has outlines: the strength of its edges on a coarse raster, with mean 0 and length 1."""
    edges = np.hypot(*np.gradient(_blur(to_square(picture) @ GRAY, 2)))
    return _unit(np.sqrt(_shrink(edges, SIDE // COARSE)))


def kept(base: Image.Image, picture: Image.Image) -> float:
    """Returns the share of the base's composition that a picture kept: 1 for all of it, 0 for none."""
    return float(max(0.0, structure(base).ravel() @ structure(picture).ravel()))


def content(picture: Image.Image) -> np.ndarray:
    """Returns what a picture is recognised by: its coarse light, colours and outlines, each with mean 0 and length 1."""
    coarse = _shrink(to_square(picture), SIDE // COARSE)
    light = coarse @ GRAY
    return np.stack([_unit(light), _unit(coarse[..., 0] - light), _unit(coarse[..., 2] - light), structure(picture)])


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Returns how alike two `content`s are: 1 for the same picture or its mirror image, about 0 for any two pictures."""
    mirrored = other[:, :, ::-1]
    return float(max((one * other).sum(), (one * mirrored).sum()) / len(one))


def spread(styles: Sequence[np.ndarray]) -> np.ndarray:
    """Returns how much each number of a style varies within a set; never near 0, so that none outweighs all others."""
    deviations = np.std(np.stack(styles), axis=0)
    return np.maximum(deviations, max(0.02, float(np.median(deviations))))


def _textures(light: np.ndarray) -> list[np.ndarray]:
    found = []
    for _ in range(NUM_SCALES):
        down, across = np.gradient(light)
        strength = np.hypot(down, across)
        diagonal = np.abs(down * across) / (strength**2 + _TINY)
        # Roots, since strengths are small and unevenly spread.
        found.append(np.array([np.sqrt(strength.mean()), np.sqrt(strength.std()), np.abs(down).sum() / (strength.sum() + _TINY)]))
        found.append(np.array([diagonal.mean()]))
        light = _shrink(light, 2)
    return found


def _shrink(values: np.ndarray, factor: int) -> np.ndarray:
    """Returns means over squares of `factor` pixels, [h, w] or [h, w, c]."""
    height, width = values.shape[0] // factor, values.shape[1] // factor
    return values.reshape(height, factor, width, factor, *values.shape[2:]).mean(axis=(1, 3))


def _blur(light: np.ndarray, times: int) -> np.ndarray:
    for _ in range(times):
        padded = np.pad(light, 1, mode="edge")
        light = (padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] + 4 * padded[1:-1, 1:-1]) / 8
    return light


def _unit(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean()
    length = np.sqrt((centred**2).sum())
    return centred / length if length > _TINY else np.zeros_like(centred)
