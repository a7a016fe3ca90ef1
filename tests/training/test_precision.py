from __future__ import annotations

import torch

from lora_trainer.training.precision import Precision, choose_device, choose_precision

CPU = torch.device("cpu")


def test_auto_is_fp32_on_a_cpu():
    assert choose_precision("auto", CPU) == "fp32"
    assert choose_precision("bf16", CPU) == "bf16"
    assert choose_device("cpu") == CPU


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
