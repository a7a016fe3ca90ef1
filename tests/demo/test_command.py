"""The demo: from pictures to a LoRA and a sheet, what it says on the way, and the copy into a WebUI."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from lora_trainer import demo
from lora_trainer.adapters.self_test import self_test
from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import TrainControl
from lora_trainer.demo import command
from lora_trainer.demo.assets import BASE
from lora_trainer.models.sidecar import read_sidecar
from lora_trainer.models.webui import webui_layers


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The demo with fewer steps and pictures; all else runs as it is."""
    monkeypatch.setattr(command, "PROMPTS", command.PROMPTS[:1])
    monkeypatch.setattr(command, "STEPS", 2)
    make_config = command.make_config

    def make_short(folder: Path, pictures: Path) -> TrainConfig:
        return replace(make_config(folder, pictures), max_train_steps=3)

    monkeypatch.setattr(command, "make_config", make_short)
    return tmp_path / "out"


@pytest.mark.slow
def test_ends_with_a_lora_and_a_sheet_and_says_what_to_do_next(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--output", str(small)]) == 0
    said = capsys.readouterr().out
    lora, sheet = small / "demo_ink" / "demo_ink.safetensors", small / "demo_ink_sheet.png"
    table = small / "pictures" / "metadata.csv"
    assert str(lora) in said and str(sheet) in said and str(table) in said
    assert "it said" in said and "it shows" in said and "What to do next" in said
    assert "train --preset sd1-style --config my_style.yaml" in said, "what is good for the miniature is not for a usual base"
    assert [check.name for check in self_test(lora, webui_layers(BASE)) if not check.passed] == []
    with Image.open(sheet) as picture:
        assert picture.info["parameters"].startswith(f"{command.PROMPTS[0]} <lora:demo_ink:1>\nSteps: 2, Sampler: Euler a")
        assert 'Sheet weights: "0, 0.3, 0.5, 0.7, 0.9, 1"' in picture.info["parameters"]
    written, captions = lora.stat().st_mtime_ns, table.read_bytes()
    assert demo.main(["--output", str(small)]) == 0
    assert "earlier demo" in capsys.readouterr().out
    assert (lora.stat().st_mtime_ns, table.read_bytes()) == (written, captions)


@pytest.mark.slow
def test_stop_saves_and_the_next_start_goes_on(small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    control = TrainControl()
    control.request("stop")
    monkeypatch.setattr(command, "TrainControl", lambda: control)
    assert demo.main(["--output", str(small)]) == 130
    assert "Start the demo again" in capsys.readouterr().out
    control.take("stop")
    assert demo.main(["--output", str(small)]) == 0


def test_captions_come_from_the_captioner_and_one_is_corrected(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = command.copy_pictures(small, fresh=False)
    assert not list(pictures.glob("*.csv"))
    assert command.write_captions(pictures, TrainControl())
    table = pictures / "metadata.csv"
    lines = table.read_text(encoding="utf-8-sig").splitlines()
    assert len(lines) == 25
    shown = capsys.readouterr().out.partition("it shows")[2].splitlines()[0].strip()
    assert any(shown in line for line in lines), "the corrected caption is not in the table"
    table.write_text("\n".join([*lines[:1], "ink-01.png,by hand", *lines[2:]]), encoding="utf-8")
    assert command.write_captions(pictures, TrainControl())
    assert "by hand" in table.read_text(encoding="utf-8"), "a second start undid the user's correction"


def test_folder_that_cannot_be_made_is_an_error_with_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").touch()
    assert demo.main(["--output", str(tmp_path / "taken")]) == 1
    assert "--output" in capsys.readouterr().err


def test_folder_of_another_run_is_refused_with_the_remedy(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small / "demo_ink"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text('{"status": "finished", "name": "x", "step": 1}', encoding="utf-8")
    (folder / "config.yaml").write_text(
        f"train_data_dir: {small}\nbase_model: {small}\noutput_dir: {folder}\nseed: 3\n", encoding="utf-8"
    )
    assert demo.main(["--output", str(small)]) == 1
    assert "--fresh" in capsys.readouterr().err


def test_into_a_webui_copies_a_base_whose_yaml_finds_its_text_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    webui, models = tmp_path / "webui", tmp_path / "webui" / "models" / "Stable-diffusion"
    models.mkdir(parents=True)
    assert demo.main(["--output", str(tmp_path / "out"), "--into", str(webui)]) == 0
    said = capsys.readouterr().out
    assert str(models / "miniature.safetensors") in said and "no LoRA of the demo" in said
    assert (models / "miniature.safetensors").read_bytes() == BASE.read_bytes()
    content = yaml.safe_load((models / "miniature.yaml").read_text(encoding="utf-8"))
    clip = Path(content["model"]["params"]["cond_stage_config"]["params"]["version"])
    assert clip.is_absolute() and {"config.json", "vocab.json", "merges.txt"} <= {path.name for path in clip.iterdir()}
    ours, copied = read_sidecar(BASE), read_sidecar(models / "miniature.safetensors")
    assert replace(copied, path=ours.path) == ours
    lora = tmp_path / "out" / "demo_ink" / "demo_ink.safetensors"
    lora.parent.mkdir(parents=True)
    lora.write_bytes(b"LoRA")
    assert demo.main(["--output", str(tmp_path / "out"), "--into", str(webui)]) == 0
    assert (webui / "models" / "Lora" / "demo_ink.safetensors").read_bytes() == b"LoRA"


def test_into_a_folder_that_is_no_webui_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--into", str(tmp_path)]) == 1
    assert "models/Stable-diffusion" in capsys.readouterr().err


def test_into_forge_is_an_error_that_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("models/Stable-diffusion", "modules_forge"):
        (tmp_path / folder).mkdir(parents=True)
    assert demo.main(["--into", str(tmp_path)]) == 1
    assert "Failed to recognize model type!" in capsys.readouterr().err
    assert not list((tmp_path / "models" / "Stable-diffusion").iterdir())
