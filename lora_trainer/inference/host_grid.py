"""The grid of `grid.py` drawn by a WebUI's own pipeline, one picture after the other: what it shows is what txt2img gives.

The base of each row is drawn once for all rows that share it. The LoRAs stand as tags in the prompt, so a WebUI's own rules hold
for them: kinds of LoRA that we do not apply ourselves act as they act there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from lora_trainer.adapters.tags import LoraUse, write_prompt
from lora_trainer.control import TrainControl
from lora_trainer.inference.grid import Cell, Grid
from lora_trainer.inference.infotext import add_pairs, describe_settings
from lora_trainer.inference.rows import USUAL_WEIGHTS, Row, check_rows, drawing_order, sheet_pairs
from lora_trainer.inference.settings import GenerateSettings

_AFTER_PROMPT = re.compile(r"\n(?:Negative prompt: |Steps: )")
Draw = Callable[[str, GenerateSettings], Image.Image]


def draw_cells_by(
    draw: Draw,
    rows: Sequence[Row],
    *,
    base: str,
    places: Mapping[Path, Path],
    weights: Sequence[float] = USUAL_WEIGHTS,
    control: TrainControl | None = None,
    on_cell: Callable[[Grid, Cell], None] | None = None,
) -> Grid:
    """Draws every row at every weight.

    Args:
        draw: returns the picture of a prompt with tags; the prompt in the settings is not looked at.
        base: name of the base model, for the sheet.
        places: where each file stands under the name that its tag shall have.
        weights, on_cell: as in `grid.draw_cells`.
        control: its "stop" ends the drawing after the picture that is being drawn.

    Raises:
        ConfigError: a setting cannot be used.
        HostError: a picture could not be drawn.
    """
    columns = check_rows(rows, weights)
    grid = Grid(tuple(rows), columns, base, "")
    bases: dict[GenerateSettings, Cell] = {}
    for members, column in drawing_order(rows, len(columns)):
        for row in members:
            if control and control.is_requested("stop"):
                return grid
            settings = rows[row].settings
            cell = bases.get(settings) if not column else None
            if cell is None:
                uses = [_placed(use, places) for use in rows[row].acting(columns[column])]
                cell = _draw_cell(draw, row, column, columns[column], write_prompt(settings.prompt, uses), settings)
            if not column:
                bases.setdefault(settings, cell)
            grid.cells[row, column] = replace(cell, row=row)
            grid.parameters = add_pairs(cell.parameters, sheet_pairs(rows, columns))
            if on_cell:
                on_cell(grid, grid.cells[row, column])
    return grid


def _placed(use: LoraUse, places: Mapping[Path, Path]) -> LoraUse:
    return replace(use, path=places.get(use.path, use.path))


def _draw_cell(draw: Draw, row: int, column: int, weight: float, prompt: str, settings: GenerateSettings) -> Cell:
    picture = draw(prompt, settings)
    parameters = str(picture.info.get("parameters") or describe_settings(prompt, settings, {}))
    # AUTOMATIC1111 writes the prompt without its tags; pasted into its page, it would draw the base.
    settings_at = _AFTER_PROMPT.search(parameters)
    return Cell(row, column, weight, picture, prompt + parameters[settings_at.start() :] if settings_at else parameters)
