"""Presets: named sets of values, each with the reason for it. One YAML file each in `presets/`.

A training's length goes by the pictures seen in all, about 2000, more than by epochs: 100 epochs of 20 pictures, 15 of 150. So
most presets name those views, and the epochs follow from the set at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "presets"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a tenth of the time, which each start of a WebUI takes
MOST_EPOCHS = 200


@dataclass(frozen=True)
class Preset:
    """One preset.

    Attributes:
        name: as given to `--preset`.
        label, help: for people.
        families: the model families that it is meant for.
        base: the file name without ending of the one base model that it is meant for; "" for any.
        values: settings by YAML key, but for `epochs` where `views` gives them.
        reasons: why each of them, by the same keys.
        views: how many times pictures are to be seen in all, for presets that fit sets of any size; None for the others.
    """

    name: str
    label: str
    help: str
    families: tuple[str, ...]
    base: str
    values: dict[str, Any]
    reasons: dict[str, str]
    views: int | None

    def for_pictures(self, num_shown: int) -> dict[str, Any]:
        """Returns the settings by YAML key for a set that shows so many pictures an epoch; without `epochs` for an empty one."""
        if self.views is None or not num_shown:
            return self.values
        return {**self.values, "epochs": usual_epochs(num_shown, self.views)}


def usual_epochs(num_shown: int, views: int) -> int:
    """Returns the epochs in which a set is seen that many times in all; a few pictures no oftener than `MOST_EPOCHS` each.

    Args:
        num_shown: pictures of an epoch, repeats counted.
    """
    return max(1, min(MOST_EPOCHS, round(views / num_shown)))


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
        values={key: setting["value"] for key, setting in settings.items() if "value" in setting},
        reasons={key: setting["reason"] for key, setting in settings.items()},
        views=settings["epochs"].get("views"),
    )
