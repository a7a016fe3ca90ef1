"""Keys as the WebUI finds layers by them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_trainer.errors import ModelError
from lora_trainer.models.checkpoint import read_tensors
from lora_trainer.models.layout import unet_names
from lora_trainer.models.sizes import UNetSizes
from lora_trainer.models.webui import text_key, unet_key, webui_layers
from tests import tiny

SD1 = UNetSizes((320, 640, 1280, 1280), 2, (1, 1, 1, 0), 1, 768, (8, 8, 8, 8), False)
SDXL = UNetSizes((320, 640, 1280), 2, (0, 2, 10), 10, 2048, (5, 10, 20), True, condition_width=2816)
QUERY = "transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (f"down_blocks.0.attentions.1.{QUERY}", "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q"),
        ("mid_block.attentions.0.proj_in", "lora_unet_mid_block_attentions_0_proj_in"),
        ("up_blocks.0.upsamplers.0.conv", "lora_unet_up_blocks_0_upsamplers_0_conv"),
        ("time_embedding.linear_1", "lora_unet_time_embedding_linear_1"),
        ("conv_in", "lora_unet_conv_in"),
    ],
)
def test_sd1_keys_are_diffusers_names(name: str, key: str) -> None:
    assert unet_key("sd1", SD1, name) == key


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (f"down_blocks.1.attentions.0.{QUERY}", "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"),
        ("up_blocks.0.upsamplers.0.conv", "lora_unet_output_blocks_2_2_conv"),
        ("add_embedding.linear_1", "lora_unet_label_emb_0_0"),
        ("time_embedding.linear_2", "lora_unet_time_embed_2"),
        ("down_blocks.0.downsamplers.0.conv", "lora_unet_input_blocks_3_0_op"),
    ],
)
def test_sdxl_keys_are_sgm_names(name: str, key: str) -> None:
    assert unet_key("sdxl", SDXL, name) == key


def test_where_the_webuis_arithmetic_fails_the_original_name_is_written() -> None:
    three_layers = replace(SD1, layers=3)
    assert unet_key("sd1", three_layers, f"down_blocks.1.attentions.0.{QUERY}") == (
        "lora_unet_input_blocks_5_1_transformer_blocks_0_attn1_to_q"
    )
    # The first level lies where it does with two layers.
    assert unet_key("sd1", three_layers, f"down_blocks.0.attentions.0.{QUERY}").startswith("lora_unet_down_blocks_0_")
    attention_at_the_deepest = replace(SD1, depths=(1, 1, 1, 1))
    assert unet_key("sd1", attention_at_the_deepest, "up_blocks.0.upsamplers.0.conv") == "lora_unet_output_blocks_2_2_conv"


@pytest.mark.parametrize("name", ["encoder.layers.3.mlp.fc1", "text_model.encoder.layers.3.mlp.fc1"])
def test_text_keys_have_the_text_model_level_whatever_transformers_calls_it(name: str) -> None:
    assert text_key("sd1", 0, name) == "lora_te_text_model_encoder_layers_3_mlp_fc1"
    assert text_key("sdxl", 1, name) == "lora_te2_text_model_encoder_layers_3_mlp_fc1"


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_layers_of_a_file_and_of_a_folder_agree(family: str, tmp_path: Path) -> None:
    from_file = webui_layers(tiny.make_checkpoint(family, tmp_path))
    from_folder = webui_layers(tiny.make_diffusers_folder(family, tmp_path / "folder"))
    if family == "sd2":
        # The single file holds one layer more, which is not used.
        from_file = {key: shape for key, shape in from_file.items() if "_layers_2_" not in key}
    assert from_file == from_folder


def test_layers_of_sdxl_hold_the_real_upsampler_and_not_the_one_that_diffusers_name_leads_to(tmp_path: Path) -> None:
    layers = webui_layers(tiny.make_checkpoint("sdxl", tmp_path))
    assert layers["lora_unet_output_blocks_2_2_conv"] == (64, 64, 3, 3)
    assert "lora_unet_up_blocks_0_upsamplers_0_conv" not in layers
    # Other names of diffusers are found, and LoRA files with them are in use.
    assert "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q" in layers
    assert layers["lora_te2_text_model_encoder_layers_9_self_attn_q_proj"] == (16, 16)
    assert "lora_te1_text_model_encoder_layers_0_mlp_fc1" in layers
    assert not any("norm" in key or "embedding" in key.removeprefix("lora_unet_time_embedding") for key in layers)


def test_every_original_name_is_a_key(tmp_path: Path) -> None:
    layers = webui_layers(tiny.make_checkpoint("sd1", tmp_path))
    names = unet_names(tiny.SIZES["sd1"].unet)
    for module in ("conv_in", "down_blocks.0.resnets.1.time_emb_proj", "mid_block.attentions.0.proj_out"):
        assert f"lora_unet_{names.to_original(module)}".replace(".", "_") in layers


def test_a_layer_that_is_no_part_of_the_base_is_named(tmp_path: Path) -> None:
    path = tiny.make_checkpoint("sd1", tmp_path)
    tensors = read_tensors(path)
    tensors["model.diffusion_model.output_blocks.99.0.emb_layers.1.weight"] = torch.zeros(2, 2)
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"tiny\.safetensors is damaged: 'output_blocks\.99\.0\.emb_layers\.1'"):
        webui_layers(path)
