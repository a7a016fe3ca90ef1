"""What a run will need, which cards it fits on, and what to change for a smaller one."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.workload import SD1_UNET, SD1_VAE, SDXL_UNET
from lora_trainer import card, cli, forecast
from lora_trainer.config.parse import parse_config
from lora_trainer.config.presets import load_presets
from lora_trainer.config.schema import TrainConfig
from lora_trainer.dataset.buckets import Bucket
from lora_trainer.forecast import GIB
from lora_trainer.models.detect import Detection
from lora_trainer.models.recognise import StableDiffusionFacts
from lora_trainer.models.sizes import TextSizes, UNetSizes
from lora_trainer.training.optimizers import build_optimizer
from lora_trainer.training.table import OPTIMIZERS
from tests import tiny

CLIP = TextSizes(768, 12, 12, 3072, 49408, 77, "quick_gelu")
OPEN_CLIP = TextSizes(1280, 32, 20, 5120, 49408, 77, "gelu", pooled_width=1280)


def base(family: str, unet: UNetSizes, *encoders: TextSizes) -> Detection:
    facts = StableDiffusionFacts(unet, SD1_VAE, encoders, (), scale_factor=0.2)
    return Detection(family, Path("base.safetensors"), "original", "epsilon", "so it is", None, facts=facts)


SD1 = base("sd1", SD1_UNET, CLIP), (512, 512)
SDXL = base("sdxl", SDXL_UNET, CLIP, OPEN_CLIP), (1024, 1024)


def settings(**changes: str) -> TrainConfig:
    return parse_config({"train_data_dir": "pictures", "base_model": "base", "output_dir": "out", **changes})


@pytest.mark.parametrize(
    ("what", "batch", "checkpoints", "least"),
    [
        (SD1, 1, False, 2.4),
        (SD1, 4, False, 4.7),
        (SD1, 1, True, 1.9),
        (SD1, 4, True, 2.5),
        (SDXL, 1, False, 10.4),
        (SDXL, 4, False, 26),
        (SDXL, 1, True, 5.6),
        (SDXL, 4, True, 7.2),
    ],
)
def test_the_least_memory_of_known_cases(what, batch, checkpoints, least):
    """Worked out by hand from the operations, in GiB, without what kernels take for themselves."""
    config = settings(batch_size=str(batch), gradient_checkpointing=str(checkpoints).lower(), precision="bf16")
    found = forecast.forecast(config, *what)
    assert (found.training - forecast.WORKSPACE) / GIB == pytest.approx(least, rel=0.05)


def test_the_denoiser_waits_while_pictures_are_encoded():
    """With it, a card of 8 GB would be too small for SDXL, whatever training takes."""
    found = forecast.forecast(settings(gradient_checkpointing="true"), *SDXL)
    assert found.encoding < found.training < 6 * GIB < found.encoding + found.base
    assert found.fits(8 * GIB) and not found.fits(6 * GIB)
    assert found.needed > found.peak


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"precision": "fp32"}, "base"),
        ({"shuffle_tags": "true"}, "base"),
        ({"text_encoder_lr": "1e-5"}, "activations"),
        ({"lora_rank": "64"}, "lora"),
        ({"optimizer": "prodigy"}, "lora"),
        ({"target_modules": "all_linear"}, "activations"),
        ({"lora_dropout": "0.1"}, "activations"),
        ({"gradient_accumulation_steps": "2"}, "activations"),
        ({"encode_batch_size": "4"}, "encoding"),
        ({"sample_prompts": "a boat"}, "drawing"),
    ],
)
def test_switches_that_cost_memory(changes, field):
    before, after = forecast.forecast(settings(), *SD1), forecast.forecast(settings(**changes), *SD1)
    assert getattr(after, field) > getattr(before, field)


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_optimizers_hold_what_the_table_says(name):
    package = OPTIMIZERS.get(name).package
    if package:
        pytest.importorskip(package)
    down, up = torch.nn.Parameter(torch.randn(64, 512)), torch.nn.Parameter(torch.randn(384, 64))
    optimizer = build_optimizer(name, [{"params": [down, up], "lr": 1e-4}], weight_decay=0.01)
    for parameter in (down, up):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = [value for each in optimizer.state.values() for value in each.values() if isinstance(value, torch.Tensor)]
    held = sum(tensor.numel() * tensor.element_size() for tensor in state)
    options = OPTIMIZERS.get(name).options
    numbers, sides = down.numel() + up.numel(), sum(down.shape) + sum(up.shape)
    assert held == pytest.approx(numbers * options["state_bytes"] + sides * options.get("state_bytes_per_side", 0), rel=0.03)


def test_one_change_is_named_where_one_is_enough():
    changes, then = forecast.smaller(settings(), *SDXL, 8 * GIB)
    assert changes == {"gradient_checkpointing": True} and then.fits(8 * GIB)
    assert forecast.describe_change(changes) == "gradient_checkpointing: true"


def test_several_changes_where_one_is_not():
    changes, then = forecast.smaller(settings(batch_size="4", precision="fp32"), *SDXL, 8 * GIB)
    assert {"gradient_checkpointing", "precision", "batch_size"} <= changes.keys() and then.fits(8 * GIB)
    assert changes["batch_size"] * changes["gradient_accumulation_steps"] == 4
    changes, then = forecast.smaller(settings(), *SDXL, 4 * GIB)
    assert not then.fits(4 * GIB) and "resolution" in changes


def test_cards_that_the_same_change_helps_are_named_together():
    (suggested,) = forecast.suggest(settings(batch_size="4", target_modules="attention_ff"), *SD1)
    assert suggested.cards == (4, 6) and suggested.changes == {"gradient_checkpointing": True}
    assert [each.cards for each in forecast.suggest(settings(), *SDXL)] == [(8,)]


@pytest.mark.parametrize("name", [name for name in load_presets() if name.startswith("sdxl")])
def test_an_sdxl_preset_fits_on_a_card_of_8_gb_that_draws_a_desktop_too(name):
    values = {key: value if isinstance(value, list) else str(value) for key, value in load_presets()[name].values.items()}
    found = forecast.forecast(settings(**values), *SDXL)
    assert found.needed <= 7.5 * GIB
    assert 8 in forecast.fitting_cards(found)[0]


def test_captions_that_stay_as_they_are_are_proposed_first():
    """They are what keeps SDXL's two text encoders on the card."""
    varied = settings(gradient_checkpointing="true", caption_dropout="0.05", shuffle_tags="true")
    changes, then = forecast.smaller(varied, *SDXL, 7 * GIB)
    assert changes == {"shuffle_tags": False, "caption_dropout": 0.0} and then.fits(7 * GIB)
    trained = settings(gradient_checkpointing="true", caption_dropout="0.05", text_encoder_lr="1e-5")
    changes, _ = forecast.smaller(trained, *SDXL, 7 * GIB)
    assert changes == {"text_encoder_lr": 0.0, "caption_dropout": 0.0}


def test_the_desktop_takes_its_part_of_a_card():
    found = forecast.forecast(settings(gradient_checkpointing="true", caption_dropout="0.05"), *SDXL)
    assert 7.5 * GIB < found.needed < 8.2 * GIB
    assert forecast.fitting_cards(found)[0] == [12, 16, 24]
    total = round(found.needed + 0.2 * GIB)
    problem = forecast.warn_of_card(settings(gradient_checkpointing="true", caption_dropout="0.05"), *SDXL, total)
    assert "about 0.5 GB of that for the desktop" in str(problem) and "caption_dropout: 0.0" in str(problem)
    plain = settings(gradient_checkpointing="true")
    assert forecast.warn_of_card(plain, *SDXL, total) is None
    exact = forecast.forecast(plain, *SDXL).needed
    assert forecast.warn_of_card(plain, *SDXL, exact, is_free=True) is None, "what is free is free"


def test_the_machines_own_card_is_compared():
    assert forecast.warn_of_card(settings(), *SDXL, None) is None
    assert forecast.warn_of_card(settings(device="cpu"), *SDXL, GIB) is None
    assert forecast.warn_of_card(settings(), *SDXL, 24 * GIB) is None
    problem = forecast.warn_of_card(settings(), *SDXL, 8 * GIB)
    assert (problem.field, problem.severity) == ("gradient_checkpointing", "warning")
    assert "the graphics card here has 8.0 GB" in str(problem) and "gradient_checkpointing: true" in str(problem)
    assert "The least is about" in str(forecast.warn_of_card(settings(), *SDXL, 3 * GIB))


def test_a_card_that_fails_in_fp16_is_forecast_in_fp32(monkeypatch):
    half = forecast.forecast(settings(), *SD1)
    monkeypatch.setattr(card, "_ask_nvidia", lambda: ("NVIDIA GeForce GTX 1660", "6144"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA GeForce GTX 1660")
    for with_torch in (True, False):
        if not with_torch:
            monkeypatch.delitem(sys.modules, "torch")
        full = forecast.forecast(settings(), *SD1)
        assert full == forecast.forecast(settings(precision="fp32"), *SD1) and full.base == 2 * half.base
        assert forecast.forecast(settings(precision="fp16"), *SD1) == half
        assert "precision" not in forecast.smaller(settings(), *SDXL, 6 * GIB)[0]


def test_check_tells_the_memory(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(card, "card_bytes", lambda: GIB // 4)
    checkpoint = tiny.make_checkpoint("sd1", tmp_path / "base")
    pictures = tiny.make_pictures(tmp_path / "pictures")
    file = tmp_path / "train.yaml"
    file.write_text(f"train_data_dir: {pictures}\nbase_model: {checkpoint}\noutput_dir: {tmp_path / 'out'}\n", encoding="utf-8")
    assert cli.main(["check", "--config", str(file)]) == 0
    printed = capsys.readouterr()
    assert "Memory    about 0.6 GB of a graphics card: fits in 4, 6, 8, 12, 16, 24 GB" in printed.out
    assert "the graphics card here has 0.2 GB" in printed.err
    assert cli.main(["check", "--config", str(file), "--set", "device=cpu"]) == 0
    assert "of RAM (" in capsys.readouterr().out


def test_a_large_run_names_what_to_change_for_each_card():
    plan = SimpleNamespace(buckets=[Bucket(1024, 1024)], detection=SDXL[0])
    text = cli.describe_memory(replace(settings(), batch_size=2), plan)
    assert "fits in 24 GB; not in 4, 6, 8, 12, 16" in text
    assert "16 GB: gradient_checkpointing: true (" in text
    assert "for 4 GB" not in text


def test_asking_for_the_card_imports_no_torch():
    code = "import sys; from lora_trainer import card, forecast; card.card_bytes(); sys.exit('torch' in sys.modules)"
    root = Path(card.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
