"""Edited files do what the arithmetic says: the sum of a stack, the nearest matrix of a rank, one part, another precision."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lora_trainer.adapters import edit, writing
from lora_trainer.adapters.container import model_hash, read_header
from lora_trainer.adapters.edit import convert, merge, resize, split
from lora_trainer.adapters.export import save_lora
from lora_trainer.adapters.inspect import inspect_file
from lora_trainer.adapters.tags import LoraUse
from lora_trainer.errors import AdapterError
from lora_trainer.models.webui import webui_layers
from tests.adapters.webui_rules import apply_lora, sd_version
from tests.tiny import make_checkpoint

pytestmark = pytest.mark.hosts
UP, DOWN, ALPHA = "lora_up.weight", "lora_down.weight", "alpha"
SDXL = {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False", "modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}
SD1 = {"ss_base_model_version": "sd_v1", "ss_v2": "False", "modelspec.architecture": "stable-diffusion-v1/lora"}
# Layers of each base with the shape of their weight, [o, i] or [o, i, k, l].
LAYERS: dict[str, dict[str, tuple[int, ...]]] = {
    "SD1": {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (20, 768),
        "lora_unet_down_blocks_0_attentions_0_proj_in": (24, 32, 1, 1),
        "lora_unet_down_blocks_0_resnets_0_conv1": (16, 12, 3, 3),
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj": (40, 768),
        "lora_te_text_model_encoder_layers_0_mlp_fc1": (48, 24),
    },
    "SDXL": {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k": (20, 2048),
        "lora_unet_input_blocks_4_1_proj_in": (24, 32),
        "lora_unet_output_blocks_2_2_conv": (16, 12, 3, 3),
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (40, 768),
        "lora_te2_text_model_encoder_layers_0_mlp_fc1": (48, 24),
        **{f"lora_te2_text_model_encoder_layers_1_self_attn_{name}_proj": (32, 32) for name in ("q", "k", "v", "out")},
    },
}
METADATA = {"SD1": SD1, "SDXL": SDXL}
MakeFile = Callable[..., Path]


@pytest.fixture
def make_file(tmp_path: Path) -> MakeFile:
    """Writes a LoRA file of random weights for a base."""

    def make(
        name: str = "ink",
        base: str = "SD1",
        rank: int = 6,
        alpha: float | None = 3.0,
        seed: int = 1,
        metadata: Mapping[str, str] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Path:
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for key, (outputs, inputs, *kernel) in LAYERS[base].items():
            tensors[f"{key}.{DOWN}"] = torch.randn(rank, inputs, *kernel, generator=generator)
            tensors[f"{key}.{UP}"] = torch.randn(outputs, rank, *[1] * len(kernel), generator=generator)
            if alpha is not None:
                tensors[f"{key}.{ALPHA}"] = torch.tensor(alpha)
        return save_lora(tmp_path / f"{name}.safetensors", tensors, METADATA[base] if metadata is None else metadata, dtype)

    return make


def change(path: Path, key: str) -> Tensor:
    """Returns `alpha / rank * up @ down` by the formula, fp64 [o, i * k * l]; zeros where the file lacks the layer."""
    tensors = load_file(path)
    if f"{key}.{UP}" not in tensors:
        return torch.zeros(())
    up, down = tensors[f"{key}.{UP}"].double(), tensors[f"{key}.{DOWN}"].double()
    rank = down.shape[0]
    alpha = float(tensors[f"{key}.{ALPHA}"]) if f"{key}.{ALPHA}" in tensors else rank
    return alpha / rank * torch.einsum("or,ri->oi", up.reshape(-1, rank), down.reshape(rank, -1))


def weight_for(use: LoraUse, key: str) -> float:
    return use.unet_weight if "unet" in key else use.weight_of("text_encoder")


@pytest.mark.parametrize("base", LAYERS)
def test_a_merged_file_is_the_weighted_sum(make_file: MakeFile, tmp_path: Path, base: str) -> None:
    uses = [
        LoraUse(make_file("ink", base, rank=6, alpha=3.0, seed=1), 0.7),
        LoraUse(make_file("seal", base, rank=4, alpha=None, seed=2), 0.8, 0.5),
        LoraUse(make_file("third", base, rank=2, alpha=1.0, seed=3), 0.0, -0.3),
    ]
    merged = merge(uses, tmp_path / "both.safetensors")
    for key in LAYERS[base]:
        wanted = sum((weight_for(use, key) * change(use.path, key) for use in uses), torch.zeros(()))
        torch.testing.assert_close(change(merged.path, key), wanted, rtol=1e-5, atol=1e-5)
    assert (merged.rank, merged.error, merged.notes) == (12, 0.0, ())
    parts = {part.name: part for part in inspect_file(merged.path).parts}
    assert (parts["UNet"].ranks, parts["UNet"].scales) == ((10,), (1.0,))
    assert len(parts) > 1


@pytest.mark.parametrize("base", LAYERS)
def test_merged_metadata_are_read_by_the_webui_s_rules(make_file: MakeFile, tmp_path: Path, base: str) -> None:
    tags = {"ss_tag_frequency": json.dumps({"10_boat": {"boat": 3}}), "modelspec.trigger_phrase": "inkstyle"}
    first = make_file("ink", base, metadata={**METADATA[base], **tags})
    second = make_file("seal", base, seed=2, metadata={**METADATA[base], **tags, "modelspec.trigger_phrase": "sealstyle"})
    path = merge([LoraUse(first, 0.7), LoraUse(second, 0.8, 0.5)], tmp_path / "both.safetensors").path
    metadata = read_header(path).metadata
    assert sd_version(metadata) == base
    assert all(isinstance(value, str) for value in metadata.values())
    assert metadata["ss_output_name"] == metadata["modelspec.title"] == "both"
    assert metadata["sshs_model_hash"] == model_hash(path)
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"], metadata["ss_network_module"]) == (
        "12",
        "12",
        "networks.lora",
    )
    assert metadata["ss_training_comment"] == "merged from <lora:ink:0.7> <lora:seal:0.5:0.8>"
    assert metadata["modelspec.trigger_phrase"] == "inkstyle, sealstyle"
    frequency = json.loads(metadata["ss_tag_frequency"])
    assert frequency == {"ink/10_boat": {"boat": 3}, "seal/10_boat": {"boat": 3}}
    report = inspect_file(path)
    assert (report.hash_state, report.alias, report.webui_class) == ("right", "both", base)


@pytest.mark.parametrize("base", LAYERS)
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_a_lower_rank_has_the_error_that_the_singular_values_say(
    make_file: MakeFile, tmp_path: Path, base: str, rank: int
) -> None:
    source = make_file(base=base)
    resized = resize(source, tmp_path / "small.safetensors", rank)
    lost = total = 0.0
    for key in LAYERS[base]:
        whole = change(source, key)
        values = torch.linalg.svdvals(whole)
        error = torch.linalg.matrix_norm(change(resized.path, key) - whole)
        assert float(error) == pytest.approx(float(values[rank:].square().sum().sqrt()), rel=1e-4)
        lost, total = lost + float(values[rank:].square().sum()), total + float(values.square().sum())
    assert resized.error == pytest.approx((lost / total) ** 0.5, rel=1e-4)
    assert resized.rank == rank
    assert read_header(resized.path).metadata["ss_network_dim"] == str(rank)
    assert all(part.ranks == (rank,) for part in inspect_file(resized.path).parts)


@pytest.mark.parametrize("base", LAYERS)
def test_full_rank_changes_nothing(make_file: MakeFile, tmp_path: Path, base: str) -> None:
    source = make_file(base=base)
    resized = resize(source, tmp_path / "same.safetensors", 6)
    assert resized.error == 0.0
    before, after = load_file(source), load_file(resized.path)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    # The same file twice has twice the rank, half of which says nothing: cut away, everything is there.
    halves = merge([LoraUse(source, 0.5), LoraUse(source, 0.5)], tmp_path / "twice.safetensors")
    cut = resize(halves.path, tmp_path / "once.safetensors", 6)
    assert (halves.rank, cut.rank) == (12, 6)
    assert cut.error < 1e-5
    for key in LAYERS[base]:
        torch.testing.assert_close(change(cut.path, key), change(source, key), rtol=1e-4, atol=1e-4)


def test_merging_can_cut_the_rank_at_once(make_file: MakeFile, tmp_path: Path) -> None:
    uses = [LoraUse(make_file("ink"), 1.0), LoraUse(make_file("seal", seed=2), 1.0)]
    at_once = merge(uses, tmp_path / "a.safetensors", rank=5)
    after = resize(merge(uses, tmp_path / "b.safetensors").path, tmp_path / "c.safetensors", 5)
    assert at_once.rank == after.rank == 5
    assert at_once.error == pytest.approx(after.error, rel=1e-5)
    for key in LAYERS["SD1"]:
        torch.testing.assert_close(change(at_once.path, key), change(after.path, key), rtol=1e-4, atol=1e-4)


def test_a_layer_smaller_than_the_rank_keeps_what_it_has(tmp_path: Path) -> None:
    key = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    tensors = {f"{key}.{UP}": torch.randn(4, 12), f"{key}.{DOWN}": torch.randn(12, 3)}
    path = save_lora(tmp_path / "wide.safetensors", tensors, SD1, torch.float32)
    resized = resize(path, tmp_path / "narrow.safetensors", 8)
    assert resized.rank == 3
    assert resized.error < 1e-6
    torch.testing.assert_close(change(resized.path, key), change(path, key), rtol=1e-4, atol=1e-5)


def test_a_kernel_in_the_middle_is_multiplied_in(tmp_path: Path) -> None:
    key = "lora_unet_down_blocks_0_resnets_0_conv1"
    up, middle, down = torch.randn(8, 4, 1, 1), torch.randn(4, 4, 3, 3), torch.randn(4, 6, 1, 1)
    tensors = {f"{key}.{UP}": up, f"{key}.lora_mid.weight": middle, f"{key}.{DOWN}": down, f"{key}.{ALPHA}": torch.tensor(2.0)}
    path = save_lora(tmp_path / "cp.safetensors", tensors, SD1, torch.float32)
    resized = resize(path, tmp_path / "plain.safetensors", 4)
    wanted = 0.5 * torch.einsum("or,rskl,si->oikl", up.flatten(1), middle, down.flatten(1)).reshape(8, -1)
    torch.testing.assert_close(change(resized.path, key), wanted.double(), rtol=1e-4, atol=1e-5)


def test_a_rank_cut_in_the_tag_is_merged_as_the_webui_cuts(make_file: MakeFile, tmp_path: Path) -> None:
    source = make_file(rank=6, alpha=3.0)
    path = merge([LoraUse(source, 1.0, rank_cut=2)], tmp_path / "cut.safetensors").path
    tensors = load_file(source)
    for key in LAYERS["SD1"]:
        up, down = (tensors[f"{key}.{ending}"].double().flatten(1) for ending in (UP, DOWN))
        torch.testing.assert_close(change(path, key), 0.5 * up[:, :2] @ down[:2], rtol=1e-5, atol=1e-5)


def test_both_ways_of_naming_a_layer_are_one_layer(tmp_path: Path) -> None:
    """In one file the WebUI would take only the second of two pairs for one layer."""
    ours = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    theirs = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    lost = "lora_unet_up_blocks_0_upsamplers_0_conv"
    files = []
    for key, more in ((ours, {}), (theirs, {f"{lost}.{UP}": torch.ones(4, 1, 1, 1), f"{lost}.{DOWN}": torch.ones(1, 4, 3, 3)})):
        tensors = {f"{key}.{UP}": torch.randn(5, 2), f"{key}.{DOWN}": torch.randn(2, 2048), **more}
        files.append(save_lora(tmp_path / f"{len(files)}.safetensors", tensors, SDXL, torch.float32))
    merged = merge([LoraUse(path) for path in files], tmp_path / "both.safetensors")
    torch.testing.assert_close(change(merged.path, ours), change(files[0], ours) + change(files[1], theirs), rtol=1e-5, atol=1e-5)
    keys = {key.split(".")[0] for key in load_file(merged.path)}
    # The WebUI looks for the up-sampler where there is none; the real one is output_blocks_2_2_conv.
    assert keys == {ours, "lora_unet_output_blocks_2_1_conv"}


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_webui_does_with_the_merged_file_what_it_does_with_both(tmp_path: Path, family: str) -> None:
    """One file names the UNet's layers as diffusers does, the other as the original does; both change the text encoders."""
    base = make_checkpoint(family, tmp_path / "base")
    files: list[Path] = []
    for name, unet in (
        ("theirs", ("down", "mid", "up", "conv", "time_embedding")),
        ("ours", ("input", "middle", "output", "out", "time_embed_")),
    ):
        beginnings = ("lora_te", *(f"lora_unet_{beginning}" for beginning in unet))
        shapes = {key: shape for key, shape in webui_layers(base).items() if key.startswith(beginnings)}
        assert any("unet" in key for key in shapes)
        tensors = {}
        for key, (outputs, inputs, *kernel) in shapes.items():
            tensors[f"{key}.{UP}"] = torch.randn(outputs, 2, *[1] * len(kernel))
            tensors[f"{key}.{DOWN}"] = torch.randn(2, inputs, *kernel)
            tensors[f"{key}.{ALPHA}"] = torch.tensor(1.0)
        metadata = METADATA["SDXL" if family == "sdxl" else "SD1"]
        files.append(save_lora(tmp_path / f"{name}.safetensors", tensors, metadata, torch.float32))
    merged = merge([LoraUse(files[0], 0.7), LoraUse(files[1], 0.8, 0.5)], tmp_path / "both.safetensors").path
    checkpoint = {key: tensor.float() for key, tensor in load_file(base).items()}
    stack = apply_lora(apply_lora(checkpoint, load_file(files[0]), 0.7).tensors, load_file(files[1]), 0.5, 0.8)
    alone = apply_lora(checkpoint, load_file(merged))
    assert (alone.dropped, alone.skipped) == (set(), set())
    changed = [key for key, tensor in stack.tensors.items() if not torch.equal(tensor, checkpoint[key])]
    assert len(changed) > 20
    for key in changed:
        torch.testing.assert_close(alone.tensors[key], stack.tensors[key], rtol=1e-4, atol=1e-4)


def test_what_the_webui_skips_in_one_file_does_not_act_in_the_merged_one(make_file: MakeFile, tmp_path: Path) -> None:
    attention = "lora_te2_text_model_encoder_layers_1_self_attn"
    tensors = {f"{attention}_q_proj.{UP}": torch.ones(32, 1), f"{attention}_q_proj.{DOWN}": torch.ones(1, 32)}
    fc1 = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    tensors |= {f"{fc1}.{UP}": torch.ones(48, 1), f"{fc1}.{DOWN}": torch.ones(1, 24)}
    lone = save_lora(tmp_path / "lone.safetensors", tensors, SDXL, torch.float32)
    whole = make_file(base="SDXL")
    merged = merge([LoraUse(whole), LoraUse(lone)], tmp_path / "both.safetensors")
    torch.testing.assert_close(
        change(merged.path, f"{attention}_q_proj"), change(whole, f"{attention}_q_proj"), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(change(merged.path, fc1), change(whole, fc1) + change(lone, fc1), rtol=1e-5, atol=1e-5)
    (note,) = merged.notes
    assert "lone.safetensors: 1 of its 2 layers are left out" in note and attention.removesuffix("_self_attn") in note


def test_split_parts_hold_everything_between_them(make_file: MakeFile, tmp_path: Path) -> None:
    source = make_file(base="SDXL")
    unet, text = split(source, tmp_path / "ink_unet.safetensors", tmp_path / "ink_te.safetensors")
    assert {part.name for part in inspect_file(unet).parts} == {"UNet"}
    assert {part.name for part in inspect_file(text).parts} == {"text encoder 1", "text encoder 2"}
    whole, both = load_file(source), load_file(unet) | load_file(text)
    assert whole.keys() == both.keys()
    assert all(torch.equal(whole[key], both[key]) for key in whole)
    assert sd_version(read_header(text).metadata) == "SDXL"
    with pytest.raises(AdapterError, match=r"ink_te\.safetensors has no UNet layers.*Use the file as it is"):
        split(text, tmp_path / "a.safetensors", tmp_path / "b.safetensors")


def test_a_split_that_fails_leaves_nothing(make_file: MakeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, written = make_file(base="SDXL"), edit.save_lora

    def save(path: Path, *rest: Any) -> Path:
        if path.stem == "ink_te":
            raise OSError(28, "No space left on device", str(path))
        return written(path, *rest)

    monkeypatch.setattr(edit, "save_lora", save)
    with pytest.raises(OSError, match="No space left"):
        split(source, tmp_path / "ink_unet.safetensors", tmp_path / "ink_te.safetensors")
    assert not list(tmp_path.glob("ink_*"))


@pytest.mark.parametrize(("precision", "name", "tolerance"), [("fp16", "F16", 1e-3), ("bf16", "BF16", 8e-3), ("fp32", "F32", 0)])
def test_precision_is_changed_and_nothing_else(
    make_file: MakeFile, tmp_path: Path, precision: str, name: str, tolerance: float
) -> None:
    source = make_file()
    path = convert(source, tmp_path / "other.safetensors", precision)
    assert inspect_file(path).dtypes == (name,)
    for key, tensor in load_file(source).items():
        torch.testing.assert_close(load_file(path)[key].float(), tensor, rtol=tolerance, atol=tolerance)
    assert inspect_file(path).hash_state == "right"


def test_the_precision_of_the_files_is_kept(make_file: MakeFile, tmp_path: Path) -> None:
    half, full = make_file("half", dtype=torch.float16), make_file("full", seed=2)
    assert inspect_file(resize(half, tmp_path / "a.safetensors", 2).path).dtypes == ("F16",)
    assert inspect_file(merge([LoraUse(half)], tmp_path / "b.safetensors").path).dtypes == ("F16",)
    assert inspect_file(merge([LoraUse(half), LoraUse(full)], tmp_path / "c.safetensors").path).dtypes == ("F32",)


def test_embeddings_travel_along(make_file: MakeFile, tmp_path: Path) -> None:
    embedding = {"bundle_emb.mark.string_to_param.*": torch.ones(1, 768)}
    source = save_lora(tmp_path / "emb.safetensors", load_file(make_file()) | embedding, SD1, torch.float32)
    for path in (
        resize(source, tmp_path / "a.safetensors", 2).path,
        merge([LoraUse(source)], tmp_path / "b.safetensors").path,
        split(source, tmp_path / "c.safetensors", tmp_path / "d.safetensors")[1],
    ):
        assert torch.equal(load_file(path)["bundle_emb.mark.string_to_param.*"], torch.ones(1, 768))


def test_files_for_different_bases_are_not_merged(make_file: MakeFile, tmp_path: Path) -> None:
    uses = [LoraUse(make_file("ink", "SD1")), LoraUse(make_file("seal", "SDXL"))]
    with pytest.raises(AdapterError, match=r"different bases: ink\.safetensors for SD1, seal\.safetensors for SDXL"):
        merge(uses, tmp_path / "both.safetensors")


def test_what_cannot_be_done_is_said_with_value_and_remedy(make_file: MakeFile, tmp_path: Path) -> None:
    source, free = make_file(), tmp_path / "free.safetensors"
    with pytest.raises(AdapterError, match=r"rank \(7\) must be from 1 to 6"):
        resize(source, free, 7)
    with pytest.raises(AdapterError, match=r"rank \(0\) must be at least 1; leave it out"):
        merge([LoraUse(source)], free, rank=0)
    with pytest.raises(AdapterError, match=r"nothing to merge\. Give one or more"):
        merge([], free)
    with pytest.raises(AdapterError, match=r"precision 'fp8' is unknown\. Known: fp16, bf16, fp32"):
        convert(source, free, "fp8")
    with pytest.raises(AdapterError, match=r"seal\.safetensors exists.*Give another name"):
        convert(source, make_file("seal"), "fp16")
    with pytest.raises(AdapterError, match=r"'a,b'.*contains ,.*Use letters"):
        convert(source, tmp_path / "a,b.safetensors", "fp16")
    with pytest.raises(AdapterError, match=r"'ink\.pt' must end in \.safetensors"):
        convert(source, tmp_path / "ink.pt", "fp16")
    dora = save_lora(tmp_path / "dora.safetensors", {"lora_unet_conv_in.dora_scale": torch.ones(1, 4)}, SD1)
    with pytest.raises(
        AdapterError, match=r"dora\.safetensors holds DoRA; ranks can be changed and files merged with plain LoRA"
    ):
        resize(dora, free, 1)
    for act in (
        lambda path: convert(path, free, "fp16"),
        lambda path: resize(path, free, 1),
        lambda path: merge([LoraUse(path)], free),
    ):
        with pytest.raises(AdapterError, match=r"nowhere\.safetensors is not a file"):
            act(tmp_path / "nowhere.safetensors")
    assert not free.exists()


@pytest.mark.parametrize("is_in_place", [False, True])
def test_a_write_that_fails_leaves_the_old_and_nothing_beside_it(
    make_file: MakeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_in_place: bool
) -> None:
    source = make_file()
    before, listing = source.read_bytes(), sorted(tmp_path.iterdir())

    def fail(path: Path, head: bytes, data: memoryview) -> None:
        path.write_bytes(head)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "_write", fail)
    with pytest.raises(OSError, match="No space left"):
        resize(source, source if is_in_place else tmp_path / "small.safetensors", 2)
    assert source.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == listing


def test_a_file_may_take_its_own_place(make_file: MakeFile) -> None:
    source = make_file()
    wanted = {key: change(source, key) for key in LAYERS["SD1"]}
    assert resize(source, source, 6, precision="bf16").path == source
    assert inspect_file(source).dtypes == ("BF16",)
    assert all(torch.allclose(change(source, key), wanted[key], rtol=0.05, atol=0.5) for key in wanted)
