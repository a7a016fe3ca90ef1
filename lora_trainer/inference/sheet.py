"""Lays pictures out as a labelled sheet."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from lora_trainer.inference.lettering import Lettering

SMALLEST_CELL, LARGEST_CELL = 192, 512
"""Pictures are shown with a longer side between these, in pixels; a sheet of 1024-pixel pictures would open in no viewer."""
MARGIN, GAP = 24, 8
LEAST_WIDTH = 560  # pixels, so that the footer can be read under a single column
PAPER, INK, FAINT_INK = (255, 255, 255), (24, 24, 24), (105, 105, 105)


def draw_grid(
    pictures: Sequence[Sequence[Image.Image | None]], *, title: str, columns: Sequence[str], rows: Sequence[str], footer: str
) -> Image.Image:
    """Returns pictures of one size as a labelled table: columns' labels on top, each row's above it.

    Args:
        pictures: row by row; None, of which not all may be, leaves a cell blank.
        footer: of up to three lines.
    """
    width, height = _cell_size(next(picture for row in pictures for picture in row if picture))
    size = max(15, min(26, width // 12))
    texts = "".join((title, *columns, *rows, footer))
    letters, heading = Lettering(size, texts), Lettering(round(size * 1.3), texts)
    inner = max(len(columns) * (width + GAP) - GAP, LEAST_WIDTH)
    labels = [letters.wrap(row, inner, max_lines=2) for row in rows]
    closing = letters.wrap(footer, inner, max_lines=3)
    line, pad = letters.line_height, letters.line_height // 2
    titles = heading.wrap(title, inner, max_lines=2)
    total = 2 * MARGIN + len(titles) * heading.line_height + line + 2 * pad
    total += sum(len(label) * line + height + 2 * pad for label in labels) + len(closing) * line
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
            if picture:
                shown = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
                sheet.paste(shown, (MARGIN + index * (width + GAP), top))
        top += height + 2 * pad
    for text in closing:
        letters.draw(sheet, (MARGIN, top), text, FAINT_INK)
        top += line
    return sheet


def _cell_size(picture: Image.Image) -> tuple[int, int]:
    """Returns the size at which a picture is shown: whole multiples of small ones, a share of large ones."""
    longer = max(picture.size)
    factor = -(-SMALLEST_CELL // longer) if longer < SMALLEST_CELL else min(1.0, LARGEST_CELL / longer)
    return round(picture.width * factor), round(picture.height * factor)
