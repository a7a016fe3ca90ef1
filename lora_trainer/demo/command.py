"""`python -m lora_trainer demo`: the way from pictures to a LoRA and a sheet of pictures, in a few minutes on a laptop.

It takes the way that a user's own training takes: the same captioner's code, settings, checks, loop, export and drawing. Only the
models are small: a base and a captioner made for this, see `recipe/`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lora_trainer.cli import BAD_CONFIG, DONE, FAILED, STOPPED, stop_on_ctrl_c
from lora_trainer.config.parse import parse_config
from lora_trainer.config.presets import load_presets
from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import TrainControl
from lora_trainer.demo.assets import BASE, CAPTIONER, DATA_SETS
from lora_trainer.errors import ConfigError, LoraTrainerError, RunFolderError
from lora_trainer.events import TrainEvent

if TYPE_CHECKING:
    from lora_trainer.inference.grid import Grid
    from lora_trainer.training.session import TrainResult

INK_PICTURES = DATA_SETS / "ink" / "train"
PRESET = "miniature"
NEXT_PRESET = "sd1-style"  # for a base of the usual size
NAME = "demo_ink"
DEFAULT_FOLDER = Path("demo-output")
CORRECTED = ("ink-01.png", "ink-03.png", "ink-04.png", "ink-05.png")
"""Pictures whose captions in the data set are right; the first of which the captioner says otherwise is corrected."""
PROMPTS = (
    "blue mountains behind a lake with a red boat by day",
    "green hills behind a green field with a house with a red roof and pine trees by day",
    "snowy mountains behind the sea with the sun at sunset",
)
SEED, STEPS, CFG_SCALE = 7, 20, 4.0


def main(arguments: Sequence[str]) -> int:
    """Runs the demo and returns its exit code, see `cli`."""
    parser = argparse.ArgumentParser(
        prog="python -m lora_trainer demo",
        description="Captions pictures that come along, trains a small LoRA on them, shows what it does. Minutes, no network.",
    )
    parser.add_argument(
        "--output", type=Path, default=DEFAULT_FOLDER, metavar="DIR", help=f"where everything goes (default: {DEFAULT_FOLDER})"
    )
    parser.add_argument("--fresh", action="store_true", help="caption and train anew, even if an earlier demo lies there")
    parser.add_argument(
        "--into",
        type=Path,
        metavar="WEBUI",
        help="train nothing: copy the demo's base model, and the LoRA if it is trained, into this AUTOMATIC1111 WebUI's models",
    )
    options = parser.parse_args(list(arguments))
    control = TrainControl()
    try:
        if options.into is not None:
            return _copy_into(options.into.resolve(), options.output.resolve())
        with stop_on_ctrl_c(control):
            return _run(options.output.resolve(), options.fresh, control)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_CONFIG
    except LoraTrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED


def _run(folder: Path, fresh: bool, control: TrainControl) -> int:
    _say("This captions pictures, trains a small LoRA on them, and draws with it.", f"Everything goes into {folder}")
    pictures = copy_pictures(folder, fresh=fresh)
    _say("", "1. First captions, written by a small BLIP")
    if not write_captions(pictures, control):
        _say("Stopped. Start the demo again to go on from there.")
        return STOPPED
    _say("", f"2. Training, with the preset {PRESET}, at a higher rate and in more layers because the base is so small")
    config = make_config(folder, pictures)
    result = _train(config, fresh, control)
    if result.status == "stopped":
        _say(f"Stopped and saved at step {result.step}. Start the demo again to go on from there.")
        return STOPPED
    if result.was_done_before:
        _say("   This was trained by an earlier demo. --fresh trains it anew.")
    assert result.path is not None
    _say("", "3. Drawing each prompt with the untouched base, then with the LoRA at rising weights")
    grid = draw_with(result.path, control)
    if not grid.is_complete:
        _say("Stopped while drawing. The LoRA is finished; start the demo again to draw the sheet.")
        return STOPPED
    sheet_path = grid.save(folder / f"{NAME}_sheet.png")
    for note in grid.notes:
        _say(f"   {note}")
    _say("", "Done.", f"   LoRA          {result.path}", f"   Picture sheet {sheet_path}")
    _say("                 From left to right colour gives way to ink, and what is shown should stay.")
    _say("", *_next_steps(config.output_dir / "config.yaml"))
    return DONE


def copy_pictures(folder: Path, *, fresh: bool) -> Path:
    """Copies the ink paintings, without their captions, into the folder and returns where they are.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    target = folder / "pictures"
    try:
        if fresh and target.is_dir():
            shutil.rmtree(target)
        target.mkdir(parents=True, exist_ok=True)
        for path in INK_PICTURES.glob("*.png"):
            if not (target / path.name).exists():
                shutil.copyfile(path, target / path.name)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be written ({error.strerror}). Choose another folder with --output.") from error
    return target


def write_captions(pictures: Path, control: TrainControl) -> bool:
    """Captions the pictures that have none, and corrects one caption. Returns False after a stop."""
    from lora_trainer.captioning import blip, run
    from lora_trainer.captioning.captioner import CaptionerSettings
    from lora_trainer.dataset.captions import read_captions
    from lora_trainer.progress import ProgressView

    table = run.TableFile(pictures / "metadata.csv", pictures)
    kept = run.captions_to_keep(pictures, "missing")
    with ProgressView() as view, blip.load(CaptionerSettings(str(CAPTIONER))) as captioner:

        def emit(kind: str, **data: Any) -> None:
            view.show(TrainEvent(kind, data))

        result = run.caption_folder(captioner, pictures, table.save, kept=kept, control=control, emit=emit)
    if result.was_stopped:
        return False
    written = run.captions_to_keep(pictures, "missing")
    names = sorted(written)
    _say(f"   {len(names)} captions are in {table.path}, such as")
    for name in names[:3]:
        _say(f"   {name}  {written[name]}")
    right = read_captions(INK_PICTURES, names, ["metadata.csv"]).by_name
    wrong = [name for name in CORRECTED if written[name] != right[name]]
    if wrong and result.num_kept == 0:
        name = wrong[0]
        _say("   A captioner is never right about all. Corrected by hand, one of them:")
        _say(f"   {name}  it said    {written[name]}", f"   {' ' * len(name)}  it shows   {right[name]}")
        table.save({name: right[name]})
    return True


def make_config(folder: Path, pictures: Path) -> TrainConfig:
    """Returns the preset's settings with the demo's paths."""
    values: dict[str, Any] = {
        **load_presets()[PRESET].values,
        "train_data_dir": str(pictures),
        "base_model": str(BASE),
        "output_dir": str(folder / NAME),
        "comment": "Made by the demo",
    }
    return parse_config(values)


def draw_with(lora: Path, control: TrainControl) -> Grid:
    """Returns the pictures of a finished LoRA at rising weights; not all of them after a stop."""
    from lora_trainer.adapters.tags import LoraUse
    from lora_trainer.inference.grid import draw_cells
    from lora_trainer.inference.rows import make_rows
    from lora_trainer.inference.settings import GenerateSettings
    from lora_trainer.models.family import ModelSettings
    from lora_trainer.models.table import load_model
    from lora_trainer.training.precision import choose_compute

    device, dtype = choose_compute()
    model: Any = load_model(ModelSettings(base_model=BASE, device=device, dtype=dtype))
    side = model.resolution
    rows = make_rows(
        [[LoraUse(lora)]], PROMPTS, GenerateSettings("", width=side, height=side, steps=STEPS, cfg_scale=CFG_SCALE, seed=SEED)
    )
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


def _copy_into(webui: Path, output: Path) -> int:
    from lora_trainer.demo.webui import copy_base, copy_lora

    base = copy_base(webui)
    _say(f"Copied {base}", "and the folder with its text encoder's settings beside it.")
    lora = output / NAME / f"{NAME}.safetensors"
    if lora.is_file():
        _say(f"Copied {copy_lora(lora, webui)}")
    else:
        _say(f"There is no LoRA of the demo in {output} yet; run the demo without --into, then this once more.")
    _say(
        "",
        "What to do next",
        f"   1. In the WebUI press the button beside the checkpoint list, and choose {base.stem}.",
        "   2. Set width and height to 128, CFG scale to 4, sampler Euler a, and try a prompt:",
        f"      {PROMPTS[0]} <lora:{NAME}:0.7>",
        "It draws landscapes (mountains, hills, lakes, the sea, boats, houses, trees, sun and moon; by day, at dawn, sunset and",
        "night) and plain shapes in nine colours; nothing else.",
    )
    return DONE


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
        f"         python -m lora_trainer check --preset {NEXT_PRESET} --config my_style.yaml",
        f"         python -m lora_trainer train --preset {NEXT_PRESET} --config my_style.yaml",
        "   4. Put output/my_style/my_style.safetensors into the WebUI's models/Lora; write <lora:my_style:0.7> in a prompt.",
        "The demo's own LoRA fits the demo's base only. Its folder can be deleted at any time.",
    ]


def _say(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)
