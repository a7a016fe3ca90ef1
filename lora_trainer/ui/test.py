"""The part Test: LoRAs at rising weights beside the base, which weight and step to take, and into the prompt."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from lora_trainer.adapters.container import model_hash
from lora_trainer.adapters.diagnosis import diagnose
from lora_trainer.adapters.library import find_lora
from lora_trainer.adapters.shelf import pick
from lora_trainer.adapters.tags import parse_prompt
from lora_trainer.errors import AdapterError, ConfigError, JobError, LoraInUseError, Problem
from lora_trainer.jobs.view import JobView
from lora_trainer.ui import grid_view, markup
from lora_trainer.ui.compat import listen, unsaved
from lora_trainer.ui.estimate import find_base
from lora_trainer.ui.grid_form import GridForm
from lora_trainer.ui.grid_view import GridView
from lora_trainer.ui.markup import escape, word
from lora_trainer.ui.services import Services

if TYPE_CHECKING:
    from lora_trainer.ui.page import Page

SEND = "(text, prompt) => { window.loraTrainerTest.send('%s', text, prompt); }"
SHOW = "(content) => { window.loraTrainerTest.enlarge(content); }"


class TestPart:
    """See the module and `page.Part`."""

    __test__ = False  # a part of the page, whatever a test runner makes of its name
    id = "test"
    title = "Test"

    def __init__(self, services: Services) -> None:
        self.services = services
        self.fields = GridForm(services)
        self.live: dict[str, Any] = {}

    def build(self) -> None:
        with gr.Row():
            with gr.Column(scale=2, min_width=320, elem_classes="lora_trainer_upright"):
                self.fields.build()
                with gr.Row(elem_classes="lora_trainer_tools"):
                    self.draw = gr.Button("Draw", variant="primary", min_width=140, elem_id="lora_trainer_test_draw")
                    self.stop = gr.Button("Stop drawing", visible=False, min_width=140, elem_id="lora_trainer_test_stop")
                gr.HTML(self._say_who_draws(), elem_id="lora_trainer_test_pipeline")
                with gr.Accordion("No effect, or not what you expected?", open=False):
                    self.examine = gr.Button("Examine the LoRAs", size="sm", elem_id="lora_trainer_test_examine")
                    self.examined = gr.HTML("", elem_id="lora_trainer_test_examined")
            with gr.Column(scale=5):
                self.grids = unsaved(
                    gr.Dropdown([], label="Shown", visible=False, interactive=True, elem_id="lora_trainer_test_grids")
                )
                self.advice = gr.HTML("", elem_id="lora_trainer_test_advice")
                self.cells = gr.HTML(_FIRST_STEPS, elem_id="lora_trainer_test_cells")
                with gr.Row(elem_classes="lora_trainer_tools"):
                    self._build_buttons()
                self.large = gr.HTML("", elem_id="lora_trainer_test_large")
        self._build_hidden()
        self.shown = {
            "grids": self.grids,
            "advice": self.advice,
            "cells": self.cells,
            "large": self.large,
            "stop": self.stop,
            "chosen": self.chosen,
            "infotext": self.infotext,
            "prompt": self.prompt,
            "drawn": self.drawn,
            **{f"button_{name}": button for name, button in self.buttons.items()},
        }
        self.live = {**self.fields.widgets, "filled": self.fields.filled, "stack": self.fields.stack, **self.shown}

    def _build_buttons(self) -> None:
        def button(name: str, label: str, **options: Any) -> Any:
            return gr.Button(label, visible=False, size="sm", min_width=150, elem_id=f"lora_trainer_test_{name}", **options)

        self.buttons = {"pick": button("pick", "Use this weight and this step", variant="primary")}
        if self.services.is_standalone:
            self.buttons["txt2img"] = button("txt2img", "Copy this prompt")
        else:
            self.buttons["txt2img"] = button("txt2img", "Send to txt2img")
            self.buttons["img2img"] = button("img2img", "Send to img2img")
        self.buttons["full"] = button("full", "Full size")
        self.buttons["sheet"] = button("sheet", "Show as one sheet")

    def _build_hidden(self) -> None:
        hidden: dict[str, Any] = {"show_label": False, "elem_classes": "lora_trainer_hidden"}
        self.chosen = unsaved(gr.Textbox("", elem_id="lora_trainer_test_chosen", **hidden))
        self.choose = gr.Button("refresh", elem_id="lora_trainer_test_choose", elem_classes="lora_trainer_hidden")
        self.infotext = unsaved(gr.Textbox("", elem_id="lora_trainer_test_infotext", **hidden))
        self.prompt = unsaved(gr.Textbox("", elem_id="lora_trainer_test_prompt", **hidden))
        self.enlarged = unsaved(gr.Textbox("", elem_id="lora_trainer_test_enlarged", **hidden))
        self.drawn = gr.State(None)

    def bind(self, page: Page) -> None:
        runs = page.parts["runs"]
        page.on(page.openers[self.id].select, self._open, self.live, self.live, quiet=True)
        page.on(self.draw.click, self._draw, self.live, self.shown)
        page.on(self.stop.click, self._stop, self.live, self.shown)
        page.on(self.grids.input, self._show_anew, self.live, self.shown)
        page.on(self.choose.click, lambda values: self.show(values), self.live, self.shown, quiet=True)
        self.fields.bind(page)
        page.on(self.examine.click, self._examine, self.live, {"examined": self.examined})
        card = {f"runs.{name}": component for name, component in runs.library.live.items()}
        page.on(self.buttons["pick"].click, partial(self._pick, runs=runs), {**self.live, **card}, {**self.shown, **card})
        for name in ("txt2img", "img2img"):
            if name in self.buttons:
                listen(self.buttons[name].click, None, inputs=[self.infotext, self.prompt], outputs=[], js=SEND % name)
        for name in ("full", "sheet"):
            shown = page.on(
                self.buttons[name].click, partial(self._enlarge, name=name), self.live, {"enlarged": self.enlarged}, quiet=True
            )
            listen(shown.then, None, inputs=[self.enlarged], outputs=[], js=SHOW)

    def refresh(self, values: dict[str, Any]) -> Mapping[str, Any]:
        """Returns the lists of the host anew, and what is sensible for the newest LoRA where the user has given nothing."""
        return {**self.fields.refresh(values), **self.show({**values, "drawn": None})}

    def _open(self, values: dict[str, Any]) -> Mapping[str, Any]:
        """Returns the lists of now: files may have come to the folders since the page was loaded."""
        return {**self.fields.lists(), **self.show(values)}

    def tick(self, values: dict[str, Any]) -> Mapping[str, Any]:
        return self.show(values)

    def test(self, values: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Returns the updates that put a LoRA of the folder into the form."""
        return self.fields.fill_for(values, name)

    def show(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what changed since `values["drawn"]` of the grid that is shown."""
        jobs = [job for job in self.services.queue.list() if job.kind == "grid"]
        job = _chosen_job(jobs, values.get("grids"))
        drawn = values.get("drawn") or {}
        if job is None:
            return {}
        if drawn.get("job") != job.id:
            drawn = {"job": job.id}
        view = grid_view.fold(self.services.queue.events(job.id))
        place = grid_view.read_place(values.get("chosen"))
        place = place if place in view.cells else None
        pieces = self._describe(job, view, place)
        pieces["grids"] = {"choices": [_name_job(one) for one in jobs], "value": _name_job(job), "visible": len(jobs) > 1}
        hashes = {name: _digest(piece) for name, piece in pieces.items()}
        changed = {
            name: gr.update(**piece) if isinstance(piece, dict) else piece
            for name, piece in pieces.items()
            if drawn.get(name) != hashes[name]
        }
        return {**changed, "drawn": {"job": job.id, **hashes}}

    def _describe(self, job: JobView, view: GridView, place: grid_view.Place | None) -> dict[str, Any]:
        folders = self.services.host.folders()
        cache = folders.cache
        is_alone = place is not None and place[1] > 0 and len(view.rows[place[0]]["loras"]) == 1
        error = markup.error_message(job.error) if job.error else ""
        is_queued = job.status == "queued"
        waits = word(
            "The grid waits in the queue; the part Runs shows what is before it."
            if is_queued
            else "The pictures appear here as they are drawn."
        )
        parameters = view.cells[place]["parameters"] if place is not None else ""
        pieces: dict[str, Any] = {
            "advice": error + grid_view.draw_advice(view),
            "cells": grid_view.draw_grid(view, place, cache)
            or (markup.box(waits, "empty") if job.is_active or is_queued else "" if error else _FIRST_STEPS),
            "large": grid_view.draw_cell(view, place, cache, folders.lora_dir) if place is not None else "",
            "stop": {"visible": job.is_active},
            "infotext": parameters,
            "prompt": parameters.partition("\n")[0],
        }
        for name in self.buttons:
            visible = {"pick": is_alone, "sheet": bool(view.cells)}.get(name, place is not None)
            pieces[f"button_{name}"] = {"visible": visible}
        return pieces

    def _draw(self, values: dict[str, Any]) -> dict[str, Any]:
        with markup.labelled(self.fields.labels()):
            id = self.services.queue.submit("grid", self.fields.settings(values), title=self.fields.title(values))
        job = self.services.queue.view(id)
        return self._show_anew({**values, "grids": _name_job(job)})

    def _show_anew(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns another grid, of which no cell is chosen."""
        return {**self.show({**values, "chosen": "", "drawn": None}), "chosen": ""}

    def _stop(self, values: dict[str, Any]) -> dict[str, Any]:
        self.services.queue.command(self._job(values).id, "stop")
        return self.show(values)

    def _job(self, values: Mapping[str, Any]) -> JobView:
        jobs = [job for job in self.services.queue.list() if job.kind == "grid"]
        job = _chosen_job(jobs, values.get("grids"))
        if job is None:
            raise JobError("Nothing was drawn yet. Press Draw first.")
        return job

    def _cell(self, values: Mapping[str, Any]) -> tuple[GridView, grid_view.Place]:
        view = grid_view.fold(self.services.queue.events(self._job(values).id))
        place = grid_view.read_place(values.get("chosen"))
        if place not in view.cells:
            raise JobError("No picture is chosen. Click one of the grid first.")
        return view, place

    def _pick(self, values: dict[str, Any], runs: Any) -> dict[str, Any]:
        view, place = self._cell(values)
        loras = view.rows[place[0]]["loras"]
        if not place[1] or len(loras) != 1:
            raise AdapterError(
                "A weight can be kept for one LoRA. Choose a picture of one, or merge several in the library of Runs."
            )
        if loras[0]["unet"] != loras[0]["text"]:
            raise AdapterError(
                f"A card keeps one weight, and this picture has two: {loras[0]['text']:g} of it for the text encoder and "
                f"{loras[0]['unet']:g} for the UNet. Give the tag one weight and draw again."
            )
        source, weight = self._source_of(loras[0]), round(view.weights[place[1]] * loras[0]["unet"], 4)
        folder = self.services.host.folders().lora_dir
        preview = Path(view.cells[place]["path"]).read_bytes()
        try:
            path = pick(source, weight, preview, folder)
        except LoraInUseError as error:  # perhaps by the host itself, which drew with it
            self.services.host.lora_changed(error.path)
            path = pick(source, weight, preview, folder)
        self.services.host.lora_changed(path)
        name = f"<strong>{escape(path.stem)}</strong>"
        said = f"{name} {word('is ready: its card has the weight')} {weight:g} {word('and this picture.')}"
        if source != path:
            said += f" {word('Its file is that of')} {escape(grid_view.name_of(view, place))}."
        card = runs.library.show({name: values[f"runs.{name}"] for name in runs.library.live})
        return {**{f"runs.{name}": update for name, update in card.items()}, "message": markup.notice(said)}

    def _source_of(self, use: Mapping[str, Any]) -> Path:
        """Returns the file that a cell was drawn with: of one that was replaced since, by a picked step, that of its run."""
        path, hash = Path(use["path"]), use.get("hash")
        if not path.is_file() or hash in (None, model_hash(path)):
            return path  # of one that is gone, `pick` says so
        final = self.fields.final_of(path.stem)
        if final is not None and model_hash(final) == hash:
            return final
        raise AdapterError(f"{path.name} was replaced after this picture had been drawn. Draw it again, then choose.")

    def _enlarge(self, values: dict[str, Any], name: str) -> dict[str, Any]:
        """Returns a picture as the script shows it: the file itself, so that saving it keeps its parameters.

        The script shows the answer to each press once: after a press that failed the former answer still stands there.
        """
        if name == "sheet":
            path = self._job(values).folder / "sheet.png"
            if not path.is_file():
                raise JobError("The sheet is made when the drawing ends. Wait for it, or stop the drawing.")
        else:
            view, place = self._cell(values)
            path = Path(view.cells[place]["path"])
        content = {"name": path.name, "uri": markup.data_uri(path.read_bytes()), "press": time.time_ns()}
        return {"enlarged": json.dumps(content)}

    def _examine(self, values: dict[str, Any]) -> dict[str, Any]:
        folder, base = self.services.host.folders().lora_dir, find_base(values["base_model"], self.services.host)
        names = list(values["loras"] or ())
        for prompt in str(values["prompts"] or "").splitlines():
            names += [use.path.stem for use in parse_prompt(prompt, partial(find_lora, folder))[1]]
        if not names:
            raise ConfigError([Problem("LoRAs", "is empty.", hint="Choose one, or write its tag into the prompt.")])
        parts = []
        for name in dict.fromkeys(names):
            path = find_lora(folder, name)
            problems = diagnose(path, base, folder, listed_at=self.services.host.lora_read_at(path))
            fine = f"<p>{word('Nothing is wrong with this file; it should work with this base model.')}</p>"
            parts.append(f"<h4>{escape(name)}</h4>" + (markup.problem_list(problems) or fine))
        return {"examined": "".join(parts)}

    def _say_who_draws(self) -> str:
        if self.services.host.has_pipeline:
            said = word("Drawn by the WebUI's own pipeline: what you see here is what txt2img gives.")
        else:
            said = word("Drawn by the trainer itself, by the WebUI's rules for LoRA files.")
        return f'<p class="lora_trainer_family">{said}</p>'


def _name_job(job: JobView) -> str:
    return f"{job.title} ({job.id})"


def _chosen_job(jobs: list[JobView], name: Any) -> JobView | None:
    """Returns the job of that name, else the active one, else the newest."""
    named = next((job for job in jobs if _name_job(job) == name), None)
    active = next((job for job in jobs if job.is_active), None)
    return named or active or max(jobs, key=lambda job: job.created, default=None)


def _digest(piece: Any) -> str:
    return hashlib.sha256(repr(piece).encode("utf-8", "surrogatepass")).hexdigest()[:16]


_FIRST_STEPS = markup.box(
    word("Choose a LoRA and a prompt, and press Draw: the base alone stands left, rising weights beside it."), "empty"
)
