"""Files that are lent to the LoRA folder for a drawing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_trainer.adapters.lent import FOLDER, lent


def put(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text or path.name, encoding="utf-8")
    return path


def test_files_stand_there_under_free_names_and_are_gone_afterwards(tmp_path: Path) -> None:
    loras = tmp_path / "Lora"
    inside, twin = put(loras / "styles" / "seal.safetensors"), put(loras / "ink.safetensors")
    step, same = put(tmp_path / "run" / "ink-step00000100.safetensors"), put(tmp_path / "run" / "ink.safetensors", "the run's")
    with lent([step, same, inside, step], loras) as places:
        assert places[inside] == inside
        assert places[step] == loras / FOLDER / step.name
        assert places[same] == loras / FOLDER / "ink-2.safetensors" and places[same].read_text(encoding="utf-8") == "the run's"
        assert places[step].samefile(step)  # a hard link takes no room
    assert not (loras / FOLDER).exists()
    assert step.read_text(encoding="utf-8") == step.name and twin.is_file()


def test_without_hard_links_they_are_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", fail)
    step = put(tmp_path / "run" / "ink-step00000100.safetensors")
    with lent([step], tmp_path / "Lora") as places:
        assert places[step].read_bytes() == step.read_bytes() and not places[step].samefile(step)


def test_what_a_killed_process_left_is_removed_first(tmp_path: Path) -> None:
    put(tmp_path / FOLDER / "old.safetensors")
    with pytest.raises(KeyError), lent([], tmp_path):
        assert not (tmp_path / FOLDER).exists()
        raise KeyError
