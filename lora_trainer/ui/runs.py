"""The part Runs: the queue and the history, and of one job everything that can be told and asked of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import yaml

from lora_trainer.config.schema import field_infos
from lora_trainer.dataset.thumbnails import thumbnail
from lora_trainer.jobs.view import JobView
from lora_trainer.ui import markup
from lora_trainer.ui.activity import word_of_phase, word_of_status
from lora_trainer.ui.compat import listen, unsaved
from lora_trainer.ui.curves import CurveReader
from lora_trainer.ui.form import in_labels, label_of
from lora_trainer.ui.library import LibraryShelf
from lora_trainer.ui.markup import escape, word
from lora_trainer.ui.plots import training_plot
from lora_trainer.ui.services import Services

if TYPE_CHECKING:
    from lora_trainer.ui.page import Page

SAMPLE_SIDE = 1280
USUAL_WEIGHT = 0.7
# Button, its command, and the statuses in which it is shown.
COMMANDS = (
    ("pause", "Pause", ("running", "waiting")),
    ("continue", "Continue", ("paused", "stopped", "interrupted", "failed", "queued")),
    ("save", "Save now", ("running",)),
    ("sample", "Sample now", ("running",)),
    ("stop", "Stop and save", ("running", "waiting", "paused")),
    ("discard", "Stop without saving", ("running", "waiting", "paused", "stopping")),
    ("up", "Move up", ("queued",)),
    ("down", "Move down", ("queued",)),
    ("cancel", "Cancel", ("queued",)),
)
TRAINING_ONLY = ("pause", "save", "sample", "discard")
USE = "(text) => { window.loraTrainer.use(text); }"


class RunsPart:
    """See the module and `page.Part`."""

    id = "runs"
    title = "Runs"

    def __init__(self, services: Services) -> None:
        self.services = services
        self.curves = CurveReader(services.queue)
        self.library = LibraryShelf(services)
        self.live: dict[str, Any] = {}

    def build(self) -> None:
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                self.jobs = gr.HTML("", elem_id="lora_trainer_runs_jobs")
            with gr.Column(scale=3):
                self.status = gr.HTML(_NOTHING, elem_id="lora_trainer_runs_status")
                with gr.Row(elem_classes="lora_trainer_tools"):
                    self.buttons = {
                        name: gr.Button(label, visible=False, size="sm", min_width=110, elem_id=f"lora_trainer_runs_{name}")
                        for name, label, _ in COMMANDS
                    }
                with gr.Row(elem_classes="lora_trainer_tools"):
                    label = "Copy the prompt" if self.services.is_standalone else "Use in txt2img"
                    self.use = gr.Button(
                        label, visible=False, variant="primary", size="sm", min_width=180, elem_id="lora_trainer_runs_use"
                    )
                    again = {"visible": False, "elem_id": "lora_trainer_runs_clone"}
                    self.clone = gr.Button("Use these settings again", size="sm", min_width=180, **again)
                self.plot = gr.HTML("", elem_id="lora_trainer_runs_plot")
                self.scrubber = unsaved(
                    gr.Slider(
                        minimum=1,
                        maximum=2,
                        step=1,
                        value=1,
                        label="Sample",
                        visible=False,
                        interactive=True,
                        elem_id="lora_trainer_runs_scrubber",
                    )
                )
                self.samples = gr.HTML("", elem_id="lora_trainer_runs_samples")
                with gr.Accordion("Log", open=False):
                    self.log = gr.HTML("", elem_id="lora_trainer_runs_log")
                with gr.Accordion("Settings of this job", open=False):
                    self.settings = gr.HTML("", elem_id="lora_trainer_runs_settings")
        with gr.Accordion("Library: the LoRAs of the folder", open=False, elem_id="lora_trainer_runs_library"):
            self.library.build()
        hidden = {"show_label": False, "elem_classes": "lora_trainer_hidden"}
        self.chosen = unsaved(gr.Textbox("", elem_id="lora_trainer_runs_chosen", **hidden))
        self.prompt = unsaved(gr.Textbox("", elem_id="lora_trainer_runs_prompt", **hidden))
        # What was drawn last, by a hash of each piece, so that a tick sends only what changed.
        self.drawn = gr.State(None)
        self.live = {
            "chosen": self.chosen,
            "drawn": self.drawn,
            "jobs": self.jobs,
            "status": self.status,
            "plot": self.plot,
            "scrubber": self.scrubber,
            "samples": self.samples,
            "log": self.log,
            "settings": self.settings,
            "use": self.use,
            "prompt": self.prompt,
            "clone": self.clone,
            **{f"button_{name}": button for name, button in self.buttons.items()},
        }
        self.shown = dict(self.live)
        self.live |= {f"library.{name}": component for name, component in self.library.live.items()}

    def bind(self, page: Page) -> None:
        self.library.bind(page)
        page.on(self.chosen.input, lambda values: self.show({**values, "drawn": None}), self.shown, self.shown)
        page.on(self.scrubber.input, self._scrub, self.shown, self.shown, quiet=True)
        for name, button in self.buttons.items():
            page.on(button.click, partial(self._command, command=name), self.shown, self.shown)
        listen(self.use.click, None, inputs=[self.prompt], outputs=[], js=USE)
        train = page.parts["train"]
        page.on(self.clone.click, lambda values: self._clone(values, train), self.shown, train.followers)

    def refresh(self, values: dict[str, Any]) -> Mapping[str, Any]:
        """Returns everything anew; of several jobs the active one, else the newest."""
        library = self.library.show({name: values[f"library.{name}"] for name in self.library.live})
        return {**self.show({**values, "drawn": None}), **{f"library.{name}": update for name, update in library.items()}}

    def tick(self, values: dict[str, Any]) -> Mapping[str, Any]:
        return self.show(values)

    def show(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what changed since `values["drawn"]` of the list and of the job `values["chosen"]`.

        The choice is returned only where it is no job's: the user may choose another while the answer is on its way.
        """
        jobs = self.services.queue.list()
        job = next((job for job in jobs if job.id == values["chosen"]), None) or _first_to_show(jobs)
        pieces: dict[str, Any] = {"jobs": draw_jobs(jobs, job.id if job else "")}
        drawn = values.get("drawn") or {}
        pieces |= self._describe(job, values.get("scrubber"), drawn) if job else dict(_NO_JOB)
        hashes = {name: _digest(piece) for name, piece in pieces.items()}
        changed = {name: _as_update(name, piece) for name, piece in pieces.items() if drawn.get(name) != hashes[name]}
        shown = job.id if job else ""
        choice = {} if shown == values["chosen"] else {"chosen": shown}
        return {**changed, **choice, "drawn": hashes}

    def _describe(self, job: JobView, sample: Any, drawn: Mapping[str, str]) -> dict[str, Any]:
        """Returns every piece of one job: HTML, or a mapping of a component's properties.

        A new sample is shown at once; between two the user may look at older ones.
        """
        curve = self.curves.read(job.id)
        steps = sorted({step for step, _ in job.samples})
        pieces: dict[str, Any] = {
            "status": f'<div data-shown="{escape(job.id)}">{draw_status(job)}</div>',
            "plot": self._draw_plot(job, curve),
            "log": markup.box(f"<pre>{escape(self.services.queue.log_tail(job.id))}</pre>", "log", tabindex="0"),
            "settings": draw_settings(self.services.queue.settings(job.id)),
            "prompt": self._prompt(job),
            "use": {"visible": bool(self._prompt(job))},
            "clone": {"visible": job.kind == "train"},
        }
        pieces["scrubber"] = {"visible": len(steps) > 1, "maximum": max(2, len(steps)), "value": max(1, len(steps))}
        is_known = drawn.get("scrubber") == _digest(pieces["scrubber"])
        pieces["samples"] = self._draw_samples(job, _step_at(steps, sample if is_known else len(steps))) if steps else ""
        for name, _, statuses in COMMANDS:
            fits = job.status in statuses and (job.kind == "train" or name not in TRAINING_ONLY)
            pieces[f"button_{name}"] = {"visible": fits}
        return pieces

    def _scrub(self, values: dict[str, Any]) -> dict[str, Any]:
        job = self._chosen_job(values)
        steps = sorted({step for step, _ in job.samples})
        if not steps:
            return {}
        return {"samples": self._draw_samples(job, _step_at(steps, values["scrubber"]))}

    def _command(self, values: dict[str, Any], command: str) -> dict[str, Any]:
        self.services.queue.command(values["chosen"], command)
        return self.show({**values, "drawn": None})

    def _clone(self, values: dict[str, Any], train: Any) -> dict[str, Any]:
        settings = {name: value for name, value in self.services.queue.settings(values["chosen"]).items() if name != "output_dir"}
        return {**train.fill_from(settings), "tabs": gr.update(selected="train")}

    def _chosen_job(self, values: Mapping[str, Any]) -> JobView:
        return self.services.queue.view(values["chosen"])

    def _prompt(self, job: JobView) -> str:
        """Returns what goes into a prompt to use the finished LoRA."""
        if job.kind != "train" or job.result is None:
            return ""
        trigger = str(self.services.queue.settings(job.id).get("trigger_words") or "").strip()
        return f"<lora:{job.result.stem}:{USUAL_WEIGHT}> {trigger}".strip()

    def _draw_plot(self, job: JobView, curve: Any) -> str:
        plot = training_plot(curve.losses, curve.rates, curve.validations, job.total_steps)
        if not plot:
            return ""
        legend = {"loss": word("Loss"), "rate": word("Learning rate"), "validation": word("Validation")}
        if not curve.validations:
            del legend["validation"]
        keys = "".join(f'<span class="lora_trainer_key_{name}">{label}</span>' for name, label in legend.items())
        return markup.box(plot + markup.box(keys, "legend"), "figure")

    def _draw_samples(self, job: JobView, step: int) -> str:
        cache = self.services.host.folders().cache
        pictures = [thumbnail(Path(path), cache, SAMPLE_SIDE) for at, path in job.samples if at == step]
        images = "".join(f'<img src="{markup.data_uri(data)}" alt="">' for data in pictures if data)
        heading = f"<h4>{word('Step')} {step}</h4><small>{word('Left without the LoRA, right with it; same noise.')}</small>"
        return markup.box(heading + images, "samples") if images else ""


def draw_jobs(jobs: list[JobView], chosen: str) -> str:
    """Returns the queue, what runs, and the history as a list of buttons, which the script binds."""
    if not jobs:
        return markup.box(word("No runs yet. Start one in the part Train."), "empty")
    groups = {
        word("Now"): [job for job in jobs if job.is_active],
        word("Queue"): [job for job in jobs if job.status == "queued"],
        word("Before"): [job for job in jobs if not job.is_active and job.status != "queued"],
    }
    parts = []
    for label, members in groups.items():
        if members:
            rows = "".join(_job_row(job, job.id == chosen) for job in members)
            parts.append(f'<h4>{label}</h4><div role="group" class="lora_trainer_jobs">{rows}</div>')
    return "".join(parts)


def draw_status(job: JobView) -> str:
    """Returns status, progress and figures of a job, and what went wrong with it."""
    heading = (
        f'<h3>{escape(job.title)} <span class="lora_trainer_status is_{job.status}">{word_of_status(job.status)}</span></h3>'
    )
    figures = {
        word("Phase"): word_of_phase(job.phase) if job.is_active else "",
        word("Step"): f"{job.step:,} / {job.total_steps:,}" if job.total_steps else "",
        word("Loss"): f"{job.loss:.4f}" if job.loss is not None else "",
        word("Learning rate"): f"{job.learning_rate:.2e}" if job.learning_rate is not None else "",
        word("Time per step"): f"{job.seconds_per_step:.2f} s" if job.seconds_per_step else "",
        word("Time left"): markup.describe_seconds(job.seconds_left) if job.is_active else "",
        word("Memory"): f"{job.memory_gib:.1f} GiB" if job.memory_gib else "",
        word("Finished"): time.strftime("%Y-%m-%d %H:%M", time.localtime(job.ended)) if job.ended else "",
    }
    bar = markup.progress_bar(job.done, job.total, job.title) if job.is_active else ""
    parts = [heading, bar, markup.facts(figures)]
    if job.error and not job.diagnosis:  # else the log has it, in the words of the engine
        parts.append(markup.box(escape(job.error), "message", "is_error", role="alert"))
    parts.append(draw_diagnosis(job))
    if job.recommended:
        step, path, reason = job.recommended
        text = f"{word('Recommended step:')} <strong>{step}</strong> <code>{escape(Path(path).name)}</code> {escape(reason)}"
        parts.append(markup.box(text, "message"))
    if job.result:
        parts.append(f"<p>{word('File:')} <code>{escape(job.result)}</code></p>")
    if job.warnings:
        rows = "".join(f'<li class="lora_trainer_warning">{escape(warning)}</li>' for warning in job.warnings)
        parts.append(f'<ul class="lora_trainer_problems">{rows}</ul>')
    return "".join(parts)


def draw_diagnosis(job: JobView) -> str:
    """Returns what is or went wrong with a job in the words of the page, and how to go on after it failed."""
    if job.kind != "train":
        return markup.problem_list(job.diagnosis)
    labels = {problem.field: label_of(problem.field) for problem in job.diagnosis if problem.field in field_infos()}
    told = [
        replace(
            problem,
            field=labels.get(problem.field, problem.field),
            message=in_labels(problem.message),
            hint=in_labels(problem.hint),
        )
        for problem in job.diagnosis
    ]
    parts = [markup.problem_list(told)]
    if job.status == "failed" and labels:
        parts.append(f"<p>{word('Press “Use these settings again”, change it, Start.')}</p>")
    return markup.box("".join(parts), "diagnosis", role="alert") if told else ""


def draw_settings(settings: Mapping[str, Any]) -> str:
    """Returns the settings of a job as YAML."""
    text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True, width=10_000)
    return f'<pre class="lora_trainer_yaml" tabindex="0">{escape(text)}</pre>'


def _job_row(job: JobView, is_chosen: bool) -> str:
    when = time.strftime("%m-%d %H:%M", time.localtime(job.ended or job.created))
    where = f"{job.step} / {job.total_steps}" if job.total_steps else ""
    bar = markup.progress_bar(job.done, job.total, job.title) if job.is_active else ""
    status = f'<span class="lora_trainer_status is_{job.status}">{word_of_status(job.status)}</span>'
    return (
        f'<button type="button" class="lora_trainer_job" data-job="{escape(job.id)}" aria-pressed="{str(is_chosen).lower()}">'
        f"<strong>{escape(job.title)}</strong>{status}<small>{when}</small><small>{where}</small>{bar}</button>"
    )


def _step_at(steps: list[int], place: Any) -> int:
    """Returns the step at a place of the scrubber, which counts from 1."""
    return steps[max(1, min(len(steps), int(place or 1))) - 1]


def _first_to_show(jobs: list[JobView]) -> JobView | None:
    """Returns the active job, else the newest that ended, else the first that waits."""
    order = {True: 0, False: 1}
    return min(jobs, key=lambda job: (order[job.is_active], job.status == "queued", -(job.ended or job.created)), default=None)


def _digest(piece: Any) -> str:
    return hashlib.sha256(repr(piece).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _as_update(name: str, piece: Any) -> Any:
    return gr.update(**piece) if isinstance(piece, dict) else piece


_NOTHING = markup.box(word("Nothing has run yet."), "empty")
_NO_JOB: dict[str, Any] = {
    "status": _NOTHING,
    **dict.fromkeys(("plot", "samples", "log", "settings", "prompt"), ""),
    **{name: {"visible": False} for name in ("use", "clone", "scrubber", *(f"button_{name}" for name, _, _ in COMMANDS))},
}
