"""What is plainly wrong with pictures is said, and what is right is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lora_trainer.adapters.tags import LoraUse
from lora_trainer.inference.grid import Cell, Grid
from lora_trainer.inference.rows import make_rows
from lora_trainer.inference.settings import GenerateSettings
from lora_trainer.inference.symptoms import find_symptoms

INK = Path("ink.safetensors")


def noise(seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(60, 200, (32, 32, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((128, 128), Image.Resampling.BICUBIC)


def grid_of(*pictures: Image.Image) -> Grid:
    """Returns a grid whose first picture is the base's, the others at rising weights up to 1."""
    weights = (0.0, *(number / (len(pictures) - 1) for number in range(1, len(pictures))))
    grid = Grid(make_rows([[LoraUse(INK)]], ["a boat"], GenerateSettings("")), weights, "base", "")
    for column, picture in enumerate(pictures):
        grid.cells[0, column] = Cell(0, column, weights[column], picture, "")
    return grid


def test_other_pictures_of_the_same_kind_have_nothing() -> None:
    assert find_symptoms(grid_of(noise(0), noise(1), noise(2))).problems == ()


def test_no_effect_names_the_file_to_look_at() -> None:
    found = find_symptoms(grid_of(noise(), noise(), noise()))
    assert found.without_effect == (INK,)
    assert "at weight 1 are those of the base" in found.problems[0].message


def test_blur_is_told_from_the_weight_on_where_it_begins() -> None:
    found = find_symptoms(grid_of(noise(0), noise(1), noise(2).filter(ImageFilter.GaussianBlur(8))))
    (problem,) = found.problems
    assert problem.message.startswith("the pictures are blurred from weight 1 on") and problem.severity == "warning"


def test_a_soft_training_set_is_no_blur(tmp_path: Path) -> None:
    soft = noise(3).filter(ImageFilter.GaussianBlur(8))
    soft.save(tmp_path / "soft.png")
    assert (
        find_symptoms(grid_of(noise(0), noise(1), noise(2).filter(ImageFilter.GaussianBlur(8))), [tmp_path / "soft.png"]).problems
        == ()
    )


@pytest.mark.parametrize("is_usual", [False, True])
def test_burnt_colours_count_where_they_are_not_those_of_the_training_pictures(tmp_path: Path, is_usual: bool) -> None:
    burnt = noise(2).point(lambda value: 255 if value > 130 else 0)
    burnt.save(tmp_path / "poster.png")
    found = find_symptoms(grid_of(noise(0), noise(1), burnt), [tmp_path / "poster.png"] if is_usual else [])
    assert ["pure black" in problem.message for problem in found.problems] == ([] if is_usual else [True])
