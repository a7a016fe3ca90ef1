"""What every captioner is: loaded when entered, unloaded when left, and between them captions for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import torch
from PIL import Image

from lora_trainer.errors import ConfigError, Problem
from lora_trainer.host.base import Host

CPU = torch.device("cpu")


@dataclass(frozen=True)
class CaptionerSettings:
    """How a captioner writes.

    Attributes:
        model: the folder with the model's files; "" for a captioner without.
        prompt: words that every caption begins with, such as "a painting of"; "" for none.
        num_beams: captions followed at once. 1 takes the likeliest word each time; more is slower and a little better.
        max_new_tokens: the longest caption, in tokens of the captioner; a word is one or two.
        min_new_tokens: the shortest.
        device: where it runs.
        dtype: of its weights.
        host: the program that we live in, for the captioner that is its own.
    """

    model: str
    prompt: str = ""
    num_beams: int = 3
    max_new_tokens: int = 50
    min_new_tokens: int = 0
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    host: Host | None = None

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            ConfigError: with every number that cannot be used.
        """
        problems = []
        ranges = {"num_beams": (1, 16), "max_new_tokens": (1, 200), "min_new_tokens": (0, self.max_new_tokens)}
        for field, (lowest, highest) in ranges.items():
            value = getattr(self, field)
            if not lowest <= value <= highest:
                problems.append(Problem(field, f"({value}) must be from {lowest} to {highest}."))
        if problems:
            raise ConfigError(problems)


class Captioner(Protocol):
    """A context manager: entering loads the model, leaving gives its memory back."""

    def __enter__(self) -> Captioner: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Returns a caption for each RGB picture, in order. A batch gives what its pictures give one by one."""

    def move(self, device: torch.device) -> None:
        """Moves what it holds, between two batches: to memory while somebody else needs the device, and back."""
