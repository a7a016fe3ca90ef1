"""Files that are lent to the LoRA folder for a drawing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_trainer.adapters.lent import FOLDER, lent, remove_lent


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
        assert places[step].name == step.name and places[step].parent.parent == loras / FOLDER
        assert (
            places[same] == places[step].with_name("ink-2.safetensors")
            and places[same].read_text(encoding="utf-8") == "the run's"
        )
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


def test_another_webui_with_the_same_folder_keeps_what_it_draws_with(tmp_path: Path) -> None:
    steps = [put(tmp_path / "run" / f"{name}-step00000100.safetensors") for name in ("ink", "seal")]
    loras = tmp_path / "Lora"
    with lent(steps[:1], loras) as ours:
        with lent(steps[1:], loras) as theirs:
            assert ours[steps[0]].is_file() and theirs[steps[1]].is_file()
        assert ours[steps[0]].is_file() and not theirs[steps[1]].exists()
    assert not (loras / FOLDER).exists()


def test_what_a_process_left_without_a_lock_on_it_is_removed(tmp_path: Path) -> None:
    left = put(tmp_path / FOLDER / "abc" / "old.safetensors")
    put(left.with_name("lock"))
    remove_lent(tmp_path)
    assert not (tmp_path / FOLDER).exists()
