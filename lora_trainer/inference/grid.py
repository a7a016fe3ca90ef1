"""A grid of pictures to judge LoRAs by: the untouched base first, then rising weights; rows are prompts, seeds, steps or LoRAs.

All pictures of a row start from the same noise, so that what differs is the LoRA's doing. A base's picture is drawn once for all
rows that share it, a file is read once, and a prompt is encoded once for every state of the text encoders.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from lora_trainer.adapters.pairs import list_keys
from lora_trainer.control import TrainControl
from lora_trainer.inference.generate import encode_prompts, generate
from lora_trainer.inference.infotext import describe, save_png
from lora_trainer.inference.loras import PURPOSE, AppliedLora, LoraReader, applied
from lora_trainer.inference.rows import USUAL_WEIGHTS, Row, check_rows, drawing_order, sheet_pairs
from lora_trainer.inference.settings import GenerateSettings
from lora_trainer.inference.sheet import draw_grid
from lora_trainer.inference.table import SAMPLERS

if TYPE_CHECKING:
    from lora_trainer.models.diffusion import DiffusionModel
    from lora_trainer.models.family import Tensors


@dataclass(frozen=True)
class Cell:
    """A drawn picture.

    Attributes:
        row, column: its place; column 0 is the base.
        weight: of the column.
        parameters: as the WebUI reads them.
    """

    row: int
    column: int
    weight: float
    picture: Image.Image
    parameters: str


@dataclass
class Grid:
    """What was drawn so far.

    Attributes:
        rows: see `rows.make_rows`.
        weights: of the columns; the first is 0, the untouched base.
        base: name of the base model.
        parameters: of its first row with the LoRAs at weight 1, and the weights and rows of the whole.
        cells: by (row, column).
        notes: what of the LoRAs the WebUI leaves out, one sentence each.
    """

    rows: tuple[Row, ...]
    weights: tuple[float, ...]
    base: str
    parameters: str
    cells: dict[tuple[int, int], Cell] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def num_cells(self) -> int:
        """How many it has when it is complete."""
        return len(self.rows) * len(self.weights)

    @property
    def is_complete(self) -> bool:
        return len(self.cells) == self.num_cells

    def picture(self, row: int, column: int) -> Image.Image | None:
        """Returns the picture of a cell, or None while it is not drawn."""
        cell = self.cells.get((row, column))
        return cell.picture if cell else None

    def draw_sheet(self) -> Image.Image:
        """Returns all of it with labels; cells that are not drawn are blank. One at least must be."""
        first = self.rows[0].settings
        names = dict.fromkeys(use.path.stem for row in self.rows for use in row.uses)
        shared = [first.prompt] if len(self.rows) > 1 and len({row.settings.prompt for row in self.rows}) == 1 else []
        footer = (
            f"{SAMPLERS.get(first.sampler).label}, {first.steps} steps, CFG scale {first.cfg_scale:g}, "
            f"seed {', '.join(dict.fromkeys(str(row.settings.seed) for row in self.rows))}, {first.width} x {first.height} pixels"
        )
        return draw_grid(
            [[self.picture(row, column) for column in range(len(self.weights))] for row in range(len(self.rows))],
            title=f"LoRA {' and '.join(names)} on the base model {self.base}",
            columns=["without LoRA", *(f"weight {weight:g}" for weight in self.weights[1:])],
            rows=[row.label for row in self.rows],
            footer=". ".join([*shared, footer]),
        )

    def save(self, path: Path) -> Path:
        """Writes the sheet as a PNG that carries its parameters. Returns where it is."""
        return save_png(path, self.draw_sheet(), self.parameters)


def draw_cells(
    model: DiffusionModel,
    rows: Sequence[Row],
    *,
    weights: Sequence[float] = USUAL_WEIGHTS,
    control: TrainControl | None = None,
    on_cell: Callable[[Grid, Cell], None] | None = None,
) -> Grid:
    """Draws every row at every weight.

    Args:
        weights: the columns in this order. The base alone comes first, whether 0 is among them or not.
        control: its "stop" ends the drawing within a sampler's step; the grid then has the cells drawn so far.
        on_cell: called with the grid and each new cell; between two pictures, so it may lend the device away.

    Raises:
        ConfigError: a setting cannot be used.
        AdapterError: a LoRA cannot be used with this base.
    """
    columns = check_rows(rows, weights)
    for path in dict.fromkeys(use.path for row in rows for use in (*row.uses, *row.companions)):
        list_keys(path, PURPOSE)  # a file that cannot be used is said before the base's pictures are drawn
    extra = sheet_pairs(rows, columns)
    grid = Grid(tuple(rows), columns, model.detection.path.stem, describe(model, rows[0].settings, rows[0].acting(1.0), extra))
    # Closed at once whatever happens, since the base carries the LoRAs meanwhile.
    with suppress(_StoppedError), closing(_Drawing(model, grid, control).cells()) as cells:
        for cell, reports in cells:
            grid.cells[cell.row, cell.column] = cell
            grid.notes = tuple(dict.fromkeys((*grid.notes, *(note for report in reports for note in report.skipped))))
            if on_cell:
                on_cell(grid, cell)
    return grid


class _StoppedError(Exception):
    """A stop was asked for while drawing."""


class _Drawing:
    """Draws the cells of a grid, and keeps what several of them need."""

    def __init__(self, model: DiffusionModel, grid: Grid, control: TrainControl | None) -> None:
        self._model, self._grid, self._control = model, grid, control
        self._bases: dict[GenerateSettings, Image.Image] = {}
        self._encoded: dict[object, Tensors] = {}

    def cells(self) -> Generator[tuple[Cell, Sequence[AppliedLora]], None, None]:
        """Yields the base's column, then each stack of LoRAs from weight to weight."""
        read = LoraReader()
        for members, column in drawing_order(self._grid.rows, len(self._grid.weights)):
            if column == 1:
                read = LoraReader()  # the files of the rows before are not needed any more
            with applied(self._model, self._grid.rows[members[0]].acting(self._grid.weights[column]), read) as reports:
                for row in members:
                    yield self._draw(row, column, reports), reports

    def _draw(self, row: int, column: int, reports: Sequence[AppliedLora]) -> Cell:
        self._check_stop()
        settings, weight = self._grid.rows[row].settings, self._grid.weights[column]
        picture = self._bases.get(settings) if not column else None
        if picture is None:
            conditions = self._encode(settings, reports)
            picture = generate(self._model, settings, conditions=conditions, on_step=self._check_stop)
        if not column:
            self._bases[settings] = picture
        return Cell(row, column, weight, picture, describe(self._model, settings, [report.use for report in reports]))

    def _encode(self, settings: GenerateSettings, reports: Sequence[AppliedLora]) -> Tensors:
        texts = tuple(report.use for report in reports if report.changes_texts)
        states = tuple((use.path, use.weight_of("text_encoder"), use.rank_cut) for use in texts)
        key = (states, settings.prompt, settings.negative_prompt, settings.width, settings.height)
        if key not in self._encoded:
            self._encoded[key] = encode_prompts(self._model, settings)
        return self._encoded[key]

    def _check_stop(self, *progress: int) -> None:
        if self._control and self._control.is_requested("stop"):
            raise _StoppedError
