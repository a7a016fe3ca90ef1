"""Presets: named sets of values, each with the reason for it. One YAML file each in `presets/`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "presets"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a tenth of the time, which each start of a WebUI takes


@dataclass(frozen=True)
class Preset:
    """One preset.

    Attributes:
        name: as given to `--preset`.
        label, help: for people.
        families: the model families that it is meant for.
        base: the file name without ending of the one base model that it is meant for; "" for any.
        values: settings by YAML key.
        reasons: why each of them, by the same keys.
    """

    name: str
    label: str
    help: str
    families: tuple[str, ...]
    base: str
    values: dict[str, Any]
    reasons: dict[str, str]


def load_presets() -> dict[str, Preset]:
    """Returns all presets by name, in alphabetical order."""
    return {path.stem: _read(path) for path in sorted(FOLDER.glob("*.yaml"))}


def _read(path: Path) -> Preset:
    data = yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)
    settings = data["settings"]
    return Preset(
        name=path.stem,
        label=data["label"],
        help=data["help"],
        families=tuple(data["families"]),
        base=data.get("base", ""),
        values={key: setting["value"] for key, setting in settings.items()},
        reasons={key: setting["reason"] for key, setting in settings.items()},
    )
