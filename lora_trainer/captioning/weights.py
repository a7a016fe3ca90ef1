"""Where a model's files are on this computer: in a folder that was named, in ours, or in the hub's own cache.

Standard library only. What is in none of them has to be loaded; `Download` says what, how large, and how to do it by hand.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PLAN_NAME = "download.json"
"""In a folder of ours while its download is not complete: the sizes of the files that belong into it, by name."""
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
DEFAULT_ENDPOINT = "https://huggingface.co"
_YES = ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True)
class Download:
    """A model that is not on this computer.

    Attributes:
        model: its id on the hub.
        size_mb: megabytes to load; 0 where only the hub knows.
        root: the folder of all downloads.
    """

    model: str
    size_mb: int
    root: Path

    @property
    def target(self) -> Path:
        """Where its files belong."""
        return folder_of(self.model, self.root)

    def is_agreed(self) -> bool:
        """Whether its download was begun before: then nobody is asked again."""
        return (self.target / PLAN_NAME).is_file()

    def describe(self) -> str:
        """Returns what would be downloaded, in words for the user."""
        if not self.size_mb:
            return f"{self.model} is not on this computer; it will be downloaded once, from {endpoint()}, into {self.target}."
        size = describe_mb(self.size_mb)
        return f"{self.model} is not on this computer; {size} will be downloaded once, from {endpoint()}, into {self.target}."

    def by_hand(self) -> str:
        """Returns what to do: to agree, or to do without our download."""
        agree = "HF_HUB_OFFLINE forbids that: unset it" if is_offline() else "Agree to it (--download on the command line)"
        return (
            f"{agree}, or load the files of {endpoint()}/{self.model}/tree/main "
            f"with another program: config.json, all other .json and .txt files, and {WEIGHTS[0]} or {WEIGHTS[1]}; put them "
            f"into {self.target}. HF_ENDPOINT chooses another address of the hub."
        )


def describe_mb(size_mb: float) -> str:
    """Returns a size as people say it."""
    return f"{size_mb / 1000:.1f} GB" if size_mb >= 1000 else f"{size_mb:.0f} MB"


def endpoint() -> str:
    """Returns the hub's address: HF_ENDPOINT, else huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE, or transformers' word for it, forbids to ask the hub."""
    return any(os.environ.get(name, "").upper() in _YES for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def folder_of(model: str, root: Path) -> Path:
    """Returns our folder of a model of the hub."""
    return root / model.replace("/", "--")


def find_folder(model: str, root: Path) -> Path | None:
    """Returns the folder with all files of a model, None where there is none.

    Args:
        model: a folder, or an id on the hub.
        root: the folder of our downloads.
    """
    for folder in (Path(model), folder_of(model, root), *_in_cache(model)):
        if folder.is_dir() and is_complete(folder):
            return folder
    return None


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a model: its settings and all its weights."""
    plan = folder / PLAN_NAME
    if plan.is_file() and not all(_has_size(folder / name, size) for name, size in read_plan(folder).items()):
        return False
    return (folder / "config.json").is_file() and any(_has_weights(folder, name) for name in WEIGHTS)


def read_plan(folder: Path) -> dict[str, int | None]:
    """Returns the sizes of the files that a download of this folder is to bring; {"": None} where that cannot be read."""
    try:
        plan = json.loads((folder / PLAN_NAME).read_text(encoding="utf-8"))
        return {str(name): None if size is None else int(size) for name, size in plan.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {"": None}


def _has_size(path: Path, size: int | None) -> bool:
    return path.is_file() and (size is None or path.stat().st_size == size)


def _has_weights(folder: Path, name: str) -> bool:
    """Whether the weights of that name are there, in one file or in all the parts that their index names."""
    if (folder / name).is_file():
        return True
    try:
        index = json.loads((folder / f"{name}.index.json").read_text(encoding="utf-8"))
        return all((folder / part).is_file() for part in set(index["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _in_cache(model: str) -> list[Path]:
    """Returns the folders of a model in the cache that the hub's own programs share, the current version first."""
    base = _cache() / f"models--{model.replace('/', '--')}"
    snapshots = base / "snapshots"
    if not snapshots.is_dir():
        return []
    try:
        current = (base / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        current = ""
    return sorted(snapshots.iterdir(), key=lambda folder: (folder.name != current, folder.name))


def _cache() -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"
