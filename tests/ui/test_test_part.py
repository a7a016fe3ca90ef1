"""What the part Test answers: sensible values after a training, the grid as its cells come, and a weight that is picked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest
from PIL import Image

from lora_trainer.adapters.library import read_card
from lora_trainer.dataset.library import DatasetLibrary
from lora_trainer.errors import AdapterError, JobError
from lora_trainer.events import EventWriter, TrainEvent
from lora_trainer.host.standalone import Standalone
from lora_trainer.jobs.queue import JobQueue
from lora_trainer.jobs.record import Record
from lora_trainer.ui import grid_view
from lora_trainer.ui.page import Page
from lora_trainer.ui.services import Services
from tests.adapters.test_shelf import make

pytestmark = pytest.mark.hosts


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    """Real services after a training, with one saved step, and a grid of two rows that was stopped before its last cell."""
    host = Standalone(tmp_path / "data")
    folders = host.folders()
    jobs, run = folders.data_dir / "jobs", folders.runs / "ink"
    lora, step = make(folders.lora_dir / "ink.safetensors"), make(run / "ink-step00000100.safetensors", 0.5)
    pictures = folders.datasets / "boats"
    pictures.mkdir(parents=True)
    base = host.checkpoint_dir / "base.safetensors"
    base.parent.mkdir(parents=True)
    base.touch()
    settings = {
        "trigger_words": "guofeng",
        "sample_prompts": ["a boat on a lake"],
        "base_model": str(base),
        "train_data_dir": str(pictures),
        "clip_skip": 2,
    }
    Record("20260101-000000-aaaaaa", "train", "ink", settings, run, 1.0, status="finished", ended=2.0, result=lora).save(jobs)
    grid = jobs / "20260102-000000-bbbbbb"
    Record(grid.name, "grid", "Test of ink", {}, grid, 3.0, status="stopped", ended=4.0).save(jobs)
    writer = EventWriter(grid / "events.jsonl")
    uses = [[{"path": str(path), "unet": 1.0, "text": 1.0}] for path in (lora, step)]
    rows = [{"label": f"row {n}", "prompt": "a boat", "seed": 7, "loras": use, "companions": []} for n, use in enumerate(uses)]
    writer.write(TrainEvent("grid", {"rows": rows, "weights": [0, 0.5], "base": "base", "pipeline": ""}))
    for row, column in ((0, 0), (1, 0), (1, 1)):
        path = grid / f"{row}-{column}.png"
        Image.new("RGB", (64, 64), (90 * row, 0, 90 * column)).save(path)
        data = {"row": row, "column": column, "path": str(path), "parameters": "a boat <lora:x:0.5>\nSteps: 20"}
        writer.write(TrainEvent("cell", data))
    near = {"row": 1, "column": 1, "path": "p.png", "similarity": 0.9, "base_similarity": 0.1, "is_copied": True}
    figure = {"rows": [1], "column": 1, "weight": 0.5, "moved": 0.2, "nearness": 0.6, "kept": 0.7, "score": 0.6}
    advice = {"figures": [figure], "best": 0, "reason": "<because>", "nearest": [near], "by": "colours"}
    writer.write(TrainEvent("advice", advice))
    writer.close()
    queue = JobQueue(host)
    yield Services(host, queue, DatasetLibrary(folders.datasets))
    queue.close()


@pytest.fixture
def page(services: Services) -> Page:
    with gr.Blocks():
        page = Page(services)
        page.build()
    return page


def values_of(page: Page, **changes: object) -> dict[str, object]:
    test = page.parts["test"]
    return {**{name: getattr(widget, "value", None) for name, widget in test.live.items()}, "loras": [], "filled": {}} | changes


def test_after_a_training_sensible_values_stand_there(page: Page) -> None:
    test = page.parts["test"]
    shown = test.refresh(values_of(page))
    assert shown["loras"]["value"] == ["ink"] and shown["loras"]["choices"] == ["ink"]
    assert shown["prompts"] == "guofeng, a boat on a lake"
    assert shown["base_model"]["value"] == "base.safetensors" and shown["train_data_dir"]["value"] == "boats"
    values = values_of(page, loras=["ink"], prompts="mine", filled=shown["filled"], base_model="base.safetensors")
    assert "prompts" not in test.refresh(values)  # what the user wrote stays


def test_a_lora_that_the_user_chose_stays_and_brings_nothing_of_the_one_before(page: Page, services: Services) -> None:
    test = page.parts["test"]
    shown = test.refresh(values_of(page))
    make(services.host.folders().lora_dir / "found.safetensors")
    values = {"prompts": shown["prompts"], "train_data_dir": "boats", "filled": shown["filled"]}
    chosen = test.fields._choose_loras(values_of(page, loras=["found"], **values))
    assert chosen["prompts"] == "" and chosen["train_data_dir"] is None
    values = values_of(page, loras=["found"], prompts="", filled=chosen["filled"], base_model="base.safetensors")
    assert test.refresh(values)["loras"]["value"] == ["found"]
    assert test.test(values_of(page, prompts="guofeng, a boat"), "found")["prompts"] == ""


def test_saved_steps_are_rows_before_the_finished_file(page: Page, services: Services) -> None:
    test = page.parts["test"]
    values = values_of(
        page, loras=["ink"], prompts="a boat", steps_too=True, train_data_dir="boats", base_model="base.safetensors"
    )
    settings = test.fields.settings(values)
    assert [Path(lora).stem for lora in settings["loras"]] == ["ink-step00000100", "ink"]
    assert settings["clip_skip"] == 2 and settings["train_data_dir"] == str(services.library.path("boats"))
    assert settings["weights"] == "0, 0.3, 0.5, 0.7, 0.9, 1" and settings["sampler"] == "euler_a" and "width" not in settings


def test_the_tags_of_the_prompt_are_told(page: Page) -> None:
    form = page.parts["test"].fields
    told = form.look({"prompts": "a <lora:ink:0.5:0.8>\nb"})["stack"]
    assert "ink" in told and "UNet 0.8" in told and "0.5" in told
    assert "&#x27;seal&#x27;" in form.look({"prompts": "a <lora:seal:1>"})["stack"]


def test_the_grid_shows_what_is_drawn_the_proposal_and_copies(page: Page) -> None:
    shown = page.parts["test"].show(values_of(page, chosen="1-1"))
    assert shown["cells"].count("data-cell=") == 3 and shown["cells"].count("is_blank") == 1
    assert "is_best" in shown["cells"] and "90%" in shown["cells"]
    assert "&lt;because&gt;" in shown["advice"] and "ink, step 100" in shown["advice"]
    assert "over-trained" in shown["large"] and "60%" in shown["large"] and "no prompt finds it" in shown["large"]
    assert shown["prompt"] == "a boat <lora:x:0.5>" and shown["button_pick"]["visible"]
    again = page.parts["test"].show(values_of(page, chosen="1-1", drawn=shown["drawn"]))
    assert list(again) == ["drawn"]  # a tick sends only what changed
    assert not page.parts["test"].show(values_of(page, chosen="0-0"))["button_pick"]["visible"]


def test_a_picked_step_is_the_lora_with_weight_and_preview(page: Page, services: Services) -> None:
    test = page.parts["test"]
    run = services.host.folders().runs / "ink"
    (run / "job.json").write_text(json.dumps({"published": ["ink.safetensors"]}), encoding="utf-8")
    updates = test._pick(values_of(page, chosen="1-1"), page.parts["runs"])
    lora = services.host.folders().lora_dir / "ink.safetensors"
    assert read_card(lora).preferred_weight == 0.5 and lora.with_suffix(".png").is_file()
    assert "ink, step 100" in updates["message"] and "data-lora" in updates["runs.items"]
    with pytest.raises(AdapterError, match="for one LoRA"):
        test._pick(values_of(page, chosen="0-0"), page.parts["runs"])
    with pytest.raises(JobError, match="No picture is chosen"):
        test._pick(values_of(page, chosen=""), page.parts["runs"])


def test_a_grid_drawn_anew_begins_anew() -> None:
    first = TrainEvent("grid", {"rows": [], "weights": [0], "base": "b", "pipeline": ""})
    cell = TrainEvent("cell", {"row": 0, "column": 0, "path": "x", "parameters": ""})
    assert grid_view.fold([first, cell, first]).cells == {}


class TestLibrary:
    def test_the_card_is_edited_and_the_file_goes_to_the_trash_and_back(self, page: Page, services: Services) -> None:
        library, folder = page.parts["runs"].library, services.host.folders().lora_dir
        shown = library.show({"chosen": "ink"})
        assert "24 pictures" in shown["detail"] and shown["new_name"] == "ink-2" and shown["stack"] == "<lora:ink:1>"
        card = {"activation_text": "guofeng", "negative_text": "", "description": "", "notes": "", "preferred_weight": 0.6}
        library._save({"chosen": "ink", **card})
        assert read_card(folder / "ink.safetensors").preferred_weight == 0.6
        library._rename({"chosen": "ink", "name": "brush"})
        assert (folder / "brush.safetensors").is_file() and read_card(folder / "brush.safetensors").activation_text == "guofeng"
        deleted = library._delete({"chosen": "brush"})
        assert not (folder / "brush.safetensors").exists() and deleted["restore"]["visible"]
        library._restore({"chosen": "", "trash": deleted["trash"]["value"]})
        assert (folder / "brush.safetensors").is_file()

    def test_a_new_file_is_made_by_a_job(self, page: Page, services: Services) -> None:
        library = page.parts["runs"].library
        values = {"chosen": "ink", "tool": "Lower the rank", "new_name": "small", "rank": "2", "precision": "none", "stack": ""}
        library._make(values)
        job = next(job for job in services.queue.list() if job.kind == "lora_files")
        assert services.queue.settings(job.id) == {"tool": "resize", "name": "small", "lora": "ink", "rank": 2}
