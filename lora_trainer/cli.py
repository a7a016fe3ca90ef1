"""The command line: train, check, inspect, list, control; more in `commands`. Each command imports what it needs itself.

Exit codes: 0 done, 1 failed, 2 bad configuration, 130 stopped by Ctrl-C after saving.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer.amount import with_preset
from lora_trainer.config import parse
from lora_trainer.config.presets import load_presets
from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import COMMANDS, TrainControl
from lora_trainer.errors import ConfigError, LoraTrainerError, Problem, examples
from lora_trainer.libraries import load_ahead
from lora_trainer.registry import Registry, did_you_mean

if TYPE_CHECKING:
    from lora_trainer.dataset.scan import DatasetScan
    from lora_trainer.plan import TrainPlan

DONE, FAILED, BAD_CONFIG, STOPPED = 0, 1, 2, 130
TABLES = ("models", "adapters", "optimizers", "schedules", "captioners", "presets")


def main(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code."""
    options = _build_parser().parse_args(list(arguments))
    try:
        return int(options.run(options))
    except ConfigError as error:
        _print_problems(error.problems)
        return BAD_CONFIG
    except LoraTrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        raise  # whoever read our output has seen enough; see `entry`
    except OSError as error:  # a folder that may not be written, a drive that went away: the system's words say it
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}.", file=sys.stderr)
        return FAILED


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lora_trainer", description="Train LoRA files for the Stable Diffusion WebUI."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(run=run)
        return command

    for name, run, help in (
        ("train", _train, "Train by a YAML file; an interrupted run goes on where it was."),
        ("check", _check, "Show the problems and the plan of a YAML file; train nothing."),
    ):
        command = add(name, run, help)
        command.add_argument("--config", type=Path, required=True, metavar="FILE.yaml", help="the settings")
        command.add_argument("--preset", metavar="NAME", help="values that the file's win over; see: list presets")
        command.add_argument(
            "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="values that win over the file's"
        )
        if name == "train":
            command.add_argument("--fresh", action="store_true", help="move an old run in output_dir aside and start over")
    command = add("inspect", _inspect, "Show what is in a LoRA file, and test whether the WebUI will apply it.")
    command.add_argument("file", type=Path, metavar="FILE.safetensors")
    command.add_argument("--base", type=Path, metavar="CHECKPOINT", help="also test every key against this base model")
    command = add("list", _list, "Show what can be chosen.")
    command.add_argument("table", choices=TABLES)
    help = "Ask a training that runs in another window to stop, discard (stop without saving), pause, continue, save or sample."
    command = add("control", _control, help)
    command.add_argument("run_folder", type=Path, metavar="RUN_FOLDER", help="its output_dir")
    command.add_argument("request", choices=COMMANDS)
    from lora_trainer.commands import caption, grid, lora_files  # they use the exit codes above

    caption.register(add)
    grid.register(add)
    lora_files.register(add)
    return parser


def _read_config(options: argparse.Namespace) -> TrainConfig:
    presets = load_presets()
    if options.preset is not None and options.preset not in presets:
        names = tuple(presets)
        raise ConfigError(
            [
                Problem(
                    "--preset",
                    f"{options.preset!r} does not exist{did_you_mean(options.preset, names)} Known: {', '.join(names)}.",
                )
            ]
        )
    values = {**parse.read_yaml(options.config), **parse.parse_overrides(options.set)}
    return parse.parse_config(with_preset(presets[options.preset], values) if options.preset else values)


def _train(options: argparse.Namespace) -> int:
    config = _read_config(options)
    load_ahead()
    from lora_trainer.progress import ProgressView
    from lora_trainer.training.run import train

    control = TrainControl()
    with stop_on_ctrl_c(control), ProgressView() as view:
        result = train(config, control=control, watch=view.show, fresh=options.fresh)
    if result.status == "stopped":
        print(f"Stopped and saved at step {result.step}. The same command continues from there.")
        return STOPPED
    if result.was_done_before:
        print(f"This run is finished: {result.path}\nMore epochs extend it; --fresh starts over.")
        return DONE
    assert result.path is not None
    _print_report(result.path, config.base_model)
    print(_describe_validation(config))
    print(f"\nDone: {result.path}")
    print(f"Put it into the WebUI's models/Lora folder and write <lora:{result.path.stem}:0.7> in the prompt.")
    return DONE


def _check(options: argparse.Namespace) -> int:
    from lora_trainer.card import card_bytes
    from lora_trainer.forecast import largest_size, warn_of_card
    from lora_trainer.plan import make_plan

    config = _read_config(options)
    plan = make_plan(config)
    problem = warn_of_card(config, plan.detection, largest_size(plan.buckets), card_bytes())
    _print_problems([*plan.problems, *([problem] if problem else [])])
    print(describe_plan(config, plan))
    print(describe_memory(config, plan))
    return DONE


def describe_plan(config: TrainConfig, plan: TrainPlan) -> str:
    """Returns the plan as lines of text: base, pictures, buckets, and how the number of steps comes about."""
    from lora_trainer.dataset.buckets import histogram

    scan, detection = plan.scan, plan.detection
    num_examples = sum(item.repeats for item in plan.items)
    batch = f"batch {config.batch_size}"
    if config.gradient_accumulation_steps > 1:
        batch += f" x {config.gradient_accumulation_steps} accumulated"
    held_out = examples([item.name for item in plan.held_out], most=5)
    predicts = detection.prediction_type or "epsilon or v, known after loading"
    lines = [
        f"Base      {detection.path.name}: {detection.family}, predicts {predicts}",
        *(f"          {note}" for note in detection.notes),
        f"Pictures  {_describe_scan(scan)}, at {' and '.join(map(str, plan.resolutions))} pixels",
        *([f"          and {_describe_scan(plan.reg_scan)}, from {config.reg_data_dir}"] if plan.reg_scan else ()),
        *(f"          weight {weight:g} for {count}" for weight, count in _count_weights(plan).items()),
        *([f"Held out  {len(plan.held_out)}: {held_out}"] if plan.held_out else []),
        *(f"          {bucket!s:>10}  {count:>5}" for bucket, count in histogram(plan.buckets).items()),
        f"Steps     {num_examples} pictures x {plan.num_epochs:g} epochs / {batch} = {plan.total_steps} steps "
        f"({plan.steps_per_epoch} per epoch)",
        f"Output    {config.output_dir}, LoRA name {config.name}",
    ]
    return "\n".join(lines)


def describe_memory(config: TrainConfig, plan: TrainPlan) -> str:
    """Returns the forecast of memory as lines of text: how much, what for, on which cards, what to change for smaller ones."""
    from lora_trainer import forecast
    from lora_trainer.forecast import GIB, describe_change, describe_gigabytes

    size = forecast.largest_size(plan.buckets)
    found = forecast.forecast(config, plan.detection, size)
    parts = f"base {found.base / GIB:.1f}, LoRA {found.lora / GIB:.1f}, activations {found.activations / GIB:.1f}"
    if found.encoding > found.training:
        parts = f"most of it while pictures are encoded, training takes {found.training / GIB:.1f}: {parts}"
    if config.device == "cpu":
        return f"Memory    about {describe_gigabytes(found.peak)} of RAM ({parts})"
    fits, fits_not = forecast.fitting_cards(found)
    judged = f"fits in {', '.join(map(str, fits))} GB" if fits else "fits in none of the usual cards"
    judged += f"; not in {', '.join(map(str, fits_not))}" if fits and fits_not else ""
    lines = [f"Memory    about {describe_gigabytes(found.needed)} of a graphics card: {judged}", f"          {parts}"]
    for suggested in forecast.suggest(config, plan.detection, size):
        cards = ", ".join(map(str, suggested.cards))
        then = describe_gigabytes(suggested.then.needed)
        lines.append(f"          for {cards} GB: {describe_change(suggested.changes)} ({then})")
    if found.needed_for_samples > found.needed:
        lines.append(f"          samples are drawn only where {describe_gigabytes(found.needed_for_samples)} are there")
    return "\n".join(lines)


def _describe_scan(scan: DatasetScan) -> str:
    return f"{len(scan.items)} of {scan.num_found} used, {sum(item.repeats for item in scan.items)} with repeats"


def _count_weights(plan: TrainPlan) -> dict[float, int]:
    """Returns how many pictures have each weight; nothing where none has another than 1."""
    counts = Counter(item.weight for item in (*plan.scan.items, *plan.reg_items))
    return {} if set(counts) == {1.0} else dict(sorted(counts.items()))


def _inspect(options: argparse.Namespace) -> int:
    return DONE if _print_report(options.file, options.base) else FAILED


def _print_report(path: Path, base: Path | None = None) -> bool:
    """Prints what is in a LoRA file and its self-test; returns whether all of it passed."""
    from lora_trainer.adapters.inspect import inspect_file
    from lora_trainer.adapters.report import format_checks, format_report
    from lora_trainer.adapters.self_test import self_test
    from lora_trainer.models.webui import webui_layers

    print(format_report(inspect_file(path)))
    checks = self_test(path, webui_layers(base) if base else None)
    print(format_checks(checks))
    return all(check.passed for check in checks)


def _describe_validation(config: TrainConfig) -> str:
    """Returns the run's validation curve, and what it says, as lines of text; "" without validation."""
    from lora_trainer.events import fold_steps, read_events
    from lora_trainer.progress import draw_curve
    from lora_trainer.run_folder import RunFolder

    folder = RunFolder(config.output_dir)
    history = fold_steps(read_events(folder.events_path), "validated")
    if not history:
        return ""
    recommended = folder.read_job().get("recommended")
    if not history[-1].data["held_out"]:
        meaning = "Training pictures show progress only; validation_share: 0.1 holds some back, and the best step is recommended."
    elif recommended:
        meaning = f"Recommended: {recommended['path']}\n{recommended['reason']}."
    else:
        meaning = "No saved step was looked at, so none is recommended."
    who = "held-out" if history[-1].data["held_out"] else "training"
    return f"\nLoss on {who} pictures with fixed noise, against the base's\n{draw_curve(history)}\n{meaning}"


def _list(options: argparse.Namespace) -> int:
    if options.table == "presets":
        for preset in load_presets().values():
            print(f"{preset.name}: {preset.label}. {preset.help}")
            for key, reason in preset.reasons.items():
                value = preset.values.get(key, f"{preset.views} / pictures")
                print(f"    {key + ': ' + str(value):<32} {reason}")
        return DONE
    for entry in _load_table(options.table):
        package = f" Needs: pip install {entry.package}" if entry.package else ""
        print(f"{entry.name:<20} {entry.label}. {entry.help}{package}")
    return DONE


def _load_table(name: str) -> Registry:
    import importlib

    module, table = {
        "models": ("lora_trainer.models.table", "FAMILIES"),
        "adapters": ("lora_trainer.adapters.table", "ADAPTERS"),
        "optimizers": ("lora_trainer.training.table", "OPTIMIZERS"),
        "schedules": ("lora_trainer.training.table", "SCHEDULES"),
        "captioners": ("lora_trainer.captioning.table", "CAPTIONERS"),
    }[name]
    found: Registry = getattr(importlib.import_module(module), table)
    return found


def _control(options: argparse.Namespace) -> int:
    from lora_trainer.run_folder import RunFolder

    folder = RunFolder(options.run_folder)
    if not folder.job_path.exists():
        print(f"error: {options.run_folder} is no run folder. Give the output_dir of the training.", file=sys.stderr)
        return FAILED
    if not folder.is_locked():
        print(f"error: no training runs in {options.run_folder} now.", file=sys.stderr)
        return FAILED
    folder.post_command(options.request)
    print(f"Asked for: {options.request}. The training takes it up after its current step.")
    return DONE


@contextmanager
def stop_on_ctrl_c(control: TrainControl) -> Iterator[None]:
    """Within it the first Ctrl-C asks for a stop that saves; the second ends the program at once."""

    def handle(signum: int, frame: object) -> None:
        if control.is_requested("stop"):
            raise KeyboardInterrupt
        control.request("stop")
        print("\nStopping after this step, and saving. Ctrl-C again ends at once, back to the last save.", file=sys.stderr)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _print_problems(problems: Sequence[Problem]) -> None:
    for problem in problems:
        print(f"{problem.severity}: {problem}", file=sys.stderr)
