"""The article's settings on real, tiny models of every family: they train, and to the same losses under every package set."""

from __future__ import annotations

import importlib.util
import math

import pytest
import safetensors.torch
import torch

from lora_trainer.adapters.self_test import self_test
from lora_trainer.config.parse import parse_config, parse_yaml
from lora_trainer.control import TrainControl
from lora_trainer.errors import ConfigError
from lora_trainer.models.family import ModelSettings
from lora_trainer.models.table import load_model
from lora_trainer.models.webui import webui_layers
from lora_trainer.plan import make_plan
from lora_trainer.training.run import train
from tests.config.test_parse import ARTICLE
from tests.tiny import make_checkpoint, make_pictures

# The losses of ten steps in fp32 on a CPU, without dropout. They change only with the arithmetic.
GOLDEN = {
    "sd1": (1.361458, 1.326838, 1.334895, 1.238956, 1.111585, 1.198807, 1.104511, 1.003704, 1.028948, 1.017627),
    "sd2": (1.318168, 1.28338, 1.318583, 1.212165, 1.005739, 1.135935, 1.063933, 0.9577806, 1.002354, 0.9960073),
    "sd2-v": (0.7673738, 0.7282938, 0.615535, 0.6288186, 0.451606, 0.6474915, 0.7043581, 0.389996, 0.6416669, 0.7293147),
    "sdxl": (1.502717, 1.401495, 1.411262, 1.331703, 1.281634, 1.347697, 1.179873, 1.148496, 1.198649, 1.210718),
}
VARIANTS = {
    "sd1": ("sd1", "epsilon"),
    "sd2": ("sd2", "epsilon"),
    "sd2-v": ("sd2", "v_prediction"),
    "sdxl": ("sdxl", "epsilon"),
}


def article_config(tmp_path, family, prediction="epsilon", **changes):
    """The settings of the write-up with paths that exist, dropout 0, and ten steps of a rate that shows in the losses."""
    base = make_checkpoint(family, tmp_path / "models", prediction=prediction)
    pictures = make_pictures(tmp_path / "data", 4, captions="csv")
    return parse_config(
        {
            **parse_yaml(ARTICLE, "article"),
            "train_data_dir": str(pictures),
            "metadata_path": str(pictures / "metadata.csv"),
            "base_model": str(base),
            "output_dir": str(tmp_path / "output" / "ink"),
            "resolution": "64",
            "lora_dropout": "0",
            "learning_rate": "1e-2",
            "max_train_steps": "10",
            "device": "cpu",
            **changes,
        }
    )


def run(config):
    events = []
    result = train(config, control=TrainControl(), watch=events.append)
    return result, [event.data["loss"] for event in events if event.kind == "step"], events


@pytest.mark.hosts
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_articles_settings_train_to_the_same_losses_everywhere(tmp_path, variant):
    family, prediction = VARIANTS[variant]
    config = article_config(tmp_path, family, prediction)
    result, losses, events = run(config)
    assert losses == pytest.approx(GOLDEN[variant], rel=2e-4)
    assert all(check.passed for check in self_test(result.path, webui_layers(config.base_model)))
    assert not [event for event in events if event.kind == "warning" and "self-test" in event.data["message"]]
    trained = {name for name in safetensors.torch.load(result.path.read_bytes()) if name.endswith("lora_up.weight")}
    assert trained and all(("_to_q" in name) or ("_to_v" in name) for name in trained)


@pytest.mark.hosts
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_text_encoders_train_at_their_own_rate(tmp_path, family):
    config = article_config(tmp_path, family, text_encoder_lr="1e-3", max_train_steps="3", save_precision="fp32")
    result, losses, _ = run(config)
    tensors = safetensors.torch.load(result.path.read_bytes())
    moved = {
        name for name, tensor in tensors.items() if name.startswith("lora_te") and name.endswith("up.weight") and tensor.any()
    }
    prefixes = {"sd1": {"lora_te_"}, "sd2": {"lora_te_"}, "sdxl": {"lora_te1_", "lora_te2_"}}[family]
    assert {prefix for prefix in prefixes if any(name.startswith(prefix) for name in moved)} == prefixes
    assert all(check.passed for check in self_test(result.path, webui_layers(config.base_model)))
    assert all(map(math.isfinite, losses))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_checkpointing_gives_the_same_losses(tmp_path, family):
    changes = {"max_train_steps": "3", "lora_dropout": "0.3"}  # what is computed again must drop the same inputs again
    _, plain, _ = run(article_config(tmp_path / "plain", family, **changes))
    _, checkpointed, _ = run(article_config(tmp_path / "checked", family, **changes, gradient_checkpointing="true"))
    assert checkpointed == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precisions_train_and_export_finite_numbers(tmp_path, precision):
    _, full, _ = run(article_config(tmp_path / "full", "sd1", max_train_steps="4"))
    result, losses, _ = run(article_config(tmp_path / "half", "sd1", max_train_steps="4", precision=precision))
    assert losses == pytest.approx(full, rel=0.05)
    tensors = safetensors.torch.load(result.path.read_bytes())
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert any(tensor.any() for name, tensor in tensors.items() if name.endswith("up.weight"))


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("selection", ["attention_ff", "all_linear"])
def test_more_layers_pass_the_files_self_test(tmp_path, family, selection):
    config = article_config(tmp_path, family, target_modules=selection, max_train_steps="1", text_encoder_lr="1e-4")
    result, _, _ = run(config)
    failed = [check for check in self_test(result.path, webui_layers(config.base_model)) if not check.passed]
    assert failed == []


@pytest.mark.hosts
def test_tensorboard_is_written_where_it_is_installed_and_missed_with_a_warning_elsewhere(tmp_path):
    config = article_config(tmp_path, "sd1", max_train_steps="2")
    result, _, events = run(config)
    assert result.status == "finished"
    warned = any("pip install tensorboard" in event.data["message"] for event in events if event.kind == "warning")
    assert warned != bool(list(config.output_dir.glob("logs/events.out.tfevents.*")))
    assert warned == (importlib.util.find_spec("tensorboard") is None)


def test_each_choice_of_the_objective_changes_the_losses_and_none_breaks_them(tmp_path):
    choices = ({}, {"loss_type": "huber"}, {"debiased_estimation": "true"}, {"min_snr_gamma": "5"}, {"zero_terminal_snr": "true"})
    first = []
    for number, changes in enumerate(choices):
        _, losses, _ = run(article_config(tmp_path / str(number), "sd2", "v_prediction", max_train_steps="2", **changes))
        assert all(map(math.isfinite, losses))
        first.append(losses[0])
    assert len(set(first)) == len(choices)


def test_zero_terminal_snr_on_an_epsilon_base_is_refused_before_it_is_loaded(tmp_path):
    config = article_config(tmp_path, "sd1", zero_terminal_snr="true")
    with pytest.raises(
        ConfigError, match=r"zero_terminal_snr: \(true\) needs a base that predicts v, and tiny.*predicts epsilon"
    ):
        make_plan(config)


def test_zero_terminal_snr_is_refused_when_only_the_loaded_base_tells(tmp_path):
    base = make_checkpoint("sd2", tmp_path)
    with pytest.raises(ConfigError, match="zero_terminal_snr"):
        load_model(ModelSettings(base, prediction_type="epsilon", zero_terminal_snr=True))
