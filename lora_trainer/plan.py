"""What settings come to on these pictures and this base: buckets, steps, and every problem, before any model is loaded."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from lora_trainer.adapters.keys import FOREIGN_FORMS, foreign_form, kinds_of
from lora_trainer.adapters.names import check_output_name
from lora_trainer.amount import warn_of_few_steps
from lora_trainer.config.check import check_config, needs_v_prediction
from lora_trainer.config.schema import TrainConfig
from lora_trainer.dataset.advice import warn_of_trigger
from lora_trainer.dataset.buckets import Bucket, assign_buckets
from lora_trainer.dataset.sampler import stable_order, steps_per_epoch
from lora_trainer.dataset.scan import DatasetScan, Item, scan_dataset
from lora_trainer.dataset.weights import scan_regularisation, weigh_folders
from lora_trainer.errors import ConfigError, DatasetError, ModelError, Problem
from lora_trainer.models.detect import Detection, detect
from lora_trainer.models.header import read_header
from lora_trainer.run_folder import RunFolder

T = TypeVar("T")
FEW_HELD_OUT = 4
UNKNOWN_RESOLUTION = 768  # of SD2 before its trial forward: most SD2 bases in use predict v at 768


@dataclass(frozen=True)
class TrainPlan:
    """The numbers of a run.

    Attributes:
        detection: what the base model's header says.
        scan: the pictures that will be trained, and those left out.
        reg_scan: those of the regularisation folder; None without one.
        items: what an epoch consists of: each picture once for every resolution.
        buckets: the training size of each item.
        held_out: pictures that are not trained but tell how well the others were learned; `held_out_buckets` are their sizes.
        resolutions: sides of the squares that the buckets have the area of, in pixels, the smallest first.
        steps_per_epoch, total_steps: optimizer steps.
        problems: warnings and notices; errors are raised.
    """

    detection: Detection
    scan: DatasetScan
    reg_scan: DatasetScan | None
    items: tuple[Item, ...]
    buckets: tuple[Bucket, ...]
    held_out: tuple[Item, ...]
    held_out_buckets: tuple[Bucket, ...]
    resolutions: tuple[int, ...]
    steps_per_epoch: int
    total_steps: int
    problems: tuple[Problem, ...]

    @property
    def num_epochs(self) -> float:
        return self.total_steps / self.steps_per_epoch

    @property
    def resolution(self) -> int:
        """The largest of `resolutions`."""
        return self.resolutions[-1]

    @property
    def reg_items(self) -> tuple[Item, ...]:
        """The regularisation pictures."""
        return self.reg_scan.items if self.reg_scan else ()

    @property
    def data_key(self) -> str:
        """A hash of pictures, captions and repeats by which a continued run notices that they are others."""
        facts = [(item.name, item.caption, item.repeats, item.width, item.height) for item in self.items]
        return hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def make_plan(config: TrainConfig) -> TrainPlan:
    """Checks the settings, reads the base model's header and every picture.

    Raises:
        ConfigError: with every error found, those of the base model and the pictures included.
    """
    problems = check_config(config)
    name_problem = check_output_name(config.name)
    if name_problem:
        problems.append(name_problem)
    problems += _check_start(config)
    named = {problem.field for problem in problems if problem.severity == "error"}
    detection = scan = reg_scan = None
    held_out: tuple[Item, ...] = ()
    if "base_model" not in named:
        detection = _collect(problems, "base_model", lambda: detect(config.base_model))
    if config.zero_terminal_snr and config.prediction_type == "auto" and detection and detection.prediction_type == "epsilon":
        problems.append(needs_v_prediction(f"{config.base_model.name} predicts epsilon ({detection.prediction_reason})"))
    if not named & {"train_data_dir", "metadata_path"}:
        scan = _scan(config, problems)
    if scan is not None and not named & {"validation_dir", "validation_share"}:
        scan, held_out = _hold_back(config, scan, problems)
    if config.reg_data_dir is not None and "reg_data_dir" not in named:
        reg_scan = _scan_regularisation(config, config.reg_data_dir, problems)
    if detection is None or scan is None or any(problem.severity == "error" for problem in problems):
        raise ConfigError(problems)
    problems += [*scan.problems, *(reg_scan.problems if reg_scan else ())]
    if config.alpha_mask and not any(item.has_alpha for item in scan.items):
        problems.append(Problem("alpha_mask", "has no effect: no picture has transparency.", "warning"))
    plan = _count(config, detection, scan, reg_scan, held_out, problems, config.resolutions)
    if config.lr_warmup_steps >= plan.total_steps:
        message = (
            f"({config.lr_warmup_steps}) is not below the run's {plan.total_steps} steps, so the learning rate is never reached."
        )
        plan = replace(
            plan, problems=(*plan.problems, Problem("lr_warmup_steps", message, "warning", "5 % of the steps is usual."))
        )
    return replace(plan, problems=(*plan.problems, *_doubts(config, plan)))


def replan(config: TrainConfig, plan: TrainPlan, resolution: int) -> TrainPlan:
    """Returns the plan at the resolution that the loaded base turned out to have; the settings' own comes first."""
    if config.resolutions or resolution == plan.resolution:
        return plan
    return _count(config, plan.detection, plan.scan, plan.reg_scan, plan.held_out, list(plan.problems), (resolution,))


def _doubts(config: TrainConfig, plan: TrainPlan) -> list[Problem]:
    items = plan.scan.items
    num_shown = sum(item.repeats for item in items) * len(plan.resolutions)
    return [
        *warn_of_few_steps(
            config, num_pictures=len(items), num_shown=num_shown, num_epochs=plan.num_epochs, steps=plan.total_steps
        ),
        *warn_of_trigger(config.trigger_words, [item.caption for item in items]),
    ]


def _scan(config: TrainConfig, problems: list[Problem]) -> DatasetScan | None:
    scan = _collect(
        problems,
        "train_data_dir",
        lambda: scan_dataset(config.train_data_dir, config.metadata_path, alpha_mask=config.alpha_mask),
    )
    weights = config.folder_weights
    if scan is None or not weights:
        return scan
    items = scan.items
    return replace(scan, items=_collect(problems, "folder_weights", lambda: weigh_folders(items, weights)) or items)


def _scan_regularisation(config: TrainConfig, folder: Path, problems: list[Problem]) -> DatasetScan | None:
    return _collect(
        problems,
        "reg_data_dir",
        lambda: scan_regularisation(folder, config.reg_weight, alpha_mask=config.alpha_mask),
    )


def _check_start(config: TrainConfig) -> list[Problem]:
    """Judges the LoRA file to start from by its header. A run that has a state of its own does without it."""
    path = config.start_from
    if path is None or any(RunFolder(config.output_dir).state_dir.glob("step-*.safetensors")):
        return []
    try:
        header = read_header(path)
    except ModelError as error:
        return [Problem("start_from", str(error))]
    except OSError as error:
        return [Problem("start_from", f"({path}) cannot be read: {error.strerror or error}.", hint="Correct the path.")]
    form = foreign_form(header.shapes)
    if form is not None:
        return [Problem("start_from", f"({path}) is in the form of {form}, not the WebUI's.", hint=FOREIGN_FORMS[form][1])]
    kinds = kinds_of(header.shapes)
    if kinds != ["LoRA"]:
        message = f"({path}) is of the kind {', '.join(kinds)}." if kinds else f"({path}) holds no LoRA."
        return [Problem("start_from", message, hint="Give a LoRA file.")]
    ranks = Counter(shape[0] for key, shape in header.shapes.items() if key.endswith(".lora_down.weight") and shape)
    rank = ranks.most_common(1)[0][0] if ranks else config.lora_rank
    if rank != config.lora_rank:
        message = f"({path}) has rank {rank}, and lora_rank is {config.lora_rank}."
        return [Problem("start_from", message, hint=f"Set lora_rank to {rank}.")]
    return []


def _count(
    config: TrainConfig,
    detection: Detection,
    scan: DatasetScan,
    reg_scan: DatasetScan | None,
    held_out: tuple[Item, ...],
    problems: list[Problem],
    resolutions: tuple[int, ...],
) -> TrainPlan:
    resolutions = resolutions or (detection.resolution or UNKNOWN_RESOLUTION,)
    pictures = scan.items + (reg_scan.items if reg_scan else ())
    items = pictures * len(resolutions)
    buckets = [bucket for side in resolutions for bucket in _assign(config, pictures, side)]
    num_batches = steps_per_epoch(buckets, [item.repeats for item in items], batch_size=config.batch_size)
    steps = -(-num_batches // config.gradient_accumulation_steps)
    return TrainPlan(
        detection=detection,
        scan=scan,
        reg_scan=reg_scan,
        items=items,
        buckets=tuple(buckets),
        held_out=held_out,
        held_out_buckets=tuple(_assign(config, held_out, resolutions[-1])),
        resolutions=resolutions,
        steps_per_epoch=steps,
        total_steps=config.max_train_steps or steps * config.epochs,
        problems=tuple(problems),
    )


def _hold_back(config: TrainConfig, scan: DatasetScan, problems: list[Problem]) -> tuple[DatasetScan, tuple[Item, ...]]:
    """Returns what is trained, and the pictures that are held back for validation. Findings are added to `problems`."""
    held_out: tuple[Item, ...] = ()
    if config.validation_dir is not None:
        folder = config.validation_dir
        found = _collect(problems, "validation_dir", lambda: scan_dataset(folder, alpha_mask=config.alpha_mask))
        if found is not None:
            held_out = found.items
            problems += [replace(problem, field=f"validation_dir/{problem.field}") for problem in found.problems]
    elif config.validation_share > 0:
        count = max(1, round(config.validation_share * len(scan.items)))
        if count >= len(scan.items):
            message = f"({config.validation_share:g}) leaves nothing of {len(scan.items)} pictures to train."
            problems.append(Problem("validation_share", message, hint="Set it to 0, or add pictures."))
            return scan, ()
        chosen = set(stable_order([item.name for item in scan.items], config.seed, "held out")[:count])
        held_out = tuple(item for index, item in enumerate(scan.items) if index in chosen)
        scan = replace(scan, items=tuple(item for index, item in enumerate(scan.items) if index not in chosen))
    if 0 < len(held_out) < FEW_HELD_OUT:
        field = "validation_share" if config.validation_dir is None else "validation_dir"
        message = f"gives only {len(held_out)} held-out pictures, so the recommended step rests on little."
        problems.append(Problem(field, message, "notice", f"{FEW_HELD_OUT} or more are better."))
    return scan, held_out


def _assign(config: TrainConfig, items: tuple[Item, ...], resolution: int) -> list[Bucket]:
    return assign_buckets([(item.width, item.height) for item in items], resolution, upscale=config.upscale_small)


def _collect(problems: list[Problem], field: str, read: Callable[[], T]) -> T | None:
    """Returns what `read` returns; what it raises becomes a problem of that field."""
    try:
        return read()
    except (ModelError, DatasetError) as error:
        problems.append(Problem(field, str(error)))
        return None
