"""Buckets: the few picture sizes that a run trains on, so that one batch holds pictures of one size.

Each picture goes to the size whose aspect ratio is nearest to its own, is scaled to cover it and cropped at the centre.
The idea is from NovelAI's "aspect ratio bucketing" (2022); the choice among sizes here is by the ratio alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from PIL import Image


class Bucket(NamedTuple):
    """A size in pixels that pictures are trained at."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def assign_buckets(sizes: Iterable[tuple[int, int]], resolution: int, *, step: int = 64, upscale: bool = False) -> list[Bucket]:
    """Returns the bucket of each picture.

    Args:
        sizes: width and height of each picture in pixels, upright.
        resolution: a bucket has at most resolution x resolution pixels.
        step: sides are multiples of it, in pixels.
        upscale: whether a picture may be enlarged. If not, a smaller picture gets a smaller bucket, which fits into it; only a
            side shorter than `step` is enlarged then, since no bucket is smaller.

    Raises:
        ValueError: `resolution` is below `step`, or a side is not positive.
    """
    if resolution < step:
        raise ValueError(f"resolution ({resolution}) must be at least the bucket step ({step}).")
    known: dict[tuple[int, int], Bucket] = {}
    buckets = []
    for size in sizes:
        if size not in known:
            known[size] = _nearest(size, resolution * resolution, step, upscale)
        buckets.append(known[size])
    return buckets


def histogram(buckets: Iterable[Bucket]) -> dict[Bucket, int]:
    """Returns how many pictures each bucket has, the fullest first."""
    return dict(sorted(Counter(buckets).items(), key=lambda entry: (-entry[1], entry[0])))


def crop_geometry(size: tuple[int, int], bucket: Bucket) -> tuple[tuple[int, int], int, int]:
    """Returns the size that a picture is scaled to, and the left and top of the crop in it, all in pixels.

    The scaled size covers the bucket and touches it on one side at least. SDXL is told these numbers.
    """
    width, height = size
    if bucket.width * height >= bucket.height * width:
        scaled = (bucket.width, max(bucket.height, _rounded(height * bucket.width, width)))
    else:
        scaled = (max(bucket.width, _rounded(width * bucket.height, height)), bucket.height)
    return scaled, (scaled[0] - bucket.width) // 2, (scaled[1] - bucket.height) // 2


def fit_image(image: Image.Image, bucket: Bucket) -> Image.Image:
    """Returns the picture (or mask) scaled by Lanczos and cropped to the bucket, as `crop_geometry` says."""
    if image.size == tuple(bucket):
        return image
    scaled, left, top = crop_geometry(image.size, bucket)
    # The crop is taken in the source's pixels: one pass, and no large picture between.
    per_x, per_y = image.width / scaled[0], image.height / scaled[1]
    right, bottom = min(image.width, (left + bucket.width) * per_x), min(image.height, (top + bucket.height) * per_y)
    box = (left * per_x, top * per_y, right, bottom)
    return image.resize((bucket.width, bucket.height), Image.Resampling.LANCZOS, box=box)


def _nearest(size: tuple[int, int], area: int, step: int, upscale: bool) -> Bucket:
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"picture size {width} x {height} must be positive.")
    longest = area // step // step * step
    limits = (longest, longest) if upscale else (_whole_steps(width, step, longest), _whole_steps(height, step, longest))
    ratio = math.log(width / height)
    # Ties go to the larger bucket, then to the wider one, so that the choice does not depend on the order.
    return min(
        _candidates(*limits, area, step),
        key=lambda bucket: (
            round(abs(math.log(bucket.width / bucket.height) - ratio), 9),
            -bucket.width * bucket.height,
            -bucket.width,
        ),
    )


@lru_cache(maxsize=1024)
def _candidates(max_width: int, max_height: int, area: int, step: int) -> Sequence[Bucket]:
    """Returns the highest bucket of each width, the widest of each height, and the largest square."""
    found = set()
    for width in range(step, max_width + 1, step):
        found.add(Bucket(width, min(max_height, area // width // step * step)))
    for height in range(step, max_height + 1, step):
        found.add(Bucket(min(max_width, area // height // step * step), height))
    side = min(max_width, max_height, math.isqrt(area) // step * step)
    found.add(Bucket(side, side))
    return tuple(found)


def _whole_steps(side: int, step: int, longest: int) -> int:
    return min(longest, max(step, side // step * step))


def _rounded(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)
