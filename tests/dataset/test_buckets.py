from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lora_trainer.dataset.buckets import Bucket, assign_buckets, crop_geometry, fit_image, histogram

pytestmark = pytest.mark.hosts

sides = st.integers(64, 6000)
resolutions = st.integers(128, 1536)
steps = st.sampled_from([8, 32, 64, 128])


def all_buckets(size: tuple[int, int], resolution: int, step: int, upscale: bool) -> list[Bucket]:
    """Every bucket that is allowed, found by trying all."""
    longest = resolution * resolution // step
    limits = [longest if upscale else max(step, side) for side in size]
    return [
        Bucket(width, height)
        for width in range(step, min(limits[0], longest) + 1, step)
        for height in range(step, min(limits[1], resolution * resolution // width) + 1, step)
    ]


@given(sides, sides, resolutions, steps, st.booleans())
def test_buckets_keep_the_rules(width: int, height: int, resolution: int, step: int, upscale: bool) -> None:
    (bucket,) = assign_buckets([(width, height)], resolution, step=step, upscale=upscale)
    assert bucket.width % step == 0 and bucket.height % step == 0
    assert bucket.width >= step and bucket.height >= step
    assert bucket.width * bucket.height <= resolution * resolution
    if not upscale:
        assert bucket.width <= max(width, step) and bucket.height <= max(height, step)
    (turned,) = assign_buckets([(height, width)], resolution, step=step, upscale=upscale)
    assert turned == (bucket.height, bucket.width) or bucket.width * bucket.height == turned.width * turned.height


@given(st.integers(64, 1200), st.integers(64, 1200), st.sampled_from([256, 300, 512]), st.booleans())
def test_no_bucket_that_could_not_grow_is_nearer(width: int, height: int, resolution: int, upscale: bool) -> None:
    def crop(bucket: Bucket) -> float:
        return abs(math.log(bucket.width / bucket.height) - math.log(width / height))

    (bucket,) = assign_buckets([(width, height)], resolution, upscale=upscale)
    allowed = set(all_buckets((width, height), resolution, 64, upscale))
    assert bucket in allowed
    full = [b for b in allowed if not {(b.width + 64, b.height), (b.width, b.height + 64)} & allowed]
    assert crop(bucket) <= min(crop(b) for b in full) + 1e-6


@pytest.mark.parametrize(
    ("size", "resolution", "bucket"),
    [
        ((512, 512), 512, (512, 512)),
        ((4000, 4000), 1024, (1024, 1024)),
        ((1920, 1080), 512, (640, 384)),
        ((1080, 1920), 1024, (768, 1344)),
        ((300, 300), 512, (256, 256)),
        ((600, 400), 512, (576, 384)),
        ((4000, 4000), 500, (448, 448)),
        ((5000, 100), 512, (3200, 64)),
        ((128, 128), 128, (128, 128)),
    ],
)
def test_known_sizes(size: tuple[int, int], resolution: int, bucket: tuple[int, int]) -> None:
    assert assign_buckets([size], resolution) == [bucket]


def test_small_pictures_grow_only_when_asked() -> None:
    assert assign_buckets([(100, 200)], 512) == [(64, 128)]
    (grown,) = assign_buckets([(100, 200)], 512, upscale=True)
    assert grown.width * grown.height > 200_000
    assert assign_buckets([(20, 20)], 512) == [(64, 64)]


def test_resolution_below_the_step_is_refused() -> None:
    with pytest.raises(ValueError, match="32"):
        assign_buckets([(100, 100)], 32)


def test_histogram_counts_the_fullest_first() -> None:
    buckets = [Bucket(64, 64), Bucket(128, 64), Bucket(128, 64)]
    assert list(histogram(buckets).items()) == [(Bucket(128, 64), 2), (Bucket(64, 64), 1)]
    assert str(buckets[1]) == "128x64"


@given(sides, sides, sides, sides)
def test_the_scaled_picture_covers_the_bucket_and_the_crop_is_central(w: int, h: int, bw: int, bh: int) -> None:
    (scaled_w, scaled_h), left, top = crop_geometry((w, h), Bucket(bw, bh))
    assert scaled_w >= bw and scaled_h >= bh
    assert scaled_w == bw or scaled_h == bh
    assert abs(scaled_w - 2 * left - bw) <= 1 and abs(scaled_h - 2 * top - bh) <= 1
    assert left >= 0 and top >= 0
    scale = max(bw / w, bh / h)
    assert abs(scaled_w - w * scale) <= 0.5001 and abs(scaled_h - h * scale) <= 0.5001


@pytest.mark.parametrize("bucket", [Bucket(256, 256), Bucket(448, 256), Bucket(192, 320), Bucket(640, 640)])
def test_fitting_equals_scaling_then_cropping(astronaut: Image.Image, coffee: Image.Image, bucket: Bucket) -> None:
    for image in (astronaut, coffee):
        scaled, left, top = crop_geometry(image.size, bucket)
        expected = image.resize(scaled, Image.Resampling.LANCZOS).crop((left, top, left + bucket.width, top + bucket.height))
        fitted = fit_image(image, bucket)
        assert fitted.size == tuple(bucket)
        assert np.abs(np.asarray(fitted, dtype=int) - np.asarray(expected, dtype=int)).mean() < 0.05
        assert fit_image(image, bucket).tobytes() == fitted.tobytes()
        assert fit_image(image.convert("L"), bucket).mode == "L"


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 400), st.integers(1, 400))
def test_any_picture_fits_any_bucket(width: int, height: int, bucket_width: int, bucket_height: int) -> None:
    fitted = fit_image(Image.new("RGB", (width, height), (10, 200, 30)), Bucket(bucket_width, bucket_height))
    assert fitted.size == (bucket_width, bucket_height)
    assert fitted.getextrema() == ((10, 10), (200, 200), (30, 30))


def test_a_picture_of_the_bucket_size_is_not_resampled(astronaut: Image.Image) -> None:
    assert fit_image(astronaut, Bucket(512, 512)).tobytes() == astronaut.tobytes()
