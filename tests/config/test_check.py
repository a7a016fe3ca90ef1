from __future__ import annotations

import importlib.util

import pytest

from lora_trainer.config.check import check_config
from lora_trainer.config.parse import parse_config


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
    assert "such.safetensors) is no file" in found["base_model"]


def test_a_run_folder_within_the_pictures_is_refused(values):
    values["output_dir"] = values["train_data_dir"] + "/out"
    assert "lies in the picture folder" in findings(values)["output_dir"]


def test_nothing_to_train_is_refused(values):
    assert "nothing to train" in findings({**values, "unet_lr": "0"})["unet_lr"]


def test_a_wild_learning_rate_is_a_warning(values):
    assert "(0.01) is above 0.0005" in findings({**values, "learning_rate": "0.01"}, "warning")["learning_rate"]


def test_tensorboard_that_is_missing_is_a_warning_with_the_command(values, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "tensorboard" else real(name, *rest))
    assert "pip install tensorboard" in findings({**values, "log_with": "tensorboard"}, "warning")["log_with"]
