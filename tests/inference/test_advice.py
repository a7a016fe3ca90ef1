"""The proposal on pictures whose truth is known: a style that grows up to 0.7; beyond, a training picture that shows through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from lora_trainer.adapters.tags import LoraUse
from lora_trainer.errors import DatasetError
from lora_trainer.inference.advice import advise, find_bend, read_training_pictures
from lora_trainer.inference.grid import Cell, Grid
from lora_trainer.inference.likeness import content, distance, kept, similarity, style
from lora_trainer.inference.rows import USUAL_WEIGHTS, make_rows
from lora_trainer.inference.settings import GenerateSettings
from tests import tiny

pytestmark = pytest.mark.hosts
GOOD = 0.7


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    folder = tiny.make_pictures(tmp_path_factory.mktemp("photographs"), 12, size=(128, 128), captions="none")
    return [Image.open(path).convert("RGB") for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def training(photographs: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Returns the files of a training set in ink, of other motifs than the pictures that are judged."""
    folder = tmp_path_factory.mktemp("training")
    paths = []
    for index, picture in enumerate([*photographs[3:6], *photographs[9:12]]):
        paths.append(folder / f"{index}.png")
        paint(picture).save(paths[-1])
    return paths


def paint(picture: Image.Image) -> Image.Image:
    """Returns a picture in ink on warm paper: gray washes, no colours, soft."""
    gray = ImageOps.autocontrast(picture.convert("L").filter(ImageFilter.GaussianBlur(2)))
    return ImageOps.colorize(gray.point(lambda value: 90 + value * 165 // 255), (20, 20, 24), (246, 240, 226))


def make_grid(bases: list[Image.Image], effects: dict[str, dict[float, list[Image.Image]]]) -> Grid:
    """Returns a grid as if drawn: the base's pictures, and each LoRA's by weight, one for each prompt."""
    prompts = [f"motif {index}" for index in range(len(bases))]
    rows = make_rows([[LoraUse(Path(f"{name}.safetensors"))] for name in effects], prompts, GenerateSettings(""))
    weights = (0.0, *next(iter(effects.values())))
    grid = Grid(rows, weights, "base", "")
    for row, values in enumerate(rows):
        effect, motif = effects[values.uses[0].path.stem], row % len(bases)
        for column, weight in enumerate(weights):
            picture = effect[weight][motif] if column else bases[motif]
            grid.cells[row, column] = Cell(row, column, weight, picture, "")
    return grid


def learned(bases: list[Image.Image], by_heart: Image.Image) -> dict[float, list[Image.Image]]:
    """Returns what a LoRA draws that is right up to 0.7; beyond, one training picture shows through, at 1 nothing else."""
    drawn: dict[float, list[Image.Image]] = {}
    for weight in USUAL_WEIGHTS[1:]:
        styled = [Image.blend(base, paint(base), min(1.0, weight / GOOD)) for base in bases]
        drawn[weight] = [Image.blend(picture, by_heart, max(0.0, (weight - GOOD) / (1 - GOOD))) for picture in styled]
    return drawn


def test_a_weight_of_full_style_is_proposed_with_its_figures(photographs: list[Image.Image], training: list[Path]) -> None:
    bases = photographs[:3]
    advice = advise(make_grid(bases, {"ink": learned(bases, Image.open(training[2]))}), read_training_pictures(training))
    by_weight = {figure.weight: figure for figure in advice.figures}
    assert list(by_weight) == list(USUAL_WEIGHTS[1:])
    # Half of the ink hides nearly all colours; more of it gains little, and the copy at 1.0 is nearer still, but keeps nothing.
    assert advice.best in (by_weight[0.5], by_weight[GOOD])
    assert 0 < by_weight[0.3].nearness < by_weight[0.5].nearness < by_weight[GOOD].nearness <= 1
    assert by_weight[GOOD].nearness > 0.5
    assert by_weight[0.3].moved < by_weight[GOOD].moved
    assert by_weight[GOOD].kept > 0.6 > by_weight[1.0].kept
    assert advice.reason.startswith(f"ink at weight {advice.best.weight:g}: the pictures go ")


def test_pictures_learned_by_heart_are_found_with_the_one_that_they_are(
    photographs: list[Image.Image], training: list[Path]
) -> None:
    bases = photographs[:3]
    advice = advise(make_grid(bases, {"ink": learned(bases, Image.open(training[2]))}), read_training_pictures(training))
    at_one = [near for near in advice.copied if near.column == len(USUAL_WEIGHTS) - 1]
    assert [near.row for near in at_one] == [0, 1, 2]
    assert {near.path for near in at_one} == {training[2]}
    assert all(near.similarity > 0.99 > near.base_similarity + 0.2 for near in at_one)
    assert not any(near.column <= USUAL_WEIGHTS.index(GOOD) for near in advice.copied)
    assert "training pictures again, most of all 2.png" in advice.reason and "Take an earlier step" in advice.reason


def test_of_two_steps_the_one_that_learned_is_proposed(photographs: list[Image.Image], training: list[Path]) -> None:
    bases = photographs[:3]
    early = {weight: [Image.blend(base, paint(base), 0.1 * weight) for base in bases] for weight in (0.5, 1.0)}
    late = {weight: [Image.blend(base, paint(base), weight) for base in bases] for weight in (0.5, 1.0)}
    grid = make_grid(bases, {"ink-step00000100": early, "ink-step00000200": late})
    advice = advise(grid, read_training_pictures(training))
    assert advice.best is not None
    assert (advice.best.uses[0].path.stem, advice.best.weight) == ("ink-step00000200", 1.0)
    assert advice.copied == ()


def test_a_lora_without_effect_gets_no_weight(photographs: list[Image.Image], training: list[Path]) -> None:
    bases = photographs[:2]
    advice = advise(make_grid(bases, {"ink": {0.5: bases, 1.0: bases}}), read_training_pictures(training))
    assert advice.best is None
    assert [(figure.moved, figure.nearness, figure.kept) for figure in advice.figures] == [(0, 0, pytest.approx(1))] * 2
    assert "At no weight" in advice.reason and "diagnosis" in advice.reason


@pytest.mark.parametrize(
    ("curve", "bend"),
    [
        ({0: 0, 0.3: 0.6, 0.5: 0.9, 0.7: 0.95, 1: 1}, 0.5),
        ({0: 0, 0.25: 0.25, 0.5: 0.5, 1: 1}, None),
        ({0: 0, 0.5: -0.2, 1: -0.4}, None),
        ({0: 0, 1: 1}, None),
    ],
)
def test_a_bend_is_where_more_weight_stops_to_help(curve: dict[float, float], bend: float | None) -> None:
    assert find_bend(curve) == bend


def test_likeness_knows_style_from_structure(photographs: list[Image.Image]) -> None:
    one, other = photographs[:2]
    assert distance(one, one) == 0
    assert distance(Image.new("RGB", (9, 9)), Image.new("RGB", (30, 20), (255, 255, 255))) == pytest.approx(1)
    assert kept(one, paint(one)) > 0.7 > 0.5 > kept(one, other)
    assert similarity(content(one), content(ImageOps.mirror(one))) == pytest.approx(1, abs=0.01)
    assert similarity(content(one), content(other)) < 0.5
    painted = np.abs(style(paint(one)) - style(paint(other))).sum()
    assert painted < np.abs(style(one) - style(paint(one))).sum()


def test_flat_pictures_have_figures_too(training: list[Path]) -> None:
    flat = [Image.new("RGB", (64, 64), (120, 90, 200))]
    advice = advise(make_grid(flat, {"ink": {1.0: flat}}), read_training_pictures(training))
    assert all(np.isfinite([figure.moved, figure.nearness, figure.kept, figure.score]).all() for figure in advice.figures)


def test_what_cannot_be_compared_with_is_said(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no training picture.*Give the folder"):
        read_training_pictures([])
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"bad\.png cannot be read as a picture.*Remove it"):
        read_training_pictures([tmp_path / "bad.png"])
