"""How long a training is for the pictures at hand, on the command line and in the plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_trainer import cli
from lora_trainer.amount import warn_of_few_steps, with_preset
from lora_trainer.config.parse import parse_config
from lora_trainer.config.presets import load_presets
from tests import tiny


def warned(num_pictures: int, *, repeats: int = 1, base: str = "v1-5.safetensors", **changes: str) -> str:
    config = parse_config({"train_data_dir": "p", "base_model": base, "output_dir": "o", "batch_size": "4", **changes})
    per_epoch = -(-num_pictures * repeats // config.batch_size)
    steps = config.max_train_steps or per_epoch * config.epochs
    found = warn_of_few_steps(
        config, num_pictures=num_pictures, num_shown=num_pictures * repeats, num_epochs=steps / per_epoch, steps=steps
    )
    return " ".join(map(str, found))


def test_few_pictures_that_are_seen_too_seldom():
    said = warned(20, epochs="15")
    assert "(15) shows each of 20 pictures 15 times, in 75 steps; 80 to 120 times is usual" in said
    assert "Set it to 100." in said
    assert "Set it to 10." in warned(20, repeats=10, epochs="2")
    assert "Set it to 500." in warned(20, max_train_steps="75")


@pytest.mark.parametrize(
    ("num_pictures", "changes"),
    [
        (150, {"epochs": "15"}),  # the write-up's
        (20, {"epochs": "100"}),
        (15, {"epochs": "10", "repeats": 10, "batch_size": "1"}),  # the field's
        (1000, {"epochs": "2"}),
        (24, {"epochs": "40", "base": "miniature.safetensors"}),
        (20, {"epochs": "15", "start_from": "lora.safetensors"}),
    ],
)
def test_a_usual_training_is_not_warned_of(num_pictures, changes):
    assert warned(num_pictures, **changes) == ""


def test_a_large_batch_makes_few_steps():
    said = warned(20, epochs="60", batch_size="20")
    assert "(60) makes only 60 steps; 300 and more are usual" in said and "Set it to 300." in said


def test_the_preset_looks_at_the_folder(tmp_path: Path):
    tiny.make_pictures(folder := tmp_path / "20_boat")
    num_pictures = len(list(folder.glob("*.png")))
    values = with_preset(load_presets()["sdxl-style"], {"train_data_dir": str(tmp_path), "lora_rank": "8"})
    assert (values["lora_rank"], values["epochs"]) == ("8", round(2500 / 20 / num_pictures))
    for nothing in ({}, {"train_data_dir": ""}, {"train_data_dir": str(tmp_path / "none")}, {"train_data_dir": ["p"]}):
        assert "epochs" not in with_preset(load_presets()["sdxl-style"], nothing)
    assert with_preset(load_presets()["ink-painting"], {"epochs": "3"})["epochs"] == "3", "the file wins"


def test_check_tells_a_trigger_word_that_is_in_no_caption_and_too_few_steps(tmp_path, capsys):
    checkpoint = tiny.make_checkpoint("sd1", tmp_path / "base")
    pictures = tiny.make_pictures(tmp_path / "pictures")
    file = tmp_path / "train.yaml"
    file.write_text(f"train_data_dir: {pictures}\nbase_model: {checkpoint}\noutput_dir: {tmp_path / 'out'}\n", encoding="utf-8")
    words = ["check", "--config", str(file), "--set", "trigger_words=ohwx woman", "epochs=2"]
    assert cli.main(words) == 0
    said = capsys.readouterr().err
    assert "trigger_words: (ohwx woman) is in none of" in said and "epochs: (2) shows each of" in said
    assert cli.main([*words, "--set", "epochs=200", "trigger_words=photograph", "--preset", "sd1-style"]) == 0
    said = capsys.readouterr().err
    assert "trigger_words" not in said and "shows each of" not in said
