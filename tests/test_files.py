from __future__ import annotations

import logging
import os
from pathlib import Path, PureWindowsPath

import pytest

from lora_trainer import files
from lora_trainer.files import leftover_mark, nearest_existing, replace_file, temporary_for, write_bytes, write_text, write_whole

pytestmark = pytest.mark.hosts


class InUse:
    """Stands for a program on Windows that holds a file open: `os.replace` over it is refused a number of times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, target: Path, times: int) -> None:
        self.tries, self.times = 0, times
        self.slept: list[float] = []
        replace = os.replace

        def refusing(source: Path, destination: Path) -> None:
            if Path(destination) == target:
                self.tries += 1
                if self.tries <= self.times:
                    raise PermissionError(13, "The process cannot access the file", str(destination))
            replace(source, destination)

        monkeypatch.setattr(files.os, "replace", refusing)
        monkeypatch.setattr(files.time, "sleep", self.slept.append)


def test_text_is_utf8_with_unix_line_ends(tmp_path):
    path = write_text(tmp_path / "水墨" / "settings.yaml", "name: 水墨\nnext: 1\n")
    assert path.read_bytes() == "name: 水墨\nnext: 1\n".encode()


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old and longer")
    assert write_bytes(path, b"new") == path
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a" * 255, "水" * 85])
def test_the_longest_name_of_a_file_system_can_be_written(tmp_path, name):
    assert write_bytes(tmp_path / name, b"x").read_bytes() == b"x"


def test_temporary_files_are_short_hidden_and_of_one_writer(tmp_path):
    names = {temporary_for(tmp_path / ("a" * 255)).name for _ in range(50)}
    assert len(names) == 50
    assert all(len(name) == 19 and name.startswith(".") and name.endswith(files.TEMPORARY_SUFFIX) for name in names)
    assert len({leftover_mark("a"), leftover_mark("b"), *(name[:9] for name in names)}) == 3


def test_a_failure_while_writing_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_whole(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interruption_while_writing_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def interrupt(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, interrupt)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_file_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda number: (order.append("fsync"), fsync(number)))
    monkeypatch.setattr(files.os, "replace", lambda *paths: (order.append("replace"), replace(*paths)))
    write_bytes(tmp_path / "a.bin", b"x")
    assert order == ["fsync", "replace"]


@pytest.mark.parametrize("times", [1, len(files.RETRY_SECONDS)])
def test_a_file_in_use_is_retried(tmp_path, monkeypatch, caplog, times):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    in_use = InUse(monkeypatch, path, times)
    assert write_bytes(path, b"new") == path
    assert path.read_bytes() == b"new"
    assert in_use.slept == list(files.RETRY_SECONDS[:times])
    assert not caplog.records


def test_a_file_that_stays_in_use_is_kept_and_the_new_one_is_put_beside_it(tmp_path, monkeypatch, caplog):
    path = tmp_path / "ink.v1.safetensors"
    path.write_bytes(b"old")
    (tmp_path / "ink.v1.new-1.safetensors").write_bytes(b"an earlier one")
    InUse(monkeypatch, path, 1000)
    with caplog.at_level(logging.WARNING):
        kept = write_bytes(path, b"new")
    assert kept == tmp_path / "ink.v1.new-2.safetensors"
    assert kept.read_bytes() == b"new"
    assert path.read_bytes() == b"old"
    assert (tmp_path / "ink.v1.new-1.safetensors").read_bytes() == b"an earlier one"
    assert "is in use by another program" in caplog.text
    assert "ink.v1.new-2.safetensors" in caplog.text
    assert len(list(tmp_path.iterdir())) == 3


def test_replace_moves_within_a_folder(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"1")
    assert replace_file(source, target) == target
    assert not source.exists()
    assert target.read_bytes() == b"1"


def test_the_search_for_an_existing_folder_ends_on_a_drive_that_is_not_there(tmp_path):
    class Unplugged(PureWindowsPath):
        def exists(self) -> bool:
            return False

    assert nearest_existing(Unplugged("E:/cache/ink")) == Unplugged("E:/")
    assert nearest_existing(tmp_path / "a" / "b") == tmp_path
