"""A grid as the page shows it: folded from its job's events, drawn as a table of buttons, and one cell in large."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_trainer.adapters.names import split_step_name
from lora_trainer.dataset.thumbnails import thumbnail, thumbnails
from lora_trainer.errors import Problem
from lora_trainer.events import TrainEvent
from lora_trainer.ui import markup
from lora_trainer.ui.markup import escape, word

CELL_SIDE, LARGE_SIDE, NEAR_SIDE = 256, 768, 256
Place = tuple[int, int]


@dataclass
class GridView:
    """What a grid's events say.

    Attributes:
        rows: label, prompt, seed, loras and companions of each, see `jobs.kinds.grid`.
        weights: of the columns; the first is 0.
        base: name of the base model.
        pipeline: the host that draws; "" for ourselves.
        cells: path and parameters of what is drawn, by row and column.
        figures, best, reason, by: the proposal, and what compared the pictures.
        nearest: the most similar training picture, by row and column.
        problems: what is wrong.
        warnings: what could not be done as asked, such as layers that were left out.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    base: str = ""
    pipeline: str = ""
    cells: dict[Place, dict[str, Any]] = field(default_factory=dict)
    figures: list[dict[str, Any]] = field(default_factory=list)
    best: int | None = None
    reason: str = ""
    by: str = ""
    nearest: dict[Place, dict[str, Any]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    @property
    def best_places(self) -> list[Place]:
        """The cells of the proposal."""
        if self.best is None:
            return []
        figure = self.figures[self.best]
        return [(row, figure["column"]) for row in figure["rows"]]

    def figure_of(self, place: Place) -> dict[str, Any] | None:
        return next((one for one in self.figures if one["column"] == place[1] and place[0] in one["rows"]), None)


def fold(events: Iterable[TrainEvent]) -> GridView:
    """Returns the grid of a job's events; one that was drawn anew begins anew."""
    view = GridView()
    for event in events:
        data = event.data
        if event.kind == "grid":
            view = GridView(data["rows"], data["weights"], data["base"], data["pipeline"])
        elif event.kind == "cell":
            view.cells[data["row"], data["column"]] = data
        elif event.kind == "advice":
            view.figures, view.best, view.reason, view.by = data["figures"], data["best"], data["reason"], data["by"]
            view.nearest = {(near["row"], near["column"]): near for near in data["nearest"]}
        elif event.kind == "findings":
            view.problems = [Problem(**problem) for problem in data["problems"]]
        elif event.kind == "warning":
            view.warnings.append(Problem("", data["message"], "warning"))
    return view


def draw_grid(view: GridView, chosen: Place | None, cache_dir: Path) -> str:
    """Returns the table: a row of weights, then for each row its label and its cells; what is not drawn yet is a blank."""
    if not view.rows:
        return ""
    places = sorted(view.cells)
    small = dict(
        zip(places, thumbnails([Path(view.cells[place]["path"]) for place in places], cache_dir, CELL_SIDE), strict=True)
    )
    heads = "".join(f"<b>{weight:g}</b>" if column else f"<b>{word('without')}</b>" for column, weight in enumerate(view.weights))
    parts = [f'<div class="lora_trainer_grid_row is_head">{heads}</div>']
    best = set(view.best_places)
    for number, row in enumerate(view.rows):
        cells = "".join(
            _draw_cell(view, (number, column), small.get((number, column)), is_best=(number, column) in best, chosen=chosen)
            for column in range(len(view.weights))
        )
        parts.append(
            f'<p class="lora_trainer_grid_label">{escape(row["label"])}</p><div class="lora_trainer_grid_row">{cells}</div>'
        )
    style = f"--lt-columns: {len(view.weights)}"
    return f'<div class="lora_trainer_cells" role="group" style="{style}">{"".join(parts)}</div>'


def draw_advice(view: GridView) -> str:
    """Returns the proposal with its figures, and what is wrong."""
    parts = []
    if view.reason:
        proposal = ""
        if view.best is not None:
            figure = view.figures[view.best]
            name = name_of(view, (figure["rows"][0], figure["column"]))
            proposal = f"<strong>{word('Proposal:')} {escape(name)}, {word('weight')} {figure['weight']:g}</strong><br>"
        said = f"{proposal}{escape(view.reason)} <small>{word('Compared by')} {escape(view.by)}.</small>"
        parts.append(markup.box(said, "message"))
        parts.append(_draw_figures(view))
    parts.append(markup.problem_list([*view.problems, *view.warnings]))
    return "".join(parts)


def draw_cell(view: GridView, place: Place, cache_dir: Path, lora_dir: Path) -> str:
    """Returns one cell in large with its figures, the training picture that it is most like, and its parameters.

    Args:
        lora_dir: a prompt finds only what is in it, which a saved step is not.
    """
    cell = view.cells[place]
    data = thumbnail(Path(cell["path"]), cache_dir, LARGE_SIDE)
    image = f'<img src="{markup.data_uri(data)}" alt="{escape(_label_of(view, place))}">' if data else ""
    figure = view.figure_of(place)
    facts = {
        word("LoRA"): escape(name_of(view, place)) if place[1] else word("without"),
        word("Weight"): f"{view.weights[place[1]]:g}" if place[1] else "",
        word("Moved from the base"): f"{figure['moved']:.0%}" if figure else "",
        word("Nearer to the training set"): f"{figure['nearness']:.0%}" if figure else "",
        word("Kept of the prompt"): f"{figure['kept']:.0%}" if figure else "",
    }
    files = [Path(use["path"]).resolve() for use in view.rows[place[0]]["loras"]]
    note = ""
    if place[1] and any(lora_dir.resolve() not in path.parents for path in files):
        said = word(
            "A saved step is not in the LoRA folder, so no prompt finds it. “Use this weight and this step” puts it there."
        )
        note = f'<p class="lora_trainer_warning">{said}</p>'
    parameters = f'<pre class="lora_trainer_yaml" tabindex="0">{escape(cell["parameters"])}</pre>'
    near = _draw_nearest(view.nearest[place], cache_dir) if place in view.nearest else ""
    return markup.box(f"{image}<div>{markup.facts(facts)}{note}{near}{parameters}</div>", "large_cell")


def name_of(view: GridView, place: Place) -> str:
    """Returns the LoRAs of a cell in words: "ink, step 100"."""
    names = []
    for use in view.rows[place[0]]["loras"]:
        name, step = split_step_name(Path(use["path"]).stem)
        names.append(name if step is None else f"{name}, step {step}")
    return " + ".join(names)


def read_place(text: Any) -> Place | None:
    """Returns the cell that "row-column" names."""
    row, _, column = str(text or "").partition("-")
    return (int(row), int(column)) if row.isdecimal() and column.isdecimal() else None


def describe_stack(uses: Iterable[Mapping[str, Any]]) -> str:
    """Returns what the tags of a prompt ask for, as HTML."""
    rows = []
    for use in uses:
        same = use["unet"] == use["text"]
        weights = f"{use['unet']:g}" if same else f"UNet {use['unet']:g}, {word('text encoder')} {use['text']:g}"
        rows.append(f"<li><strong>{escape(Path(use['path']).stem)}</strong> {weights}</li>")
    return f'<ul class="lora_trainer_stack">{"".join(rows)}</ul>' if rows else ""


def _draw_cell(view: GridView, place: Place, data: bytes | None, *, is_best: bool, chosen: Place | None) -> str:
    if place not in view.cells:
        return '<span class="lora_trainer_cell is_blank"></span>'
    marks = " is_best" if is_best else ""
    near = view.nearest.get(place)
    copied = f'<i class="lora_trainer_copied">{word("copy")} {near["similarity"]:.0%}</i>' if near and near["is_copied"] else ""
    image = f'<img src="{markup.data_uri(data)}" alt="">' if data else ""
    pressed = "true" if place == chosen else "false"
    return (
        f'<button type="button" class="lora_trainer_cell{marks}" data-cell="{place[0]}-{place[1]}" aria-pressed="{pressed}" '
        f'aria-label="{escape(_label_of(view, place))}">{image}{copied}</button>'
    )


def _label_of(view: GridView, place: Place) -> str:
    weight = f"weight {view.weights[place[1]]:g}" if place[1] else "without LoRA"
    return f"{view.rows[place[0]]['label']}, {weight}"


def _draw_figures(view: GridView) -> str:
    heads = [word("LoRA"), word("Weight"), word("Moved"), word("Nearer"), word("Kept")]
    lines = []
    for number, figure in enumerate(view.figures):
        name = escape(name_of(view, (figure["rows"][0], figure["column"])))
        shares = "".join(f"<td>{figure[key]:.0%}</td>" for key in ("moved", "nearness", "kept"))
        mark = ' class="is_best"' if number == view.best else ""
        lines.append(f"<tr{mark}><th>{name}</th><td>{figure['weight']:g}</td>{shares}</tr>")
    heading = "".join(f"<th>{head}</th>" for head in heads)
    summary = f"<summary>{word('Figures of every weight')}</summary>"
    return f'<details class="lora_trainer_figures">{summary}<table><tr>{heading}</tr>{"".join(lines)}</table></details>'


def _draw_nearest(near: Mapping[str, Any], cache_dir: Path) -> str:
    data = thumbnail(Path(near["path"]), cache_dir, NEAR_SIDE)
    image = f'<img src="{markup.data_uri(data)}" alt="">' if data else ""
    heading = word("The training picture that it is most like")
    said = (
        f"{escape(Path(near['path']).name)}: {near['similarity']:.0%} ({word('without the LoRA')} {near['base_similarity']:.0%})"
    )
    warning = f"<p>{word('The LoRA draws that picture again: it is over-trained.')}</p>" if near["is_copied"] else ""
    return markup.box(f"<h4>{heading}</h4>{image}<p>{said}</p>{warning}", "nearest")
