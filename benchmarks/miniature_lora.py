"""Measures what LoRAs learn on the shipped miniature: a style, an object, both together, and a run that goes on too long.

    python -m benchmarks.miniature_lora [--sheet DIR] [--only style|stack|over]

All by the ways that a user takes: settings by the preset, `train`, and pictures by `inference`. What pictures show is judged by a
classifier that is trained first on painted scenes; colourfulness is the mean saturation of pixels.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.report import Row, format_section
from lora_trainer.adapters.tags import LoraUse
from lora_trainer.config.parse import parse_config
from lora_trainer.config.presets import load_presets
from lora_trainer.control import TrainControl
from lora_trainer.demo.assets import BASE, DATA_SETS
from lora_trainer.demo.recipe.contents import THINGS, ContentJudge, things_in, train_content_judge
from lora_trainer.demo.recipe.scenes import Scene, caption, draw_landscape
from lora_trainer.events import TrainEvent
from lora_trainer.inference.grid import Grid, draw_cells
from lora_trainer.inference.rows import make_rows
from lora_trainer.inference.settings import GenerateSettings
from lora_trainer.models.detect import detect
from lora_trainer.models.diffusion import DiffusionModel
from lora_trainer.models.family import ModelSettings
from lora_trainer.models.sd1 import load
from lora_trainer.training.run import train

WEIGHTS = (0.0, 0.3, 0.5, 0.7, 1.0)
SETTINGS = GenerateSettings("", width=128, height=128, steps=25, cfg_scale=4.0, seed=11)
FIRST_SEED = 50_000_000
MONOTONE_SLACK = 0.01  # saturation that may come back between two weights without being called a rise


def unseen_scenes(count: int) -> list[Scene]:
    """Returns landscapes that nothing was trained on, each with at least three things in it, sunlit: colourful to begin with."""
    scenes: list[Scene] = []
    seed = FIRST_SEED
    while len(scenes) < count:
        scene, seed = draw_landscape(seed), seed + 1
        if sum(things_in(scene)) >= 3 and scene.time in ("day", "sunset", "dawn"):
            scenes.append(scene)
    return scenes


def train_lora(folder: Path, pictures: Path, preset: str = "miniature", **settings: Any) -> tuple[Path, list[TrainEvent]]:
    """Trains by a preset on a data set, the validation on its held-out pictures. Returns the file and all events."""
    values = {
        **load_presets()[preset].values,
        "train_data_dir": str(pictures / "train"),
        "validation_dir": str(pictures / "held_out"),
        "base_model": str(BASE),
        "output_dir": str(folder),
        **settings,
    }
    events: list[TrainEvent] = []
    result = train(parse_config(values), control=TrainControl(), watch=events.append)
    assert result.path is not None
    return result.path, events


def saturation(picture: Image.Image) -> float:
    """Returns the mean saturation of a picture's pixels, 0 for grey to 1."""
    return float(np.asarray(picture.convert("HSV"), dtype=np.float64)[..., 1].mean() / 255)


def losses(events: Sequence[TrainEvent]) -> dict[int, float]:
    """Returns the held-out losses by step; that of step 0 is the base's."""
    return {event.data["step"]: event.data["loss"] for event in events if event.kind == "validated"}


def share_right(judge: ContentJudge, scenes: Sequence[Scene], pictures: Sequence[Image.Image]) -> float:
    """Returns the share of things rightly there or not there."""
    return float(np.mean(judge.look(pictures) == np.array([things_in(scene) for scene in scenes])))


def draw(
    model: DiffusionModel, uses: Sequence[LoraUse], prompts: Sequence[str], weights: Sequence[float], *, steps: int = 25
) -> Grid:
    """Returns the prompts' pictures at weight 0, then at these; labelled rows, the same noise for all."""
    return draw_cells(model, make_rows([uses], prompts, replace(SETTINGS, steps=steps)), weights=weights)


def column(grid: Grid, weight: float) -> list[Image.Image]:
    place = grid.weights.index(weight)
    return [grid.cells[row, place].picture for row in range(len(grid.rows))]


def measure_style(work: Path, model: DiffusionModel, judge: ContentJudge, sheets: Path | None, preset: str) -> list[Row]:
    """Returns what the ink LoRA does: held-out loss, colourfulness and content by weight."""
    path, events = train_lora(work / preset, DATA_SETS / "ink", preset, epochs=40)
    curve = losses(events)
    fall = 1 - curve[max(curve)] / curve[0]
    scenes = unseen_scenes(8)
    grid = draw(model, [LoraUse(path)], [caption(scene) for scene in scenes], WEIGHTS)
    if sheets:
        grid.save(sheets / f"{preset}.png")
    colours = np.array([[saturation(picture) for picture in column(grid, weight)] for weight in WEIGHTS]).T
    falling = [bool(np.all(np.diff(row) < MONOTONE_SLACK) and row[-1] < 0.9 * row[0]) for row in colours]
    halved = [falls and row[-1] < row[0] / 2 for falls, row in zip(falling, colours, strict=True)]
    right = {weight: share_right(judge, scenes, column(grid, weight)) for weight in WEIGHTS}
    kept = right[0.7] - right[0.0]
    return [
        Row(f"{preset}: held-out loss falls by", f"{fall:.1%}", "more than 0", fall > 0),
        Row(f"{preset}: saturation at weights 0, 0.3, 0.5, 0.7, 1", ", ".join(f"{value:.3f}" for value in colours.mean(0))),
        Row(
            f"{preset}: prompts whose saturation falls with the weight",
            f"{sum(falling)} of 8, {sum(halved)} to half",
            "at least 6",
            sum(falling) >= 6,
        ),
        Row(f"{preset}: things right at weights 0, 0.3, 0.5, 0.7, 1", ", ".join(f"{value:.0%}" for value in right.values())),
        Row(f"{preset}: things right at 0.7, against the base", f"{kept:+.0%}", "-10 % or better", kept >= -0.1),
    ]


def measure_stack(work: Path, model: DiffusionModel, judge: ContentJudge, sheets: Path | None) -> list[Row]:
    """Returns what the object's LoRA and the style's do together: the balloon is there, and the colour goes."""
    ink, _ = train_lora(work / "miniature", DATA_SETS / "ink", epochs=40)
    balloon, _ = train_lora(work / "balloon", DATA_SETS / "balloon", epochs=80)
    prompts = [caption(scene) + " with a striped balloon" for scene in unseen_scenes(12)]
    stacks = {"balloon": [LoraUse(balloon)], "ink": [LoraUse(ink, 0.7)], "both": [LoraUse(balloon), LoraUse(ink, 0.7)]}
    grids = {name: draw(model, uses, prompts, (1.0,)) for name, uses in stacks.items()}
    for name, grid in grids.items() if sheets else ():
        grid.save(Path(str(sheets)) / f"stack-{name}.png")
    drawn = {"base": column(grids["balloon"], 0.0)} | {name: column(grid, 1.0) for name, grid in grids.items()}
    place = list(THINGS).index("balloon")
    seen = {name: int(judge.look(pictures)[:, place].sum()) for name, pictures in drawn.items()}
    colour = {name: float(np.mean([saturation(picture) for picture in pictures])) for name, pictures in drawn.items()}
    rows = [Row(f"{name}: balloons seen, saturation", f"{seen[name]} of 12, {colour[name]:.3f}") for name in drawn]
    works = seen["both"] > seen["base"] and colour["both"] < 0.7 * colour["base"]
    return [*rows, Row("both effects together", "balloons and ink" if works else "not seen", "both", works)]


def over_train(work: Path, num_pictures: int, **settings: Any) -> tuple[dict[int, float], dict[str, Any] | None]:
    """Learns a few ink pictures by heart. Returns the held-out losses by step, and what the run recommends."""
    few = work / "few"
    shutil.copytree(DATA_SETS / "ink" / "held_out", few / "held_out")
    (few / "train").mkdir()
    for path in sorted((DATA_SETS / "ink" / "train").glob("*.png"))[:num_pictures]:
        shutil.copy(path, few / "train")
    shutil.copy(DATA_SETS / "ink" / "train" / "metadata.csv", few / "train")
    _, events = train_lora(
        work / "over", few, "ink-painting", lora_rank=32, lora_dropout=0.0, target_modules="all_linear", **settings
    )
    return losses(events), next((event.data for event in events if event.kind == "recommended"), None)


def measure_over_training(work: Path) -> list[Row]:
    """Returns whether the validation notices a run that learns six pictures by heart."""
    curve, recommended = over_train(work, 6, max_train_steps=240, save_steps=20, learning_rate=1e-3)
    step = recommended and recommended["step"]
    return [
        Row("held-out loss by step", ", ".join(f"{step}: {loss:.4f}" for step, loss in curve.items())),
        Row("recommended step of 240", str(step), "earlier", step is not None and step < 240),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sheet", type=Path, metavar="DIR", help="keep the picture sheets there")
    parser.add_argument("--only", choices=("style", "stack", "over"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if arguments.sheet:
        arguments.sheet.mkdir(parents=True, exist_ok=True)
    wanted = (arguments.only,) if arguments.only else ("style", "stack", "over")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if "over" in wanted:
            rows += measure_over_training(work)
        if set(wanted) & {"style", "stack"}:
            model = load(ModelSettings(BASE), detect(BASE))
            judge = train_content_judge()
            if "style" in wanted:
                rows += measure_style(work, model, judge, arguments.sheet, "ink-painting")
                rows += measure_style(work, model, judge, arguments.sheet, "miniature")
            if "stack" in wanted:
                rows += measure_stack(work, model, judge, arguments.sheet)
    print(
        format_section(
            "LoRAs on the miniature",
            "24 pictures of 128 px, 8 held out, 40 epochs, 80 of the balloon; 25 steps of Euler a, CFG 4. Presets unchanged "
            "otherwise.",
            rows,
        )
    )


if __name__ == "__main__":
    main()
