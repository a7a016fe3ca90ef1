"""`python -m lora_trainer demo`: the way from pictures to a LoRA and a sheet of pictures, in a few minutes on a laptop.

It takes the way that a user's own training takes: the same settings, checks, loop, export and drawing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lora_trainer.cli import BAD_CONFIG, DONE, FAILED, STOPPED, stop_on_ctrl_c
from lora_trainer.config.parse import parse_config
from lora_trainer.config.presets import load_presets
from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import TrainControl
from lora_trainer.errors import ConfigError, LoraTrainerError, RunFolderError

if TYPE_CHECKING:
    from lora_trainer.inference.grid import Grid
    from lora_trainer.training.session import TrainResult

HERE = Path(__file__).parent
MINIATURE = HERE / "base" / "miniature.safetensors"
INK_PICTURES = HERE / "datasets" / "ink" / "train"
PRESET = "ink-painting"
NAME = "demo_ink"
DEFAULT_FOLDER = Path("demo-output")
PROMPTS = (
    "blue mountains behind a lake with a boat by day",
    "green hills behind a green field with a house and two trees by day",
    "snowy mountains behind the sea at sunset",
)
SEED, STEPS, CFG_SCALE = 7, 20, 5.0


@dataclass(frozen=True)
class Material:
    """What the demo trains on, and what to say about it.

    Attributes:
        base: the checkpoint.
        pictures: the folder of the data set.
        resolution: of training and of the sheet, in pixels; None for the base's own.
        is_random: whether the base draws only noise.
    """

    base: Path
    pictures: Path
    resolution: int | None
    is_random: bool


def main(arguments: Sequence[str]) -> int:
    """Runs the demo and returns its exit code, see `cli`."""
    parser = argparse.ArgumentParser(
        prog="python -m lora_trainer demo",
        description="Trains a small LoRA on pictures that come along, and shows what it does. A few minutes, no network.",
    )
    parser.add_argument(
        "--output", type=Path, default=DEFAULT_FOLDER, metavar="DIR", help=f"where everything goes (default: {DEFAULT_FOLDER})"
    )
    parser.add_argument("--fresh", action="store_true", help="train anew, even if an earlier demo lies there")
    options = parser.parse_args(list(arguments))
    control = TrainControl()
    try:
        with stop_on_ctrl_c(control):
            return _run(options.output.resolve(), options.fresh, control)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_CONFIG
    except LoraTrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED


def _run(folder: Path, fresh: bool, control: TrainControl) -> int:
    _say("This trains a small LoRA on pictures that come along, and then draws with it.", f"Everything goes into {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be made ({error.strerror}). Choose another folder with --output.") from error
    _say("", "1. Pictures and base model")
    material = prepare_material(folder)
    num_pictures = sum(path.suffix == ".png" for path in material.pictures.iterdir())
    _say(f"   {num_pictures} pictures with captions: {material.pictures}", f"   Base model: {material.base}")
    if material.is_random:
        _say(
            "   Note: this base has random weights. It draws only coloured noise, and so does every LoRA made from it.",
            "   The demo shows that everything works on this machine, not what a LoRA can learn.",
        )
    config = make_config(folder, material)
    _say("", f"2. Training, with the preset {PRESET}")
    result = _train(config, fresh, control)
    if result.status == "stopped":
        _say(f"Stopped and saved at step {result.step}. Start the demo again to go on from there.")
        return STOPPED
    if result.was_done_before:
        _say("   This was trained by an earlier demo. --fresh trains it anew.")
    assert result.path is not None
    _say("", "3. Drawing each prompt with the untouched base, then with the LoRA at rising weights")
    grid = draw_with(result.path, material, control)
    if not grid.is_complete:
        _say("Stopped while drawing. The LoRA is finished; start the demo again to draw the sheet.")
        return STOPPED
    sheet_path = grid.save(folder / f"{NAME}_sheet.png")
    for note in grid.notes:
        _say(f"   {note}")
    look = "From left to right the style grows, and what is shown should stay."
    if material.is_random:
        look = f"It is noise, because the base is. At weight 1 the LoRA changes it by {_mean_change(grid):.2f} of 255 on average."
    _say("", "Done.", f"   LoRA          {result.path}", f"   Picture sheet {sheet_path}", f"                 {look}")
    _say("", *_next_steps(config.output_dir / "config.yaml"))
    return DONE


def prepare_material(folder: Path) -> Material:
    """Returns the base and the pictures that ship; where they are missing, stand-ins made in the folder."""
    is_random = not MINIATURE.is_file()
    if is_random:
        from lora_trainer.demo.random_base import RESOLUTION, write_random_base

        base = folder / "base" / "random.safetensors"
        base = base if base.is_file() else write_random_base(base)
    pictures = INK_PICTURES
    if not pictures.is_dir():
        from lora_trainer.demo.random_base import paint_pictures

        pictures = paint_pictures(folder / "pictures")
    return Material(base if is_random else MINIATURE, pictures, RESOLUTION if is_random else None, is_random)


def make_config(folder: Path, material: Material) -> TrainConfig:
    """Returns the preset's settings with the demo's paths. There are few pictures, so its epochs are few steps."""
    values: dict[str, Any] = {
        **load_presets()[PRESET].values,
        "train_data_dir": str(material.pictures),
        "base_model": str(material.base),
        "output_dir": str(folder / NAME),
        "comment": "Made by the demo",
    }
    if material.resolution:
        values["resolution"] = material.resolution
    return parse_config(values)


def draw_with(lora: Path, material: Material, control: TrainControl) -> Grid:
    """Returns the pictures of a finished LoRA at rising weights; not all of them after a stop."""
    from lora_trainer.adapters.tags import LoraUse
    from lora_trainer.inference.generate import GenerateSettings
    from lora_trainer.inference.grid import draw_cells, make_rows
    from lora_trainer.models.family import ModelSettings
    from lora_trainer.models.table import load_model
    from lora_trainer.training.precision import DTYPES, choose_device, choose_precision

    device = choose_device("auto")
    dtype = DTYPES[choose_precision("auto", device)]
    model: Any = load_model(ModelSettings(base_model=material.base, device=device, dtype=dtype))
    side = material.resolution or model.resolution
    settings = GenerateSettings("", width=side, height=side, steps=STEPS, cfg_scale=CFG_SCALE, seed=SEED)
    rows = make_rows([[LoraUse(lora)]], PROMPTS, settings)
    with tqdm(desc="drawing", unit="picture") as bar:

        def advance(grid: Grid, _cell: object) -> None:
            bar.total = grid.num_cells
            bar.update()

        return draw_cells(model, rows, control=control, on_cell=advance)


def _train(config: TrainConfig, fresh: bool, control: TrainControl) -> TrainResult:
    from lora_trainer.progress import ProgressView
    from lora_trainer.training.run import train

    with ProgressView() as view:
        return train(config, control=control, watch=view.show, fresh=fresh)


def _mean_change(grid: Grid) -> float:
    """Returns how far the first prompt's picture at weight 1 is from the base's, in steps of a colour's 255."""
    from PIL import ImageChops, ImageStat

    difference = ImageChops.difference(grid.cells[0, 0].picture, grid.cells[0, grid.weights.index(1.0)].picture)
    return sum(ImageStat.Stat(difference).mean) / 3


def _next_steps(settings: Path) -> list[str]:
    return [
        "What to do next, with your own pictures",
        "   1. Put 15 or more into a folder, and beside each a text file of the same name that says what is in it:",
        "      boat.png, boat.txt.",
        "   2. Save these lines as my_style.yaml, with your own paths (all settings of the demo, to compare:",
        f"      {settings})",
        "         train_data_dir: my_pictures",
        "         base_model: models/Stable-diffusion/v1-5-pruned.safetensors",
        "         output_dir: output/my_style",
        "   3. See what would be trained, and any problem; then train:",
        f"         python -m lora_trainer check --preset {PRESET} --config my_style.yaml",
        f"         python -m lora_trainer train --preset {PRESET} --config my_style.yaml",
        "   4. Put output/my_style/my_style.safetensors into the WebUI's models/Lora; write <lora:my_style:0.7> in a prompt.",
        "The demo's own LoRA fits the demo's base only. Its folder can be deleted at any time.",
    ]


def _say(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)
