"""Reading weights: every layout gives the same model, strictly, and no file can run code."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lora_trainer.errors import ModelError
from lora_trainer.models.checkpoint import build_empty, fill, hash_tensors, load_pickle, read_tensors
from lora_trainer.models.family import ModelSettings
from lora_trainer.models.sd2 import count_used_layers
from lora_trainer.models.sizes import TextSizes
from lora_trainer.models.table import load_model
from tests import tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_checkpoint("sd1", tmp_path_factory.mktemp("base"))


def beside_yaml(base: Path, path: Path) -> Path:
    """Gives another file the base's yaml."""
    (path.parent / "tiny_clip").mkdir(exist_ok=True)
    for source, target in (
        (base.with_suffix(".yaml"), path.with_suffix(".yaml")),
        (base.parent / "tiny_clip" / "config.json", path.parent / "tiny_clip" / "config.json"),
    ):
        target.write_bytes(source.read_bytes())
    return path


def states(path: Path, **settings: object) -> dict[str, torch.Tensor]:
    model = load_model(ModelSettings(path, **settings))  # type: ignore[arg-type]
    modules = {**model.parts, "vae": model.vae}  # type: ignore[attr-defined]
    return {f"{part}.{name}": tensor for part, module in modules.items() for name, tensor in module.state_dict().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_tensors_are_read_as_the_safetensors_library_reads_them(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    tensors = {"b.x": torch.randn(3, 5) * 9, "a": torch.randn(()), "b.empty": torch.zeros(0, 4), "c": torch.randn(7)}
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, path)
    assert_same(read_tensors(path), load_file(path))
    assert_same(read_tensors(path, "b."), {name[2:]: tensor for name, tensor in load_file(path).items() if name[0] == "b"})


def test_a_file_that_was_read_can_be_replaced_and_the_weights_stay(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    path.write_bytes(base.read_bytes())
    tensors = read_tensors(path)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    path.write_bytes(bytes(path.stat().st_size))
    assert_same(tensors, before)


@pytest.mark.hosts
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_file_ckpt_and_folder_give_the_same_weights(family: str, tmp_path: Path) -> None:
    file = tiny.make_checkpoint(family, tmp_path)
    folder = tiny.make_diffusers_folder(family, tmp_path / "folder", variant="fp16")
    ckpt = beside_yaml(file, tmp_path / "other.ckpt")
    torch.save({"state_dict": load_file(file), "global_step": 7}, ckpt)
    expected = states(file)
    assert_same(states(folder), expected)
    assert_same(states(ckpt), expected)


def test_a_folder_with_pickles_and_one_with_shards_are_read(tmp_path: Path) -> None:
    folder = tiny.make_diffusers_folder("sd1", tmp_path / "folder")
    expected = states(folder)
    text = folder / "text_encoder"
    torch.save(read_tensors(text / "model.safetensors"), text / "pytorch_model.bin")
    (text / "model.safetensors").unlink()
    unet = folder / "unet"
    tensors = read_tensors(unet / "diffusion_pytorch_model.safetensors")
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    names = sorted(tensors)
    files = {"one.safetensors": names[:50], "two.safetensors": names[50:]}
    for file, held in files.items():
        save_file({name: tensors[name] for name in held}, unet / file)
    index = {name: file for file, held in files.items() for name in held}
    tiny._write_json(unet / "diffusion_pytorch_model.safetensors.index.json", {"weight_map": index})
    assert_same(states(folder), expected)


def test_the_first_bytes_tell_the_format_where_the_name_is_wrong(base: Path, tmp_path: Path) -> None:
    as_ckpt = beside_yaml(base, tmp_path / "renamed.ckpt")
    as_ckpt.write_bytes(base.read_bytes())
    assert_same(states(as_ckpt), states(base))
    pickled = tmp_path / "other.safetensors"
    torch.save(load_file(base), pickled)
    with pytest.raises(ModelError, match=r"Rename it to end in \.ckpt"):
        read_tensors(pickled)


def test_a_ckpt_of_the_older_format_is_read(base: Path, tmp_path: Path) -> None:
    path = beside_yaml(base, tmp_path / "old.ckpt")
    torch.save({"state_dict": load_file(base)}, path, _use_new_zipfile_serialization=False)
    assert_same(states(path), states(base))


def test_a_ckpt_is_named_by_a_string_as_torch_2_1_wants_it(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, path = torch.load, beside_yaml(base, tmp_path / "new.ckpt")
    torch.save({"state_dict": load_file(base)}, path)

    def load_as_2_1(file: object, **options: object) -> object:
        if options.get("mmap") and not isinstance(file, str):
            raise ValueError("f must be a string filename in order to use mmap argument")
        return load(file, **options)

    monkeypatch.setattr(torch, "load", load_as_2_1)
    assert_same(states(path), states(base))


class _RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("open('ran.txt', 'w').close()",)


@pytest.mark.hosts
def test_a_ckpt_that_runs_code_is_refused_and_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.ckpt"
    torch.save({"state_dict": {"model.diffusion_model.input_blocks.0.0.weight": _RunsCode()}}, path)
    with pytest.raises(ModelError, match=r"bad\.ckpt holds more than plain weights"):
        load_model(ModelSettings(path))
    path.write_bytes(pickle.dumps(_RunsCode()))
    with pytest.raises(ModelError, match=r"bad\.ckpt"):
        load_model(ModelSettings(path))
    assert not (tmp_path / "ran.txt").exists()


def test_a_damaged_ckpt_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.ckpt"
    torch.save({"state_dict": {"x": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ModelError, match=r"cut\.ckpt"):
        load_model(ModelSettings(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no model")
    with pytest.raises(ModelError, match=r"cut\.ckpt"):
        load_model(ModelSettings(path))


def test_averaged_weights_and_other_keys_beside_the_model_are_passed_over(base: Path, tmp_path: Path) -> None:
    path = beside_yaml(base, tmp_path / "full.safetensors")
    tensors = load_file(base)
    more = {f"model_ema.{name.replace('.', '')}": torch.zeros(1) for name in list(tensors)[:5]}
    more |= {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}
    more |= {"cond_stage_model.transformer.logit_scale": torch.zeros(())}
    more |= {"first_stage_model.loss.logvar": torch.zeros(1), "betas": torch.zeros(1000)}
    save_file(tensors | more, path)
    assert_same(states(path), states(base))


def test_text_encoders_without_the_text_model_level_are_read(base: Path, tmp_path: Path) -> None:
    path = beside_yaml(base, tmp_path / "old.safetensors")
    save_file({name.replace(".text_model.", "."): tensor for name, tensor in load_file(base).items()}, path)
    assert_same(states(path), states(base))


@pytest.mark.parametrize(
    ("layout", "num_layers", "num_used"), [("original", 24, 23), ("original", 23, 23), ("diffusers", 23, 23)]
)
def test_sd2_uses_the_last_but_one_layer_also_of_files_that_lack_the_last(layout: Any, num_layers: int, num_used: int) -> None:
    assert count_used_layers(TextSizes(1024, num_layers, 16, 4096, 49408, 77, "gelu"), layout) == num_used


def test_sd2_with_its_text_encoder_in_sgms_place_is_read(tmp_path: Path) -> None:
    base = tiny.make_checkpoint("sd2", tmp_path)
    path = beside_yaml(base, tmp_path / "turbo.safetensors")
    save_file(
        {name.replace("cond_stage_model.", "conditioner.embedders.0."): tensor for name, tensor in load_file(base).items()}, path
    )
    assert_same(states(path), states(base))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.diffusion_model.time_embed.0.weight", r"The UNet of .*missing: time_embedding\.linear_1\.weight"),
        ("first_stage_model.decoder.norm_out.bias", r"The VAE of .*missing: decoder\.conv_norm_out\.bias"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", r"Text encoder 1 .*missing: .*final_layer_norm\.bias"),
    ],
)
def test_a_missing_tensor_is_named(name: str, message: str, base: Path, tmp_path: Path) -> None:
    path = beside_yaml(base, tmp_path / "b.safetensors")
    save_file({key: tensor for key, tensor in load_file(base).items() if key != name}, path)
    with pytest.raises(ModelError, match=message):
        load_model(ModelSettings(path))


def test_an_unexpected_tensor_and_a_wrong_shape_are_named(base: Path, tmp_path: Path) -> None:
    path = beside_yaml(base, tmp_path / "b.safetensors")
    extra = {"model.diffusion_model.extra.weight": torch.zeros(1), "model.diffusion_model.out.2.bias": torch.zeros(5)}
    save_file(load_file(base) | extra, path)
    with pytest.raises(ModelError, match=r"unexpected: extra\.weight; of another shape: conv_out\.bias"):
        load_model(ModelSettings(path))


@pytest.mark.parametrize(
    "kind", ["original file", "prefixed file", "checkpoint", "diffusers file", "folder", "pipeline", "old names"]
)
def test_a_separate_vae_is_read_in_every_layout(kind: str, base: Path, tmp_path: Path) -> None:
    other = tiny.make_checkpoint("sd1", tmp_path / "other", seed=1)
    folder = tiny.make_diffusers_folder("sd1", tmp_path / "folder", seed=1)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(other).items() if name.startswith("first_stage_model.")}
    path = tmp_path / "vae.safetensors"
    if kind == "original file":
        save_file({name.removeprefix("first_stage_model."): tensor for name, tensor in tensors.items()}, path)
    elif kind == "prefixed file":
        save_file(tensors, path)
    elif kind == "old names":
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        renamed = {}
        for name, tensor in load_file(weights).items():
            for new_word, word in old.items():
                name = name.replace(f"attentions.0.{new_word}.", f"attentions.0.{word}.")
            renamed[name] = tensor
        save_file(renamed, path)
    path = {"checkpoint": other, "diffusers file": weights, "folder": folder / "vae", "pipeline": folder}.get(kind, path)
    expected = {name: tensor for name, tensor in states(other).items() if name.startswith("vae.")}
    with_vae = states(base, vae=path)
    assert_same({name: tensor for name, tensor in with_vae.items() if name.startswith("vae.")}, expected)
    assert not torch.equal(states(base)["vae.quant_conv.weight"], with_vae["vae.quant_conv.weight"])


def test_a_checkpoint_without_vae_asks_for_one(base: Path, tmp_path: Path) -> None:
    path = beside_yaml(base, tmp_path / "b.safetensors")
    save_file({name: tensor for name, tensor in load_file(base).items() if not name.startswith("first_stage_model.")}, path)
    with pytest.raises(ModelError, match=r"holds no VAE\. Give one by the setting `vae`"):
        load_model(ModelSettings(path))
    assert_same(states(path, vae=base), states(base))


def test_a_file_without_vae_given_as_vae_is_named(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="holds no VAE; its first tensors: lora_unet_x"):
        load_model(ModelSettings(base, vae=path))


def test_weights_take_the_dtype_asked_for_and_the_vae_stays_fp32(base: Path) -> None:
    model = load_model(ModelSettings(base, dtype=torch.bfloat16))
    assert {parameter.dtype for part in model.parts.values() for parameter in part.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.vae.parameters()} == {torch.float32}  # type: ignore[attr-defined]
    assert not any(parameter.requires_grad for part in model.parts.values() for parameter in part.parameters())


def test_building_empty_touches_no_other_code_and_keeps_computed_buffers() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.register_buffer("positions", torch.arange(4))

    layer = build_empty(Layer)
    assert layer.linear.weight.is_meta
    assert layer.positions.tolist() == [0, 1, 2, 3]
    assert not nn.Linear(2, 2).weight.is_meta
    tensors = {"linear.weight": torch.eye(4), "linear.bias": torch.zeros(4)}
    fill(layer, tensors, source="The layer", device=torch.device("cpu"))
    assert torch.equal(layer.linear(torch.ones(4)), torch.ones(4))


def test_hashes_see_values_names_dtypes_and_facts_but_not_order() -> None:
    one, two = torch.ones(2), torch.zeros(2)
    first = hash_tensors([("a", one), ("b", two)], 1)
    assert hash_tensors([("b", two), ("a", one)], 1) == first
    others = ([("a", two), ("b", one)], [("a", one), ("c", two)], [("a", one), ("b", two.half())])
    assert len({first, hash_tensors([("a", one), ("b", two)], 2), *(hash_tensors(other, 1) for other in others)}) == 5


def test_a_ckpt_that_the_webuis_own_check_refuses_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AUTOMATIC1111 puts its own function in the place of `torch.load`, which returns None for what it refuses."""
    path = tmp_path / "refused.ckpt"
    torch.save({"state_dict": {}}, path)
    monkeypatch.setattr(torch, "load", lambda *args, **options: None)
    with pytest.raises(ModelError, match=r"refused\.ckpt was refused by the WebUI's own check.*console.*\.safetensors"):
        load_pickle(path)
