"""Judges settings against each other and against the disk, before anything heavy is loaded.

`parse` has checked each value alone. What needs the pictures or the checkpoint is in `plan`.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from lora_trainer.config.presets import load_presets
from lora_trainer.config.schema import TrainConfig, default_of
from lora_trainer.errors import Problem, pip_command
from lora_trainer.files import nearest_existing
from lora_trainer.registry import Entry
from lora_trainer.training.table import OPTIMIZERS

DEVICE = re.compile(r"auto|cpu|mps|(?:cuda|xpu)(?::\d+)?")
# What has an effect only while another setting has a certain value.
DEPENDENT = (
    ("lr_restarts", "lr_scheduler", "cosine_with_restarts"),
    ("huber_delta", "loss_type", "huber"),
)


def check_config(config: TrainConfig) -> list[Problem]:
    """Returns all findings, errors first; an error means that the run cannot start."""
    problems = [
        *_check_paths(config),
        *_check_optimizer(config, OPTIMIZERS.get(config.optimizer)),
        *_check_schedule(config),
        *_check_objective(config),
        *_check_validation(config),
        *_check_packages(config),
        *_check_device(config),
    ]
    order = {"error": 0, "warning": 1, "notice": 2}
    return sorted(problems, key=lambda problem: order[problem.severity])


def _check_paths(config: TrainConfig) -> list[Problem]:
    problems = []
    if not config.train_data_dir.is_dir():
        problems.append(_missing("train_data_dir", config.train_data_dir, "folder"))
    problems += _check_reg_folder(config)
    for name in ("metadata_path", "base_model", "vae"):
        path = getattr(config, name)
        if path is not None and not path.exists():
            problems.append(_missing(name, path, "file"))
    for name in ("output_dir", "cache_dir"):
        if (folder := getattr(config, name)) is not None:
            problems += _check_writable(name, folder)
    if _is_within(config.output_dir, config.train_data_dir) or config.output_dir.resolve() == config.train_data_dir.resolve():
        problems.append(
            Problem(
                "output_dir",
                f"({config.output_dir}) lies in the picture folder, so its samples would be trained on.",
                hint="Choose a folder outside train_data_dir.",
            )
        )
    if config.start_from is not None and _is_within(config.start_from, config.output_dir):
        message = f"({config.start_from}) lies in output_dir, which is of the run that made it."
        problems.append(Problem("start_from", message, hint="Choose another output_dir."))
    if config.lora_dir is not None and not config.lora_dir.is_dir():
        problems.append(_missing("lora_dir", config.lora_dir, "folder"))
    return problems


def _check_writable(field: str, folder: Path) -> list[Problem]:
    nearest = nearest_existing(folder)
    if folder.is_file():
        return [Problem(field, f"({folder}) is a file.", hint="Name a folder.")]
    if nearest.is_file():
        return [Problem(field, f"({folder}) cannot be made: {nearest} is a file.", hint="Choose another folder.")]
    if not os.access(nearest, os.W_OK):
        return [Problem(field, f"({folder}) cannot be written to.", hint="Choose another folder.")]
    return []


def _check_reg_folder(config: TrainConfig) -> list[Problem]:
    folder = config.reg_data_dir
    if folder is None:
        if config.reg_weight != 1:
            return [Problem("reg_weight", "has no effect without reg_data_dir.", "notice")]
        return []
    if not folder.is_dir():
        return [_missing("reg_data_dir", folder, "folder")]
    same = folder.resolve() == config.train_data_dir.resolve()
    if same or _is_within(folder, config.train_data_dir) or _is_within(config.train_data_dir, folder):
        return [
            Problem(
                "reg_data_dir",
                f"({folder}) and train_data_dir ({config.train_data_dir}) lie in each other, so pictures would be in both.",
                hint="Put the regularisation pictures into a folder beside it.",
            )
        ]
    return []


def needs_v_prediction(found: str) -> Problem:
    """Returns the error of zero terminal SNR on another base; `found` says which base predicts what."""
    return Problem(
        "zero_terminal_snr",
        f"(true) needs a base that predicts v, and {found}. In pure noise there is nothing for epsilon to learn: "
        "the noise is the input itself.",
        hint="Set it to false, or take a base made with v-prediction.",
    )


def _check_optimizer(config: TrainConfig, optimizer: Entry) -> list[Problem]:
    problems = _check_rates(config, optimizer)
    if optimizer.package and importlib.util.find_spec(optimizer.package) is None:
        problems.append(
            Problem(
                "optimizer",
                f"({optimizer.name}) needs the package {optimizer.package}, which is not installed.",
                hint=f"Install it with: {pip_command(optimizer.package)}",
            )
        )
    schedule = optimizer.options.get("schedule", config.lr_scheduler)
    if config.lr_scheduler != schedule:
        problems.append(
            Problem(
                "lr_scheduler",
                f"({config.lr_scheduler}) works against {optimizer.name}, which averages the weights instead.",
                "warning",
                f"Set it to {schedule}.",
            )
        )
    return problems


def _check_rates(config: TrainConfig, optimizer: Entry) -> list[Problem]:
    problems = []
    if config.unet_lr == 0 and config.text_encoder_lr == 0:
        problems.append(Problem("unet_lr", "(0) and text_encoder_lr (0) leave nothing to train.", hint="Raise one of them."))
    field = "learning_rate" if config.unet_lr is None else "unet_lr"
    rate, text_rate = getattr(config, field), config.text_encoder_lr
    low, high = optimizer.options["rates"]
    usual = f"{optimizer.options['usual']} is usual with {optimizer.label}."
    if 0 < rate < low:
        problems.append(Problem(field, f"({rate:g}) is below {low:g}, where little is learned.", "warning", usual))
    for name, value in ((field, rate), ("text_encoder_lr", text_rate)):
        if value > high and not _is_made_for(config.base_model, value):
            problems.append(Problem(name, f"({value:g}) is above {high:g}, where most runs become unstable.", "warning", usual))
    if optimizer.options.get("one_rate") and rate > 0 and text_rate not in (0, rate):
        problems.append(
            Problem(
                "text_encoder_lr",
                f"({text_rate:g}) must be 0 or equal to {field} ({rate:g}): {optimizer.name} finds one step size for all parts.",
                hint="0 is usual.",
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


def _is_made_for(base_model: Path, rate: float) -> bool:
    """Returns whether a preset that was made for this very base sets the learning rate."""
    presets = [preset for preset in load_presets().values() if preset.base == base_model.stem]
    return any(float(preset.values.get("learning_rate", 0)) == rate for preset in presets)


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
    if config.keep_tokens and not (config.shuffle_tags or config.tag_dropout):
        message = "has no effect while shuffle_tags is false and tag_dropout is 0."
        problems.append(Problem("keep_tokens", message, "notice"))
    for name, other, needed in DEPENDENT:
        value = getattr(config, other)
        if getattr(config, name) != default_of(name) and value != needed:
            problems.append(Problem(name, f"has no effect while {other} is {str(value).lower()}.", "notice"))
    return problems


def _check_objective(config: TrainConfig) -> list[Problem]:
    problems = []
    if config.debiased_estimation and config.min_snr_gamma is not None:
        problems.append(
            Problem(
                "debiased_estimation",
                f"(true) and min_snr_gamma ({config.min_snr_gamma:g}) both weigh the noise levels.",
                hint="Set debiased_estimation to false, or leave min_snr_gamma empty.",
            )
        )
    if config.zero_terminal_snr and config.prediction_type == "epsilon":
        problems.append(needs_v_prediction("prediction_type is epsilon"))
    return problems


def _check_validation(config: TrainConfig) -> list[Problem]:
    folder = config.validation_dir
    if folder is None:
        return []
    if not folder.is_dir():
        return [_missing("validation_dir", folder, "folder")]
    problems = []
    if config.validation_share:
        problems.append(
            Problem("validation_share", f"({config.validation_share:g}) and validation_dir exclude each other.", hint="Keep one.")
        )
    if _is_within(folder, config.train_data_dir) or folder.resolve() == config.train_data_dir.resolve():
        problems.append(
            Problem(
                "validation_dir",
                f"({folder}) lies in the picture folder, so its pictures would be trained.",
                hint="Choose a folder outside train_data_dir, or set validation_share instead.",
            )
        )
    return problems


def _check_packages(config: TrainConfig) -> list[Problem]:
    if config.log_with == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        return [
            Problem(
                "log_with",
                "asks for TensorBoard, which is not installed; the run goes on and writes events.jsonl.",
                "warning",
                f"Install it with: {pip_command('tensorboard')}",
            )
        ]
    return []


def _check_device(config: TrainConfig) -> list[Problem]:
    if DEVICE.fullmatch(config.device):
        return []
    return [Problem("device", f"({config.device}) must be auto, cpu, cuda, cuda:1, xpu or mps.", hint="auto is usual.")]


def _missing(field: str, path: Path, kind: str) -> Problem:
    nearest = nearest_existing(path)
    where = "the current folder" if nearest == Path() else str(nearest)
    return Problem(
        field, f"({path}) is not a {kind}.", hint=f"The path exists as far as {where}; relative paths start at {Path.cwd()}."
    )


def _is_within(inner: Path, outer: Path) -> bool:
    return outer.resolve() in inner.resolve().parents
