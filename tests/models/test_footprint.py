"""The memory that is forecast is that of the modules and of the operations, which run here."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

from benchmarks.forecast import build_unet, count_by_running, count_by_tape
from lora_trainer.models.checkpoint import build_empty
from lora_trainer.models.footprint import STANDARD_VAE, count_text_training, measure
from lora_trainer.models.layers import count_text, count_unet, count_vae, text_layers, unet_layers
from lora_trainer.models.parts import list_layers
from lora_trainer.models.sizes import TextSizes, UNetSizes
from lora_trainer.models.tape import Use
from tests import tiny

USE = Use(192, 128, rank=4)
SIZES = {
    "sd1": UNetSizes((32, 64), 2, (1, 0), mid_depth=1, context_width=24, heads=(4, 8), uses_linear_projection=False),
    "sdxl": UNetSizes((32, 64, 64), 2, (0, 1, 2), 2, 40, (4, 8, 8), uses_linear_projection=True, condition_width=16 + 6 * 256),
}
USES = {
    "plain": USE,
    "batch": replace(USE, batch_size=3),
    "bf16": replace(USE, num_bytes=2),
    "other side": replace(USE, width=192, height=256),
    "checkpointing": replace(USE, checkpoints=True),
    "dropout": replace(USE, drops=True),
    "queries": replace(USE, selection=("q_proj", "v_proj")),
    "feed-forward": replace(USE, selection=("attention_ff",)),
    "everything": replace(USE, selection=("all_linear", "conv")),
}


def count_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def shapes_of(part: str, module: nn.Module) -> dict[str, tuple[str, int, int]]:
    shapes = {name: module.get_submodule(name).weight.shape for name in list_layers(part, module)}
    return {name: (kind, shapes[name][1:].numel(), shapes[name][0]) for name, kind in list_layers(part, module).items()}


@pytest.mark.hosts
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_layers_and_weights_are_those_of_the_modules(family: str) -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    sizes = tiny.SIZES[family]
    unet: nn.Module = build_empty(lambda: UNet2DConditionModel(**sizes.unet.diffusers_config()))
    assert count_unet(sizes.unet) == count_of(unet)
    assert {name: (each.kind, each.inputs, each.outputs) for name, each in unet_layers(sizes.unet).items()} == shapes_of(
        "unet", unet
    )
    for vae_sizes in (sizes.vae, STANDARD_VAE):
        vae: nn.Module = build_empty(lambda sizes=vae_sizes: AutoencoderKL(**sizes.diffusers_config()))
        assert count_vae(vae_sizes) == count_of(vae)
    for text_sizes in sizes.text_encoders:
        text_class = CLIPTextModelWithProjection if text_sizes.pooled_width else CLIPTextModel
        config = CLIPTextConfig(**text_sizes.transformers_config())
        text: nn.Module = build_empty(lambda make=text_class, config=config: make(config))
        assert count_text(text_sizes) == count_of(text)
        found = {name.removeprefix("text_model."): shape for name, shape in shapes_of("text_encoder", text).items()}
        assert {
            name.removeprefix("text_model."): (each.kind, each.inputs, each.outputs)
            for name, each in text_layers(text_sizes).items()
        } == found


@pytest.mark.hosts
@pytest.mark.parametrize(
    ("name", "use"),
    [("sd1", use) for use in USES.values()] + [("sdxl", USES[name]) for name in ("plain", "checkpointing")],
    ids=[*USES, "sdxl", "sdxl-checkpointing"],
)
def test_what_is_held_is_what_autograd_keeps(name: str, use: Use) -> None:
    """In tiny models the small things that are not counted weigh most: norms' statistics, the timestep's embedding."""
    forecast, counted = count_by_tape(SIZES[name], use), count_by_running(SIZES[name], use, is_fake=False)
    assert forecast.forward == pytest.approx(counted.forward, rel=0.04)
    assert forecast.peak == pytest.approx(counted.peak, rel=0.12)


def test_a_trained_text_makes_the_cross_attention_keep_more() -> None:
    sizes = SIZES["sd1"]
    for use in (USE, replace(USE, selection=("to_q",))):
        forecast = count_by_tape(sizes, use, text_needs_grad=True)
        counted = count_by_running(sizes, use, is_fake=False, text_needs_grad=True)
        assert forecast.forward == pytest.approx(counted.forward, rel=0.04)


def test_building_for_counting_takes_no_memory() -> None:
    unet = build_unet(SIZES["sd1"], USE)
    assert {parameter.device.type for parameter in unet.parameters()} == {"meta"}


def test_nothing_is_kept_before_the_first_trained_layer() -> None:
    """SDXL's outermost level has no attention, so its way down is free."""
    deep = replace(USE, selection=("attn2.to_v",))
    without_level = replace(SIZES["sdxl"], layers=2)
    assert count_by_tape(without_level, deep).forward < count_by_tape(without_level, replace(deep, selection=("conv",))).forward


@pytest.mark.hosts
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_measured_from_a_file(family: str, tmp_path) -> None:
    from lora_trainer.models.detect import detect

    detection = detect(tiny.make_checkpoint(family, tmp_path))
    once, twice = (measure(detection, replace(USE, batch_size=size)) for size in (1, 2))
    assert once.unet == 2 * count_unet(tiny.SIZES[family].unet)
    assert 1.2 * once.activations < twice.activations <= 2 * once.activations
    assert measure(detection, replace(USE, trains_text=True)).lora_numbers > once.lora_numbers
    assert measure(detection, replace(USE, trains_unet=False, trains_text=True)).lora_numbers < once.lora_numbers


@pytest.mark.parametrize("family", ("sd1", "sdxl"))
def test_text_encoders_hold_about_what_is_counted(family: str) -> None:
    """AUTOMATIC1111's transformers also keeps the weights of every pair of tokens: 23 MB a caption in SDXL's encoders."""
    from tests.models.text_memory import count_text_encoder

    sizes = TextSizes(64, 4, 4, 256, 49408, 77, "quick_gelu" if family == "sd1" else "gelu")
    use = replace(USE, num_bytes=2, batch_size=2)
    targets = frozenset(name for name in text_layers(sizes) if "self_attn" in name)
    assert count_text_training(sizes, use, targets) == pytest.approx(count_text_encoder(sizes, use), rel=0.1)
