"""How captions are written: the fields below the button Caption, and the question before weights are loaded from the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from lora_trainer.captioning.options import PRECISIONS, CaptionOptions, default_captioner, missing_models, read_options
from lora_trainer.captioning.table import CAPTIONERS, RANKERS
from lora_trainer.captioning.weights import Download, describe_mb, is_offline
from lora_trainer.errors import ConfigError, Problem
from lora_trainer.ui import markup
from lora_trainer.ui.compat import unsaved
from lora_trainer.ui.markup import escape, word
from lora_trainer.ui.services import Services

BEST = "Best one on this computer"
MODES = {
    "Only missing ones": "missing",
    "Rewrite all": "overwrite",
    "Before the existing caption": "prepend",
    "After the existing caption": "append",
}
_TEXTS = ("model", "prompt", "banned", "replacements", "word_lists")
_NUMBERS = ("terms", "num_beams", "min_tokens", "max_tokens", "batch_size")


class CaptionRunForm:
    """The fields, the question, and the job that is made of them.

    Attributes:
        fields: the components, by the names that handlers use.
        consent: what is shown while the question is open, likewise, and what it is about.
    """

    def __init__(self, services: Services) -> None:
        self.services = services
        self.fields: dict[str, Any] = {}
        self.consent: dict[str, Any] = {}

    def build(self) -> None:
        """Makes the widgets."""
        self.consent = {
            "question": gr.HTML("", elem_id="lora_trainer_dataset_question"),
            "agree": gr.Button(
                "Download, then write captions", visible=False, variant="primary", elem_id="lora_trainer_dataset_agree"
            ),
            "asked": gr.State(None),  # settings, title and models of the question: whoever agrees, agrees to exactly that
        }
        with gr.Accordion("How captions are written", open=False, elem_id="lora_trainer_dataset_caption_options"):
            self._build_what()
            self._build_words()
            self._build_how()

    def _build_what(self) -> None:
        names = {entry.label: entry.name for entry in CAPTIONERS if entry.options["model"] or not self.services.is_standalone}
        self._names = {BEST: "", **names}
        self._add(gr.Dropdown, "captioner", "Captioner", _HELP["captioner"], choices=list(self._names), value=BEST)
        self._add(gr.Radio, "mode", "Captions that are there", choices=list(MODES), value=next(iter(MODES)))
        self._add(gr.Checkbox, "has_trigger", "Trigger word first", _HELP["has_trigger"], value=True)
        self._text("prompt", "Captions begin with", placeholder="a painting of")

    def _build_words(self) -> None:
        self._text("banned", "Words to remove", placeholder="beautiful, artistic", lines=2)
        self._text("replacements", "Words to replace", placeholder="watercolor painting = ink wash painting", lines=2)
        self._text("word_lists", "Terms to append", _HELP["word_lists"], placeholder="medium: ink wash, oil painting", lines=3)
        with gr.Row(elem_classes="lora_trainer_fields"):
            self._rankers = {entry.label: entry.name for entry in RANKERS}
            first = next(iter(self._rankers))
            self._add(gr.Dropdown, "ranker", "Compared by", choices=list(self._rankers), value=first)
            self._number("terms", "Terms of each line")

    def _build_how(self) -> None:
        self._text("model", "Other weights", _HELP["model"])
        with gr.Row(elem_classes="lora_trainer_fields"):
            self._number("num_beams", "Beams")
            self._number("batch_size", "Pictures at once")
        with gr.Row(elem_classes="lora_trainer_fields"):
            self._number("min_tokens", "Shortest caption (tokens)")
            self._number("max_tokens", "Longest caption (tokens)")
        self._add(gr.Dropdown, "precision", "Precision of the weights", choices=list(PRECISIONS), value=PRECISIONS[0])

    def _add(self, kind: Any, name: str, label: str, info: str | None = None, **options: Any) -> None:
        elem_id = f"lora_trainer_dataset_caption_{name}"
        self.fields[name] = unsaved(kind(label=label, info=info, interactive=True, elem_id=elem_id, **options))

    def _text(self, name: str, label: str, info: str | None = None, *, placeholder: str = "", lines: int = 1) -> None:
        most = 8 if lines > 1 else 1
        self._add(gr.Textbox, name, label, info, value="", placeholder=placeholder, lines=lines, max_lines=most)

    def _number(self, name: str, label: str) -> None:
        self._add(gr.Number, name, label, value=getattr(CaptionOptions, name))

    def settings(self, values: Mapping[str, Any], folder: str) -> dict[str, Any]:
        """Returns the settings of a job for a folder."""
        settings = {name: str(values[name] or "").strip() for name in _TEXTS}
        settings |= {name: values[name] for name in _NUMBERS}
        trigger = str(values.get("trigger_words") or "").split(",")[0].strip()
        return {
            "input_dir": folder,
            **{name: value for name, value in settings.items() if value != ""},
            "captioner": self._names.get(values["captioner"], values["captioner"] or ""),
            "mode": MODES.get(values["mode"], "missing"),
            "ranker": self._rankers.get(values["ranker"], ""),
            "precision": values["precision"],
            **({"trigger": trigger} if values["has_trigger"] and trigger else {}),
        }

    def start(self, settings: dict[str, Any], title: str) -> dict[str, Any]:
        """Queues a job, or asks whether the weights that it lacks may be loaded.

        Raises:
            ConfigError: with every problem of the settings.
        """
        return self._start(settings, title, agreed=())

    def agree(self, asked: Mapping[str, Any] | None) -> dict[str, Any]:
        """Queues the job that was asked about, whatever the fields say now. Asks again where it lacks more by now.

        Args:
            asked: what `start` returned as such.

        Raises:
            ConfigError: as `start`; a folder may be gone.
        """
        if not asked:
            return {**_CLOSED, "message": markup.notice(word("Nothing is being asked any more. Press Caption."))}
        return self._start(asked["settings"], asked["title"], agreed=asked["models"])

    def _start(self, settings: dict[str, Any], title: str, *, agreed: Sequence[str]) -> dict[str, Any]:
        host = self.services.host
        options = read_options(settings, default_captioner=default_captioner(host))
        settings = {**settings, "captioner": options.captioner}  # what is the best here may be another one later
        open_ones = [one for one in missing_models(options, host.folders().captioners) if not one.is_agreed()]
        if open_ones and is_offline():
            raise ConfigError([Problem("", one.describe(), hint=one.by_hand()) for one in open_ones])
        if any(one.model not in agreed for one in open_ones):
            asked = {"settings": settings, "title": title, "models": [one.model for one in open_ones]}
            return {"question": draw_question(open_ones, title), "agree": gr.update(visible=True), "asked": asked}
        self.services.queue.submit("caption", {**settings, "download": True} if open_ones else settings, title=title)
        return {**_CLOSED, "message": markup.notice(word("Captions are being written; they appear here when they are done."))}


_CLOSED: dict[str, Any] = {"question": "", "agree": gr.update(visible=False), "asked": None}


def draw_question(downloads: list[Download], title: str) -> str:
    """Returns what would be loaded and for which job, how large it is, and how to put it there by hand."""
    parts = [f"<p>{escape(title)}</p>"]
    for one in downloads:
        size = f"<strong>{describe_mb(one.size_mb)}</strong> " if one.size_mb else ""
        parts.append(
            f"<p>{word('Not on this computer yet:')} <strong>{escape(one.model)}</strong>. {size}"
            f"{word('will be downloaded once; a download that breaks off goes on the next time.')}</p>"
            f"<details><summary>{word('By hand')}</summary><p>{escape(one.by_hand())}</p></details>"
        )
    return markup.box("".join(parts), "message", "question", role="status")


_HELP = {
    "captioner": "What is missing is only downloaded after you have agreed.",
    "has_trigger": "Puts the trigger word from the Train tab first in every new caption.",
    "word_lists": "One list a line: medium, style, era, composition. CLIP compares them with the picture and appends the best.",
    "model": "A folder with the captioner's files, or an id on the hub. Empty: the captioner's own.",
}
