"""The kind "grid": LoRAs at rising weights beside the untouched base, cell by cell, and what the pictures say of them.

In a WebUI its own pipeline draws, so that a cell is what txt2img gives; otherwise `inference` does. The cells are in the job's
folder as they come, each with its parameters, and at the end the sheet of all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.adapters.container import model_hash
from lora_trainer.adapters.diagnosis import diagnose
from lora_trainer.adapters.lent import lent, remove_lent
from lora_trainer.adapters.tags import LoraUse
from lora_trainer.dataset.scan import find_pictures
from lora_trainer.errors import HostError, JobError, LoraTrainerError, Problem
from lora_trainer.host.base import Host, ModelFile, wait_while
from lora_trainer.inference.rows import Row, check_rows
from lora_trainer.jobs.context import JobContext
from lora_trainer.jobs.kinds.grid_settings import GridJob, find_base, plan_rows, read

if TYPE_CHECKING:
    from lora_trainer.inference.grid import Cell, Grid
    from lora_trainer.inference.likeness import Eye

USUAL_SIDE = 512
SHEET, CELLS = "sheet.png", "cells"
OnCell = Callable[["Grid", "Cell"], None]


def prepare(settings: Mapping[str, Any], host: Host, title: str) -> None:
    """Judges the settings: see `grid_settings.GridJob`.

    Raises:
        ConfigError: with every problem found.
        AdapterError: a LoRA is not there.
    """
    job = read(settings, host)
    find_base(job, host)
    check_rows(plan_rows(job, host, side=USUAL_SIDE), job.weights)


def recover(settings: Mapping[str, Any], host: Host) -> None:
    """Clears what a process that was killed left in the LoRA folder."""
    remove_lent(host.folders().lora_dir)


def run(settings: Mapping[str, Any], context: JobContext) -> Path | None:
    """Draws; returns the sheet, or None when it was stopped. What was drawn by then stays, with a sheet of it.

    So it does when a picture fails or the WebUI's user interrupts it.
    """
    job = read(settings, context.host)
    base = find_base(job, context.host)
    context.emit("phase", name="loading the base model", done=0, total=0)
    draw = _draw_by_host if context.host.has_pipeline else _draw
    so_far: list[Grid] = []
    try:
        grid = draw(job, base, context, so_far)
    except LoraTrainerError:
        for grid in so_far[-1:]:
            grid.save(context.folder / SHEET)
        raise
    for note in grid.notes:
        context.emit("warning", message=note)
    if not grid.cells:
        return None
    path = grid.save(context.folder / SHEET)
    _judge(grid, job, base, context)
    return path if grid.is_complete else None


def _draw(job: GridJob, base: ModelFile, context: JobContext, so_far: list[Grid]) -> Grid:
    """Draws by ourselves. The grid is in `so_far` from its first cell on."""
    from lora_trainer.inference.grid import draw_cells
    from lora_trainer.models.family import ModelSettings
    from lora_trainer.models.table import load_model
    from lora_trainer.training.precision import choose_compute

    vae = Path(job.vae) if job.vae else None
    with context.borrow() as lease:
        with lease.building():
            device, dtype = choose_compute()
            model: Any = load_model(ModelSettings(base.path, device=device, dtype=dtype, vae=vae, clip_skip=job.clip_skip))
        rows = plan_rows(job, context.host, side=model.resolution)
        on_cell = _begin(rows, job, base.path.stem, context, so_far)
        return draw_cells(model, rows, weights=job.weights, control=context.control, on_cell=on_cell)


def _draw_by_host(job: GridJob, base: ModelFile, context: JobContext, so_far: list[Grid]) -> Grid:
    """Has the WebUI draw with its own pipeline, as `_draw`."""
    from lora_trainer.inference.host_grid import draw_cells_by

    host = context.host
    rows = plan_rows(job, host, side=_side_of(base))
    files = [use.path for row in rows for use in (*row.uses, *row.companions)]

    def draw(prompt: str, settings: Any) -> Any:
        values = {name: value for name, value in asdict(settings).items() if name != "prompt"}
        # Named for every picture: its user may choose another checkpoint while the grid is drawn.
        return host.generate(prompt, base=base.name, **values)

    places: Mapping[Path, Path] = {}
    try:
        with lent(files, host.folders().lora_dir) as places:
            on_cell = _begin(rows, job, base.path.stem, context, so_far)
            return draw_cells_by(
                draw, rows, base=base.path.stem, places=places, weights=job.weights, control=context.control, on_cell=on_cell
            )
    finally:
        for place in {place for path, place in places.items() if path != place}:
            host.lora_changed(place)  # it is gone from the WebUI's list, and what it held of it is dropped
        remove_lent(host.folders().lora_dir)  # on Windows a file that the WebUI still held could not be removed before


def _side_of(base: ModelFile) -> int:
    from lora_trainer.models.detect import detect

    return detect(base.path).resolution or USUAL_SIDE


def _begin(rows: tuple[Row, ...], job: GridJob, base: str, context: JobContext, so_far: list[Grid]) -> OnCell:
    """Tells of the empty grid; returns what keeps and tells of each cell."""
    from lora_trainer.inference.infotext import save_png

    weights = check_rows(rows, job.weights)
    pipeline = context.host.title if context.host.has_pipeline else ""
    hash_of = functools.cache(model_hash)  # a picked cell asks later whether the file is still the one that was drawn
    context.emit("grid", rows=[_describe_row(row, hash_of) for row in rows], weights=weights, base=base, pipeline=pipeline)
    context.emit("phase", name="drawing", done=0, total=len(rows) * len(weights))

    def on_cell(grid: Grid, cell: Cell) -> None:
        so_far[:] = [grid]
        path = save_png(context.folder / CELLS / f"{cell.row}-{cell.column}.png", cell.picture, cell.parameters)
        context.emit("cell", row=cell.row, column=cell.column, path=str(path), parameters=cell.parameters)
        context.emit("phase", name="drawing", done=len(grid.cells), total=grid.num_cells)
        wait_while(lambda: context.control.is_requested("pause") and not context.control.is_requested("stop"))

    return on_cell


def _describe_row(row: Row, hash_of: Callable[[Path], str]) -> dict[str, Any]:
    settings = row.settings
    return {
        "label": row.label,
        "prompt": settings.prompt,
        "seed": settings.seed,
        "loras": [_describe_use(use, hash_of) for use in row.uses],
        "companions": [_describe_use(use, hash_of) for use in row.companions],
    }


def _describe_use(use: LoraUse, hash_of: Callable[[Path], str]) -> dict[str, Any]:
    weights = {"unet": use.unet_weight, "text": use.weight_of("text_encoder")}
    return {"path": str(use.path), "hash": hash_of(use.path), **weights}


def _judge(grid: Grid, job: GridJob, base: ModelFile, context: JobContext) -> None:
    """Tells which weight to take and what is wrong, as far as the pictures show it."""
    from lora_trainer.inference.symptoms import find_symptoms

    problems: list[Problem] = []
    try:
        training = find_pictures(Path(job.train_data_dir)) if job.train_data_dir else []
        symptoms = find_symptoms(grid, training)
        problems += symptoms.problems
        for path in symptoms.without_effect:
            problems += diagnose(path, base.path, context.host.folders().lora_dir)
        if training and grid.is_complete:
            _advise(grid, training, job, context)
    except LoraTrainerError as error:  # the pictures are there
        context.emit("warning", message=f"the pictures could not be judged: {error}")
    if problems:
        context.emit("findings", problems=[asdict(problem) for problem in problems])


def _advise(grid: Grid, training: Sequence[Path], job: GridJob, context: JobContext) -> None:
    from lora_trainer.inference.advice import advise, read_training_pictures

    eye = _open_eye(job, context)

    def on_picture(done: int) -> None:
        context.emit("phase", name="comparing with the training pictures", done=done, total=len(training))
        if context.control.is_requested("stop"):
            raise JobError("the comparison with the training pictures was stopped.")

    advice = advise(grid, read_training_pictures(training, eye, on_picture), eye)

    def rows_of(uses: Any) -> list[int]:
        return [number for number, row in enumerate(grid.rows) if row.uses == uses]

    figures = [
        {
            "rows": rows_of(figure.uses),
            "column": grid.weights.index(figure.weight),
            **{name: round(getattr(figure, name), 4) for name in ("weight", "moved", "nearness", "kept", "score")},
        }
        for figure in advice.figures
    ]
    nearest = [
        {
            "row": near.row,
            "column": near.column,
            "path": str(near.path),
            "similarity": round(near.similarity, 4),
            "base_similarity": round(near.base_similarity, 4),
            "is_copied": near.is_copied,
        }
        for near in advice.nearest
    ]
    best = advice.figures.index(advice.best) if advice.best else None
    context.emit("advice", figures=figures, best=best, reason=advice.reason, nearest=nearest, by=eye.label)
    context.log.info("%s", advice.reason)


def _open_eye(job: GridJob, context: JobContext) -> Eye:
    """Returns what compares pictures: the CLIP that the settings name, else the host's own, else colours and textures."""
    from lora_trainer.inference.likeness import PLAIN

    if job.clip:
        from lora_trainer.inference.clip_eye import open_clip_eye

        return open_clip_eye(Path(job.clip))
    try:
        clip = context.host.clip()
    except HostError as error:
        context.emit("warning", message=f"The pictures are compared by colours and textures: {error}")
        return PLAIN
    if clip is None:
        return PLAIN
    from lora_trainer.inference.clip_eye import ClipEye

    return ClipEye(clip, f"CLIP ({context.host.title})")
