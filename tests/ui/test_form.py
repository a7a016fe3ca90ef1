"""The form is the schema: every field has a widget, and what stands in it reads back as the same setting."""

from __future__ import annotations

import dataclasses

import pytest

from lora_trainer.config.parse import parse_config, read_value
from lora_trainer.config.presets import load_presets
from lora_trainer.config.schema import default_of, field_infos
from lora_trainer.ui.form import fill, help_of, label_of, preset_updates, read_values, show_value

pytestmark = pytest.mark.hosts

REQUIRED = {"train_data_dir": "pictures", "base_model": "base.safetensors", "output_dir": "run"}
UNUSUAL = {
    "resolution": "512, 768",
    "folder_weights": "sketches=0.5, studies=2",
    "target_modules": "to_q, to_v",
    "sample_prompts": "a boat\na house, at night",
    "max_train_steps": "120",
    "log_with": "tensorboard",
    "learning_rate": "2e-4",
    "flip": True,
}


def defaults() -> dict[str, object]:
    return fill({})


@pytest.mark.parametrize("name", field_infos())
def test_a_default_reads_back_as_itself(name):
    info, default = field_infos()[name], default_of(name)
    if default is dataclasses.MISSING:
        return
    assert read_value(info, show_value(info, default)) == default


def test_an_untouched_form_is_the_schema():
    assert parse_config({**read_values(defaults()), **REQUIRED}) == parse_config(REQUIRED)


@pytest.mark.parametrize("name", UNUSUAL)
def test_a_changed_field_arrives_and_is_shown_again(name):
    config = parse_config({**read_values({**defaults(), **REQUIRED, name: UNUSUAL[name]})})
    assert getattr(config, name) == read_value(field_infos()[name], UNUSUAL[name]) != default_of(name)
    shown = fill({name: getattr(config, name)})
    assert read_value(field_infos()[name], shown[name]) == getattr(config, name)


def test_numbers_of_a_browser_are_whole_again():
    """A number field hands over 16.0 where 16 stands in it, and 2.5 must not become 2."""
    assert read_values({"lora_rank": 16.0})["lora_rank"] == 16
    assert read_values({"lora_rank": 2.5})["lora_rank"] == 2.5


def test_an_emptied_field_is_a_problem_and_not_its_default():
    assert read_values({"lora_rank": None})["lora_rank"] == ""
    assert "max_train_steps" not in read_values({"max_train_steps": ""})


def test_a_preset_leaves_what_was_set_by_hand():
    style = load_presets()["sd1-style"].values
    changed = preset_updates({**defaults(), "lora_rank": 64}, {}, style)
    assert "lora_rank" not in changed
    assert changed["resolution"] == "512"


def test_another_preset_takes_the_first_one_back():
    presets = load_presets()
    character, style = presets["sd1-character"].for_pictures(20), presets["sd1-style"].for_pictures(20)
    shown = {**defaults(), **preset_updates(defaults(), {}, character)}
    assert shown["epochs"] == 100
    shown |= preset_updates(shown, character, style)
    assert shown == {**defaults(), **preset_updates(defaults(), {}, style)}


def test_no_preset_is_lost_in_the_form():
    for preset in load_presets().values():
        shown = {**defaults(), **preset_updates(defaults(), {}, preset.for_pictures(20))}
        config = parse_config({**read_values(shown), **REQUIRED})
        assert config == parse_config({**preset.for_pictures(20), **REQUIRED})


def test_labels_are_unique():
    labels = [label_of(name) for name in field_infos()]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("lora_rank", "1 to 1,024; usual: 8 to 64."),
        ("learning_rate", "Above 0, up to 100; usual: 1e-4 to 2e-4 with AdamW."),
        ("lora_alpha", "Above 0; usual: half of, equal to or twice the rank."),
        ("seed", "0 to 4,294,967,295."),
    ],
)
def test_help_tells_range_and_what_is_usual(name, rules):
    assert help_of(field_infos()[name]).endswith(rules)
