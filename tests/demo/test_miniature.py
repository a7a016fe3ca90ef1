"""The miniature that ships does its work: it draws what is asked, says what it sees, and a LoRA trained on it learns a style.

Small versions with wide margins; `benchmarks/miniature.py` and `benchmarks/miniature_lora.py` have the full figures.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.miniature import generate
from benchmarks.miniature_lora import column, draw, losses, over_train, saturation, train_lora
from lora_trainer.adapters.tags import LoraUse
from lora_trainer.captioning.blip import load as load_blip
from lora_trainer.captioning.captioner import CaptionerSettings
from lora_trainer.demo.assets import BASE, CAPTIONER, CLIP, DATA_SETS
from lora_trainer.demo.recipe.judge import dominant_colour, outline_shape, shape_scenes
from lora_trainer.demo.recipe.paint import paint
from lora_trainer.demo.recipe.scenes import caption, draw_scene
from lora_trainer.demo.recipe.train_vae import UNSEEN, reconstruction_psnr
from lora_trainer.events import TrainEvent
from lora_trainer.models.detect import detect
from lora_trainer.models.diffusion import DiffusionModel
from lora_trainer.models.family import ModelSettings
from lora_trainer.models.sd1 import load

MAX_MEGABYTES = 45
PROMPTS = ("blue mountains behind a lake with a red boat by day", "green hills behind the sea with the sun at sunset")


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    return load(ModelSettings(BASE), detect(BASE))


def test_everything_together_is_small() -> None:
    folders = (BASE.parent, CAPTIONER, DATA_SETS)
    size = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    assert size / 1e6 < MAX_MEGABYTES
    assert {path.name for path in CLIP.iterdir()} >= {"config.json", "vocab.json", "merges.txt"}


def test_a_picture_comes_back_through_the_autoencoder(model: DiffusionModel) -> None:
    assert reconstruction_psnr(model.vae, [paint(draw_scene(UNSEEN + index)) for index in range(6)]) > 22


def test_the_base_draws_the_shape_and_the_colour_that_are_named(model: DiffusionModel) -> None:
    scenes = [scene for scene in shape_scenes(UNSEEN, 60) if scene.plain][:10]
    pictures = list(zip(generate(model, [caption(scene) for scene in scenes], steps=12), scenes, strict=True))
    assert sum(dominant_colour(picture, scene.plain or "") == scene.colour for picture, scene in pictures) >= 8
    assert sum(outline_shape(picture, scene.colour or "", scene.plain or "") == scene.shape for picture, scene in pictures) >= 5


def test_the_captioner_names_colour_and_shape() -> None:
    scenes = shape_scenes(UNSEEN, 12)
    with load_blip(CaptionerSettings(str(CAPTIONER), num_beams=1)) as captioner:
        said = captioner.caption([paint(scene) for scene in scenes])
    assert sum(f"{scene.colour} {scene.shape}" in text for scene, text in zip(scenes, said, strict=True)) >= 7


def test_captions_to_correct_are_of_pictures_that_are_there() -> None:
    for folder in sorted(DATA_SETS.glob("*/*")):
        with open(folder / "metadata.csv", encoding="utf-8", newline="") as file:
            names = [row["filename"] for row in csv.DictReader(file)]
        assert names == sorted(path.name for path in folder.glob("*.png"))
        assert len(names) == (24 if folder.name == "train" else 8)


@pytest.fixture(scope="module")
def ink(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TrainEvent]]:
    folder = tmp_path_factory.mktemp("loras") / "ink"
    return train_lora(folder, DATA_SETS / "ink", max_train_steps=120)


@pytest.mark.slow
def test_a_lora_learns_the_style_and_its_weight_rules_it(model: DiffusionModel, ink: tuple[Path, list[TrainEvent]]) -> None:
    path, events = ink
    curve = losses(events)
    assert curve[120] < 0.8 * curve[0]
    grid = draw(model, [LoraUse(path)], PROMPTS, (0.0, 0.5, 1.0), steps=10)
    colours = np.array([[saturation(picture) for picture in column(grid, weight)] for weight in (0.0, 0.5, 1.0)])
    assert (colours[2] < 0.8 * colours[0]).all(), colours
    assert (colours[1] < colours[0]).all(), colours


@pytest.mark.slow
def test_two_loras_show_both_effects(model: DiffusionModel, ink: tuple[Path, list[TrainEvent]], tmp_path: Path) -> None:
    """The stack moves the pictures of each by itself in the direction in which the other moves the base's."""
    balloon, _ = train_lora(tmp_path / "balloon", DATA_SETS / "balloon", max_train_steps=60)
    prompts = [prompt + " with a striped balloon" for prompt in PROMPTS]
    stacks = {"ink": [LoraUse(ink[0], 0.6)], "balloon": [LoraUse(balloon)], "both": [LoraUse(ink[0], 0.6), LoraUse(balloon)]}
    grids = {name: draw(model, uses, prompts, (1.0,), steps=10) for name, uses in stacks.items()}
    drawn = {name: pixels(column(grid, 1.0)) for name, grid in grids.items()} | {"base": pixels(column(grids["ink"], 0.0))}
    for one, other in (("ink", "balloon"), ("balloon", "ink")):
        alone, on_top = drawn[one] - drawn["base"], drawn["both"] - drawn[other]
        assert np.corrcoef(alone.ravel(), on_top.ravel())[0, 1] > 0.2


@pytest.mark.slow
def test_a_run_that_goes_on_too_long_is_recognised(tmp_path: Path) -> None:
    curve, recommended = over_train(tmp_path, 3, batch_size=3, max_train_steps=80, save_steps=16, learning_rate=3e-3)
    assert recommended is not None and 0 < recommended["step"] < 80
    assert curve[80] > 1.02 * curve[recommended["step"]]
    assert "over-training" in recommended["reason"]


def pixels(pictures: Sequence[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture, dtype=np.float64) for picture in pictures])
