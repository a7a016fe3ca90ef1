"""The part Train: which pictures on which base, the settings, what they come to, and Start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from lora_trainer.config.parse import config_to_yaml, read_yaml
from lora_trainer.config.presets import load_presets
from lora_trainer.config.schema import SECTIONS, field_infos
from lora_trainer.dataset.overview import Overview, read_overview
from lora_trainer.errors import ConfigError, DatasetError, Problem
from lora_trainer.libraries import load_ahead
from lora_trainer.ui import estimate, markup
from lora_trainer.ui.compat import listen, unsaved, uploaded
from lora_trainer.ui.form import FIRST, MAIN, build_widget, fill, label_of, preset_updates, read_values, section_id
from lora_trainer.ui.markup import escape, word
from lora_trainer.ui.services import Services

if TYPE_CHECKING:
    from lora_trainer.ui.page import Page

USUAL_PRESET = "style"
HELD_BACK = "0.1"
DOWNLOAD = "(text) => { if (text) window.loraTrainer.download('lora_trainer.yaml', text); }"


class TrainPart:
    """See the module and `page.Part`.

    Attributes:
        form: the widget of every setting, by YAML key.
        look_at: what `follow` reads, by name.
        followers: what `follow` changes, by name.
    """

    id = "train"
    title = "Train"

    def __init__(self, services: Services) -> None:
        self.services = services
        self.presets = load_presets()
        self.form: dict[str, Any] = {}
        self.live: dict[str, Any] = {}

    def build(self) -> None:
        with gr.Row():
            with gr.Column(scale=3):
                self._build_first()
                with gr.Row(elem_classes="lora_trainer_main"):
                    for name in MAIN:
                        self.form[name] = build_widget(name, min_width=190)
                for section in SECTIONS:
                    self._build_section(section)
            with gr.Column(scale=2, elem_classes=["lora_trainer_panel", "lora_trainer_sticky"]):
                self._build_side()
        # What was filled in by the page itself, and may be replaced by it: the preset, for how many pictures, the name ...
        self.filled = gr.State({"preset": None, "output_name": "", "sample_prompts": ""})
        self.form = {name: self.form[name] for name in field_infos()}
        self.look_at = {**self.form, "preset": self.preset, "filled": self.filled}
        self.followers = {
            **self.look_at,
            "summary": self.summary,
            "problems": self.problems,
            "family": self.family,
            "offer": self.offer,
        }
        self.live = dict(self.followers)

    def bind(self, page: Page) -> None:
        for name, widget in self.form.items():
            if name == "base_model":
                page.on(widget.input, self._choose_base, self.look_at, self.followers, quiet=True)
            elif name == "train_data_dir":
                page.on(
                    widget.input,
                    lambda values: self.follow({**values, "source": values["train_data_dir"]}),
                    self.look_at,
                    self.followers,
                )
            else:
                page.on(widget.input, self.look, self.look_at, self._looked, quiet=True)
        page.on(self.preset.input, self._choose_preset, self.look_at, self.followers, quiet=True)
        page.on(self.offer.click, self._hold_back, self.look_at, self.followers)
        runs = page.parts["runs"].shown
        started = {**self._looked, **{f"runs.{name}": component for name, component in runs.items()}}
        self._runs = page.parts["runs"]
        page.on(self.start.click, lambda values: self._submit(values, start=True), self.look_at, started)
        page.on(self.add.click, lambda values: self._submit(values, start=False), self.look_at, started)
        saved = page.on(self.save.click, self._save, self.look_at, {**self._looked, "text": self.text})
        listen(saved.then, None, inputs=[self.text], outputs=[], js=DOWNLOAD)
        page.on(self.load.upload, self._load, {**self.look_at, "file": self.load}, self.followers)

    @property
    def _looked(self) -> dict[str, Any]:
        return {"summary": self.summary, "problems": self.problems, "family": self.family, "offer": self.offer}

    def refresh(self, values: dict[str, Any]) -> Mapping[str, Any]:
        """Returns the lists of the host and of the data sets anew."""
        names = self.services.library.names()
        values = {**values, "source": values["train_data_dir"] or self._newest(names)}
        return {
            **self.follow(values),
            "base_model": gr.update(choices=[model.name for model in self.services.host.checkpoints()]),
            "vae": gr.update(choices=[model.name for model in self.services.host.vaes()]),
            "train_data_dir": gr.update(choices=names, value=values["source"]),
        }

    def tick(self, values: dict[str, Any]) -> Mapping[str, Any]:
        return {}

    def follow(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the updates for other pictures: name and sample prompt where the user has given none, and what it comes to."""
        source = values.get("source") or ""
        overview = self._overview(source)
        filled = dict(values.get("filled") or {})
        changes: dict[str, Any] = {"train_data_dir": source}
        changes |= self._take_preset(values, filled, filled.get("preset"), overview)
        if overview is not None:
            first = next((picture.caption for picture in overview.usable), "")
            for name, text in (("output_name", Path(source).name), ("sample_prompts", first)):
                if (values.get(name) or "").strip() in ("", filled.get(name, "")):
                    changes[name] = filled[name] = text
        changes["filled"] = filled
        choices = self.services.library.names()
        return {
            **changes,
            **self.look({**values, **changes}),
            "train_data_dir": gr.update(choices=choices, value=source or None),
        }

    def look(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the settings come to, their problems, the base's family, and the offer to hold pictures back."""
        overview = self._overview(values.get("train_data_dir"))
        examined = self._examine(values, overview)
        # What is not chosen yet is no mistake; Start says it when it is still missing then.
        problems = [problem for problem in examined.problems if problem.message != "is missing."]
        summary = _FIRST_STEPS
        config = examined.config
        if overview is not None and config is not None:
            summary = estimate.describe_plan(config, overview, examined.detection, self.services.queue) or summary
            problems += estimate.find_doubts(config, overview, examined.detection)
            if examined.detection is not None and overview.usable:
                summary += estimate.describe_memory(config, overview, examined.detection)
                warning = estimate.card_problem(config, overview, examined.detection)
                problems += [warning] if warning else []
        elif overview is not None and not examined.detection:
            summary = f"<p><b>{len(overview.usable)}</b> {word('pictures are ready. Choose a base model.')}</p>"
        elif overview is not None:
            summary = f"<p>{word('Correct what is marked; then the number of steps appears here.')}</p>"
        may_offer = (
            config is not None
            and overview is not None
            and len(overview.usable) >= estimate.ENOUGH_TO_HOLD_BACK
            and not config.validation_share
            and config.validation_dir is None
        )
        return {
            "summary": markup.box(summary, "summary", aria_live="polite"),
            "problems": markup.problem_list(problems, _FIELDS),
            "family": estimate.describe_base(examined.detection),
            "offer": gr.update(visible=may_offer),
        }

    def fill_from(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the updates that put settings by YAML key into the form.

        Raises:
            ConfigError: there are unknown keys among them.
        """
        unknown = [name for name in settings if name not in self.form and name != "config_version"]
        if unknown:
            raise ConfigError([Problem(name, "is not a setting.", hint="Correct or remove it.") for name in unknown])
        shown = fill(settings)
        shown["train_data_dir"] = self.services.name_of(shown["train_data_dir"])
        shown["base_model"] = self._name_of_base(shown["base_model"])
        filled = {"preset": None, "output_name": "", "sample_prompts": ""}
        return {**shown, "preset": None, "filled": filled, **self.look({**shown, "filled": filled})}

    def _build_first(self) -> None:
        host = self.services.host
        with gr.Row():
            self.form["base_model"] = build_widget("base_model", choices=[model.name for model in host.checkpoints()])
            self.form["train_data_dir"] = build_widget("train_data_dir", choices=self.services.library.names())
        self.family = gr.HTML("", elem_id="lora_trainer_train_family")
        with gr.Row():
            self.form["output_name"] = build_widget("output_name")
            self.form["trigger_words"] = build_widget("trigger_words")
            self.preset = unsaved(
                gr.Dropdown(
                    choices=list(self._presets_of(None, "").values()),
                    value=None,
                    label="Preset",
                    info="Good values for a purpose. What you set by hand stays.",
                    interactive=True,
                    elem_id="lora_trainer_train_preset",
                )
            )

    def _build_section(self, section: str) -> None:
        names = [name for name, info in field_infos().items() if info.section == section and name not in (*FIRST, *MAIN)]
        if not names:
            return
        folded = gr.Accordion(section, open=False, elem_id=section_id(names[0]))
        with folded, gr.Row(elem_classes="lora_trainer_fields"):
            for name in names:
                choices = [model.name for model in self.services.host.vaes()] if name == "vae" else None
                self.form[name] = build_widget(name, choices=choices, min_width=260)

    def _build_side(self) -> None:
        self.summary = gr.HTML(markup.box(_FIRST_STEPS, "summary"), elem_id="lora_trainer_train_summary")
        self.offer = gr.Button("Hold a tenth back for validation", visible=False, size="sm", elem_id="lora_trainer_train_offer")
        with gr.Row():
            self.start = gr.Button("Start", variant="primary", elem_id="lora_trainer_train_start")
            self.add = gr.Button("Add to queue", elem_id="lora_trainer_train_add")
        self.problems = gr.HTML("", elem_id="lora_trainer_train_problems")
        with gr.Row():
            self.save = gr.Button("Save YAML", size="sm", elem_id="lora_trainer_train_save")
            self.load = gr.UploadButton("Load YAML", file_types=[".yaml", ".yml"], size="sm", elem_id="lora_trainer_train_load")
        hidden = {"show_label": False, "elem_classes": "lora_trainer_hidden"}
        self.text = unsaved(gr.Textbox("", elem_id="lora_trainer_train_text", **hidden))

    def _presets_of(self, family: str | None, base: str) -> dict[str, str]:
        """Returns the labels of the presets of a family, of all while it is unknown, by name; those for this very base first.

        Lists show labels and not names, since gradio 3 knows no lists of both.
        """
        chosen = [preset for preset in self.presets.values() if family is None or family in preset.families]
        chosen = sorted((preset for preset in chosen if preset.base in ("", base)), key=lambda preset: not preset.base)
        return {preset.name: preset.label for preset in chosen}

    def _choose_base(self, values: dict[str, Any]) -> dict[str, Any]:
        """Offers the presets of the base's family, and takes its usual one, or its counterpart of the one chosen before."""
        path = estimate.find_base(values["base_model"], self.services.host)
        examined = self._examine(values, None)
        if path is None or examined.detection is None:
            return self.look(values)
        load_ahead()
        family = examined.detection.family
        labels = self._presets_of(family, path.stem)
        own = next((name for name in labels if self.presets[name].base), None)
        before = self._preset_name(values["preset"])
        purpose = (before or USUAL_PRESET).rpartition("-")[2]
        wanted = (own, before, f"{family}-{purpose}", f"{family}-{USUAL_PRESET}")
        name = next((name for name in wanted if name in labels), None)
        changes = self._apply_preset(values, name)
        return {**changes, "preset": gr.update(choices=list(labels.values()), value=labels.get(name or ""))}

    def _choose_preset(self, values: dict[str, Any]) -> dict[str, Any]:
        return self._apply_preset(values, self._preset_name(values["preset"]))

    def _preset_name(self, label: str | None) -> str | None:
        return next((preset.name for preset in self.presets.values() if preset.label == label), None)

    def _apply_preset(self, values: dict[str, Any], name: str | None) -> dict[str, Any]:
        filled = dict(values["filled"])
        changes = self._take_preset(values, filled, name, self._overview(values.get("train_data_dir")))
        return {**changes, "filled": filled, **self.look({**values, **changes})}

    def _take_preset(
        self, values: Mapping[str, Any], filled: dict[str, Any], name: str | None, overview: Overview | None
    ) -> dict[str, Any]:
        """Returns the updates for a preset on these pictures, and notes both in `filled`."""
        before = self._values_of(filled.get("preset"), filled.get("num_shown", 0))
        filled["preset"], filled["num_shown"] = name, overview.num_shown if overview else 0
        return preset_updates(values, before, self._values_of(name, filled["num_shown"]))

    def _values_of(self, name: str | None, num_shown: int) -> dict[str, Any]:
        return self.presets[name].for_pictures(num_shown) if name in self.presets else {}

    def _hold_back(self, values: dict[str, Any]) -> dict[str, Any]:
        return {"validation_share": HELD_BACK, **self.look({**values, "validation_share": HELD_BACK})}

    def _submit(self, values: dict[str, Any], *, start: bool) -> dict[str, Any]:
        overview = self._overview(values["train_data_dir"])
        examined = self._examine(values, overview)
        if examined.has_errors:
            return self._refused(examined.problems)
        try:
            id = self.services.queue.submit("train", self._settings(values), title=self._title(values), start=start)
        except ConfigError as error:
            return self._refused(error.problems)
        shown = {**self._runs.show({"chosen": id, "drawn": None}), "chosen": id}
        runs = {f"runs.{name}": update for name, update in shown.items()}
        if start:
            return {**runs, "tabs": gr.update(selected="runs"), "problems": ""}
        return {**runs, "problems": "", "message": markup.notice(word("Added to the queue; the part Runs shows it."))}

    def _refused(self, problems: tuple[Problem, ...]) -> dict[str, Any]:
        errors = [problem for problem in problems if problem.severity == "error"]
        number = f"<strong>{len(errors)}</strong>"
        said = f"{word('Nothing was started. To correct:')} {number}. {word('See beside the fields and next to Start.')}"
        return {
            "problems": markup.problem_list(problems, _FIELDS),
            "message": markup.box(said, "message", "is_error", role="alert"),
        }

    def _save(self, values: dict[str, Any]) -> dict[str, Any]:
        examined = self._examine(values, None)
        if examined.config is None:
            return {**self._refused(examined.problems), "text": ""}
        return {"text": config_to_yaml(examined.config)}

    def _load(self, values: dict[str, Any]) -> dict[str, Any]:
        ((name, path),) = uploaded(values["file"])
        updates = self.fill_from(read_yaml(path))
        return {**updates, "message": markup.notice(f"{word('Loaded the settings of')} {escape(name)}.")}

    def _examine(self, values: Mapping[str, Any], overview: Overview | None) -> estimate.Examination:
        return estimate.examine(self._settings(values), overview, self.services.host, self._title(values))

    def _settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the settings of the form by YAML key, the data set as its folder."""
        settings = read_values({name: values.get(name) for name in self.form})
        folder = self.services.path_of(values.get("train_data_dir"))
        return settings if folder is None else {**settings, "train_data_dir": str(folder)}

    def _title(self, values: Mapping[str, Any]) -> str:
        return str(values.get("output_name") or "").strip() or Path(str(values.get("train_data_dir") or "")).name

    def _overview(self, source: Any) -> Overview | None:
        """Returns what is in the chosen set; None when there is none or it cannot be read, which `check` says."""
        try:
            folder = self.services.folder_of(source)
            return None if folder is None else read_overview(folder)
        except DatasetError:
            return None

    def _newest(self, names: list[str]) -> str:
        return max(names, key=lambda name: self.services.library.path(name).stat().st_mtime, default="")

    def _name_of_base(self, path: str) -> str:
        return next((model.name for model in self.services.host.checkpoints() if path and model.path == Path(path)), path)


_FIELDS = {name: (label_of(name), section_id(name)) for name in field_infos()}
_FIRST_STEPS = f"<p>{word('Choose a base model and a data set; the number of steps appears here.')}</p>"
