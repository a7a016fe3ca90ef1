"""What settings come to on these pictures and this base: buckets, steps, and every problem, before any model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from lora_trainer.adapters.names import check_output_name
from lora_trainer.config.check import check_config
from lora_trainer.config.schema import TrainConfig
from lora_trainer.dataset.buckets import Bucket, assign_buckets
from lora_trainer.dataset.sampler import stable_order, steps_per_epoch
from lora_trainer.dataset.scan import DatasetScan, Item, scan_dataset
from lora_trainer.errors import ConfigError, DatasetError, ModelError, Problem
from lora_trainer.models.detect import Detection, detect

T = TypeVar("T")
FEW_HELD_OUT = 4
UNKNOWN_RESOLUTION = 768  # of SD2 before its trial forward: most SD2 bases in use predict v at 768


@dataclass(frozen=True)
class TrainPlan:
    """The numbers of a run.

    Attributes:
        detection: what the base model's header says.
        scan: the pictures that will be trained, and those left out.
        buckets: the training size of each item.
        held_out: pictures that are not trained but tell how well the others were learned; `held_out_buckets` are their sizes.
        resolution: side of the square that the buckets have the area of, in pixels.
        steps_per_epoch, total_steps: optimizer steps.
        problems: warnings and notices; errors are raised.
    """

    detection: Detection
    scan: DatasetScan
    buckets: tuple[Bucket, ...]
    held_out: tuple[Item, ...]
    held_out_buckets: tuple[Bucket, ...]
    resolution: int
    steps_per_epoch: int
    total_steps: int
    problems: tuple[Problem, ...]

    @property
    def num_epochs(self) -> float:
        return self.total_steps / self.steps_per_epoch


def make_plan(config: TrainConfig) -> TrainPlan:
    """Checks the settings, reads the base model's header and every picture.

    Raises:
        ConfigError: with every error found, those of the base model and the pictures included.
    """
    problems = check_config(config)
    name_problem = check_output_name(config.name)
    if name_problem:
        problems.append(name_problem)
    named = {problem.field for problem in problems if problem.severity == "error"}
    detection = scan = None
    held_out: tuple[Item, ...] = ()
    if "base_model" not in named:
        detection = _collect(problems, "base_model", lambda: detect(config.base_model))
    if not named & {"train_data_dir", "metadata_path"}:
        scan = _collect(problems, "train_data_dir", lambda: scan_dataset(config.train_data_dir, config.metadata_path))
    if scan is not None and not named & {"validation_dir", "validation_share"}:
        scan, held_out = _hold_back(config, scan, problems)
    if detection is None or scan is None or any(problem.severity == "error" for problem in problems):
        raise ConfigError(problems)
    problems += scan.problems
    return _count(config, detection, scan, held_out, problems)


def replan(config: TrainConfig, plan: TrainPlan, resolution: int) -> TrainPlan:
    """Returns the plan at the resolution that the loaded base turned out to have; the settings' own comes first."""
    if config.resolution is not None or resolution == plan.resolution:
        return plan
    return _count(config, plan.detection, plan.scan, plan.held_out, list(plan.problems), resolution)


def _count(
    config: TrainConfig,
    detection: Detection,
    scan: DatasetScan,
    held_out: tuple[Item, ...],
    problems: list[Problem],
    resolution: int | None = None,
) -> TrainPlan:
    resolution = config.resolution or resolution or detection.resolution or UNKNOWN_RESOLUTION
    sizes = [(item.width, item.height) for item in (*scan.items, *held_out)]
    all_buckets = assign_buckets(sizes, resolution, upscale=config.upscale_small)
    buckets, held_out_buckets = all_buckets[: len(scan.items)], all_buckets[len(scan.items) :]
    num_batches = steps_per_epoch(buckets, [item.repeats for item in scan.items], batch_size=config.batch_size)
    steps = -(-num_batches // config.gradient_accumulation_steps)
    return TrainPlan(
        detection=detection,
        scan=scan,
        buckets=tuple(buckets),
        held_out=held_out,
        held_out_buckets=tuple(held_out_buckets),
        resolution=resolution,
        steps_per_epoch=steps,
        total_steps=config.max_train_steps or steps * config.epochs,
        problems=tuple(problems),
    )


def _hold_back(config: TrainConfig, scan: DatasetScan, problems: list[Problem]) -> tuple[DatasetScan, tuple[Item, ...]]:
    """Returns what is trained, and the pictures that are held back for validation. Findings are added to `problems`."""
    held_out: tuple[Item, ...] = ()
    if config.validation_dir is not None:
        folder = config.validation_dir
        found = _collect(problems, "validation_dir", lambda: scan_dataset(folder))
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


def _collect(problems: list[Problem], field: str, read: Callable[[], T]) -> T | None:
    """Returns what `read` returns; what it raises becomes a problem of that field."""
    try:
        return read()
    except (ModelError, DatasetError) as error:
        problems.append(Problem(field, str(error)))
        return None
