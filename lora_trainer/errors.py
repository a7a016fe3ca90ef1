"""The one tree of exceptions, and `Problem`, one finding of a check.

Every message says what is wrong, the value found, what is allowed and what to do. The command line, the page and the API
show the same text.

    LoraTrainerError
    ├── ConfigError           the settings; carries every problem found
    ├── DatasetError          the pictures and captions
    │   └── TruncatedPictureError
    ├── ModelError            the checkpoint
    │   └── UnsupportedModelError
    ├── AdapterError          a LoRA file
    │   └── LoraInUseError
    ├── RunFolderError        locked, finished, or other settings than asked
    ├── JobError              the queue of jobs: unknown, or a command that does not fit
    ├── HostError             the WebUI that we live in could not do what was asked of it
    ├── MissingPackageError   an optional package; names its pip command
    └── TrainingError         while training
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_OUT_OF_MEMORY = re.compile(
    "out of memory|can't allocate memory|cannot allocate memory|not enough memory|defaultcpuallocator|paging file is too small"
    # A GPU's libraries have words of their own for it.
    r"|STATUS_\w*ALLOC(ATION)?_FAILED|CUBLAS_STATUS_NOT_INITIALIZED.*cublasCreate"
    "|unable to find a valid cudnn algorithm|unable to find an engine to execute",
    re.IGNORECASE,
)

Severity = Literal["error", "warning", "notice"]


@dataclass(frozen=True)
class Problem:
    """One finding of a check.

    Attributes:
        field: the setting or file that it is about, as the user wrote it; "" when it is about the whole.
        message: what is wrong, with the value found.
        severity: "error" stops the run, "warning" may spoil it, "notice" only informs.
        hint: what to do; "" when the message already says it.
    """

    field: str
    message: str
    severity: Severity = "error"
    hint: str = ""

    def __str__(self) -> str:
        subject = f"{self.field}: " if self.field else ""
        hint = f" {self.hint}" if self.hint else ""
        return f"{subject}{self.message}{hint}"


class LoraTrainerError(Exception):
    """The root: whatever we raise on purpose, with a message made for the user."""


class ConfigError(LoraTrainerError):
    """The settings cannot be used. `problems` holds every finding, not only the first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class DatasetError(LoraTrainerError):
    """Nothing usable is left of the pictures, or one of them changed while it was needed."""


class TruncatedPictureError(DatasetError):
    """The file of a picture ends before its pixels do."""


class ModelError(LoraTrainerError):
    """The checkpoint cannot be read."""


class UnsupportedModelError(ModelError):
    """The checkpoint was recognised, and is of a kind that cannot be trained here."""


class AdapterError(LoraTrainerError):
    """A LoRA file cannot be read, or does not fit the base."""


class LoraInUseError(AdapterError):
    """A program on Windows holds a LoRA file, so another cannot take its place. `path` is where it stands, as it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(
            f"{path} is in use by a program, so nothing was written over it. Close the program (a WebUI that drew with it may "
            "hold it, too) and try again, or take another name."
        )


class RunFolderError(LoraTrainerError):
    """The run folder is in use, or belongs to a run with other settings."""


class HostError(LoraTrainerError):
    """The WebUI cannot do what was asked of it, or failed at it."""


class TrainingError(LoraTrainerError):
    """Training cannot go on."""


class JobError(LoraTrainerError):
    """A job is unknown, cannot be queued, or a command does not fit its state."""


def pip_command(package: str) -> str:
    """Returns the command that installs a package for this very Python: in a WebUI the WebUI's, else our own environment's."""
    return f'"{sys.executable}" -m pip install {package}'


class MissingPackageError(LoraTrainerError):
    """An optional package is needed and is not installed.

    Args:
        package: its name for pip.
        purpose: what it is needed for, to complete "... needs the package X".
    """

    def __init__(self, package: str, purpose: str) -> None:
        self.package = package
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed. Install it with: {pip_command(package)}"
        )


def examples(names: Sequence[str], most: int = 3) -> str:
    """Returns the first names of a list for a message, and how many more there are."""
    first = ", ".join(names[:most])
    return f"{first} and {len(names) - most} more" if len(names) > most else first


def says_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory could not be allocated, on a GPU or in RAM, in whatever library's words."""
    return isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)) is not None


def free_frames(error: BaseException) -> None:
    """Drops the local variables of the frames that an exception and its causes came through: they hold models and tensors."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
