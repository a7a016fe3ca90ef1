"""A process that is killed at any touch of a file in the LoRA folder leaves nothing half, and nothing is lost."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lora_trainer.adapters.edit import resize
from lora_trainer.adapters.inspect import inspect_file
from lora_trainer.adapters.library import list_trash, rename, restore, throw_away
from lora_trainer.adapters.repair import repair
from tests.adapters.files import SD1_METADATA, UNET_MODULE, pair, write

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="it forks, and SIGKILL is a signal of Unix"),
    pytest.mark.filterwarnings("ignore:.*fork.*"),
]
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir")
MOST_TOUCHES = 60


def killed_at(number: int, folder: Path, action: Callable[[], object]) -> bool:
    """Runs an action in a child that kills itself at the nth touch of a file below a folder. Returns whether it came to that."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # those of the parent are not in its fork
        touches = 0

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal touches
            if event in EVENTS and str(arguments[0]).startswith(str(folder)):
                touches += 1
                if touches == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the action itself failed"
    return os.WIFSIGNALED(status)


def each_kill(folder: Path, make: Callable[[Path], Callable[[], object]]) -> list[Path]:
    """Returns a folder for each moment of a kill, the last one's action being whole; `make` sets one up and gives its action."""
    folders = []
    for number in range(1, MOST_TOUCHES):
        folders.append(folder / str(number))
        action = make(folders[-1])
        if not killed_at(number, folders[-1], action):
            assert number > 3, "hardly a file was touched, so nothing was tested"
            return folders
    raise AssertionError("the action has no end")


def put(folder: Path, metadata: dict[str, str] | None = None) -> Path:
    torch.manual_seed(0)
    path = write(folder / "ink.safetensors", pair(UNET_MODULE), SD1_METADATA if metadata is None else metadata)
    path.with_suffix(".json").write_text('{"description": "d"}', encoding="utf-8")
    return path


def is_whole(path: Path) -> bool:
    return path.is_file() and inspect_file(path).has_effect is True


@pytest.mark.parametrize("change", ["resize", "repair"])
def test_in_place_the_file_is_the_old_or_the_new(tmp_path: Path, change: str) -> None:
    def make(folder: Path) -> Callable[[], object]:
        path = put(folder, {"made": "elsewhere"})
        return lambda: resize(path, path, 2) if change == "resize" else repair(path, base="SD1")

    old = put(tmp_path / "old", {"made": "elsewhere"}).read_bytes()
    folders = each_kill(tmp_path, make)
    results = [(folder / "ink.safetensors").read_bytes() for folder in folders]
    new = results[-1]
    assert new != old
    assert set(results) == {old, new}
    assert inspect_file(folders[-1] / "ink.safetensors").hash_state == "right"


def test_rename_keeps_one_whole_file_and_the_card(tmp_path: Path) -> None:
    def make(folder: Path) -> Callable[[], object]:
        path = put(folder)
        return lambda: rename(path, "brush", folder)

    folders = each_kill(tmp_path, make)
    for folder in folders:
        names = [name for name in ("ink", "brush") if is_whole(folder / f"{name}.safetensors")]
        assert names, f"no file is left after {folder.name} touches"
        assert any((folder / f"{name}.json").is_file() for name in names)
    assert sorted(path.name for path in folders[-1].iterdir()) == ["brush.json", "brush.safetensors"]


def test_what_is_thrown_away_can_always_be_brought_back(tmp_path: Path) -> None:
    def make(folder: Path) -> Callable[[], object]:
        path = put(folder)
        return lambda: throw_away(path, folder)

    for folder in each_kill(tmp_path, make):
        for item in list_trash(folder):
            restore(item.id, folder)
        assert is_whole(folder / "ink.safetensors")
        assert (folder / "ink.json").is_file()


def test_restoring_can_be_done_again(tmp_path: Path) -> None:
    def make(folder: Path) -> Callable[[], object]:
        identifier = throw_away(put(folder), folder)
        return lambda: restore(identifier, folder)

    for folder in each_kill(tmp_path, make):
        for item in list_trash(folder):
            restore(item.id, folder)
        assert is_whole(folder / "ink.safetensors")
        assert (folder / "ink.json").is_file()
