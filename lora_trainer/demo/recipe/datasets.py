"""Draws the demo's data sets for LoRA training: two styles and one object that the base has never seen.

Each has 24 pictures with captions of which some are wrong on purpose, as a captioner's are, so that there is something to
correct, and 8 held-out pictures with right captions.

    python -m lora_trainer.demo.recipe.datasets [--into DIR]
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from .blueprint import paint_blueprint
from .ink import paint_ink
from .paint import paint
from .scenes import Scene, caption, draw_landscape

FOLDER = Path(__file__).parents[1] / "datasets"
NUM_TRAIN, NUM_HELD_OUT = 24, 8
WRONG_EVERY = 4
FIRST_SEEDS = {"ink": 20_000_000, "blueprint": 21_000_000, "balloon": 22_000_000}
PAINTERS: dict[str, Callable[[Scene], Image.Image]] = {"ink": paint_ink, "blueprint": paint_blueprint, "balloon": paint}


def choose_scenes(name: str) -> list[Scene]:
    """Returns the scenes of a data set, those to train on first: landscapes with at least three things to see."""
    scenes: list[Scene] = []
    seed = FIRST_SEEDS[name]
    while len(scenes) < NUM_TRAIN + NUM_HELD_OUT:
        scene, seed = draw_landscape(seed), seed + 1
        things = (scene.ridge, scene.water, scene.trees, scene.house, scene.boat, scene.light)
        if sum(map(bool, things)) >= 3 and scene.ground != "sand":
            scenes.append(replace(scene, balloon=True, light=False) if name == "balloon" else scene)
    return scenes


def say(name: str, scene: Scene) -> str:
    """Returns the right caption. Where a style shows no colours, none are named."""
    text = caption(scene)
    if name == "balloon":
        return text
    text = re.sub(r" with a (red|blue|yellow) roof", "", text)
    return re.sub(
        r"\ban? (red|white|yellow|orange|green) (boat|field)",
        r"a \2",
        re.sub(r"(blue|purple|green) (mountains|hills)", r"\2", text),
    )


def say_wrongly(name: str, scene: Scene, rng: np.random.Generator) -> str:
    """Returns a caption with one mistake: a thing missed, a wrong time, a colour that is not there, or the object misnamed."""
    if name == "balloon":
        return (
            caption(replace(scene, balloon=False))
            if rng.random() < 0.5
            else say(name, scene).replace("striped balloon", "red circle")
        )
    mistake = int(rng.integers(3))
    if mistake == 0:
        return caption(scene)
    if mistake == 1:
        return say(name, replace(scene, trees=None, boat=None, light=not scene.light))
    return say(name, replace(scene, time="night" if scene.time != "night" else "day"))


def write_data_set(name: str, folder: Path) -> None:
    """Writes `train/` and `held_out/` with their pictures and `metadata.csv`."""
    rng = np.random.default_rng(FIRST_SEEDS[name])
    scenes = choose_scenes(name)
    for part, chosen in (("train", scenes[:NUM_TRAIN]), ("held_out", scenes[NUM_TRAIN:])):
        (folder / part).mkdir(parents=True, exist_ok=True)
        rows = []
        for index, scene in enumerate(chosen):
            file_name = f"{name}-{index + 1:02d}.png"
            PAINTERS[name](scene).save(folder / part / file_name, optimize=True)
            wrong = part == "train" and index % WRONG_EVERY == 1
            rows.append((file_name, say_wrongly(name, scene, rng) if wrong else say(name, scene)))
        with open(folder / part / "metadata.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("filename", "prompt"), *rows])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=FOLDER)
    into = parser.parse_args().into
    for name in PAINTERS:
        write_data_set(name, into / name)
