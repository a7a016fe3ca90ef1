"""How strongly pictures pull: weights of folders, and the regularisation pictures that are trained besides.

A weight multiplies the loss of its pictures. The mean of a batch is over the number of its items, so half the weight is half the
pull, whatever else is in the batch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from lora_trainer.dataset.scan import DatasetScan, Item, scan_dataset
from lora_trainer.dataset.tables import normal
from lora_trainer.errors import DatasetError
from lora_trainer.registry import did_you_mean

_REPEATS = re.compile(r"\d+_")


def weigh_folders(items: Iterable[Item], weights: Mapping[str, float]) -> tuple[Item, ...]:
    """Returns the items with the weight of the nearest folder around them that is named, 1 where none is.

    Args:
        items: of a data set.
        weights: by a folder's name on the disk, with or without its number of repeats, or by its path in the data set with "/"
            between parts; "." is the data set itself.

    Raises:
        DatasetError: a name fits no folder with usable pictures.
    """
    items = tuple(items)
    wanted = {normal(name.replace("\\", "/").strip("/")): name for name in weights}
    names = {item.name: _folder_names(item) for item in items}
    known = tuple(dict.fromkeys(name for found in names.values() for name in found))
    unknown = [given for name, given in wanted.items() if name not in known]
    if unknown:
        raise DatasetError(
            f"no pictures that can be used are in a folder {unknown[0]!r}{did_you_mean(unknown[0], known)} "
            f"Known: {', '.join(known)}."
        )

    def weight_of(item: Item) -> float:
        return next((weights[wanted[name]] for name in names[item.name] if name in wanted), 1.0)

    return tuple(replace(item, weight=weight_of(item)) for item in items)


def scan_regularisation(folder: Path, weight: float, *, alpha_mask: bool = False) -> DatasetScan:
    """Returns what a folder of regularisation pictures holds, each with the weight, and the folder's name before its own.

    Args:
        folder: read as `scan_dataset` reads one, captions, repeats and all.
        weight: of each picture.
        alpha_mask: see `scan_dataset`.

    Raises:
        DatasetError: as `scan_dataset`.
    """
    scan = scan_dataset(folder, alpha_mask=alpha_mask)
    prefix = f"{folder.resolve().name}/"
    items = tuple(replace(item, name=prefix + item.name, weight=weight) for item in scan.items)
    problems = tuple(replace(problem, field=prefix + problem.field) for problem in scan.problems)
    return replace(scan, items=items, problems=problems)


def _folder_names(item: Item) -> list[str]:
    """Returns what the folders around an item may be called, the innermost first."""
    names = []
    for folder in PurePosixPath(normal(item.name)).parents:
        names += [str(folder), folder.name, _REPEATS.sub("", folder.name, count=1)]
    return [name for name in dict.fromkeys(names) if name]
