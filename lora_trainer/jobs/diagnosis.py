"""Why a job failed, or why a training learns nothing, in plain words and with the setting to change.

Errors are told apart by their type and words alone, since this room knows none of the libraries that raise them.
"""

from __future__ import annotations

import errno
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lora_trainer.errors import (
    AdapterError,
    ConfigError,
    DatasetError,
    LoraTrainerError,
    MissingPackageError,
    ModelError,
    Problem,
    RunFolderError,
    pip_command,
    says_out_of_memory,
)
from lora_trainer.jobs.view import Progress
from lora_trainer.training.table import OPTIMIZERS

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
NOT_FINITE = re.compile(r"not finite|non-finite|\bnan\b|\binf(inity)?\b", re.IGNORECASE)
DISK_WORDS = re.compile(r"no space left|disk .*(is )?full|disk .* has .* free", re.IGNORECASE)

# How much a loss must move to say anything. Training losses are noisy: a step sees a few pictures at random noise levels. So they
# tell a loss that swings, but a good LoRA lowers them by a few per cent, which only the validation's fixed noise shows.
FEW_STEPS, FEW_BINS, FEW_VALIDATIONS = 200, 10, 3
FLAT_FALL = 0.01
SWING_RATIO, SWING_SHARE = 3.0, 0.15
RISE_SHARE = 0.3

Settings = Mapping[str, Any]


def diagnose_error(error: BaseException, settings: Settings) -> list[Problem]:
    """Returns what went wrong and what to change.

    Args:
        error: as it reached the worker.
        settings: of the job, by name, as far as they are known.
    """
    if isinstance(error, ConfigError):
        return [problem for problem in error.problems if problem.severity == "error"] or list(error.problems)
    for cause in _causes(error):
        for rule in _RULES:
            problem = rule(cause, settings)
            if problem is not None:
                return [problem]
    if isinstance(error, LoraTrainerError):
        return [Problem("", str(error))]
    message = f"{type(error).__name__}: {error}"
    return [Problem("", message, hint="This was not foreseen. The log's last lines say where; please report them.")]


def diagnose_progress(progress: Progress, settings: Settings) -> list[Problem]:
    """Returns what a training's numbers say so far: its loss swings, its validation does not fall, or nothing."""
    problems = []
    if progress.num_skipped:
        problems.append(
            Problem(
                "precision",
                f"{progress.num_skipped} steps gave numbers that are not finite and were skipped.",
                "warning",
                "If there are more of them, set precision to fp32 or bf16, or lower learning_rate; look at the pictures named.",
            )
        )
    if _swings(progress):
        problems.append(_lower_rate(settings))
    elif _is_flat(progress):
        problems += _raise_rate(settings)
    return problems


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields the error and what it came from."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _no_memory(error: BaseException, settings: Settings) -> Problem | None:
    if not says_out_of_memory(error):
        return None
    message = "there was not enough memory for these settings."
    batch_size = _number(settings, "batch_size", 1)
    if batch_size > 1:
        smaller, twice = int(-(-batch_size // 2)), int(2 * _number(settings, "gradient_accumulation_steps", 1))
        hint = f"Set batch_size to {smaller} and gradient_accumulation_steps to {twice}: as good, and slower."
        return Problem("batch_size", message, hint=hint)
    if not settings.get("gradient_checkpointing", True):
        hint = "Set gradient_checkpointing to true: the same result in about a third more time."
        return Problem("gradient_checkpointing", message, hint=hint)
    hint = "Lower resolution, then lora_rank, and close other programs that use the card."
    return Problem("resolution", message, hint=hint)


def _not_finite(error: BaseException, settings: Settings) -> Problem | None:
    if not NOT_FINITE.search(str(error)) or isinstance(error, OSError):
        return None
    field, rate = _rate(settings)
    lower = f" or {field} to {rate / 3:.1g}" if rate else ""
    return Problem(
        "precision",
        "the training's numbers overflowed (NaN), several steps in a row.",
        hint=f"Set precision to fp32, or bf16 on a card that has it,{lower} and start again; look at the pictures in the log.",
    )


def _no_pictures(error: BaseException, settings: Settings) -> Problem | None:
    if not isinstance(error, DatasetError):
        return None
    field = "train_data_dir" if _is_training(settings) else "input_dir"
    return Problem(field, str(error), hint="Look at the Dataset part: it names each picture's problem.")


def _wrong_base(error: BaseException, settings: Settings) -> Problem | None:
    if isinstance(error, AdapterError):
        return Problem("start_from", str(error), hint="Choose a LoRA file that was made for this base, or none.")
    if not isinstance(error, ModelError):
        return None
    if not _is_training(settings):
        return Problem("captioner", str(error))
    return Problem("base_model", str(error), hint="Choose another base model: a whole SD1, SD2 or SDXL checkpoint.")


def _full_disk(error: BaseException, settings: Settings) -> Problem | None:
    is_full = isinstance(error, OSError) and error.errno in FULL_DISK
    if not is_full and not (isinstance(error, OSError | LoraTrainerError) and DISK_WORDS.search(str(error))):
        return None
    message = str(error) if isinstance(error, LoraTrainerError) else "the disk is full."
    hint = "Free some space, or raise save_steps so that fewer files are kept; then continue: nothing saved is lost."
    return Problem("save_steps", message, hint=hint)


def _missing_package(error: BaseException, settings: Settings) -> Problem | None:
    if isinstance(error, MissingPackageError):
        return Problem("", str(error), hint="Restart afterwards.")
    if not isinstance(error, ImportError):
        return None
    package = (error.name or "").partition(".")[0]
    command = f"Install it with: {pip_command(package)}" if package else "Install the extension anew."
    return Problem("", f"a package is missing or does not fit: {error}.", hint=f"{command} Then restart.")


def _folder_in_use(error: BaseException, settings: Settings) -> Problem | None:
    return Problem("output_dir", str(error)) if isinstance(error, RunFolderError) else None


def _no_access(error: BaseException, settings: Settings) -> Problem | None:
    if not isinstance(error, OSError) or isinstance(error, ConnectionError):
        return None
    where = error.filename or "a file"
    return Problem("", f"{where}: {error.strerror or error}.", hint="Check that it exists and may be read and written.")


_Rule = Callable[[BaseException, Settings], Problem | None]
# The first that fits counts; those by type come before those by words.
_RULES: tuple[_Rule, ...] = (
    _missing_package,
    _folder_in_use,
    _no_memory,
    _full_disk,
    _no_pictures,
    _wrong_base,
    _not_finite,
    _no_access,
)


def _swings(progress: Progress) -> bool:
    """Whether the loss rises, or its mean jumps by more than the noise of single steps explains."""
    curve = progress.curve
    bins = [entry for entry in curve.bins if entry.count > 1]
    if curve.count < FEW_STEPS or len(bins) < FEW_BINS:
        return False
    third = len(bins) // 3
    (early, early_error), (late, late_error) = curve.average(bins[:third]), curve.average(bins[-third:])
    if late - early > RISE_SHARE * early + SWING_RATIO * math.hypot(early_error, late_error):
        return True
    # Of independent means, neighbours differ by twice the square of their error, on average.
    jumps = sum((one.mean - other.mean) ** 2 for one, other in itertools.pairwise(bins)) / 2 / (len(bins) - 1)
    noise = sum(entry.error**2 for entry in bins) / len(bins)
    mean, _ = curve.average(bins)
    return jumps > SWING_RATIO**2 * noise and jumps**0.5 > SWING_SHARE * mean


def _is_flat(progress: Progress) -> bool:
    """Whether nothing is learned, by the validation alone."""
    if len(progress.validations) < FEW_VALIDATIONS or progress.step < FEW_STEPS:
        return False
    _, loss, base_loss = progress.validations[-1]
    return loss > (1 - FLAT_FALL) * base_loss


def _raise_rate(settings: Settings) -> list[Problem]:
    field, rate = _rate(settings)
    highest = _highest_rate(settings)
    problems = []
    if rate and highest and rate < highest:
        problems.append(
            Problem(
                field,
                f"({rate:g}) may be too low: the validation loss does not fall.",
                "warning",
                f"Raise it to {min(3 * rate, highest):.1g}; up to {highest:g} is reasonable.",
            )
        )
    problems.append(
        Problem(
            "train_data_dir",
            "may hold blurred or repeated pictures, or captions that do not say what is seen: the validation loss does not fall.",
            "warning",
            "Remove blurred and duplicate pictures in the Dataset part, and correct the captions.",
        )
    )
    return problems


def _lower_rate(settings: Settings) -> Problem:
    field, rate = _rate(settings)
    lower = f"Lower it to {rate / 3:.1g}" if rate and _highest_rate(settings) else "Take AdamW with learning_rate 1e-4"
    message = f"({rate:g}) is too high: the loss swings." if rate else "is too high: the loss swings."
    return Problem(field, message, "warning", f"{lower}, or use a step saved before it began.")


def _is_training(settings: Settings) -> bool:
    return "input_dir" not in settings


def _rate(settings: Settings) -> tuple[str, float]:
    """Returns the setting that holds the learning rate, and its value, 0 when not known."""
    field = "unet_lr" if settings.get("unet_lr") is not None else "learning_rate"
    return field, _number(settings, field, 0.0)


def _highest_rate(settings: Settings) -> float:
    """Returns the highest reasonable learning rate of the optimizer; 0 where it finds its own."""
    name = str(settings.get("optimizer", "adamw"))
    if name not in OPTIMIZERS.names():
        return 0.0
    options = OPTIMIZERS.get(name).options
    return 0.0 if options.get("one_rate") else float(options["rates"][1])


def _number(settings: Settings, name: str, default: float) -> float:
    try:
        return float(settings.get(name, default))
    except (TypeError, ValueError):
        return default
