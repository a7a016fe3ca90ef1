"""The form of the part Test: what is drawn. For the newest LoRA it fills itself in from the run that made it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from lora_trainer.adapters.container import model_hash
from lora_trainer.adapters.library import find_lora
from lora_trainer.adapters.names import split_step_name
from lora_trainer.adapters.shelf import list_shelf, look_at
from lora_trainer.adapters.tags import parse_prompt
from lora_trainer.errors import ConfigError, LoraTrainerError, Problem
from lora_trainer.inference.rows import USUAL_WEIGHTS
from lora_trainer.inference.table import SAMPLERS
from lora_trainer.jobs.view import JobView
from lora_trainer.ui.compat import unsaved
from lora_trainer.ui.grid_view import describe_stack
from lora_trainer.ui.markup import escape
from lora_trainer.ui.services import Services

if TYPE_CHECKING:
    from lora_trainer.ui.page import Page

FOLLOWING = ("loras", "prompts", "base_model", "train_data_dir")
USUAL_SEED = 7
STEPS = "The saved steps of its run, too"


class GridForm:
    """Widgets by the names of a grid's settings, and `filled`: what the page itself put into those that follow the LoRA."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.widgets: dict[str, Any] = {}

    def build(self) -> None:
        self._add(
            gr.Dropdown,
            "loras",
            [],
            multiselect=True,
            label="LoRAs",
            info="Each is a row of its own. None: those that the prompt names, together.",
        )
        self._add(gr.Checkbox, "steps_too", label=STEPS, value=False)
        info = "One a line, each a row of its own. Tags such as <lora:seal:0.5:0.8> act beside, as in txt2img."
        self._add(gr.Textbox, "prompts", label="Prompts", info=info, lines=3, max_lines=8)
        self.stack = gr.HTML("", elem_id="lora_trainer_test_stack")
        self._add(
            gr.Dropdown,
            "base_model",
            [],
            label="Draw with the base model",
            allow_custom_value=not self.services.host.has_pipeline,
        )
        with gr.Row(elem_classes="lora_trainer_main"):
            weights = ", ".join(f"{weight:g}" for weight in USUAL_WEIGHTS)
            self._add(gr.Textbox, "weights", label="Weights", value=weights, max_lines=1, min_width=190)
            self._add(gr.Textbox, "seeds", label="Seeds", value=str(USUAL_SEED), max_lines=1, min_width=110)
        with gr.Accordion("Size, sampler, and what to compare with", open=False):
            self._add(gr.Textbox, "negative_prompt", label="Negative prompt", max_lines=3)
            with gr.Row(elem_classes="lora_trainer_main"):
                side = {"max_lines": 1, "min_width": 120, "placeholder": "of the base"}
                self._add(gr.Textbox, "width", label="Width (pixels)", **side)
                self._add(gr.Textbox, "height", label="Height (pixels)", **side)
                self._add(gr.Textbox, "steps", label="Sampling steps", value="20", max_lines=1, min_width=120)
                self._add(gr.Textbox, "cfg_scale", label="CFG scale", value="7", max_lines=1, min_width=120)
            labels = [entry.label for entry in SAMPLERS]
            self._add(gr.Dropdown, "sampler", labels, value=labels[0], label="Sampler")
            info = "A data set, or the path of a folder: says which weight to take. Empty: no proposal."
            self._add(gr.Dropdown, "train_data_dir", [], label="Training pictures", info=info, allow_custom_value=True)
            info = "A folder with a CLIP model, to compare by what is shown. Empty: by colours, textures and outlines."
            if not self.services.is_standalone:
                info = "A folder with a CLIP model. Empty: the one of Interrogate CLIP if it is here, else colours and textures."
            self._add(gr.Textbox, "clip", label="CLIP model", info=info, max_lines=1)
        self.filled = gr.State({})

    def bind(self, page: Page) -> None:
        looks = {"loras": self.widgets["loras"], "prompts": self.widgets["prompts"]}
        page.on(self.widgets["prompts"].change, self.look, looks, {"stack": self.stack}, quiet=True)
        follow = {**self.widgets, "filled": self.filled}
        outputs = {name: self.widgets[name] for name in FOLLOWING} | {"filled": self.filled, "stack": self.stack}
        page.on(self.widgets["loras"].input, self._choose_loras, follow, outputs, quiet=True)

    def refresh(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the lists anew, with sensible values where the user has given none."""
        host = self.services.host
        shelf = [item for item in list_shelf(host.folders().lora_dir) if not item.error]
        names = list(dict.fromkeys(item.name for item in shelf))
        loras = [name for name in values["loras"] or () if name in names]
        is_ours = not loras or loras == (values["filled"] or {}).get("loras")
        if is_ours and names:
            loras = names[:1]
        changes = self._follow({**values, "loras": loras}) if is_ours else {}
        if is_ours:
            changes["filled"]["loras"] = loras
        bases = [model.name for model in host.checkpoints()]
        base = changes.get("base_model", values["base_model"])
        found = {
            **changes,
            "loras": _list(names, loras, values["loras"]),
            "base_model": _list(bases, base or (bases[0] if bases else None), values["base_model"]),
            "train_data_dir": _list(
                self.services.library.names(),
                changes.get("train_data_dir", values["train_data_dir"]) or None,
                values["train_data_dir"],
            ),
        }
        return {**found, **self.look({**values, **changes})}

    def lists(self) -> dict[str, Any]:
        """Returns the lists of now and no values: the user may be typing while they are on their way."""
        host = self.services.host
        shelf = [item.name for item in list_shelf(host.folders().lora_dir) if not item.error]
        return {
            "loras": gr.update(choices=list(dict.fromkeys(shelf))),
            "base_model": gr.update(choices=[model.name for model in host.checkpoints()]),
            "train_data_dir": gr.update(choices=self.services.library.names()),
        }

    def fill_for(self, values: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Returns the updates that put a LoRA with all that goes with it into the form."""
        return {**self._follow({**values, "loras": [name]}, is_forced=True), "loras": [name]}

    def look(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the tags of the prompts ask for."""
        folder = self.services.host.folders().lora_dir
        uses: dict[Any, None] = {}
        try:
            for prompt in str(values["prompts"] or "").splitlines():
                uses |= dict.fromkeys(parse_prompt(prompt, partial(find_lora, folder))[1])
        except LoraTrainerError as error:  # while it is being typed
            return {"stack": f'<p class="lora_trainer_family">{escape(error)}</p>'}
        rows = [{"path": str(use.path), "unet": use.unet_weight, "text": use.weight_of("text_encoder")} for use in uses]
        return {"stack": describe_stack(rows)}

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the settings of a grid, see `jobs.kinds.grid_settings`."""
        sampler = next((entry.name for entry in SAMPLERS if entry.label == values["sampler"]), "euler_a")
        given = {name: values[name] for name in self.widgets if name not in ("loras", "steps_too", "sampler")}
        settings = {name: value for name, value in given.items() if value not in (None, "")}
        folder = self.services.path_of(settings.pop("train_data_dir", ""))
        run = self._run_of((values["loras"] or [""])[0])
        clip_skip = self.services.queue.settings(run.id).get("clip_skip") if run else None
        return {
            **settings,
            "sampler": sampler,
            "loras": self._files_of(values),
            **({"train_data_dir": str(folder)} if folder else {}),
            **({"clip_skip": clip_skip} if clip_skip else {}),
        }

    def labels(self) -> dict[str, str]:
        """Returns what the settings of a grid are called on the page; "prompt" and "seed" are those of one picture."""
        labels = {name: widget.label for name, widget in self.widgets.items()}
        return {**labels, "prompt": labels["prompts"], "seed": labels["seeds"]}

    def title(self, values: Mapping[str, Any]) -> str:
        return f"Test of {', '.join(values['loras'] or ())}" if values["loras"] else "Test of a prompt"

    def _add(self, kind: Any, name: str, *args: Any, **options: Any) -> None:
        self.widgets[name] = unsaved(kind(*args, interactive=True, elem_id=f"lora_trainer_test_field_{name}", **options))

    def _choose_loras(self, values: dict[str, Any]) -> dict[str, Any]:
        changes = self._follow(values)
        return {**changes, **self.look({**values, **changes})}

    def _follow(self, values: Mapping[str, Any], *, is_forced: bool = False) -> dict[str, Any]:
        """Returns what goes with the first LoRA, in those fields in which the user has written nothing."""
        names = list(values["loras"] or ())
        before = dict(values.get("filled") or {})
        wanted = self._sensible(names[0]) if names else {}
        changes: dict[str, Any] = {}
        for name, value in wanted.items():
            if is_forced or values.get(name) in (None, "", before.get(name)):
                changes[name] = before[name] = value
        for name, nothing in (("prompts", ""), ("train_data_dir", None)):  # those of the LoRA before say nothing of this one
            if name not in wanted and (is_forced or (name in before and values.get(name) == before[name])):
                changes[name] = nothing
                before.pop(name, None)
        return {**changes, "filled": {**before, "loras": None}}  # the user's own choice, unless `refresh` says otherwise

    def _sensible(self, name: str) -> dict[str, Any]:
        """Returns prompt, base model and training pictures for a LoRA: those of its run, as far as there is one."""
        run = self._run_of(name)
        settings = self.services.queue.settings(run.id) if run else {}
        trigger = str(settings.get("trigger_words") or "").strip()
        if not trigger:
            trigger = self._card_of(name)
        samples = settings.get("sample_prompts") or []
        lines = samples.splitlines() if isinstance(samples, str) else list(samples)
        sample = str(lines[0]).strip() if lines else ""
        prompt = sample if trigger.casefold() in sample.casefold() else ", ".join(part for part in (trigger, sample) if part)
        wanted = str(settings.get("base_model") or "")
        base = next((model.name for model in self.services.host.checkpoints() if wanted in (model.name, str(model.path))), "")
        found = {
            "prompts": prompt,
            "base_model": base,
            "train_data_dir": self.services.name_of(settings.get("train_data_dir")),
        }
        return {key: value for key, value in found.items() if value}

    def _card_of(self, name: str) -> str:
        try:
            return look_at(find_lora(self.services.host.folders().lora_dir, name)).card.activation_text
        except LoraTrainerError:
            return ""

    def _run_of(self, name: str) -> JobView | None:
        """Returns the training that made a LoRA of the folder."""
        made = (job for job in self.services.queue.list() if job.kind == "train" and job.result is not None)
        return next((job for job in made if job.result and job.result.stem == name), None)

    def _files_of(self, values: Mapping[str, Any]) -> list[str]:
        """Returns the LoRAs by name, each after the saved steps of its run where those are wanted."""
        files: list[str] = []
        for name in values["loras"] or ():
            run = self._run_of(name) if values["steps_too"] else None
            saved = run.folder.glob("*.safetensors") if run else ()
            steps = {step: path for path in saved if (step := split_step_name(path.stem)[1]) is not None}
            if values["steps_too"] and not steps:
                problem = Problem(
                    STEPS,
                    f"is chosen, and there is no saved step of {name} on this computer.",
                    hint="Leave it out, or choose a LoRA of a run that saved steps.",
                )
                raise ConfigError([problem])
            files += [str(steps[step]) for step in sorted(steps)]
            files.append(self._finished(name) if run else name)
        return files

    def _finished(self, name: str) -> str:
        """Returns a LoRA's finished file: its name, or that in its run's folder where a picked step took its place."""
        final = self.final_of(name)
        if final is None or model_hash(final) == model_hash(find_lora(self.services.host.folders().lora_dir, name)):
            return name
        return str(final)

    def final_of(self, name: str) -> Path | None:
        """Returns the finished file in the folder of the run that made a LoRA."""
        run = self._run_of(name)
        path = run.folder / f"{name}.safetensors" if run else None
        return path if path and path.is_file() else None


def _list(choices: list[str], value: Any, now: Any) -> Any:
    """Returns a list anew. The value only where it is another: the user may choose while this is on its way."""
    return gr.update(choices=choices) if value == now else gr.update(choices=choices, value=value)
