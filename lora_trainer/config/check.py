"""Judges settings against each other and against the disk, before anything heavy is loaded.

`parse` has checked each value alone. What needs the pictures or the checkpoint is in `plan`.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from lora_trainer.config.schema import TrainConfig
from lora_trainer.errors import Problem

HIGH_LEARNING_RATE = 5e-4


def check_config(config: TrainConfig) -> list[Problem]:
    """Returns all findings, errors first; an error means that the run cannot start."""
    problems = [*_check_paths(config), *_check_rates(config), *_check_schedule(config), *_check_packages(config)]
    order = {"error": 0, "warning": 1, "notice": 2}
    return sorted(problems, key=lambda problem: order[problem.severity])


def _check_paths(config: TrainConfig) -> list[Problem]:
    problems = []
    if not config.train_data_dir.is_dir():
        problems.append(_missing("train_data_dir", config.train_data_dir, "folder"))
    for name in ("metadata_path", "base_model", "vae"):
        path = getattr(config, name)
        if path is not None and not path.exists():
            problems.append(_missing(name, path, "file"))
    if config.output_dir.is_file():
        problems.append(Problem("output_dir", f"({config.output_dir}) is a file.", hint="Name a folder for the run."))
    elif not _is_writable(config.output_dir):
        problems.append(Problem("output_dir", f"({config.output_dir}) cannot be written to.", hint="Choose another folder."))
    if _is_within(config.output_dir, config.train_data_dir) or config.output_dir.resolve() == config.train_data_dir.resolve():
        problems.append(
            Problem(
                "output_dir",
                f"({config.output_dir}) lies in the picture folder, so its samples would be trained on.",
                hint="Choose a folder outside train_data_dir.",
            )
        )
    if config.lora_dir is not None and not config.lora_dir.is_dir():
        problems.append(_missing("lora_dir", config.lora_dir, "folder"))
    return problems


def _check_rates(config: TrainConfig) -> list[Problem]:
    problems = []
    if config.unet_lr == 0 and config.text_encoder_lr == 0:
        problems.append(Problem("unet_lr", "(0) and text_encoder_lr (0) leave nothing to train.", hint="Raise one of them."))
    if config.learning_rate > HIGH_LEARNING_RATE:
        problems.append(
            Problem(
                "learning_rate",
                f"({config.learning_rate:g}) is above {HIGH_LEARNING_RATE:g}, where most runs swing.",
                "warning",
                "1e-4 to 2e-4 is usual with AdamW.",
            )
        )
    if config.alpha > 4 * config.lora_rank:
        problems.append(
            Problem(
                "lora_alpha",
                f"({config.alpha:g}) is more than four times lora_rank ({config.lora_rank}): like a higher learning rate.",
                "warning",
                "1 or 2 times the rank is usual.",
            )
        )
    return problems


def _check_schedule(config: TrainConfig) -> list[Problem]:
    problems = []
    if config.max_train_steps is not None and config.lr_warmup_steps >= config.max_train_steps:
        problems.append(
            Problem(
                "lr_warmup_steps",
                f"({config.lr_warmup_steps}) must be below max_train_steps ({config.max_train_steps}).",
                hint="5 % of the steps is usual.",
            )
        )
    if config.keep_tokens and not config.shuffle_tags:
        problems.append(Problem("keep_tokens", "has no effect while shuffle_tags is false.", "notice"))
    return problems


def _check_packages(config: TrainConfig) -> list[Problem]:
    if config.log_with == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        return [
            Problem(
                "log_with",
                "asks for TensorBoard, which is not installed; the run goes on and writes events.jsonl.",
                "warning",
                "Install it with: pip install tensorboard",
            )
        ]
    return []


def _missing(field: str, path: Path, kind: str) -> Problem:
    nearest = path
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    where = "the current folder" if nearest == Path() else str(nearest)
    return Problem(
        field, f"({path}) is no {kind}.", hint=f"The path exists as far as {where}; relative paths start at {Path.cwd()}."
    )


def _is_writable(folder: Path) -> bool:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK)


def _is_within(inner: Path, outer: Path) -> bool:
    return outer.resolve() in inner.resolve().parents
