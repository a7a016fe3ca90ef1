"""A caption run: which pictures, what is kept, what is saved when, and how it goes on."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from PIL import Image

from lora_trainer.captioning.run import CaptionResult, TableFile, caption_folder, captions_to_keep
from lora_trainer.control import TrainControl
from lora_trainer.errors import DatasetError


class SizeTeller:
    """A captioner that tells how wide a picture is."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __enter__(self) -> SizeTeller:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def move(self, device: Any) -> None:
        pass

    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        self.batches.append(len(pictures))
        return [f"{picture.width} wide" for picture in pictures]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "set"
    (path / "deep").mkdir(parents=True)
    for width, name in enumerate(("a.png", "b.png", "deep/c.png", "d.jpg"), 1):
        Image.new("RGB", (width, 1)).save(path / name)
    return path


def run(folder: Path, table: Path, mode: Any = "missing", **more: Any) -> tuple[CaptionResult, list[dict[str, Any]], SizeTeller]:
    events: list[dict[str, Any]] = []
    captioner = SizeTeller()
    settings: dict[str, Any] = {"batch_size": 2, "control": TrainControl(), **more}
    result = caption_folder(
        captioner,
        folder,
        TableFile(table, folder).save,
        kept=captions_to_keep(folder, mode, table),
        emit=lambda kind, **data: events.append({"kind": kind, **data}),
        **settings,
    )
    return result, events, captioner


def rows(table: Path) -> list[list[str]]:
    with open(table, encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file))


def test_every_picture_gets_a_row(folder: Path) -> None:
    result, events, captioner = run(folder, folder / "metadata.csv")
    assert result == CaptionResult(4, 0, (), False)
    assert rows(folder / "metadata.csv") == [
        ["filename", "prompt"],
        ["a.png", "1 wide"],
        ["b.png", "2 wide"],
        ["d.jpg", "4 wide"],
        ["deep/c.png", "3 wide"],
    ]
    assert captioner.batches == [2, 2]
    assert [event["done"] for event in events] == [0, 2, 4]


def test_only_missing_captions_are_written(folder: Path) -> None:
    (folder / "a.txt").write_text("by hand", encoding="utf-8")
    (folder / "metadata.csv").write_text("filename,prompt,artist\nb.png,mine,me\nother.png,stays,you\n", encoding="utf-8")
    result, _, _ = run(folder, folder / "metadata.csv")
    assert (result.num_written, result.num_kept) == (2, 2)
    assert rows(folder / "metadata.csv") == [
        ["filename", "prompt", "artist"],
        ["b.png", "mine", "me"],
        ["other.png", "stays", "you"],
        ["d.jpg", "4 wide", ""],
        ["deep/c.png", "3 wide", ""],
    ]
    assert run(folder, folder / "metadata.csv")[0].num_written == 0


def test_overwriting_changes_the_rows_in_place(folder: Path) -> None:
    (folder / "metadata.csv").write_text('filename,prompt\n"B.PNG","old, long"\nother.png,stays\n', encoding="utf-8")
    result, _, _ = run(folder, folder / "metadata.csv", "overwrite")
    assert result.num_written == 4
    assert rows(folder / "metadata.csv")[1:3] == [["B.PNG", "2 wide"], ["other.png", "stays"]]
    assert len(rows(folder / "metadata.csv")) == 6


def test_a_table_elsewhere_may_be_json_lines(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "captions.jsonl"
    run(folder, table)
    entries = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    assert entries[0] == {"file_name": "a.png", "text": "1 wide"} and len(entries) == 4


def test_a_stop_keeps_what_is_written_and_the_next_run_goes_on(folder: Path) -> None:
    control = TrainControl()

    class Stopping(SizeTeller):
        def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
            control.request("stop")
            return super().caption(pictures)

    table = folder / "metadata.csv"
    result = caption_folder(
        Stopping(), folder, TableFile(table, folder).save, kept={}, batch_size=1, control=control, emit=lambda kind, **data: None
    )
    assert (result.num_written, result.was_stopped) == (1, True)
    assert rows(table) == [["filename", "prompt"], ["a.png", "1 wide"]]
    assert run(folder, table)[0] == CaptionResult(3, 1, (), False)


def test_pictures_that_cannot_be_read_are_named_and_the_others_done(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"no picture")
    result, events, _ = run(folder, folder / "metadata.csv")
    assert (result.num_written, result.unreadable) == (3, ("b.png",))
    assert "b.png" in next(event["message"] for event in events if event["kind"] == "warning")


def test_no_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no pictures"):
        run(tmp_path, tmp_path / "metadata.csv")


def test_a_file_that_is_no_table_is_refused_before_any_work(folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"captions.xlsx .*\.csv or \.jsonl"):
        TableFile(folder / "captions.xlsx", folder)
