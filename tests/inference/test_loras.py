"""Putting LoRA files into a base by the WebUI's rules, and taking them out again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_trainer.adapters.tags import LoraUse
from lora_trainer.errors import AdapterError
from lora_trainer.inference.generate import generate
from lora_trainer.inference.loras import applied
from lora_trainer.inference.settings import GenerateSettings
from lora_trainer.models.family import ModelSettings
from lora_trainer.models.table import load_model
from tests.inference.conftest import MakeLora, assert_same_weights, inject, weights_of

SETTINGS = GenerateSettings("a boat on a lake", "blurry", width=64, height=64, steps=3, seed=5)
UP, DOWN = "lora_up.weight", "lora_down.weight"


def merge_by_hand(model: Any, path: Path, unet_weight: float, text_weight: float) -> dict[str, torch.Tensor]:
    """Returns the model's weights with the file added, written from FORMATS.md alone; every tensor of the file must be used."""
    merged, tensors = weights_of(model), load_file(path)
    for part, root in model.parts.items():
        for name, module in root.named_modules():
            if not isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
                continue
            key = model.webui_key(part, name)
            if f"{key}.alpha" not in tensors:
                continue
            up, down, alpha = (tensors.pop(f"{key}.{ending}").double() for ending in (UP, DOWN, "alpha"))
            rank, weight = len(down), unet_weight if part == "unet" else text_weight
            change = torch.einsum("or,ri->oi", up.reshape(-1, rank), down.reshape(rank, -1)) * float(alpha) / rank
            own = merged[f"{part}.{name}.weight"]
            merged[f"{part}.{name}.weight"] = (own.double() + weight * change.reshape(own.shape)).float()
    assert not tensors
    return merged


def pixels(picture: Any) -> np.ndarray:
    return np.asarray(picture, dtype=np.float64)


@pytest.mark.hosts
def test_file_acts_as_weights_merged_by_hand(model: Any, make_lora: MakeLora) -> None:
    path = make_lora(model)
    before = weights_of(model)
    wanted = merge_by_hand(model, path, unet_weight=0.7, text_weight=0.4)
    base = generate(model, SETTINGS)
    with applied(model, [LoraUse(path, 0.7, 0.4)]) as (report,):
        assert report.skipped == ()
        now = weights_of(model)
        picture = generate(model, SETTINGS)
    for name, weight in wanted.items():
        torch.testing.assert_close(now[name], weight, rtol=1e-5, atol=1e-6, msg=name)
    assert_same_weights(model, before)
    try:
        for part, root in model.parts.items():
            root.load_state_dict({name: wanted[f"{part}.{name}"] for name in root.state_dict()})
        by_hand = generate(model, SETTINGS)
    finally:
        for part, root in model.parts.items():
            root.load_state_dict({name: before[f"{part}.{name}"] for name in root.state_dict()})
    assert np.abs(pixels(picture) - pixels(by_hand)).max() <= 2
    assert np.abs(pixels(picture) - pixels(base)).mean() > 3


@pytest.mark.hosts
def test_file_draws_what_the_adapter_in_training_draws(model: Any, make_lora: MakeLora) -> None:
    path = make_lora(model)
    adapter = inject(model, ("attention_ff", "conv"))
    try:
        trained = generate(model, SETTINGS)
    finally:
        adapter.remove()
    with applied(model, [LoraUse(path)]):
        assert np.abs(pixels(generate(model, SETTINGS)) - pixels(trained)).max() <= 2


def test_two_files_add_up(model: Any, make_lora: MakeLora) -> None:
    first, second = make_lora(model, "first", seed=1), make_lora(model, "second", seed=2)
    base = weights_of(model)
    with applied(model, [LoraUse(first, 0.5)]):
        with_first = weights_of(model)
    with applied(model, [LoraUse(second, -0.8)]):
        with_second = weights_of(model)
    with applied(model, [LoraUse(first, 0.5), LoraUse(second, -0.8)]):
        with_both = weights_of(model)
    for name, weight in base.items():
        torch.testing.assert_close(with_both[name], with_first[name] + with_second[name] - weight, rtol=1e-5, atol=1e-6)
    assert_same_weights(model, base)


@pytest.mark.hosts
def test_weight_zero_is_the_base_bit_for_bit(model: Any, make_lora: MakeLora) -> None:
    path, base, before = make_lora(model), generate(model, SETTINGS), weights_of(model)
    with applied(model, [LoraUse(path, 0.0)]) as (report,):
        assert report.num_layers == 0
        assert_same_weights(model, before)
        assert generate(model, SETTINGS).tobytes() == base.tobytes()


@pytest.mark.parametrize(("use", "touched"), [((0.0, 1.0), "text_encoder"), ((1.0, 0.0), "unet")])
def test_each_part_has_its_weight(model: Any, make_lora: MakeLora, use: tuple[float, float], touched: str) -> None:
    before = weights_of(model)
    with applied(model, [LoraUse(make_lora(model), *use)]):
        now = weights_of(model)
    changed = {name.split(".")[0] for name in now if not torch.equal(now[name], before[name])}
    assert changed
    assert all(part.startswith(touched) for part in changed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_base_is_restored_and_rounded_once(checkpoints: Any, make_lora: MakeLora, dtype: torch.dtype) -> None:
    model: Any = load_model(ModelSettings(checkpoints["sd1"], dtype=dtype))
    full: Any = load_model(ModelSettings(checkpoints["sd1"]))
    path, before = make_lora(full), weights_of(model)
    full_base = {name: weight.float() for name, weight in before.items()}
    for part, root in full.parts.items():
        root.load_state_dict({name: full_base[f"{part}.{name}"] for name in root.state_dict()})
    with applied(model, [LoraUse(path, 0.5), LoraUse(path, 0.5)]), applied(full, [LoraUse(path, 0.5), LoraUse(path, 0.5)]):
        now, wanted = weights_of(model), weights_of(full)
    assert all(torch.equal(now[name], wanted[name].to(dtype)) for name in now)
    assert_same_weights(model, before)


def test_base_is_restored_after_an_exception(sd1: Any, make_lora: MakeLora) -> None:
    path, before = make_lora(sd1), weights_of(sd1)
    with pytest.raises(KeyError), applied(sd1, [LoraUse(path)]):
        raise KeyError
    assert_same_weights(sd1, before)


def test_second_file_that_cannot_be_used_leaves_the_base_alone(sd1: Any, make_lora: MakeLora, tmp_path: Path) -> None:
    before = weights_of(sd1)
    with pytest.raises(AdapterError, match="nowhere"), applied(sd1, [LoraUse(make_lora(sd1)), LoraUse(tmp_path / "nowhere")]):
        pass
    assert_same_weights(sd1, before)


def test_acts_on_the_base_below_an_adapter_in_training(sd1: Any, make_lora: MakeLora) -> None:
    path = make_lora(sd1)
    with applied(sd1, [LoraUse(path)]):
        wanted = generate(sd1, SETTINGS)
    adapter = inject(sd1, seed=3)
    try:
        with adapter.disabled(), applied(sd1, [LoraUse(path)]) as (report,):
            assert report.skipped == ()
            assert generate(sd1, SETTINGS).tobytes() == wanted.tobytes()
    finally:
        adapter.remove()


def test_sdxl_files_with_diffusers_names_act_but_for_the_misplaced_up_sampler(sdxl: Any, tmp_path: Path) -> None:
    found = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    lost = "lora_unet_up_blocks_0_upsamplers_0_conv"
    tensors = {
        f"{found}.{UP}": torch.ones(64, 2),
        f"{found}.{DOWN}": torch.ones(2, 64),
        f"{lost}.{UP}": torch.ones(64, 2, 1, 1),
        f"{lost}.{DOWN}": torch.ones(2, 64, 3, 3),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    layer = sdxl.unet.get_submodule("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")
    before = layer.weight.clone()
    with applied(sdxl, [LoraUse(tmp_path / "a.safetensors", 0.5)]) as (report,):
        # No alpha is scale 1, so each entry of the change is 0.5 * (1 * 1 + 1 * 1).
        torch.testing.assert_close(layer.weight, before + 1.0)
        assert report.num_layers == 1
        (note,) = report.skipped
        assert lost in note
        assert "1 of its 2 layers" in note


@pytest.mark.hosts
def test_open_clip_attention_takes_all_four_projections_or_none(model: Any, tmp_path: Path) -> None:
    part = "text_encoder_2" if model.family == "sdxl" else "text_encoder"
    name = next(name for name, _ in model.parts[part].named_modules() if name.endswith("self_attn.q_proj"))
    width = model.parts[part].get_submodule(name).weight.shape[0]
    names = [name, name.replace("self_attn.q_proj", "mlp.fc1")]
    shapes = {names[0]: (width, width), names[1]: (2 * width, width)}
    tensors = {}
    for module, (outputs, inputs) in shapes.items():
        tensors[f"{model.webui_key(part, module)}.{UP}"] = torch.ones(outputs, 1)
        tensors[f"{model.webui_key(part, module)}.{DOWN}"] = torch.ones(1, inputs)
    save_file(tensors, tmp_path / "a.safetensors")
    with applied(model, [LoraUse(tmp_path / "a.safetensors")]) as (report,):
        pass
    is_open_clip = model.family != "sd1"
    assert report.num_layers == (1 if is_open_clip else 2)
    assert [("all four" in note, "q_proj" in note) for note in report.skipped] == ([(True, True)] if is_open_clip else [])


def test_layers_cut_off_by_clip_skip_are_not_complained_about(checkpoints: Any, sd1: Any, make_lora: MakeLora) -> None:
    path = make_lora(sd1)
    skipping: Any = load_model(ModelSettings(checkpoints["sd1"], clip_skip=2))
    with applied(skipping, [LoraUse(path)]) as (report,):
        assert report.skipped == ()
        assert 0 < report.num_layers < len([key for key in load_file(path) if key.endswith("alpha")])


def test_misfits_are_named_and_the_rest_acts(sd1: Any, make_lora: MakeLora, tmp_path: Path) -> None:
    tensors = load_file(make_lora(sd1))
    first, second, third, fourth, *_ = sorted({key.split(".")[0] for key in tensors if "attn1" in key})
    tensors[f"{first}.{UP}"] = torch.ones(7, 4)
    del tensors[f"{second}.{DOWN}"]
    tensors[f"{fourth}.alpha"] = torch.ones(2)
    tensors["bundle_emb.ink.string_to_param.*"] = torch.ones(2)
    tensors["lora_unet_no_such_layer.lora_up.weight"] = tensors[f"{third}.{UP}"].clone()
    save_file(tensors, tmp_path / "bad.safetensors")
    with applied(sd1, [LoraUse(tmp_path / "bad.safetensors")]) as (report,):
        assert report.num_layers > 10
    text = "\n".join(report.skipped)
    assert len(report.skipped) == 5
    assert all(name in text for name in (first, second, fourth, "lora_unet_no_such_layer", "embeddings"))


def test_file_that_fits_nowhere_is_an_error(sd1: Any, tmp_path: Path) -> None:
    key = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    save_file({f"{key}.{UP}": torch.ones(8, 2), f"{key}.{DOWN}": torch.ones(2, 4)}, tmp_path / "xl.safetensors")
    match = rf"xl\.safetensors fits no layer of tiny.*\(sd1\).*1 of its 1 layers.*no such layers \(first: {key}\).*trained on"
    with pytest.raises(AdapterError, match=match), applied(sd1, [LoraUse(tmp_path / "xl.safetensors")]):
        pass


@pytest.mark.parametrize(
    ("key", "match"),
    [
        ("weight", "holds no LoRA"),
        ("lora_unet_conv_in.dora_scale", "DoRA"),
        ("lora_unet_conv_in.hada_w1_a", "LoHa"),
        ("lora_unet_conv_in.lokr_w1", "LoKr"),
        ("lora_unet_conv_in.lora_mid.weight", "lora_mid"),
        ("base_model.model.down_blocks.0.to_q.lora_A.weight", "PEFT"),
        ("unet.down_blocks.0.to_q.lora.down.weight", "diffusers"),
    ],
)
def test_other_kinds_and_forms_are_refused_by_name(sd1: Any, tmp_path: Path, key: str, match: str) -> None:
    save_file({key: torch.ones(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(AdapterError, match=match), applied(sd1, [LoraUse(tmp_path / "other.safetensors")]):
        pass


def test_tag_is_what_the_prompt_takes() -> None:
    assert LoraUse(Path("a/ink.safetensors"), 0.7).tag == "<lora:ink:0.7>"
    assert LoraUse(Path("ink.safetensors"), 0.7, 0.0).tag == "<lora:ink:0:0.7>"
    assert LoraUse(Path("ink.safetensors"), 0.5, 1.0).scaled(0.5).tag == "<lora:ink:0.5:0.25>"
