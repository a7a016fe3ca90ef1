"""A grid of pictures to judge LoRAs by: the untouched base first, then rising weights; rows are prompts, seeds, steps or LoRAs.

All pictures of a row start from the same noise, so that what differs is the LoRA's doing. A base's picture is drawn once for all
rows that share it, a file is read once, and a prompt is encoded once for every state of the text encoders.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from lora_trainer.adapters.names import split_step_name
from lora_trainer.adapters.pairs import list_keys
from lora_trainer.adapters.tags import LoraUse, parse_prompt
from lora_trainer.control import TrainControl
from lora_trainer.errors import ConfigError, Problem
from lora_trainer.inference.generate import GenerateSettings, encode_prompts, generate
from lora_trainer.inference.infotext import describe, save_png
from lora_trainer.inference.loras import PURPOSE, AppliedLora, LoraReader, applied
from lora_trainer.inference.sheet import draw_grid
from lora_trainer.inference.table import SAMPLERS

if TYPE_CHECKING:
    from lora_trainer.models.diffusion import DiffusionModel
    from lora_trainer.models.family import Tensors

USUAL_WEIGHTS = (0.0, 0.3, 0.5, 0.7, 0.9, 1.0)
MOST_WEIGHT = 10
Stack = tuple[LoraUse, ...]


@dataclass(frozen=True)
class Row:
    """What the cells of a row have in common.

    Attributes:
        label: what tells it from the other rows.
        settings: of its pictures; the prompt is without tags.
        uses: the LoRAs that are tried: a column's weight multiplies theirs.
        companions: those that act at their own weights in every column but the base's.
    """

    label: str
    settings: GenerateSettings
    uses: Stack
    companions: Stack = ()

    def acting(self, weight: float) -> Stack:
        """Returns the LoRAs of a column; none at weight 0, the untouched base."""
        return (*(use.scaled(weight) for use in self.uses), *self.companions) if weight else ()


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
        rows: see `make_rows`.
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


def make_rows(
    stacks: Sequence[Sequence[LoraUse]],
    prompts: Sequence[str],
    settings: GenerateSettings,
    *,
    seeds: Sequence[int] = (),
    find: Callable[[str], Path] | None = None,
) -> tuple[Row, ...]:
    """Returns a row for every stack of LoRAs with every prompt and every seed.

    The WebUI's tags in a prompt are read and taken out. What they name acts beside the stack, at the tag's own weights; the tag
    of a LoRA that is tried is passed over, because the column's weight stands for its own. Without stacks, what the prompt names
    is tried.

    Args:
        stacks: each one LoRA, or several that act together; saved steps of a run are stacks of one.
        settings: of all pictures, but for the prompt and seed.
        seeds: none for that of the settings.
        find: returns the file of a name, see `library.find_lora`.

    Raises:
        ConfigError: there is no prompt or no LoRA, or a tag cannot be read.
    """
    if not prompts:
        raise ConfigError([Problem("prompts", "is empty.", hint="Give at least one.")])
    rows = []
    for stack in [tuple(stack) for stack in stacks] or [()]:
        for prompt in prompts:
            text, named = parse_prompt(prompt, partial(_find_path, stack=stack, find=find))
            companions = tuple(use for use in named if use.path not in [own.path for own in stack])
            tried, companions = (stack, companions) if stack else (companions, ())
            if not tried:
                raise ConfigError(
                    [Problem("prompts", f"{prompt!r} names no LoRA.", hint="Write <lora:name:1> into it, or give a file.")]
                )
            for seed in seeds or [settings.seed]:
                label = _label(
                    [_name_stack(tried)] if len(stacks) > 1 else [],
                    [text.strip()] if len(prompts) > 1 or (len(stacks) < 2 and len(seeds) < 2) else [],
                    [f"seed {seed}"] if len(seeds) > 1 else [],
                )
                rows.append(Row(label, replace(settings, prompt=text, seed=seed), tried, companions))
    return tuple(rows)


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
    problems = {str(problem): problem for row in rows for problem in row.settings.problems()}
    for weight in weights:
        if not abs(weight) <= MOST_WEIGHT:
            hint = "0.3 to 1 is usual."
            problems[str(weight)] = Problem("weights", f"({weight}) must be from -{MOST_WEIGHT} to {MOST_WEIGHT}.", hint=hint)
    if problems:
        raise ConfigError(problems.values())
    for path in dict.fromkeys(use.path for row in rows for use in (*row.uses, *row.companions)):
        list_keys(path, PURPOSE)  # a file that cannot be used is said before the base's pictures are drawn
    columns = (0.0, *(weight for weight in dict.fromkeys(weights) if weight))
    extra = {"Sheet weights": ", ".join(f"{weight:g}" for weight in columns), "Sheet rows": " | ".join(row.label for row in rows)}
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
        rows = list(enumerate(self._grid.rows))
        for row, _ in rows:
            yield self._draw(row, 0, ()), ()
        for _, group in groupby(rows, key=lambda item: (item[1].uses, item[1].companions)):
            members, read = [row for row, _ in group], LoraReader()
            for column, weight in enumerate(self._grid.weights[1:], start=1):
                with applied(self._model, self._grid.rows[members[0]].acting(weight), read) as reports:
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


def _find_path(name: str, *, stack: Stack, find: Callable[[str], Path] | None) -> Path:
    """Returns the file that a tag names: one that is tried, also by its run's name, or one of the folder."""
    for use in stack:
        if name in (use.path.stem, split_step_name(use.path.stem)[0]):
            return use.path
    if find is None:
        raise ConfigError(
            [Problem("prompts", f"<lora:{name}> is not among the files given.", hint="Give its file, or the LoRA folder.")]
        )
    return find(name)


def _name_stack(stack: Stack) -> str:
    names = []
    for use in stack:
        name, step = split_step_name(use.path.stem)
        names.append(name if step is None else f"{name}, step {step}")
    return " + ".join(names)


def _label(*parts: Sequence[str]) -> str:
    return " · ".join(text for part in parts for text in part if text)
