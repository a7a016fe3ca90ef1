"""The host of our own page: a models folder laid out as a WebUI's, and pictures by our own pipeline."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lora_trainer.errors import HostError
from lora_trainer.host.standalone import Standalone
from lora_trainer.inference.generate import generate
from lora_trainer.inference.loras import LoraUse, applied
from lora_trainer.inference.settings import GenerateSettings
from tests.inference.conftest import checkpoints, make_lora, sd1  # noqa: F401 - fixtures


@pytest.fixture
def host(tmp_path) -> Standalone:
    return Standalone(tmp_path / "data")


def put(path: Path, data: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_all_folders_are_below_the_data_folder(host, tmp_path):
    folders = host.folders()
    assert folders.datasets == tmp_path / "data" / "datasets"
    assert folders.lora_dir == tmp_path / "data" / "models" / "Lora"
    assert folders.second_lora_dir is None
    assert not (tmp_path / "data").exists()  # nothing is made before it is needed


def test_without_a_data_folder_it_is_in_the_current_one(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert Standalone().folders().data_dir == tmp_path / "lora_trainer_data"


def test_a_webuis_models_folder_can_be_used(tmp_path):
    models = tmp_path / "webui" / "models"
    files = [put(models / "Stable-diffusion" / name) for name in ("b.safetensors", "Put checkpoints here.txt", "sub/a.CKPT")]
    put(models / "Stable-diffusion" / "folder" / "model_index.json")
    put(models / "Stable-diffusion" / "folder" / "unet" / "weights.safetensors")
    put(models / "VAE" / "best.safetensors")
    host = Standalone(tmp_path / "data", models)
    assert [(file.name, file.path) for file in host.checkpoints()] == [
        ("b.safetensors", files[0]),
        ("folder", models / "Stable-diffusion" / "folder"),
        ("sub/a.CKPT", files[2]),
    ]
    assert [file.name for file in host.vaes()] == ["best.safetensors"]


def test_the_device_is_ours_and_nobody_waits_for_it(host):
    moved, pauses = [], [True, True, False]
    with host.borrow_device("Training") as lease, lease.building():
        lease.show(1, 2)
        assert not lease.is_waited_for()
        lease.give_way(lambda: moved.append("away"), lambda: moved.append("back"), is_paused=lambda: False)
        assert moved == []
        lease.give_way(lambda: moved.append("away"), lambda: moved.append("back"), is_paused=lambda: pauses.pop(0))
        assert moved == ["away", "back"] and not pauses


@pytest.mark.parametrize(
    ("tag", "text_weight", "unet_weight"),
    [("<lora:ink>", 1, 1), ("<lora:ink:0.7>", 0.7, 0.7), ("<lora:ink:0:0.5>", 0, 0.5), ("<lora:ink:-1>", -1, -1)],
)
def test_tags_mean_what_they_mean_in_a_webui(host, tag, text_weight, unet_weight):
    path = put(host.folders().lora_dir / "styles" / "ink.safetensors")
    assert host._split_tags(f"a boat {tag}, mist") == ([LoraUse(path, unet_weight, text_weight)], "a boat , mist")


def test_what_is_missing_is_named(host):
    with pytest.raises(HostError, match=r"no base model in .*Stable-diffusion"):
        host.generate("a boat")
    put(host.checkpoint_dir / "base.safetensors", b"not a checkpoint")
    with pytest.raises(HostError, match=r"no LoRA file 'ink' in .*Lora"):
        host.generate("a boat <lora:ink:1>")
    with pytest.raises(HostError, match=r"with base\.safetensors: "):
        host.generate("a boat")


@pytest.mark.slow
def test_it_draws_with_the_first_base_and_the_named_lora(host, checkpoints, sd1, make_lora):  # noqa: F811
    shutil.copytree(checkpoints["sd1"].parent, host.checkpoint_dir)  # with what says how many heads its text encoder has
    path = put(host.folders().lora_dir / "ink.safetensors", make_lora(sd1).read_bytes())
    settings = {"width": 64, "height": 64, "steps": 2, "seed": 3}
    with applied(sd1, [LoraUse(path, 0.7)]):
        expected = generate(sd1, GenerateSettings("a boat", **settings))
    assert host.generate("a boat <lora:ink:0.7>", **settings).tobytes() == expected.tobytes()
    assert host.generate("a boat", **settings).tobytes() != expected.tobytes()
