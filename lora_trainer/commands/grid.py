"""The command that draws with LoRAs: a sheet of pictures at rising weights, and which weight to take."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.cli import DONE, STOPPED, stop_on_ctrl_c
from lora_trainer.commands.lora_files import AddCommand
from lora_trainer.control import TrainControl
from lora_trainer.errors import ConfigError, Problem

if TYPE_CHECKING:
    from lora_trainer.inference.grid import Grid

_SIZE = re.compile(r"(\d+)x(\d+)")


def register(add: AddCommand) -> None:
    """Adds the command to the parser."""
    command = add("grid", _grid, "Draw prompts without a LoRA and with it at rising weights, as one sheet.")
    command.add_argument("--base", type=Path, required=True, metavar="CHECKPOINT", help="the base model")
    command.add_argument(
        "--lora", nargs="+", type=Path, default=[], metavar="FILE", help="rows of their own; saved steps too (default: the tags)"
    )
    command.add_argument(
        "--prompt", nargs="+", required=True, metavar="TEXT", help="rows of their own; tags as in <lora:seal:0.5:0.8> are read"
    )
    command.add_argument("--weights", nargs="+", type=float, metavar="W", help="columns (default: 0.3 0.5 0.7 0.9 1)")
    command.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="rows of their own (default: 0)")
    command.add_argument(
        "--lora-dir", type=Path, metavar="DIR", help="where the tags' files are (default: beside the first LoRA)"
    )
    command.add_argument("--negative-prompt", default="", metavar="TEXT")
    command.add_argument("--size", metavar="WxH", help="in pixels (default: what the base was trained at)")
    command.add_argument("--steps", type=int, default=20, help="of the sampler (default: 20)")
    command.add_argument("--cfg-scale", type=float, default=7.0, help="how closely the prompt is followed (default: 7)")
    command.add_argument("--sampler", default="euler_a", help="euler_a, dpmpp_2m_karras or ddim (default: euler_a)")
    command.add_argument("--vae", type=Path, metavar="FILE", help="another VAE than the base's own")
    command.add_argument("--clip-skip", type=int, default=1, metavar="N", help="for SD1 (default: 1)")
    command.add_argument("--train-data-dir", type=Path, metavar="DIR", help="the training pictures: says which weight to take")
    command.add_argument("--output", type=Path, default=Path("grid.png"), metavar="FILE.png", help="(default: grid.png)")


def _grid(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from lora_trainer.adapters.library import find_lora
    from lora_trainer.adapters.tags import LoraUse
    from lora_trainer.inference.grid import draw_cells
    from lora_trainer.inference.rows import USUAL_WEIGHTS, make_rows
    from lora_trainer.inference.settings import GenerateSettings

    folder = options.lora_dir or (options.lora[0].parent if options.lora else None)
    size = _parse_size(options.size)
    settings = GenerateSettings(
        "",
        options.negative_prompt,
        *(size or (512, 512)),
        steps=options.steps,
        cfg_scale=options.cfg_scale,
        sampler=options.sampler,
    )

    def rows_for(settings: GenerateSettings) -> Any:
        find = (lambda name: find_lora(folder, name)) if folder else None
        return make_rows([[LoraUse(path)] for path in options.lora], options.prompt, settings, seeds=options.seeds, find=find)

    # Before the base is loaded, so that a misspelt tag is said at once.
    problems = [problem for row in rows_for(settings) for problem in row.settings.problems()]
    if problems:
        raise ConfigError({str(problem): problem for problem in problems}.values())
    model = _load_base(options)
    rows = rows_for(settings if size else _with_side(settings, model.resolution))
    control = TrainControl()
    with stop_on_ctrl_c(control), tqdm(desc="drawing", unit="picture") as bar:

        def show(grid: Grid, _cell: object) -> None:
            bar.total = grid.num_cells
            bar.update()

        grid = draw_cells(model, rows, weights=options.weights or USUAL_WEIGHTS, control=control, on_cell=show)
    for note in grid.notes:
        print(f"note: {note}")
    if not grid.cells:
        print("Stopped before the first picture.")
        return STOPPED
    print(f"Sheet {grid.save(options.output)}")
    if options.train_data_dir and grid.is_complete:
        print(_advise(grid, options.train_data_dir))
    return DONE if grid.is_complete else STOPPED


def _parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = _SIZE.fullmatch(text)
    if not match:
        raise ConfigError([Problem("--size", f"{text!r} is no size.", hint="Give width and height in pixels, such as 512x768.")])
    return int(match[1]), int(match[2])


def _with_side(settings: Any, side: int) -> Any:
    from dataclasses import replace

    return replace(settings, width=side, height=side)


def _load_base(options: argparse.Namespace) -> Any:
    from lora_trainer.models.family import ModelSettings
    from lora_trainer.models.table import load_model
    from lora_trainer.training.precision import choose_compute

    device, dtype = choose_compute()
    return load_model(ModelSettings(options.base, device=device, dtype=dtype, vae=options.vae, clip_skip=options.clip_skip))


def _advise(grid: Grid, folder: Path) -> str:
    """Returns the figures of every weight as a table, and the proposal."""
    from lora_trainer.dataset.scan import find_pictures
    from lora_trainer.inference.advice import advise, read_training_pictures

    advice = advise(grid, read_training_pictures(find_pictures(folder)))
    lines = [f"{'LoRA':<28}{'weight':>7}{'moved':>8}{'nearer':>8}{'kept':>7}   nearest training picture"]
    for figure in advice.figures:
        name = " + ".join(use.path.stem for use in figure.uses)
        near = f"{figure.nearest.path.name} ({figure.nearest.similarity:.0%})"
        lines.append(
            f"{name[-27:]:<28}{figure.weight:>7g}{figure.moved:>8.0%}{figure.nearness:>8.0%}{figure.kept:>7.0%}   {near}"
        )
    return "\n".join([*lines, advice.reason])
