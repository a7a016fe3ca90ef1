"""Real pictures, written as people have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import skimage.data
from hypothesis import settings
from PIL import Image

settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


@pytest.fixture(scope="session")
def astronaut() -> Image.Image:
    """512 x 512, RGB."""
    return Image.fromarray(skimage.data.astronaut())


@pytest.fixture(scope="session")
def chelsea() -> Image.Image:
    """A cat, 451 x 300, RGB."""
    return Image.fromarray(skimage.data.chelsea())


@pytest.fixture(scope="session")
def coffee() -> Image.Image:
    """600 x 400, RGB."""
    return Image.fromarray(skimage.data.coffee())


@pytest.fixture
def write(tmp_path: Path, chelsea: Image.Image) -> Callable[..., Path]:
    """Writes a picture under a name below the test's folder, with a caption beside it unless that is None."""

    def write_one(name: str, image: Image.Image | None = None, caption: str | None = "a cat", **options: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (image or chelsea.resize((96, 64))).save(path, **options)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    return write_one
