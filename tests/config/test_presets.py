from __future__ import annotations

import re

import pytest

from lora_trainer.config.parse import parse_config
from lora_trainer.config.presets import load_presets

PRESETS = load_presets()


def test_style_character_and_concept_exist_for_sd1_and_sdxl():
    assert {f"{family}-{kind}" for family in ("sd1", "sdxl") for kind in ("style", "character", "concept")} | {
        "ink-painting",
        "miniature",
    } == set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_value_is_valid_and_has_a_reason(preset):
    parse_config({"train_data_dir": "p", "base_model": "b", "output_dir": "o", **preset.values})
    assert all(reason.endswith((".", "!")) and len(reason) > 20 for reason in preset.reasons.values())
    assert set(preset.reasons) == set(preset.for_pictures(20))


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "miniature"])
def test_the_smallest_and_the_largest_set_of_a_preset_train_long_enough(name):
    """Steps of the numbers of pictures that its help names. In the field: 1500 to 2000 pictures one by one."""
    preset = PRESETS[name]
    for num_pictures in map(int, re.findall(r"(\d+)(?= to \d+ pictures| pictures)", preset.help)):
        values = preset.for_pictures(num_pictures)
        batch = values["batch_size"] * values.get("gradient_accumulation_steps", 1)
        steps = -(-num_pictures // batch) * values["epochs"]
        assert 300 <= steps <= 4000, num_pictures
        assert 5 <= steps / values["save_steps"] <= 40


def test_epochs_follow_from_the_set():
    character = PRESETS["sd1-character"]
    assert [character.for_pictures(number).get("epochs") for number in (0, 1, 20, 150, 100_000)] == [None, 200, 100, 13, 1]
    assert PRESETS["ink-painting"].for_pictures(20)["epochs"] == 15, "the write-up's own"


def test_the_ink_painting_preset_has_the_values_of_the_write_up():
    values = PRESETS["ink-painting"].values
    config = parse_config({"train_data_dir": "p", "base_model": "b", "output_dir": "o", **values})
    assert (config.lora_rank, config.alpha, config.lora_dropout) == (16, 32, 0.1)
    assert (config.learning_rate, config.batch_size, config.epochs) == (2e-4, 4, 15)
