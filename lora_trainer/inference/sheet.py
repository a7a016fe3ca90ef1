"""A sheet of pictures to judge a LoRA by: the untouched base first, then rising weights across; one prompt below the other.

All pictures of a row start from the same noise, so that what differs is the LoRA's doing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from lora_trainer.errors import ConfigError, Problem
from lora_trainer.inference.generate import GenerateSettings, generate
from lora_trainer.inference.infotext import describe, save_png
from lora_trainer.inference.lettering import Lettering
from lora_trainer.inference.loras import LoraUse, applied
from lora_trainer.inference.samplers import SAMPLERS

if TYPE_CHECKING:
    from lora_trainer.models.diffusion import DiffusionModel

USUAL_WEIGHTS = (0.0, 0.3, 0.5, 0.7, 1.0)
SMALLEST_CELL, LARGEST_CELL = 192, 512
"""Pictures are shown with a longer side between these, in pixels; a sheet of 1024-pixel pictures would open in no viewer."""
MARGIN, GAP = 24, 8
LEAST_WIDTH = 560  # pixels, so that the footer can be read under a single column
PAPER, INK, FAINT_INK = (255, 255, 255), (24, 24, 24), (105, 105, 105)


@dataclass(frozen=True)
class WeightSheet:
    """A finished sheet.

    Attributes:
        picture: the whole of it.
        parameters: of its first row, as the WebUI reads them, with the weights and prompts of the sheet.
        pictures: the single pictures by (prompt's index, weight), in their own size.
        notes: what of the LoRAs the WebUI leaves out, one sentence each.
    """

    picture: Image.Image
    parameters: str
    pictures: dict[tuple[int, float], Image.Image]
    notes: tuple[str, ...]

    def save(self, path: Path) -> Path:
        """Writes the sheet as a PNG that carries its parameters. Returns where it is."""
        return save_png(path, self.picture, self.parameters)


def weight_sheet(
    model: DiffusionModel,
    uses: Sequence[LoraUse],
    prompts: Sequence[str],
    settings: GenerateSettings,
    *,
    weights: Sequence[float] = USUAL_WEIGHTS,
    on_picture: Callable[[int, int], None] | None = None,
) -> WeightSheet:
    """Draws every prompt at every weight.

    Args:
        uses: one LoRA, or several that act together; a column's weight multiplies theirs.
        prompts: the rows, at least one; the prompt in `settings` is not used.
        weights: the columns in this order. The base alone comes first, whether 0 is among them or not.
        on_picture: called with the pictures done and their number after each; may raise to cancel, see `generate`.

    Raises:
        ConfigError: a setting cannot be used.
        AdapterError: a LoRA cannot be used with this base.
    """
    if not prompts:
        raise ConfigError([Problem("prompts", "is empty.", hint="Give at least one.")])
    columns = (0.0, *(weight for weight in dict.fromkeys(weights) if weight))
    pictures: dict[tuple[int, float], Image.Image] = {}
    notes: dict[str, None] = {}
    for weight in columns:
        with applied(model, [use.scaled(weight) for use in uses]) as reports:
            notes |= dict.fromkeys(note for report in reports for note in report.skipped)
            for row, prompt in enumerate(prompts):
                pictures[row, weight] = generate(model, replace(settings, prompt=prompt))
                if on_picture:
                    on_picture(len(pictures), len(columns) * len(prompts))
    sampler = SAMPLERS.get(settings.sampler)
    picture = draw_grid(
        [[pictures[row, weight] for weight in columns] for row in range(len(prompts))],
        title=f"LoRA {' and '.join(use.path.stem for use in uses)} on the base model {model.detection.path.stem}",
        columns=["without LoRA", *(f"weight {weight:g}" for weight in columns[1:])],
        rows=prompts,
        footer=f"{sampler.label}, {settings.steps} steps, CFG scale {settings.cfg_scale:g}, seed {settings.seed}, "
        f"{settings.width} x {settings.height} pixels",
    )
    extra = {"Sheet weights": ", ".join(f"{weight:g}" for weight in columns), "Sheet prompts": " | ".join(prompts)}
    parameters = describe(model, replace(settings, prompt=prompts[0]), uses, extra)
    return WeightSheet(picture, parameters, pictures, tuple(notes))


def draw_grid(
    pictures: Sequence[Sequence[Image.Image]], *, title: str, columns: Sequence[str], rows: Sequence[str], footer: str
) -> Image.Image:
    """Returns pictures of one size as a labelled table: columns' labels on top, each row's above it.

    Args:
        pictures: row by row.
    """
    width, height = _cell_size(pictures[0][0])
    size = max(15, min(26, width // 12))
    texts = "".join((title, *columns, *rows, footer))
    letters, heading = Lettering(size, texts), Lettering(round(size * 1.3), texts)
    inner = max(len(columns) * (width + GAP) - GAP, LEAST_WIDTH)
    labels = [letters.wrap(row, inner, max_lines=2) for row in rows]
    line, pad = letters.line_height, letters.line_height // 2
    titles = heading.wrap(title, inner, max_lines=2)
    total = 2 * MARGIN + len(titles) * heading.line_height + line + 2 * pad
    total += sum(len(label) * line + height + 2 * pad for label in labels) + line
    sheet = Image.new("RGB", (inner + 2 * MARGIN, total), PAPER)
    top = MARGIN
    for text in titles:
        heading.draw(sheet, (MARGIN, top), text, INK)
        top += heading.line_height
    top += pad
    for index, column in enumerate(columns):
        text = letters.wrap(column, width, max_lines=1)[0]
        left = MARGIN + index * (width + GAP) + (width - letters.width(text)) // 2
        letters.draw(sheet, (left, top), text, INK)
    top += line + pad
    for row, label in zip(pictures, labels, strict=True):
        for text in label:
            letters.draw(sheet, (MARGIN, top), text, FAINT_INK)
            top += line
        for index, picture in enumerate(row):
            shown = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(shown, (MARGIN + index * (width + GAP), top))
        top += height + 2 * pad
    for text in letters.wrap(footer, inner, max_lines=1):
        letters.draw(sheet, (MARGIN, top), text, FAINT_INK)
    return sheet


def _cell_size(picture: Image.Image) -> tuple[int, int]:
    """Returns the size at which a picture is shown: whole multiples of small ones, a share of large ones."""
    longer = max(picture.size)
    factor = -(-SMALLEST_CELL // longer) if longer < SMALLEST_CELL else min(1.0, LARGEST_CELL / longer)
    return round(picture.width * factor), round(picture.height * factor)
