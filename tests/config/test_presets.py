from __future__ import annotations

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
    assert set(preset.reasons) == set(preset.values)


def test_the_ink_painting_preset_has_the_values_of_the_write_up():
    values = PRESETS["ink-painting"].values
    config = parse_config({"train_data_dir": "p", "base_model": "b", "output_dir": "o", **values})
    assert (config.lora_rank, config.alpha, config.lora_dropout) == (16, 32, 0.1)
    assert (config.learning_rate, config.batch_size, config.epochs) == (2e-4, 4, 15)
