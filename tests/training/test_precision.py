from __future__ import annotations

import pytest
import torch

from lora_trainer.training.precision import Precision, choose_device, choose_precision

CPU = torch.device("cpu")


def test_auto_is_fp32_on_a_cpu():
    assert choose_precision("auto", CPU) == "fp32"
    assert choose_precision("bf16", CPU) == "bf16"
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize(("name", "index"), [("cuda", 1), ("auto", 1), ("cuda:0", 0)])
def test_a_cuda_device_has_its_index(monkeypatch, name, index):
    """Before torch 2.5 `mem_get_info` refuses a device without one."""
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert choose_device(name) == torch.device("cuda", index)


@pytest.mark.parametrize(
    ("card", "capability", "expected"),
    [
        ("NVIDIA GeForce GTX 1660 SUPER", (7, 5), "fp32"),
        ("NVIDIA GeForce RTX 2060", (7, 5), "fp16"),
        ("NVIDIA GeForce GTX 1080", (6, 1), "fp16"),
        ("NVIDIA GeForce RTX 3060", (8, 6), "bf16"),
    ],
)
def test_auto_is_what_the_card_computes_well_in(monkeypatch, card, capability, expected):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: card)
    assert choose_precision("auto", torch.device("cuda", 0)) == expected
    assert choose_precision("fp16", torch.device("cuda", 0)) == "fp16"


def test_the_scale_halves_down_to_its_floor_and_doubles_after_good_steps():
    precision = Precision("fp16", CPU)
    assert precision.scale == 65536
    assert precision.shrink() and precision.scale == 32768
    for _ in range(Precision.GROWTH_STEPS):
        precision.count_good_step()
    assert precision.scale == 65536
    while precision.shrink():
        pass
    assert precision.scale == Precision.FLOOR


def test_unscale_divides_gradients_exactly():
    precision = Precision("fp16", CPU)
    gradients = [torch.tensor([65536.0, -131072.0]), torch.tensor([3.0])]
    precision.unscale(gradients)
    assert gradients[0].tolist() == [1.0, -2.0]
    assert gradients[1].tolist() == [3.0 / 65536]


def test_other_precisions_have_no_scale():
    for name in ("fp32", "bf16"):
        precision = Precision(name, CPU)
        precision.count_good_step()
        assert (precision.scale, precision.shrink()) == (1.0, False)
