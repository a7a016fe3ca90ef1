"""Files from anywhere are recognised and named; damaged ones say how they are damaged."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lora_trainer.adapters.export import save_lora
from lora_trainer.adapters.inspect import inspect_file
from lora_trainer.adapters.report import format_checks, format_report
from lora_trainer.adapters.self_test import self_test
from lora_trainer.errors import AdapterError
from tests.adapters.files import SD1_METADATA, TEXT_MODULE, UNET_MODULE, pair, write
from tests.adapters.webui_rules import sd_version

pytestmark = pytest.mark.hosts
ONE = torch.ones(1)
MATRIX = torch.ones(4, 4)

KINDS: dict[str, dict[str, Tensor]] = {
    "LoRA": pair(UNET_MODULE),
    "DoRA": pair(UNET_MODULE) | {f"{UNET_MODULE}.dora_scale": torch.ones(1, 768)},
    "LoHa": {f"{UNET_MODULE}.hada_{name}": MATRIX for name in ("w1_a", "w1_b", "w2_a", "w2_b")},
    "LoKr": {f"{UNET_MODULE}.lokr_w1": MATRIX, f"{UNET_MODULE}.lokr_w2": MATRIX},
    "(IA)^3": {f"{UNET_MODULE}.weight": MATRIX, f"{UNET_MODULE}.on_input": ONE},
    "GLoRA": {f"{UNET_MODULE}.{name}.weight": MATRIX for name in ("a1", "a2", "b1", "b2")},
    "OFT": {f"{UNET_MODULE}.oft_diag": MATRIX},
    "full difference": {f"{UNET_MODULE}.diff": MATRIX},
    "norm": {"lora_unet_down_blocks_0_resnets_0_norm1.w_norm": ONE, "lora_unet_down_blocks_0_resnets_0_norm1.b_norm": ONE},
}
FORMS: dict[str, list[str]] = {
    "PEFT": [
        "base_model.model.down_blocks.0.attn1.to_q.lora_A.weight",
        "down_blocks.0.attn1.to_q.lora_A.default.weight",
        "lora_A.weight",
    ],
    "diffusers": [
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight",
    ],
    "Flux, SD3 or another transformer": [
        "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight",
        "lora_unet_joint_blocks_0_x.lora_up.weight",
    ],
    "a whole checkpoint": ["model.diffusion_model.input_blocks.0.0.weight"],
    "a textual inversion": ["emb_params", "clip_l"],
    "a VAE": ["encoder.conv_in.weight"],
    "unknown": ["something", "lycoris_unet_to_q.lora_up.weight"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_kind_is_named(tmp_path: Path, kind: str) -> None:
    report = inspect_file(write(tmp_path / "a.safetensors", KINDS[kind]))
    assert report.form == "WebUI"
    assert kind in report.kinds
    assert f"kind            {kind}" in format_report(report)


@pytest.mark.parametrize(("form", "key"), [(form, key) for form, keys in FORMS.items() for key in keys])
def test_form_without_effect_is_named(tmp_path: Path, form: str, key: str) -> None:
    report = inspect_file(write(tmp_path / "a.safetensors", {key: MATRIX}))
    assert report.form == form
    assert "it has no effect" in " ".join(format_report(report).split())


def test_ranks_alphas_and_scales_are_of_the_layers_with_effect(tmp_path: Path) -> None:
    silent = pair("lora_te_text_model_encoder_layers_0_self_attn_k_proj", rank=1)
    silent["lora_te_text_model_encoder_layers_0_self_attn_k_proj.lora_up.weight"].zero_()
    path = write(
        tmp_path / "a.safetensors", pair(UNET_MODULE, rank=4, alpha=None) | pair(TEXT_MODULE, rank=8, alpha=4.0) | silent
    )
    text, unet = sorted(inspect_file(path).parts, key=lambda part: part.name.lower())
    assert (text.name, text.num_layers, text.num_silent, text.ranks, text.alphas, text.scales) == (
        "text encoder",
        2,
        1,
        (8,),
        (4.0,),
        (0.5,),
    )
    assert (unet.name, unet.num_layers, unet.num_silent, unet.ranks, unet.alphas, unet.scales) == ("UNet", 1, 0, (4,), (), (1.0,))


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"anything": "at all"},
        {"ss_v2": "True"},
        {"ss_v2": "true"},
        {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "True"},
        {"ss_base_model_version": "sd_v2", "ss_v2": "False"},
    ],
)
def test_class_is_the_one_that_the_webui_derives_from_metadata(tmp_path: Path, metadata: dict[str, str]) -> None:
    report = inspect_file(write(tmp_path / "a.safetensors", pair(UNET_MODULE), metadata))
    assert report.webui_class == sd_version(metadata)


@pytest.mark.parametrize(
    ("tensors", "bases"),
    [
        (pair(UNET_MODULE, in_features=768), ("SD1",)),
        (pair(UNET_MODULE, in_features=1024), ("SD2",)),
        (pair(UNET_MODULE, in_features=2048), ("SDXL",)),
        (pair("lora_unet_input_blocks_4_1_proj_in"), ("SDXL",)),
        (pair("lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k", in_features=768), ("SD1",)),
        (pair("lora_unet_input_blocks_4_1_proj_in") | pair(TEXT_MODULE), ("SD1", "SD2")),
        (pair("lora_te2_text_model_encoder_layers_0_mlp_fc1"), ("SDXL",)),
        (pair(TEXT_MODULE), ("SD1", "SD2")),
        (pair("lora_unet_mid_block_attentions_0_proj_in"), ("SD1", "SD2", "SDXL")),
    ],
)
def test_bases_follow_from_keys_and_shapes(tmp_path: Path, tensors: dict[str, Tensor], bases: tuple[str, ...]) -> None:
    assert inspect_file(write(tmp_path / "a.safetensors", tensors)).possible_bases == bases


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.0])
def test_non_finite_layers_are_found_in_every_dtype(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    tensors = pair(UNET_MODULE) | pair(TEXT_MODULE)
    tensors[f"{TEXT_MODULE}.lora_down.weight"][0, 5] = value
    report = inspect_file(write(tmp_path / "a.safetensors", {key: tensor.to(dtype) for key, tensor in tensors.items()}))
    assert report.non_finite == (() if value == 1.0 else (TEXT_MODULE,))
    assert report.has_effect


@pytest.mark.parametrize("ending", ["lora_up.weight", "lora_down.weight", "alpha"])
def test_pairs_of_zeros_have_no_effect(tmp_path: Path, ending: str) -> None:
    tensors = pair(UNET_MODULE)
    tensors[f"{UNET_MODULE}.{ending}"].zero_()
    assert inspect_file(write(tmp_path / "a.safetensors", tensors)).has_effect is False


def test_dora_in_the_manner_of_peft_is_not_taken_for_sound(tmp_path: Path) -> None:
    tensors = pair(UNET_MODULE) | {f"{UNET_MODULE}.dora_scale": torch.ones(8, 1)}
    assert any("wrong pictures" in note for note in inspect_file(write(tmp_path / "a.safetensors", tensors)).notes)
    assert not inspect_file(write(tmp_path / "b.safetensors", KINDS["DoRA"])).notes


def test_convolutions_are_noted(tmp_path: Path) -> None:
    module = "lora_unet_down_blocks_0_resnets_0_conv1"
    tensors = {f"{module}.lora_down.weight": torch.ones(4, 8, 3, 3), f"{module}.lora_up.weight": torch.ones(8, 4, 1, 1)}
    assert any("LoCon" in note for note in inspect_file(write(tmp_path / "a.safetensors", tensors)).notes)


def test_hash_is_computed_anew(tmp_path: Path) -> None:
    path = save_lora(tmp_path / "a.safetensors", pair(UNET_MODULE), SD1_METADATA)
    assert inspect_file(path).hash_state == "right"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert inspect_file(path).hash_state == "wrong"
    assert inspect_file(write(tmp_path / "b.safetensors", pair(UNET_MODULE))).hash_state == "missing"


def good_bytes(path: Path) -> bytes:
    return save_lora(path / "good.safetensors", pair(UNET_MODULE), SD1_METADATA).read_bytes()


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda content: b"", r"is empty \(0 bytes\)"),
        (lambda content: content[:5], "not a safetensors file, or it is damaged"),
        (lambda content: content[:200], "the file has 200"),
        (lambda content: content[:-1], "is cut off"),
        (lambda content: b"<!DOCTYPE html><html>log in</html>", "is a web page"),
        (lambda content: content[:8] + b"{" + b"\xff" * 20 + content[29:], "header cannot be read"),
        (lambda content: content.replace(b'"shape":[4,768]', b'"shape":[5,768]', 1), "header cannot be read"),
        (lambda content: b"\xff" * 7 + b"\x00" + content, "not a safetensors file, or it is damaged"),
    ],
    ids=["empty", "5 bytes", "cut in the header", "cut", "web page", "no text", "wrong shape", "huge header"],
)
def test_damaged_files_say_what_is_wrong(tmp_path: Path, damage: Callable[[bytes], bytes], found: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(damage(good_bytes(tmp_path)))
    with pytest.raises(AdapterError, match=found) as caught:
        inspect_file(path)
    assert "a.safetensors" in str(caught.value)


def test_missing_file_and_pickle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"none\.safetensors"):
        inspect_file(tmp_path / "none.safetensors")
    torch.save(pair(UNET_MODULE), tmp_path / "old.pt")
    with pytest.raises(AdapterError, match="not a safetensors file"):
        inspect_file(tmp_path / "old.pt")


def test_file_without_tensors_is_of_unknown_form(tmp_path: Path) -> None:
    report = inspect_file(write(tmp_path / "a.safetensors", {}))
    assert (report.form, report.parts, report.has_effect) == ("unknown", (), None)
    format_report(report)


def test_long_unicode_names_are_inspected(tmp_path: Path) -> None:
    path = write(tmp_path / f"{'墨' * 80}.safetensors", pair(UNET_MODULE) | pair("lora_unet_" + "x" * 5000))
    report = inspect_file(path)
    assert report.alias == "墨" * 80
    assert "墨" in format_report(report)


def test_control_characters_of_a_file_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", pair(UNET_MODULE), {"ss_output_name": "a\x1b[31mred\r\n\x07"})
    assert all(character.isprintable() or character == "\n" for character in format_report(inspect_file(path)))


@given(st.data())
@settings(max_examples=150)
def test_no_damage_gives_anything_but_our_own_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damage")
    content = bytearray(good_bytes(folder))
    length = int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, 7 + length))
        content[position] = data.draw(st.one_of(st.sampled_from(b'{}[]",:0159e-. tfn\x00\xff'), st.integers(0, 255)))
    path = folder / "damaged.safetensors"
    path.write_bytes(content)
    try:
        format_report(inspect_file(path))
        format_checks(self_test(path, {UNET_MODULE: (8, 768)}))
    except AdapterError as error:
        assert "damaged.safetensors" in str(error)


@pytest.mark.parametrize(
    "header",
    [
        '{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":[-1,-1],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}',
        '{"a":{"dtype":"X","shape":[1],"data_offsets":[0,4]}}',
        '{"a":{"dtype":["F32"],"shape":[1],"data_offsets":[0,4]}}',
        '{"a":[]}',
        "[]",
        "[" * 100000,
        '{"__metadata__":[],"a":{}}',
        '{"__metadata__":{"a":{"b":1}}}',
    ],
)
def test_malicious_headers_give_our_own_error_or_a_report(tmp_path: Path, header: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(16))
    try:
        format_report(inspect_file(path))
    except AdapterError as error:
        assert "a.safetensors" in str(error)


def test_inspection_needs_no_torch(tmp_path: Path) -> None:
    path = save_lora(tmp_path / "a.safetensors", pair(UNET_MODULE), SD1_METADATA)
    code = (
        "import sys; from pathlib import Path; from lora_trainer.adapters import report, self_test; "
        f"report.format_checks(self_test.self_test(Path({str(path)!r}))); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
