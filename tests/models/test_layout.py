"""The map of names at full size, against diffusers' own converters, and tensors there and back."""

from __future__ import annotations

import pytest
import torch
from diffusers.loaders import single_file_utils
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from lora_trainer.models import convert
from lora_trainer.models.checkpoint import build_empty
from lora_trainer.models.layout import unet_names
from lora_trainer.models.sizes import TextSizes, UNetSizes, VaeSizes
from tests import tiny

FULL_UNETS = {
    "sd1": UNetSizes((320, 640, 1280, 1280), 2, (1, 1, 1, 0), 1, 768, (8, 8, 8, 8), False),
    "sd2": UNetSizes((320, 640, 1280, 1280), 2, (1, 1, 1, 0), 1, 1024, (5, 10, 20, 20), True),
    "sdxl": UNetSizes((320, 640, 1280), 2, (0, 2, 10), 10, 2048, (5, 10, 20), True, condition_width=2816),
    "three layers": UNetSizes((64, 128), 3, (1, 1), 1, 96, (8, 8), False),
}
FULL_VAE = VaeSizes((128, 256, 512, 512), 2)
SMALL_VAE = VaeSizes((64, 64, 64, 64), 0)  # no residual blocks on the encoder's levels
BIG_G = TextSizes(1280, 32, 20, 5120, 49408, 77, "gelu", pooled_width=1280)


def _meta_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.named_parameters())


@pytest.mark.parametrize("name", FULL_UNETS)
def test_unet_names_are_those_of_diffusers_own_converter(name: str) -> None:
    sizes = FULL_UNETS[name]
    unet = build_empty(lambda: UNet2DConditionModel(**sizes.diffusers_config()))
    tensors = _meta_tensors(unet)
    original = convert.unet_to_original(tensors, sizes)
    prefixed = {f"model.diffusion_model.{key}": tensor for key, tensor in original.items()}
    theirs = single_file_utils.convert_ldm_unet_checkpoint(prefixed, dict(unet.config))
    assert {key: tensor is tensors[key] for key, tensor in theirs.items()} == dict.fromkeys(tensors, True)
    assert convert.unet_to_diffusers(original, sizes).keys() == tensors.keys()


@pytest.mark.parametrize("name", FULL_UNETS)
def test_unet_sizes_are_read_from_the_shapes(name: str) -> None:
    sizes = FULL_UNETS[name]
    unet = build_empty(lambda: UNet2DConditionModel(**sizes.diffusers_config()))
    shapes = {key: tuple(tensor.shape) for key, tensor in convert.unet_to_original(_meta_tensors(unet), sizes).items()}
    heads, head_width = (8, None) if sizes.heads[0] == 8 else (None, 64)
    assert UNetSizes.from_shapes(shapes, heads, head_width) == sizes
    assert UNetSizes.from_diffusers(unet.config) == sizes


def test_known_names_of_the_original_layout() -> None:
    sd1, sdxl = unet_names(FULL_UNETS["sd1"]), unet_names(FULL_UNETS["sdxl"])
    assert sd1.to_original("up_blocks.0.upsamplers.0.conv") == "output_blocks.2.1.conv"
    assert sdxl.to_original("up_blocks.0.upsamplers.0.conv") == "output_blocks.2.2.conv"
    assert sd1.to_original("mid_block.resnets.1.conv_shortcut") == "middle_block.2.skip_connection"
    assert sdxl.to_original("add_embedding.linear_2") == "label_emb.0.2"
    attention = "transformer_blocks.0.attn1.to_q"
    assert sdxl.to_original(f"down_blocks.1.attentions.0.{attention}") == f"input_blocks.4.1.{attention}"
    with pytest.raises(KeyError):
        sd1.to_original("down_blocks.3.attentions.0.norm")


@pytest.mark.parametrize("sizes", [FULL_VAE, SMALL_VAE], ids=["full", "small"])
def test_vae_names_and_shapes_are_those_of_diffusers_own_converter(sizes: VaeSizes) -> None:
    vae = build_empty(lambda: AutoencoderKL(**sizes.diffusers_config()))
    tensors = _meta_tensors(vae)
    original = convert.vae_to_original(tensors, sizes)
    assert original["encoder.mid.attn_1.q.weight"].shape == (sizes.channels[-1], sizes.channels[-1], 1, 1)
    assert VaeSizes.from_shapes({key: tuple(tensor.shape) for key, tensor in original.items()}) == sizes
    assert VaeSizes.from_diffusers_shapes({key: tuple(tensor.shape) for key, tensor in tensors.items()}) == sizes
    theirs = single_file_utils.convert_ldm_vae_checkpoint(
        {f"first_stage_model.{key}": tensor for key, tensor in original.items()}, dict(vae.config)
    )
    assert {key: tensor.shape for key, tensor in theirs.items()} == {key: tensor.shape for key, tensor in tensors.items()}


def test_open_clip_tensors_are_those_of_diffusers_own_converter() -> None:
    sizes = TextSizes(16, 2, 1, 32, 50, 77, "gelu", pooled_width=24)
    encoder = CLIPTextModelWithProjection(CLIPTextConfig(**sizes.transformers_config()))
    names = {name: tiny._full_name("text_encoder_2", name) for name, _ in encoder.named_parameters()}
    tensors = {names[name]: torch.randn(parameter.shape) for name, parameter in encoder.named_parameters()}
    original = convert.open_clip_to_original(tensors, sizes)
    assert original["transformer.resblocks.1.attn.in_proj_weight"].shape == (48, 16)
    assert original["text_projection"].shape == (16, 24)
    theirs = single_file_utils.convert_open_clip_checkpoint(
        encoder, {f"p.{key}": tensor for key, tensor in original.items()}, prefix="p."
    )
    ours = convert.open_clip_to_transformers(original, sizes)
    assert (
        ours.keys() == tensors.keys() == {tiny._full_name("text_encoder_2", key) for key in theirs if "position_ids" not in key}
    )
    for key, tensor in theirs.items():
        if "position_ids" not in key:
            torch.testing.assert_close(tensor, ours[tiny._full_name("text_encoder_2", key)], rtol=0, atol=0)
    for key, tensor in tensors.items():
        torch.testing.assert_close(ours[key], tensor, rtol=0, atol=0)


def test_full_open_clip_sizes_are_read_from_the_shapes() -> None:
    encoder = build_empty(lambda: CLIPTextModelWithProjection(CLIPTextConfig(**BIG_G.transformers_config())))
    tensors = {tiny._full_name("text_encoder_2", name): tensor for name, tensor in encoder.named_parameters()}
    original = convert.open_clip_to_original(tensors, BIG_G)
    shapes = {key: tuple(tensor.shape) for key, tensor in original.items()}
    assert TextSizes.from_open_clip_shapes(shapes, is_projected=True) == BIG_G


@pytest.mark.hosts
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_all_tensors_survive_the_way_there_and_back(family: str) -> None:
    sizes = tiny.SIZES[family]
    modules = tiny.module_tensors(0, sizes)
    unet = convert.unet_to_diffusers(convert.unet_to_original(modules["unet"], sizes.unet), sizes.unet)
    vae = convert.vae_to_diffusers(convert.vae_to_original(modules["vae"], sizes.vae), sizes.vae)
    for before, after in ((modules["unet"], unet), (modules["vae"], vae)):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
