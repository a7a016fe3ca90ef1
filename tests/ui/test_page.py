"""What the parts answer, with real services and no browser."""

from __future__ import annotations

import dataclasses
import gc
import re

import gradio as gr
import pytest

from lora_trainer.config.schema import field_infos
from lora_trainer.errors import ConfigError, TrainingError
from lora_trainer.events import TrainEvent
from lora_trainer.jobs.diagnosis import diagnose_error
from lora_trainer.ui import estimate, gallery
from lora_trainer.ui.curves import MOST_POINTS, Curve
from lora_trainer.ui.form import fill
from lora_trainer.ui.page import Page, build_page
from lora_trainer.ui.runs import draw_status

pytestmark = pytest.mark.hosts


@pytest.fixture
def page(services) -> Page:
    with gr.Blocks() as blocks:
        page = Page(services)
        page.build()
    page.blocks = blocks
    return page


def values_of(**changes: object) -> dict[str, object]:
    filled = {"preset": None, "output_name": "", "sample_prompts": ""}
    return {**fill({}), "preset": None, "filled": filled, **changes}


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", "", html)).strip()


def test_garbage_waits_only_until_the_page_is_built(services, monkeypatch):
    was_enabled = []
    build = Page.build
    monkeypatch.setattr(Page, "build", lambda page: was_enabled.append(gc.isenabled()) or build(page))
    build_page(services)
    assert (was_enabled, gc.isenabled()) == ([False], True)
    monkeypatch.setattr(Page, "build", lambda page: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_page(services)
    assert gc.isenabled()


def test_every_setting_has_a_field(page):
    assert list(page.parts["train"].form) == list(field_infos())


def test_no_field_is_kept_by_the_webui(page):
    """`ui-config.json` would keep the first default of each for ever."""
    kept = [
        block
        for part in page.parts.values()
        for block in (*part.live.values(), *getattr(part, "form", {}).values())
        if getattr(block, "label", None) and not getattr(block, "do_not_save_to_config", False)
    ]
    assert [block for block in kept if not isinstance(block, gr.HTML | gr.Button | gr.State)] == []


def test_ids_are_unique_and_ours(page):
    ids = [block.elem_id for block in page.blocks.blocks.values() if block.elem_id]
    assert len(set(ids)) == len(ids)
    assert all(id.startswith("lora_trainer") for id in ids)


def test_the_line_says_what_it_comes_to(page, make_set, make_base):
    make_set("ink", num_pictures=120)
    make_base()
    train = page.parts["train"]
    values = values_of(train_data_dir="ink", base_model="base.safetensors", resolution="512", batch_size=4.0, epochs=15.0)
    shown = train.look(values)
    assert "120 pictures × 1 repeat × 15 epochs / batch 4 = 450 steps" in text_of(shown["summary"])
    assert "Stable Diffusion 1" in shown["family"]
    held_back = train.look({**values, "validation_share": "0.1"})
    assert "108 pictures" in text_of(held_back["summary"]) and "12 held back" in text_of(held_back["summary"])


def test_memory_is_forecast_and_compared_with_this_machines_card(page, make_set, make_base, monkeypatch):
    make_set("ink")
    make_base()
    train = page.parts["train"]
    values = values_of(train_data_dir="ink", base_model="base.safetensors", resolution="512", batch_size=1.0)
    shown = train.look(values)
    assert "About 0.8 GB of graphics memory: fits in 4, 6, 8, 12, 16, 24 GB" in text_of(shown["summary"])
    assert "of main memory" in text_of(train.look({**values, "device": "cpu"})["summary"])
    monkeypatch.setattr(estimate, "card_bytes", lambda: 2**29)
    assert "the graphics card here has 0.5 GB" in text_of(train.look(values)["problems"])
    many = train.look({**values, "batch_size": 1000.0, "sample_prompts": "a boat"})
    assert "For" in text_of(many["summary"]) and "Gradient checkpointing on" in text_of(many["summary"])


def test_pictures_are_offered_for_validation_from_forty_on(page, make_set, make_base):
    make_base()
    for number, offered in ((39, False), (40, True)):
        make_set(f"set{number}", num_pictures=number)
        shown = page.parts["train"].look(values_of(train_data_dir=f"set{number}", base_model="base.safetensors"))
        assert shown["offer"]["visible"] is offered


def test_an_empty_page_complains_of_nothing(page):
    shown = page.parts["train"].look(values_of(train_data_dir="", base_model=""))
    assert shown["problems"] == ""


def test_start_refuses_with_every_problem(page, services, make_set):
    make_set("ink", num_pictures=3, caption="")
    updates = page.parts["train"]._submit(values_of(train_data_dir="ink", base_model="", lora_rank=0.0), start=True)
    fields = re.findall('data-field="([a-z_]+)"', updates["problems"])
    assert {"lora_rank", "base_model", "train_data_dir"} <= set(fields)
    assert "3 pictures without a caption" in updates["problems"]
    assert services.queue.list() == []


def test_add_to_queue_starts_nothing_and_keeps_the_settings(page, services, make_set, make_base):
    folder = make_set("ink", num_pictures=4)
    make_base()
    values = values_of(train_data_dir="ink", base_model="base.safetensors", output_name="waves", learning_rate="2e-4")
    page.parts["train"]._submit(values, start=False)
    (job,) = services.queue.list()
    assert (job.status, job.title, job.folder.name) == ("queued", "waves", "waves")
    assert services.queue.settings(job.id)["train_data_dir"] == str(folder)
    again = page.parts["train"].fill_from(services.queue.settings(job.id))
    assert (again["train_data_dir"], again["base_model"], again["learning_rate"]) == ("ink", "base.safetensors", "0.0002")


def test_an_answer_on_its_way_does_not_take_back_a_choice(page, services, make_set, make_base):
    """A tick or a refresh that was asked before Start, or before a click on another run, may be answered after it."""
    train, runs = page.parts["train"], page.parts["runs"]
    values = values_of(base_model=make_base().name, train_data_dir=make_set().name)
    older, newer = (train._submit(values, start=False)["runs.chosen"] for _ in range(2))
    assert older != newer
    shown = runs.show({"chosen": older, "drawn": None})
    assert "chosen" not in shown and f'data-shown="{older}"' in shown["status"]
    assert "chosen" not in runs.show({"chosen": older, "drawn": shown["drawn"]})
    gone = runs.show({"chosen": "gone", "drawn": None})["chosen"]
    assert gone in (older, newer)


def test_a_failed_training_is_told_in_the_words_of_the_page(page, services, make_set, make_base):
    make_set("ink", num_pictures=4)
    make_base()
    page.parts["train"]._submit(values_of(train_data_dir="ink", base_model="base.safetensors", batch_size=4.0), start=False)
    (job,) = services.queue.list()
    error = TrainingError("out of memory at step 1. Set batch_size to 2 and start over with --fresh.")
    diagnosis = diagnose_error(error, services.queue.settings(job.id))
    shown = draw_status(dataclasses.replace(job, status="failed", error=str(error), diagnosis=diagnosis))
    assert "--fresh" not in shown and "batch_size" not in shown and "data-field" not in shown
    assert "Set Batch size to 2 and Gradient accumulation to 2" in text_of(shown)
    assert "“Use these settings again”" in text_of(shown)
    assert "cut off" in draw_status(dataclasses.replace(job, status="failed", error="cut off", diagnosis=[]))


def test_unknown_settings_are_not_loaded(page):
    with pytest.raises(ConfigError, match="lora_rnak"):
        page.parts["train"].fill_from({"lora_rnak": 8})


def test_a_base_brings_its_preset_and_leaves_what_was_set(page, make_base):
    make_base()
    train = page.parts["train"]
    changes = train._choose_base(values_of(base_model="base.safetensors", lora_rank=64.0))
    assert changes["preset"]["value"] == "Style (SD1)"
    assert all("SDXL" not in label for label in changes["preset"]["choices"])
    assert "lora_rank" not in changes and changes["resolution"] == "512"


def test_the_epochs_of_a_preset_follow_the_pictures_until_they_are_given(page, make_set, make_base):
    make_base()
    make_set("ink", num_pictures=20)
    make_set("few", num_pictures=10)
    train = page.parts["train"]
    without = train._choose_base(values_of(base_model="base.safetensors"))
    assert "epochs" not in without, "no pictures yet"
    values = {**values_of(base_model="base.safetensors"), **without, "preset": without["preset"]["value"]}
    values |= train.follow({**values, "source": "ink"}) | {"train_data_dir": "ink"}
    assert values["epochs"] == 125
    assert train.follow({**values, "source": "few"})["epochs"] == 200
    assert "epochs" not in train.follow({**values, "source": "few", "epochs": 50.0})


def test_too_few_steps_and_a_trigger_word_in_no_caption_are_told(page, make_set, make_base):
    make_set("ink", num_pictures=20)
    make_base()
    values = values_of(train_data_dir="ink", base_model="base.safetensors", trigger_words="ohwx woman", epochs=15.0)
    said = text_of(page.parts["train"].look(values)["problems"])
    assert "(15) shows each of 20 pictures 15 times" in said and "(ohwx woman) is in none of 20 captions" in said
    said = text_of(page.parts["train"].look({**values, "trigger_words": "boat", "epochs": 100.0})["problems"])
    assert said == ""


def test_a_preset_for_one_base_comes_and_goes_with_it(page, make_base):
    make_base()
    make_base("miniature.safetensors")
    train = page.parts["train"]
    there = train._choose_base(values_of(base_model="miniature.safetensors"))
    assert there["preset"]["value"] == there["preset"]["choices"][0] == "Demo (miniature base)"
    assert (there["learning_rate"], there["epochs"]) == ("0.001", 40) and "resolution" not in there
    shown = {**values_of(), **there, "preset": there["preset"]["value"], "base_model": "base.safetensors"}
    back = train._choose_base(shown)
    assert back["preset"]["value"] == "Style (SD1)" and "Demo (miniature base)" not in back["preset"]["choices"]
    assert (back["learning_rate"], back["resolution"]) == ("0.0001", "512")


def test_name_and_sample_prompt_follow_the_pictures_until_they_are_given(page, make_set):
    make_set("ink", num_pictures=2)
    make_set("boats", num_pictures=2, caption="sails {number}")
    train = page.parts["train"]
    first = train.follow({**values_of(), "source": "ink"})
    assert (first["output_name"], first["sample_prompts"]) == ("ink", "a boat 0")
    values = {**values_of(), **first, "source": "boats", "sample_prompts": "mine"}
    second = train.follow(values)
    assert second["output_name"] == "boats" and "sample_prompts" not in second


def test_a_large_set_is_shown_page_by_page(page, make_set):
    make_set("many", num_pictures=95, size=(64, 64))
    part = page.parts["dataset"]
    values = {"source": "many", "kept": "All", "page_number": 7, "resolution": ""}
    shown = part.show(values)
    assert shown["page_number"] == 2 and shown["gallery"].count("data-picture") == 95 - 2 * gallery.PAGE_SIZE
    assert "3 / 3" in text_of(shown["gallery"])


def test_a_folder_anywhere_can_be_looked_at(page, make_set, tmp_path):
    folder = make_set("ink", num_pictures=2).rename(tmp_path / "elsewhere")
    shown = page.parts["dataset"].show({"source": str(folder), "kept": "All", "page_number": 0, "resolution": "512"})
    assert shown["gallery"].count("data-picture") == 2
    assert shown["remove"]["interactive"] is False


def test_time_is_known_after_a_run_on_the_same_base(page, services, make_set, make_base):
    """In proportion: twice the batch is twice the time, and a quarter of the pixels a quarter."""
    make_set("ink", num_pictures=8)
    make_base()
    train = page.parts["train"]
    overview = page.parts["dataset"].overview("ink")
    values = values_of(train_data_dir="ink", base_model="base.safetensors", resolution="512", batch_size=1.0)
    train._submit(values, start=False)
    (job,) = services.queue.list()
    services.queue._jobs[job.id].record.summary["seconds_per_step"] = 2.0
    config = estimate.examine(train._settings(values), None, services.host, "ink").config
    assert estimate.estimate_seconds(config, overview, (512,), 100, services.queue) == pytest.approx(200)
    twice = dataclasses.replace(config, batch_size=2)
    assert estimate.estimate_seconds(twice, overview, (512,), 100, services.queue) == pytest.approx(400)
    assert estimate.estimate_seconds(config, overview, (256,), 100, services.queue) == pytest.approx(50)


def test_a_long_curve_stays_short_and_forgets_what_was_undone():
    curve = Curve()
    for step in range(1, 3000):
        curve.take([TrainEvent("step", {"step": step, "loss": 0.1, "learning_rate": 1e-4})])
    assert MOST_POINTS / 2 <= len(curve.losses) <= MOST_POINTS
    curve.take([TrainEvent("resumed", {"step": 1000})])
    assert curve.losses[-1][0] <= 1000
    assert curve.num_read == 3000
