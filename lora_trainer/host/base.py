"""What every host offers: its folders and lists, its device for a while, and what is told to it when a LoRA is finished.

A host is a WebUI in whose process we are a guest, or `standalone`. Nothing above this file asks which one it is. Standard library
only.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PAUSE_POLL_SECONDS = 0.2
DEFAULT_DATA_DIR = Path("lora_trainer_data")  # without a WebUI, below the current folder


@dataclass(frozen=True)
class ModelFile:
    """A model that can be chosen.

    Attributes:
        name: as the host shows it.
        path: the file, or a diffusers folder.
    """

    name: str
    path: Path


@dataclass(frozen=True)
class Folders:
    """Where things lie. All absolute; the writable ones are made when first needed.

    Attributes:
        data_dir: ours: `datasets`, `runs`, `cache` and the queue are below it.
        lora_dir: where the host looks for LoRA files.
        second_lora_dir: a copy goes there, too, for another extension; None for none.
        open: people of the page may name files and folders below these, and no others; None for any. See `places`.
    """

    data_dir: Path
    lora_dir: Path
    second_lora_dir: Path | None = None
    open: tuple[Path, ...] | None = None

    @property
    def datasets(self) -> Path:
        return self.data_dir / "datasets"

    @property
    def runs(self) -> Path:
        return self.data_dir / "runs"

    @property
    def cache(self) -> Path:
        return self.data_dir / "cache"

    @property
    def captioners(self) -> Path:
        """Models that write captions, loaded from the hub or put there by hand."""
        return self.data_dir / "captioners"


@dataclass(frozen=True)
class HostOptions:
    """What the user chose on the host's settings page; every field has the default of a host without such a page.

    Attributes:
        captioner: a name in the table of captioners, or "" for the host's best.
        save_steps: the default save interval of a training, in steps; None for the schema's.
        gives_way: whether a generation of the user may interrupt the training where only one of both fits the card.
    """

    captioner: str = ""
    save_steps: int | None = None
    gives_way: bool = True


class Lease(Protocol):
    """The device, borrowed for one job."""

    def building(self) -> AbstractContextManager[None]:
        """Inside, modules may be built, loaded and moved between devices: nobody else does so then. May be nested."""

    def give_way(self, away: Callable[[], None], back: Callable[[], None], *, is_paused: Callable[[], bool]) -> None:
        """Lends the device back where its owner waits for it, or while the job is paused; else returns at once.

        Called between two steps. It calls `away`, which moves what the job holds on the device to memory, lets the owner work,
        waits while `is_paused`, takes the device again and calls `back`. Both are called with `building` held.
        """

    def is_waited_for(self) -> bool:
        """Whether the owner waits for the device now."""

    def claim(self) -> bool:
        """Takes the device for the job alone, to the end, after memory ran out. Returns whether the owner's models left it."""

    def show(self, done: int, total: int) -> None:
        """Tells the owner's own progress display how far the job is; called before each step.

        From the second call on it is known how much memory a step takes.
        """


class HostCaptioner(Protocol):
    """The host's own captioner, loaded."""

    def describe(self, picture: Any) -> str:
        """Returns a caption for an RGB picture of PIL."""

    def move(self, is_back: bool) -> None:
        """Moves it off the device, or back onto it. `Lease.building` is held."""


class HostClip(Protocol):
    """The host's own CLIP, loaded: pictures and texts as rows of numbers in one space."""

    def embed_picture(self, picture: Any) -> Any:
        """Returns the embedding of an RGB picture of PIL, an array of one dimension."""

    def embed_text(self, text: str) -> Any:
        """Returns the embedding of a text, of which the beginning counts where it is too long."""


class OwnDevice:
    """The lease where nobody else uses the device: on the command line and on the stand-alone page."""

    def building(self) -> AbstractContextManager[None]:
        return nullcontext()

    def give_way(self, away: Callable[[], None], back: Callable[[], None], *, is_paused: Callable[[], bool]) -> None:
        """While paused, the card is free for other programs."""
        if is_paused():
            away()
            free_memory()
            wait_while(is_paused)
            back()

    def is_waited_for(self) -> bool:
        return False

    def claim(self) -> bool:
        return False

    def show(self, done: int, total: int) -> None:
        pass


def free_memory() -> None:
    """Gives memory that nothing uses any more back to the card's driver. Slow; not between two steps that follow each other."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def wait_while(condition: Callable[[], bool]) -> None:
    """Returns when the condition does not hold any more; looks a few times a second."""
    while condition():
        time.sleep(PAUSE_POLL_SECONDS)


class Host(Protocol):
    """The program that we live in.

    Attributes:
        name: its name in the table of hosts: "a1111", "forge", "reforge", "forge_neo" or "standalone".
        title: name and version, as people write it: "AUTOMATIC1111 1.10.1".
        has_pipeline: whether it draws pictures for its own users, so that `generate` gives what they get. If not, we draw.
    """

    name: str
    title: str
    has_pipeline: bool

    def folders(self) -> Folders:
        """Returns where things lie, by the host's own flags and settings of now."""

    def options(self) -> HostOptions:
        """Returns what was chosen on the host's settings page, as of now."""

    def checkpoints(self) -> Sequence[ModelFile]:
        """Returns the base models, in the host's order, the one loaded at the moment first."""

    def vaes(self) -> Sequence[ModelFile]:
        """Returns the VAE files."""

    def borrow_device(self, title: str) -> AbstractContextManager[Lease]:
        """Borrows the device for a job.

        On entry the host's own models have made room; on exit, however it comes, they are back as they were.

        Args:
            title: what the host shows of the job to its own users.
        """

    def lora_changed(self, path: Path) -> None:
        """Tells that a LoRA file came, was replaced or is about to be: the host drops what it holds of it, and lists anew.

        Before, because Windows lets nobody replace a file that a program holds.
        """

    def lora_read_at(self, path: Path) -> float | None:
        """Returns when a LoRA file had been changed as the host read it, in seconds since 1970; None if it has not read it."""

    def generate(self, prompt: str, **settings: Any) -> Any:
        """Returns one PIL picture by the host's own pipeline, LoRA tags in the prompt included.

        What the host knows of how it was drawn stands in the picture's `info["parameters"]`. Its users' own generations that
        wait are served first.

        Args:
            settings: `negative_prompt`, `width`, `height`, `steps`, `cfg_scale`, `seed`, `sampler`, and `base`, a name of
                `checkpoints`; what is left out is the host's usual.

        Raises:
            HostError: the host has no pipeline of its own, it failed, or its user interrupted it; the message says which.
        """

    def has_captioner(self) -> bool:
        """Whether the host has a captioner of its own whose weights are on the disk."""

    def captioner(self) -> AbstractContextManager[HostCaptioner]:
        """Loads the host's own captioner, and on exit gives its memory back.

        Raises:
            HostError: it has none, or it cannot be loaded.
        """

    def clip(self) -> HostClip | None:
        """Loads the host's own CLIP, onto the CPU, where its weights are on the disk; None where they are not.

        Nothing is loaded from the network.

        Raises:
            HostError: it cannot be loaded.
        """
