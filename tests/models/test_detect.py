"""What a header tells: families, sizes, prediction types, and files that are refused by name."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from lora_trainer.errors import ModelError, UnsupportedModelError
from lora_trainer.models.detect import detect
from tests import tiny


def write_header(path: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> Path:
    """Writes a valid safetensors file of zeros."""
    save_file({name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items()}, path, metadata)
    return path


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {family: tiny.make_checkpoint(family, folder, name=family) for family in tiny.FAMILIES}


def changed(base: Path, path: Path, change: Any, metadata: dict[str, str] | None = None) -> Path:
    """Writes a base's tensors anew, changed."""
    tensors = load_file(base)
    change(tensors)
    save_file(tensors, path, metadata)
    return path


@pytest.mark.hosts
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_single_files_are_detected_with_their_sizes(family: str, bases: dict[str, Path]) -> None:
    detection = detect(bases[family])
    sizes = tiny.SIZES[family]
    assert (detection.family, detection.layout) == (family, "original")
    assert detection.facts.unet == sizes.unet
    assert detection.facts.vae == sizes.vae
    assert detection.facts.text_encoders == sizes.text_encoders
    assert detection.resolution == (1024 if family == "sdxl" else 64)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_folders_are_detected_with_their_sizes(family: str, prediction: Any, tmp_path: Path) -> None:
    detection = detect(tiny.make_diffusers_folder(family, tmp_path / "base", prediction=prediction, variant="fp16"))
    assert (detection.family, detection.layout) == (family, "diffusers")
    assert detection.facts.unet == tiny.SIZES[family].unet
    assert (detection.prediction_type, detection.resolution) == (prediction, 64)


def test_detection_imports_no_heavy_library(bases: dict[str, Path]) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from lora_trainer.models.detect import detect; from lora_trainer.models.webui import webui_layers\n"
        f"detect(Path({str(bases['sdxl'])!r})); webui_layers(Path({str(bases['sdxl'])!r}))\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_without_a_yaml_heads_are_those_of_ordinary_models(tmp_path: Path) -> None:
    for family, heads in (("sd1", (8, 8)), ("sd2", (1, 1)), ("sdxl", (1, 1, 1))):
        path = tiny.make_checkpoint(family, tmp_path / family, has_yaml=False)
        assert detect(path).facts.unet.heads == heads


def test_the_clip_folder_that_the_yaml_names_gives_the_heads(tmp_path: Path) -> None:
    path = tiny.make_checkpoint("sd1", tmp_path)
    assert detect(path).facts.text_encoders[0].heads == 2
    config = tmp_path / "tiny_clip" / "config.json"
    config.write_text(json.dumps({"text_config": {"num_attention_heads": 3}}), encoding="utf-8")
    assert detect(path).facts.text_encoders[0].heads == 3
    config.unlink()
    assert detect(path).facts.text_encoders[0].heads == 1


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_yaml_gives_the_prediction_type(family: str, tmp_path: Path) -> None:
    detection = detect(tiny.make_checkpoint(family, tmp_path, prediction="v_prediction"))
    assert detection.prediction_type == "v_prediction"
    assert detection.prediction_reason == "its tiny.yaml says so"


@pytest.mark.parametrize(("declared", "expected"), [("v", "v_prediction"), ("epsilon", "epsilon")])
def test_metadata_gives_the_prediction_type(declared: str, expected: str, tmp_path: Path) -> None:
    metadata = {"modelspec.prediction_type": declared}
    detection = detect(tiny.make_checkpoint("sd1", tmp_path, has_yaml=False, metadata=metadata))
    assert detection.prediction_type == expected
    assert "modelspec.prediction_type" in detection.prediction_reason


def test_v_pred_and_ztsnr_keys_are_understood(bases: dict[str, Path], tmp_path: Path) -> None:
    path = changed(bases["sdxl"], tmp_path / "b.safetensors", lambda t: t.update(v_pred=torch.zeros(0), ztsnr=torch.zeros(0)))
    detection = detect(path)
    assert detection.prediction_type == "v_prediction"
    assert "v_pred key" in detection.prediction_reason
    assert detection.facts.is_zero_terminal_snr


def test_resolution_by_family_and_prediction_type(tmp_path: Path) -> None:
    metadata = {"modelspec.prediction_type": "v"}
    assert detect(tiny.make_checkpoint("sd1", tmp_path / "1", has_yaml=False)).resolution == 512
    unknown = detect(tiny.make_checkpoint("sd2", tmp_path / "2", has_yaml=False))
    assert (unknown.prediction_type, unknown.resolution) == (None, None)
    assert detect(tiny.make_checkpoint("sd2", tmp_path / "3", has_yaml=False, metadata=metadata)).resolution == 768


@pytest.mark.parametrize(
    ("channels", "kind"), [(9, "in-painting"), (8, "InstructPix2Pix"), (5, "depth"), (6, "6 input channels")]
)
def test_other_input_channels_are_refused_by_name(channels: int, kind: str, bases: dict[str, Path], tmp_path: Path) -> None:
    name = "model.diffusion_model.input_blocks.0.0.weight"
    path = changed(bases["sd1"], tmp_path / "b.safetensors", lambda t: t.update({name: torch.zeros(32, channels, 3, 3)}))
    with pytest.raises(UnsupportedModelError, match=kind):
        detect(path)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"], "LoRA"),
        (["unet.down_blocks.0.attentions.0.to_q.lora_A.weight"], "LoRA"),
        (["double_blocks.0.img_attn.qkv.weight"], "Flux"),
        (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "Flux"),
        (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "Stable Diffusion 3"),
        (["encoder.down.0.block.0.conv1.weight", "decoder.conv_in.weight"], "a VAE"),
        (["first_stage_model.encoder.conv_in.weight"], "a VAE"),
        (["text_model.encoder.layers.0.mlp.fc1.weight"], "text encoder"),
        (["control_model.input_blocks.0.0.weight"], "ControlNet"),
        (["emb_params"], "textual inversion"),
        (["input_blocks.0.0.weight"], "denoiser alone"),
        (["blocks.0.something"], "not a base model that is known here .*blocks.0.something"),
    ],
)
def test_other_files_are_refused_by_name(names: list[str], kind: str, tmp_path: Path) -> None:
    path = write_header(tmp_path / "other.safetensors", dict.fromkeys(names, (2, 2)))
    with pytest.raises(UnsupportedModelError, match=kind):
        detect(path)


def test_refiner_is_refused_by_name(bases: dict[str, Path], tmp_path: Path) -> None:
    def make_refiner(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("conditioner.")]:
            tensor = tensors.pop(name)
            if "embedders.1." in name:
                tensors[name.replace("embedders.1.", "embedders.0.")] = tensor

    with pytest.raises(UnsupportedModelError, match="refiner"):
        detect(changed(bases["sdxl"], tmp_path / "b.safetensors", make_refiner))


@pytest.mark.parametrize(("part", "kind"), [("depth_model.x", "depth"), ("noise_augmentor.x", "unCLIP")])
def test_relatives_of_sd2_are_refused_by_name(part: str, kind: str, bases: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=kind):
        detect(changed(bases["sd2"], tmp_path / "b.safetensors", lambda t: t.update({part: torch.zeros(1)})))


def test_sdxl_of_uneven_depth_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    def shorten(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".input_blocks.7.1.transformer_blocks.1." in name]:
            del tensors[name]

    with pytest.raises(UnsupportedModelError, match="SSD-1B"):
        detect(changed(bases["sdxl"], tmp_path / "b.safetensors", shorten))


@pytest.mark.parametrize("pipeline", ["StableDiffusionInpaintPipeline", "StableDiffusionXLImg2ImgPipeline"])
def test_other_pipelines_are_refused_by_name(pipeline: str, tmp_path: Path) -> None:
    folder = tiny.make_diffusers_folder("sd1", tmp_path / "base")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}), encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match=pipeline):
        detect(folder)


def test_a_folder_of_anything_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"model_index\.json"):
        detect(tmp_path)


@pytest.mark.parametrize(
    ("name", "warns"),
    [
        ("sdxl_turbo.safetensors", True),
        ("dream-LCM-v2.safetensors", True),
        ("xl_lightning_4step.safetensors", True),
        ("saturbooth.safetensors", False),
        ("welcome.safetensors", False),
    ],
)
def test_distilled_models_are_warned_of_by_name(name: str, warns: bool, tmp_path: Path) -> None:
    path = tiny.make_checkpoint("sd1", tmp_path, has_yaml=False, name=Path(name).stem)
    assert any("distilled" in note for note in detect(path).notes) == warns


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html>Sign in</html>", "web page"),
        (b"\n <html>", "web page"),
        (b"abcdefgh" * 10, "not a safetensors file"),
        (struct.pack("<Q", 30) + b"{ no json" + b" " * 60, "damaged"),
        (struct.pack("<Q", 60) + b'{"a":{"dtype":"F16","shape":[-1,-4],"data_offsets":[0,8]}}   ' + b" " * 8, "impossible"),
        (struct.pack("<Q", 2) + b"[]" + b" " * 20, "damaged"),
        (struct.pack("<Q", 5000) + b"{}", "header would have 5000 bytes"),
    ],
)
def test_files_that_are_no_models_say_what_they_are(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        detect(path)


def test_a_cut_off_file_gives_both_sizes(bases: dict[str, Path], tmp_path: Path) -> None:
    data = bases["sd1"].read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=f"cut off: {len(data) // 2} of {len(data)} bytes"):
        detect(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.safetensors does not exist"):
        detect(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    "content",
    ["model: {params: {parameterization: x0}}", "- a list", "model: 3", "model: {params: {image_size: many}}", "a: [", "\x00"],
)
def test_a_yaml_that_is_no_configuration_is_an_error(content: str, bases: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    path.write_bytes(bases["sd1"].read_bytes())
    path.with_suffix(".yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=r"base\.yaml is not a checkpoint's configuration"):
        detect(path)


def test_an_ordinary_yaml_of_the_webui_is_understood(bases: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    path.write_bytes(bases["sd2"].read_bytes())
    unet = {"params": {"num_head_channels": 16, "num_heads": -1}}
    params = {"parameterization": "v", "image_size": 96, "scale_factor": 0.2, "linear_end": "1e-2", "unet_config": unet}
    path.with_suffix(".yaml").write_text(yaml.safe_dump({"model": {"params": params}}), encoding="utf-8")
    detection = detect(path)
    assert (detection.prediction_type, detection.resolution) == ("v_prediction", 768)
    assert (detection.facts.scale_factor, detection.facts.beta_end, detection.facts.beta_start) == (0.2, 0.01, 0.00085)
    assert detection.facts.unet.heads == (2, 4)


def test_parts_that_do_not_fit_are_an_error(bases: dict[str, Path], tmp_path: Path) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]:
            tensors[name] = torch.zeros(tensors[name].shape[0], 48)

    with pytest.raises(ModelError, match="embeddings 48 wide, its text encoders give 24"):
        detect(changed(bases["sd1"], tmp_path / "b.safetensors", widen))


def test_a_checkpoint_without_text_encoder_is_an_error(bases: dict[str, Path], tmp_path: Path) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("cond_stage_model.")]:
            del tensors[name]

    with pytest.raises(ModelError, match="without its text encoder"):
        detect(changed(bases["sd1"], tmp_path / "b.safetensors", drop))
