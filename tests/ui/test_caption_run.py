"""The button Caption: what it queues, and what it asks before weights are loaded."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import pytest

from lora_trainer.errors import ConfigError, DatasetError
from lora_trainer.ui.page import Page

pytestmark = pytest.mark.hosts


@pytest.fixture
def part(services, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody is there
    with gr.Blocks():
        page = Page(services)
        page.build()
    return page.parts["dataset"]


def values_of(part, **changes):
    shown = {name: field.value for name, field in part.run.fields.items()}
    return {"source": "ink", "resolution": "", "trigger_words": "", **shown, **changes}


def queued(services) -> dict[str, object]:
    (job,) = services.queue.list()
    return dict(services.queue.settings(job.id))


def test_what_is_not_here_is_asked_for_once(part, services, make_set):
    folder = make_set(num_pictures=1, caption="")
    asked = part._caption(values_of(part))
    assert "990 MB" in asked["question"] and "blip-image-captioning-base" in asked["question"]
    assert "tree/main" in asked["question"] and asked["agree"]["visible"] is True
    assert services.queue.list() == []
    begun = services.host.folders().captioners / "Salesforce--blip-image-captioning-base" / "download.json"
    begun.parent.mkdir(parents=True)
    begun.write_text('{"config.json": 2}', encoding="utf-8")  # agreed to before, and broken off
    done = part._caption(values_of(part))
    assert done["agree"]["visible"] is False and queued(services)["input_dir"] == str(folder)


def test_whoever_agrees_agrees_to_what_was_asked(part, services, make_set):
    folder = make_set(num_pictures=1, caption="")
    asked = part._caption(values_of(part, num_beams=2.0))["asked"]
    done = part._agree({"asked": asked, **values_of(part, source="", captioner="BLIP-2", num_beams=9.0)})
    assert done["asked"] is None and done["question"] == "" and done["agree"]["visible"] is False
    settings = queued(services)
    assert (settings["captioner"], settings["num_beams"], settings["download"]) == ("blip", 2.0, True)
    assert settings["input_dir"] == str(folder)


def test_a_question_that_is_closed_is_not_agreed_to(part, services, make_set):
    make_set(num_pictures=1, caption="")
    assert "Press Caption" in part._agree({"asked": None})["message"]
    assert services.queue.list() == []


def test_what_is_lacking_since_is_asked_for(part, services, make_set):
    make_set(num_pictures=1, caption="")
    asked = part._caption(values_of(part))["asked"]
    again = part._agree({"asked": {**asked, "models": ["made/up"]}})
    assert "990 MB" in again["question"] and services.queue.list() == []


def test_without_the_hub_nothing_is_asked(part, services, make_set, monkeypatch):
    make_set(num_pictures=1, caption="")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE"):
        part._caption(values_of(part))


def test_all_fields_reach_the_job(part, services, make_set):
    make_set(num_pictures=1)
    wishes = {
        "captioner": "The demo's BLIP",
        "mode": "After the existing caption",
        "prompt": "a painting of",
        "banned": "beautiful",
        "replacements": "watercolor = ink wash",
        "num_beams": 1.0,
        "max_tokens": 9.0,
        "precision": "fp32",
        "trigger_words": "shuimo, other",
    }
    part._caption(values_of(part, **wishes))
    settings = queued(services)
    assert settings["captioner"] == "miniature" and settings["mode"] == "append" and settings["trigger"] == "shuimo"
    assert (settings["prompt"], settings["banned"], settings["num_beams"]) == ("a painting of", "beautiful", 1.0)
    assert settings["max_tokens"] == 9.0 and "download" not in settings


def test_only_missing_ones_with_none_missing(part, services, make_set):
    make_set(num_pictures=1)
    assert "Every picture" in part._caption(values_of(part))["message"]
    assert services.queue.list() == []


def test_problems_of_the_fields_are_told(part, services, make_set, tmp_path: Path):
    make_set(num_pictures=1, caption="")
    with pytest.raises(ConfigError, match=r"num_beams: \(99"):
        part._caption(values_of(part, captioner="The demo's BLIP", num_beams=99.0))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no pictures"):
        part._caption(values_of(part, source=str(tmp_path / "empty")))
