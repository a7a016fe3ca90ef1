"""What settings come to on these pictures and this base: buckets, steps, and every problem, before any model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from lora_trainer.adapters.names import check_output_name
from lora_trainer.config.check import check_config
from lora_trainer.config.schema import TrainConfig
from lora_trainer.dataset.buckets import Bucket, assign_buckets
from lora_trainer.dataset.sampler import steps_per_epoch
from lora_trainer.dataset.scan import DatasetScan, scan_dataset
from lora_trainer.errors import ConfigError, DatasetError, ModelError, Problem
from lora_trainer.models.detect import Detection, detect

T = TypeVar("T")
UNKNOWN_RESOLUTION = 768  # of SD2 before its trial forward: most SD2 bases in use predict v at 768


@dataclass(frozen=True)
class TrainPlan:
    """The numbers of a run.

    Attributes:
        detection: what the base model's header says.
        scan: the pictures that will be trained, and those left out.
        buckets: the training size of each item.
        resolution: side of the square that the buckets have the area of, in pixels.
        steps_per_epoch, total_steps: optimizer steps.
        problems: warnings and notices; errors are raised.
    """

    detection: Detection
    scan: DatasetScan
    buckets: tuple[Bucket, ...]
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
    if "base_model" not in named:
        detection = _collect(problems, "base_model", lambda: detect(config.base_model))
    if not named & {"train_data_dir", "metadata_path"}:
        scan = _collect(problems, "train_data_dir", lambda: scan_dataset(config.train_data_dir, config.metadata_path))
    if detection is None or scan is None or any(problem.severity == "error" for problem in problems):
        raise ConfigError(problems)
    problems += scan.problems
    return _count(config, detection, scan, problems)


def replan(config: TrainConfig, plan: TrainPlan, resolution: int) -> TrainPlan:
    """Returns the plan at the resolution that the loaded base turned out to have; the settings' own comes first."""
    if config.resolution is not None or resolution == plan.resolution:
        return plan
    return _count(config, plan.detection, plan.scan, list(plan.problems), resolution)


def _count(
    config: TrainConfig, detection: Detection, scan: DatasetScan, problems: list[Problem], resolution: int | None = None
) -> TrainPlan:
    resolution = config.resolution or resolution or detection.resolution or UNKNOWN_RESOLUTION
    sizes = [(item.width, item.height) for item in scan.items]
    buckets = assign_buckets(sizes, resolution, upscale=config.upscale_small)
    num_batches = steps_per_epoch(buckets, [item.repeats for item in scan.items], batch_size=config.batch_size)
    steps = -(-num_batches // config.gradient_accumulation_steps)
    return TrainPlan(
        detection=detection,
        scan=scan,
        buckets=tuple(buckets),
        resolution=resolution,
        steps_per_epoch=steps,
        total_steps=config.max_train_steps or steps * config.epochs,
        problems=tuple(problems),
    )


def _collect(problems: list[Problem], field: str, read: Callable[[], T]) -> T | None:
    """Returns what `read` returns; what it raises becomes a problem of that field."""
    try:
        return read()
    except (ModelError, DatasetError) as error:
        problems.append(Problem(field, str(error)))
        return None
