from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from lora_trainer.config.check import check_config
from lora_trainer.config.parse import parse_config
from lora_trainer.config.presets import load_presets
from lora_trainer.demo.assets import BASE
from lora_trainer.training.table import OPTIMIZERS


@pytest.fixture
def values(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "base.safetensors").write_bytes(b"x")
    return {
        "train_data_dir": str(tmp_path / "pictures"),
        "base_model": str(tmp_path / "base.safetensors"),
        "output_dir": str(tmp_path / "runs" / "ink"),
    }


def findings(values, severity="error"):
    return {problem.field: str(problem) for problem in check_config(parse_config(values)) if problem.severity == severity}


def test_good_settings_have_no_findings(values):
    assert check_config(parse_config(values)) == []


def test_missing_paths_are_all_named(values):
    values |= {"base_model": "no/such.safetensors", "metadata_path": "no/such.csv", "lora_dir": "no/such"}
    found = findings(values)
    assert set(found) == {"base_model", "metadata_path", "lora_dir"}
    assert "such.safetensors) is not a file" in found["base_model"]


def test_a_run_folder_within_the_pictures_is_refused(values):
    values["output_dir"] = values["train_data_dir"] + "/out"
    assert "lies in the picture folder" in findings(values)["output_dir"]


def test_nothing_to_train_is_refused(values):
    assert "nothing to train" in findings({**values, "unet_lr": "0"})["unet_lr"]


def test_a_wild_learning_rate_is_a_warning(values):
    assert "(0.01) is above 0.0005" in findings({**values, "learning_rate": "0.01"}, "warning")["learning_rate"]


def test_a_rate_that_a_preset_sets_for_its_base_is_none(values):
    rate = load_presets()["miniature"].values["learning_rate"]
    made_for = {**values, "base_model": str(BASE), "learning_rate": rate}
    assert float(rate) > 5e-4 and "learning_rate" not in findings(made_for, "warning")
    assert "learning_rate" in findings({**made_for, "learning_rate": "2e-3"}, "warning")
    assert "learning_rate" in findings({**made_for, "base_model": values["base_model"]}, "warning")


def test_a_rate_is_judged_by_its_optimizer(values):
    assert findings({**values, "optimizer": "lion", "learning_rate": "3e-5"}, "warning") == {}
    lion = findings({**values, "optimizer": "lion", "learning_rate": "2e-4"}, "warning")["learning_rate"]
    assert "(0.0002) is above 0.00015" in lion and "2e-5 to 5e-5 is usual with Lion" in lion
    adamw = findings({**values, "unet_lr": "1", "text_encoder_lr": "0.5"}, "warning")
    assert "(1) is above 0.0005" in adamw["unet_lr"] and "(0.5) is above" in adamw["text_encoder_lr"]
    assert "below 1e-05" in findings({**values, "learning_rate": "1e-6"}, "warning")["learning_rate"]


@pytest.fixture
def all_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: object())


def test_prodigy_takes_1_and_one_rate_for_all_parts(values, all_installed):
    prodigy = {**values, "optimizer": "prodigy", "learning_rate": "1"}
    assert check_config(parse_config(prodigy)) == []
    assert check_config(parse_config({**prodigy, "text_encoder_lr": "1"})) == []
    assert "(0.0001) is below 0.1" in findings({**prodigy, "learning_rate": "1e-4"}, "warning")["learning_rate"]
    found = findings({**prodigy, "text_encoder_lr": "0.5"})["text_encoder_lr"]
    assert "(0.5) must be 0 or equal to learning_rate (1)" in found


def test_schedule_free_with_a_falling_schedule_is_a_warning(values, all_installed):
    values |= {"optimizer": "schedule_free", "lr_scheduler": "cosine", "learning_rate": "5e-4"}
    assert "(cosine) works against schedule_free" in findings(values, "warning")["lr_scheduler"]


@pytest.mark.parametrize("entry", [entry for entry in OPTIMIZERS if entry.package], ids=lambda entry: entry.name)
def test_an_optimizer_whose_package_is_missing_is_refused_with_the_command(values, entry, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    assert f"pip install {entry.package}" in findings({**values, "optimizer": entry.name})["optimizer"]


def test_settings_without_effect_are_noticed(values):
    values |= {"keep_tokens": "1", "lr_restarts": "2", "huber_delta": "0.5"}
    found = findings(values, "notice")
    assert "while shuffle_tags is false" in found["keep_tokens"]
    assert "while lr_scheduler is constant" in found["lr_restarts"]
    assert "while loss_type is mse" in found["huber_delta"]
    values |= {"shuffle_tags": "true", "lr_scheduler": "cosine_with_restarts", "loss_type": "huber"}
    assert findings(values, "notice") == {}


def test_two_weightings_of_the_noise_levels_are_refused(values):
    values |= {"debiased_estimation": "true"}
    assert findings(values) == {}
    assert "min_snr_gamma (5)" in findings({**values, "min_snr_gamma": "5"})["debiased_estimation"]


def test_zero_terminal_snr_on_epsilon_is_refused_with_the_reason(values):
    values |= {"zero_terminal_snr": "true", "prediction_type": "epsilon"}
    assert "nothing for epsilon to learn" in findings(values)["zero_terminal_snr"]
    assert findings({**values, "prediction_type": "v_prediction"}) == {}


def test_tensorboard_that_is_missing_is_a_warning_with_the_command(values, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "tensorboard" else real(name, *rest))
    assert "pip install tensorboard" in findings({**values, "log_with": "tensorboard"}, "warning")["log_with"]


@pytest.mark.parametrize("name", [".", "reg"])
def test_regularisation_pictures_within_the_others_are_refused(values, name):
    folder = Path(values["train_data_dir"]) / name
    folder.mkdir(exist_ok=True)
    assert "lie in each other" in findings({**values, "reg_data_dir": str(folder)})["reg_data_dir"]


def test_settings_without_effect_are_told(values):
    found = findings({**values, "reg_weight": "0.5", "keep_tokens": "1"}, "notice")
    assert "without reg_data_dir" in found["reg_weight"] and "no effect" in found["keep_tokens"]
    assert findings({**values, "tag_dropout": "0.1", "keep_tokens": "1"}, "notice") == {}


def test_a_run_folder_below_a_file_is_refused(values):
    values["output_dir"] = values["base_model"] + "/run"
    assert "base.safetensors is a file" in findings(values)["output_dir"]


@pytest.mark.parametrize(("device", "is_known"), [("auto", True), ("cuda:1", True), ("gpu", False), ("cuda:", False)])
def test_a_device_is_one_that_can_be_named(values, device, is_known):
    assert ("device" in findings(values | {"device": device})) != is_known


@pytest.mark.parametrize("field", ["output_dir", "cache_dir"])
def test_a_folder_that_cannot_be_made_is_an_error(values, tmp_path, field):
    (tmp_path / "file").touch()
    assert "is a file" in findings({**values, field: str(tmp_path / "file")})[field]
    assert (
        f"cannot be made: {tmp_path / 'file'} is a file" in findings({**values, field: str(tmp_path / "file" / "a" / "b")})[field]
    )
