"""A data set at a glance, as a page shows it: sizes from the headers alone, captions, and what keeps pictures from training.

Not a scan: nothing is decoded, so a picture that is damaged behind its header passes here and is found when a training starts.
Hundreds of pictures take well under a second, and what was read once is known until the file changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lora_trainer.dataset.buckets import Bucket, assign_buckets
from lora_trainer.dataset.captions import read_captions
from lora_trainer.dataset.images import read_size
from lora_trainer.dataset.sampler import steps_per_epoch
from lora_trainer.dataset.scan import find_pictures, folder_facts, list_files
from lora_trainer.errors import DatasetError, Problem

MIN_SIDE = 64


@dataclass(frozen=True)
class Picture:
    """One picture of a set, usable or not.

    Attributes:
        name: relative to the set, with "/" between parts.
        path: the file.
        width, height: pixels, upright; 0 when the header cannot be read.
        caption: as it is written; "" for none.
        repeats: how often it is seen in an epoch.
        error: why it cannot be trained even with a caption; "" when it can.
    """

    name: str
    path: Path
    width: int
    height: int
    caption: str
    repeats: int
    error: str = ""

    @property
    def is_usable(self) -> bool:
        """Whether a training would take it, as far as its header tells."""
        return not self.error and bool(self.caption) and self.repeats > 0


@dataclass(frozen=True)
class Overview:
    """What `read_overview` found.

    Attributes:
        folder: of the set.
        pictures: all of them, sorted by name.
        problems: what is doubtful about the captions.
    """

    folder: Path
    pictures: tuple[Picture, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def usable(self) -> tuple[Picture, ...]:
        return tuple(picture for picture in self.pictures if picture.is_usable)

    @property
    def num_shown(self) -> int:
        """How many pictures an epoch will show, repeats counted, when all have their captions."""
        return sum(picture.repeats for picture in self.pictures if not picture.error)

    @property
    def num_without_caption(self) -> int:
        return sum(not picture.error and not picture.caption for picture in self.pictures)

    def buckets(self, resolution: int, *, upscale: bool = False) -> dict[str, Bucket]:
        """Returns the size that each picture would be trained at, by its name; those without a readable size are not in it."""
        sized = [picture for picture in self.pictures if not picture.error]
        buckets = assign_buckets([(picture.width, picture.height) for picture in sized], resolution, upscale=upscale)
        return {picture.name: bucket for picture, bucket in zip(sized, buckets, strict=True)}

    def count_steps(
        self, resolutions: tuple[int, ...], *, batch_size: int, accumulation: int = 1, upscale: bool = False, held_out: int = 0
    ) -> int:
        """Returns the optimizer steps of one epoch, counted as `plan` counts them; 0 where nothing can be trained.

        Args:
            resolutions: every picture is trained at each.
            held_out: that many pictures are not trained. Which ones is not known here, so that with several buckets a
                step more or less is possible.
        """
        pictures = self.usable[held_out:]
        if not pictures:
            return 0
        buckets: list[Bucket] = []
        for side in resolutions:
            of_side = self.buckets(side, upscale=upscale)
            buckets += [of_side[picture.name] for picture in pictures]
        repeats = [picture.repeats for picture in pictures] * len(resolutions)
        return -(-steps_per_epoch(buckets, repeats, batch_size=batch_size) // accumulation)


def read_overview(folder: Path) -> Overview:
    """Returns the pictures of a folder and its sub-folders with their sizes and captions.

    Raises:
        DatasetError: the folder cannot be read.
    """
    files = list_files(folder)
    paths = find_pictures(folder)
    names = [path.relative_to(folder).as_posix() for path in paths]
    captions = read_captions(folder, names, files)
    pictures = []
    for name, path in zip(names, paths, strict=True):
        width, height, error = _facts(path)
        pictures.append(Picture(name, path, width, height, captions.by_name.get(name, ""), folder_facts(name)[0], error))
    return Overview(folder, tuple(pictures), tuple(captions.problems))


def _facts(path: Path) -> tuple[int, int, str]:
    try:
        state = path.stat()
    except OSError as error:
        return 0, 0, f"cannot be read: {error.strerror or error}."
    return _read_header(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=100_000)
def _read_header(path: Path, changed_ns: int, num_bytes: int) -> tuple[int, int, str]:
    """Returns width, height and what is wrong, remembered as long as the file does not change."""
    try:
        width, height = read_size(path)
    except DatasetError as error:
        return 0, 0, str(error).removeprefix(f"{path} ")
    if min(width, height) < MIN_SIDE:
        return width, height, f"is too small: {width} x {height} pixels; the shorter side must have at least {MIN_SIDE}."
    return width, height, ""
