"""The losses of single pictures that a run keeps in its folder: how well each was learned, on the same noise before and after."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.files import write_text


@dataclass
class PictureLoss:
    """A picture's loss on fixed noise.

    Attributes:
        first: with the untouched base.
        last: when it was last looked at.
    """

    first: float
    last: float

    @property
    def change(self) -> float:
        """-0.1 for a loss that fell by a tenth."""
        return self.last / self.first - 1.0 if self.first else 0.0


def read_losses(path: Path) -> dict[str, PictureLoss]:
    """Returns the losses by picture, the one that was learned least first; {} where there is no readable table.

    A run watches the pictures that it held back, else some or all of those that it trains.

    Args:
        path: `RunFolder.losses_path`.
    """
    try:
        rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
        return {row["picture"]: PictureLoss(float(row["first"]), float(row["last"])) for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def write_losses(path: Path, losses: Mapping[str, PictureLoss]) -> None:
    """Writes the losses as CSV, worst change first. With a byte-order mark, by which spreadsheets know that it is UTF-8."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("picture", "first", "last", "change"))
    for name, loss in sorted(losses.items(), key=lambda entry: (-entry[1].change, entry[0])):
        writer.writerow((name, repr(loss.first), repr(loss.last), f"{loss.change:.4f}"))
    write_text(path, "\ufeff" + text.getvalue())
