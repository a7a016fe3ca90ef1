"""Captions changed in place: where they are written, what the journal gives back, two windows, and kills at any moment."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.dataset.caption_store import CaptionStore
from lora_trainer.dataset.captions import read_captions
from lora_trainer.dataset.journal import KEPT_FOLDER
from lora_trainer.dataset.scan import list_files, picture_names
from lora_trainer.dataset.table_writing import format_table
from lora_trainer.dataset.tables import clean_caption, read_table
from lora_trainer.errors import DatasetError
from lora_trainer.files import temporary_for

from .test_captions import HARD_CAPTIONS

pytestmark = pytest.mark.hosts

ROOT = Path(__file__).parents[2]
NUM_KILLS = 4
MORE_HARD_CAPTIONS = [*HARD_CAPTIONS, "حبر على ورق, 「水墨」", 'ends in a quote"', "\ttab, =1+1", "👩‍🎨, \u200fmixed\u200e"]


def make_set(folder: Path, *names: str) -> CaptionStore:
    """Pictures are told by their names here; nothing decodes them."""
    for name in names or ("a.png", "b.png", "c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"picture")
    return CaptionStore(folder)


def on_disk(folder: Path) -> dict[str, str]:
    """What training would read."""
    files = list_files(folder)
    return read_captions(folder, picture_names(files), files).by_name


@pytest.mark.parametrize("kind", ["txt", "csv", "bare csv", "semicolons", "jsonl"])
@pytest.mark.parametrize("caption", MORE_HARD_CAPTIONS)
def test_every_kind_of_file_keeps_every_caption(tmp_path: Path, kind: str, caption: str) -> None:
    table = {
        "csv": ("metadata.csv", "filename,prompt\na.png,old\n"),
        "bare csv": ("metadata.csv", "a.png,old\n"),
        "semicolons": ("metadata.csv", "prompt;filename\nold;a.png\n"),
        "jsonl": ("metadata.jsonl", '{"file_name": "a.png", "text": "old"}\n'),
        "txt": ("a.txt", "old\n"),
    }[kind]
    (tmp_path / table[0]).write_text(table[1], encoding="utf-8")
    store = make_set(tmp_path)
    store.save_all({"a.png": caption, "b.png": caption[::-1]}, {"a.png": "old", "b.png": ""}, title="both")
    assert on_disk(tmp_path) == {"a.png": clean_caption(caption), "b.png": clean_caption(caption[::-1])}
    assert store.read().captions == {**on_disk(tmp_path), "c.png": ""}
    assert store.read().problems == ()
    store.undo()
    assert on_disk(tmp_path) == {"a.png": "old"}


@given(st.lists(st.text(), min_size=1, max_size=4))
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_table_gives_back_any_text(tmp_path_factory: pytest.TempPathFactory, suffix: str, texts: list[str]) -> None:
    captions = {f"{number}.png": clean_caption(text) for number, text in enumerate(texts)}
    path = tmp_path_factory.mktemp("table") / f"metadata{suffix}"
    path.write_bytes(format_table(captions, suffix))
    assert {row.name: row.caption for row in read_table(path).rows} == captions
    assert read_table(path).faults == ()


@given(st.text())
def test_a_sidecar_gives_back_any_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    store = make_set(tmp_path_factory.mktemp("set"))
    store.save("a.png", text, seen="")
    assert store.read().captions["a.png"] == clean_caption(text)


def test_a_table_keeps_all_that_is_not_a_changed_caption(tmp_path: Path) -> None:
    before = (
        "\ufeffid;File_Name;Prompt;note\r\n"
        '1;a.png;"one; two";"kept ""so"""\r\n'
        "2;gone.png;of no picture;x\r\n"
        "\r\n"
        "broken\r\n"
        "3;B.PNG;old  spaces ;\r\n"
    )
    (tmp_path / "metadata.csv").write_bytes(before.encode("utf-8"))
    make_set(tmp_path).save("b.png", "neu\nzwei", seen="old  spaces")
    expected = before.replace("old  spaces ", '"neu\r\nzwei"')
    assert (tmp_path / "metadata.csv").read_bytes().decode("utf-8") == expected
    make_set(tmp_path).save("c.png", "added", seen="")
    assert (tmp_path / "metadata.csv").read_bytes().decode("utf-8") == expected + ";c.png;added;\r\n"


def test_json_lines_keep_their_other_keys(tmp_path: Path) -> None:
    lines = ['{"width": 3, "Image": "a.png", "Text": "old"}', "not json", '{"file_name": "b.png", "text": "\\u6c34"}']
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    store = make_set(tmp_path)
    store.save_all({"a.png": "new", "b.png": "墨"}, {"a.png": "old", "b.png": "水"}, title="both")
    written = (tmp_path / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(written[0]) == {"width": 3, "Image": "a.png", "Text": "new"}
    assert written[1:] == ["not json", '{"file_name": "b.png", "text": "\\u58a8"}']


def test_all_places_of_a_caption_are_changed(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("filename,prompt\na.png,old\na,old\n", encoding="utf-8")
    (tmp_path / "a.txt").write_text("old", encoding="utf-8")
    store = make_set(tmp_path)
    store.save("a.png", "new", seen="old")
    assert store.read().problems == ()
    assert [row.caption for row in read_table(tmp_path / "metadata.csv").rows] == ["new", "new"]
    store.save("a.png", "", seen="new")
    assert store.read().captions["a.png"] == ""


def test_tables_in_sub_folders_and_a_chosen_table(tmp_path: Path) -> None:
    make_set(tmp_path, "a.png", "sub/a.png", "other/x.png")
    (tmp_path / "metadata.csv").write_text("filename,prompt\na.png,top\n", encoding="utf-8")
    (tmp_path / "sub" / "metadata.csv").write_text("a.png,below\n", encoding="utf-8")
    store = CaptionStore(tmp_path)
    store.save_all({"sub/a.png": "1", "other/x.png": "2", "a.png": "3"}, None, title="all")
    assert [tuple(row[:2]) for row in read_table(tmp_path / "sub" / "metadata.csv").rows] == [("a.png", "1")]
    assert [tuple(row[:2]) for row in read_table(tmp_path / "metadata.csv").rows] == [("a.png", "3"), ("other/x.png", "2")]
    (tmp_path / "chosen.csv").write_text("filename,prompt\nsub/a.png,chosen\n", encoding="utf-8")
    chosen = CaptionStore(tmp_path, tmp_path / "chosen.csv")
    assert chosen.read().captions["sub/a.png"] == "chosen"
    chosen.save("sub/a.png", "4", seen="chosen")
    assert chosen.read().captions["sub/a.png"] == CaptionStore(tmp_path).read().captions["sub/a.png"] == "4"


def test_the_later_of_two_windows_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    one, other = make_set(tmp_path), CaptionStore(tmp_path)
    one.save("a.png", "first", seen="")
    result = other.save("a.png", "second", seen="")
    assert result.saved == {} and result.change is None
    (conflict,) = result.conflicts
    assert (conflict.current, conflict.wanted) == ("first", "second") and "meanwhile" in conflict.reason
    assert on_disk(tmp_path) == {"a.png": "first"}
    assert other.save("a.png", "first", seen="").conflicts == ()  # both want the same


def test_windows_that_save_at_once_never_lose_a_text(tmp_path: Path) -> None:
    make_set(tmp_path)
    refused: list[str] = []

    def write(window: int) -> None:
        store = CaptionStore(tmp_path)
        for number in range(8):
            seen = store.read().captions["a.png"]
            refused.extend(conflict.wanted for conflict in store.save("a.png", f"{window} {number}", seen=seen).conflicts)

    windows = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for window in windows:
        window.start()
    for window in windows:
        window.join()
    versions = [version.text for version in CaptionStore(tmp_path).versions("a.png")]
    assert sorted([*versions[:-1], *refused]) == sorted(f"{window} {number}" for window in range(4) for number in range(8))
    assert versions[0] == on_disk(tmp_path)["a.png"]


def test_undo_and_redo_survive_a_restart(tmp_path: Path) -> None:
    make_set(tmp_path).save("a.png", "one", seen="")
    make_set(tmp_path).save_all({"a.png": "two", "b.png": "two"}, {"a.png": "one", "b.png": ""}, title="bulk")
    make_set(tmp_path).save("c.png", "three", seen="")
    states = [{"a.png": "two", "b.png": "two"}, {"a.png": "one"}, {}]
    for state in states:
        assert CaptionStore(tmp_path).undo().conflicts == ()
        assert on_disk(tmp_path) == state
    assert CaptionStore(tmp_path).undo().saved == {} and CaptionStore(tmp_path).undoable() is None
    for state in (*states[1::-1], {"a.png": "two", "b.png": "two", "c.png": "three"}):
        CaptionStore(tmp_path).redo()
        assert on_disk(tmp_path) == state
    assert CaptionStore(tmp_path).redoable() is None
    CaptionStore(tmp_path).undo()
    CaptionStore(tmp_path).save("a.png", "four", seen="two")
    assert CaptionStore(tmp_path).redoable() is None
    CaptionStore(tmp_path).undo()
    CaptionStore(tmp_path).undo()
    assert on_disk(tmp_path) == {"a.png": "one"}


def test_one_change_of_the_history_is_taken_back_where_nobody_wrote_since(tmp_path: Path) -> None:
    store = make_set(tmp_path)
    bulk = store.save_all({"a.png": "x", "b.png": "x"}, {}, title="bulk")
    store.save("a.png", "later", seen="x")
    assert bulk.change is not None
    result = store.revert(bulk.change)
    assert result.saved == {"b.png": ""}
    assert [(conflict.name, conflict.current) for conflict in result.conflicts] == [("a.png", "later")]
    assert [change.title for change in store.history()] == ["undo: bulk", "edited", "bulk"]
    with pytest.raises(DatasetError, match="99"):
        store.revert(99)


def test_a_caption_is_restored_from_its_versions(tmp_path: Path) -> None:
    store = make_set(tmp_path)
    (tmp_path / "a.txt").write_text("by hand", encoding="utf-8")
    for text, seen in (("one", "by hand"), ("two", "one")):
        store.save("a.png", text, seen=seen)
    versions = store.versions("a.png")
    assert [version.text for version in versions] == ["two", "one", "by hand"]
    store.save("a.png", versions[-1].text, seen="two")
    assert on_disk(tmp_path) == {"a.png": "by hand"}


def test_a_run_that_saves_one_by_one_is_one_change(tmp_path: Path) -> None:
    store, change = make_set(tmp_path), None
    for name in ("a.png", "b.png", "a.png"):
        change = store.save_all({name: f"{name} {change}"}, None, title="captioned", change=change).change
    (found,) = store.history()
    assert found.values == {"a.png": ("", "a.png 1"), "b.png": ("", "b.png 1")}
    store.undo()
    assert on_disk(tmp_path) == {}


def test_what_a_run_writes_after_an_undo_counts_and_can_be_undone_itself(tmp_path: Path) -> None:
    store = make_set(tmp_path)
    first = store.save_all({"a.png": "one"}, None, title="captioned", run="r").change
    store.undo()
    second = store.save_all({"b.png": "two"}, None, title="captioned", change=first, run="r").change
    assert store.save_all({"c.png": "three"}, None, title="captioned", change=second, run="r").change == second != first
    assert on_disk(tmp_path) == {"b.png": "two", "c.png": "three"}
    assert store.redoable() is None  # something else was done since
    assert (going_on := store.unfinished_run("r")) is not None and going_on.id == second
    store.undo()
    assert on_disk(tmp_path) == {}


def test_a_run_whose_undo_was_taken_back_goes_on_with_its_change(tmp_path: Path) -> None:
    store = make_set(tmp_path)
    first = store.save_all({"a.png": "one"}, None, title="captioned", run="r").change
    store.undo()
    store.redo()
    assert store.save_all({"b.png": "two"}, None, title="captioned", change=first, run="r").change == first
    store.undo()
    assert on_disk(tmp_path) == {}


def test_the_captions_of_a_table_are_taken_back_in(tmp_path: Path) -> None:
    store = make_set(tmp_path / "set")
    store.save_all(dict(zip(("a.png", "b.png", "c.png"), MORE_HARD_CAPTIONS, strict=False)), {}, title="first")
    record = tmp_path / "captions.csv"
    record.write_bytes(format_table({**store.read().captions, "gone.png": "x"}, ".csv"))
    before = store.read().captions
    store.save_all(dict.fromkeys(before, "spoilt"), None, title="spoil")
    assert store.take_table(record, title="captions of run 1").conflicts == ()
    assert store.read().captions == before
    assert store.history()[0].title == "captions of run 1"


def test_pictures_with_one_caption_file_change_together(tmp_path: Path) -> None:
    store = make_set(tmp_path, "a.png", "a.jpg")
    result = store.save_all({"a.png": "one", "a.jpg": "two"}, {}, title="both")
    assert result.saved == {"a.png": "one", "a.jpg": "one"}
    assert [conflict.name for conflict in result.conflicts] == ["a.jpg"] and "a.png" in result.conflicts[0].reason
    store.undo()
    assert store.read().captions == {"a.jpg": "", "a.png": ""}


def test_a_text_that_nobody_could_read_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("locale.getpreferredencoding", lambda do_setlocale=True: "UTF-8")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 \xff")
    (tmp_path / "metadata.csv").write_text('b.png,fine\nc.png,"open\n', encoding="utf-8")
    store = make_set(tmp_path)
    with pytest.raises(DatasetError, match=r"a\.txt"):
        store.save("a.png", "new", seen="")
    with pytest.raises(DatasetError, match=r"metadata\.csv is too damaged.*unexpected end"):
        store.save("c.png", "new", seen="")
    assert store.history() == []
    assert (tmp_path / "a.txt").read_bytes() == b"caf\xe9 \xff"


def test_a_picture_that_is_gone_is_told(tmp_path: Path) -> None:
    (conflict,) = make_set(tmp_path).save("gone.png", "x", seen="").conflicts
    assert conflict.current is None and "not in the set" in conflict.reason


def test_a_torn_last_line_of_the_journal_is_passed_over(tmp_path: Path) -> None:
    store = make_set(tmp_path)
    store.save("a.png", "one", seen="")
    journal = tmp_path / KEPT_FOLDER / "captions.jsonl"
    with open(journal, "ab") as file:
        file.write(b'{"change": 2, "title": "torn", "values": {"b.png": ["", "ha')
    assert len(store.history()) == 1
    store.save("b.png", "two", seen="")
    assert [change.id for change in CaptionStore(tmp_path).history()] == [2, 1]
    journal.unlink()
    assert store.history() == []


def test_reading_writes_nothing(tmp_path: Path) -> None:
    make_set(tmp_path).read()
    CaptionStore(tmp_path).history()
    assert not (tmp_path / KEPT_FOLDER).exists()


@pytest.mark.parametrize("stem", ["a" * 236, "水" * 80])
def test_the_longest_names_that_a_picture_can_have_are_captioned(tmp_path: Path, stem: str) -> None:
    store = make_set(tmp_path, f"{stem}.png", "b.png")
    store.save_all({f"{stem}.png": "long", "b.png": "short"}, {}, title="both")
    assert on_disk(tmp_path) == {f"{stem}.png": "long", "b.png": "short"}
    store.undo()
    assert on_disk(tmp_path) == {}


class TestOneThatCannotBeWritten:
    """The system refuses one caption file, as Windows does one whose name is too long, or that another program holds."""

    @pytest.fixture
    def store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CaptionStore:
        store = make_set(tmp_path)
        store.save_all({"a.png": "first", "b.png": "first"}, {}, title="earlier")
        monkeypatch.setattr("lora_trainer.files.RETRY_SECONDS", ())
        self.replace = os.replace

        def refusing(source: Path, target: Path) -> None:
            if Path(target).name.startswith("a."):
                raise OSError(36, "File name too long", str(target))
            self.replace(source, target)

        monkeypatch.setattr("lora_trainer.files.os.replace", refusing)
        with pytest.raises(DatasetError, match=r"a\.txt cannot be written: File name too long.*undo"):
            store.save("a.png", "second", seen="first")
        return store

    def test_the_others_are_changed_and_undone_and_it_is_told_of(self, store: CaptionStore, tmp_path: Path) -> None:
        store.save("b.png", "second", seen="first")
        store.save("c.png", "second", seen="")
        assert on_disk(tmp_path) == {"a.png": "first", "b.png": "second", "c.png": "second"}
        (problem,) = CaptionStore(tmp_path).read().problems
        assert "a.txt cannot be written" in problem.message
        store.undo()
        store.undo()
        assert on_disk(tmp_path) == {"a.png": "first", "b.png": "first"}

    def test_undo_takes_it_back_and_goes_on_to_earlier_ones(self, store: CaptionStore, tmp_path: Path) -> None:
        assert store.undo().conflicts == ()
        assert store.read().problems == ()
        assert (earlier := store.undoable()) is not None and earlier.title == "earlier"
        assert on_disk(tmp_path) == {"a.png": "first", "b.png": "first"}

    def test_it_is_finished_when_it_can_be_also_after_other_changes(
        self, store: CaptionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.save("b.png", "second", seen="first")
        monkeypatch.setattr("lora_trainer.files.os.replace", self.replace)
        found = CaptionStore(tmp_path).read()
        assert found.captions == {"a.png": "second", "b.png": "second", "c.png": ""} and found.problems == ()
        CaptionStore(tmp_path).undo()
        CaptionStore(tmp_path).undo()
        assert on_disk(tmp_path) == {"a.png": "first", "b.png": "first"}

    def test_a_later_text_of_the_same_picture_counts(
        self, store: CaptionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a.txt").write_text("by hand", encoding="utf-8")
        monkeypatch.setattr("lora_trainer.files.os.replace", self.replace)
        store.save("a.png", "third", seen="by hand")
        assert store.read().problems == ()
        assert on_disk(tmp_path) == {"a.png": "third", "b.png": "first"}


def run_child(folder: Path, kind: str, kill_at: int = 0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.dataset.caption_child", str(folder), kind, str(kill_at)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is a signal of Unix; Windows has TerminateProcess")
@pytest.mark.parametrize("table", ["", "metadata.csv"])
def test_killed_in_a_caption_run_no_caption_is_lost_and_none_is_half(tmp_path: Path, table: str) -> None:
    names = [f"{number}.png" for number in range(12)]
    expected = {name: f"a picture called {name}" for name in names}
    for attempt in range(NUM_KILLS + 1):
        if attempt < 2:  # first a whole one, to count its touches
            folder = tmp_path / f"{attempt}"
            make_set(folder, *names)
            if table:
                (folder / table).write_text("filename,prompt\n", encoding="utf-8")
        if attempt == 0:
            touches = int(run_child(folder, "run").stdout)
            rng = random.Random(touches)
            assert on_disk(folder) == expected
            continue
        before = on_disk(folder)
        result = run_child(folder, "run", kill_at=rng.randint(2, touches // 3))
        assert result.returncode == -signal.SIGKILL, result.stderr
        found = on_disk(folder)
        assert before.items() <= found.items() <= expected.items()
    run_child(folder, "run")
    assert on_disk(folder) == expected
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is a signal of Unix; Windows has TerminateProcess")
def test_killed_in_a_run_that_appends_nothing_is_appended_twice(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(8)]
    expected = {name: f"shuimo, old, a picture called {name}" for name in names}
    for folder in (tmp_path / "whole", tmp_path / "killed"):
        make_set(folder, *names).save_all(dict.fromkeys(names, "old"), None, title="old")
    touches = int(run_child(tmp_path / "whole", "append").stdout)
    assert on_disk(tmp_path / "whole") == expected
    rng = random.Random(touches)
    for _ in range(NUM_KILLS):
        assert run_child(folder, "append", kill_at=rng.randint(4, touches // 4)).returncode == -signal.SIGKILL
        assert all(text in ("old", expected[name]) for name, text in on_disk(folder).items())
    assert run_child(folder, "append").returncode == 0
    assert on_disk(folder) == expected
    store = CaptionStore(folder)
    assert [run.run for run in store.runs()] == ["run 1"] and store.unfinished_run("run 1") is None
    store.undo()
    assert set(on_disk(folder).values()) == {"old"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is a signal of Unix; Windows has TerminateProcess")
def test_killed_in_a_bulk_change_it_is_done_wholly_or_not_at_all(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(12)]
    before = {name: f'old, "{name}"' for name in names}
    rng, outcomes = random.Random(7), set()
    touches = 0
    for attempt in range(NUM_KILLS + 1):
        folder = tmp_path / str(attempt)
        make_set(folder, *names)
        with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("filename", "prompt"), *list(before.items())[:3]])
        for name in names[3:]:
            (folder / name).with_suffix(".txt").write_text(before[name], encoding="utf-8")
        after = {name: f"{text}, 水墨 🎨" for name, text in before.items()}
        if attempt == 0:
            touches = int(run_child(folder, "bulk").stdout)
            assert on_disk(folder) == after
            continue
        kill_at = touches * attempt // (NUM_KILLS + 1) + rng.randint(0, 3)
        assert run_child(folder, "bulk", kill_at=kill_at).returncode == -signal.SIGKILL
        killed = on_disk(folder)
        assert all(killed[name] in (before[name], after[name]) for name in names)
        found = CaptionStore(folder).read().captions
        assert found in (before, after)
        outcomes.add(found == after)
        assert not list(folder.glob(".*.tmp"))
    assert outcomes == {True, False}


def test_what_a_killed_one_left_half_written_is_removed_whatever_the_name(tmp_path: Path) -> None:
    store = make_set(tmp_path, "[1] a.png", "b.png")
    values = {"[1] a.png": ("", "a boat"), "b.png": ("", "a bridge")}
    line = {"change": 1, "time": 0.0, "title": "captioned", "values": values}
    (tmp_path / KEPT_FOLDER).mkdir()
    (tmp_path / KEPT_FOLDER / "captions.jsonl").write_text(f"{json.dumps(line)}\n", encoding="utf-8")
    for name in ("[1] a.txt", "b.txt", "another.txt"):
        temporary_for(tmp_path / name).write_bytes(b"a b")
    (kept,) = tmp_path.glob(f"{temporary_for(tmp_path / 'another.txt').name[:9]}*")
    assert store.read().captions == {"[1] a.png": "a boat", "b.png": "a bridge"}
    assert list(tmp_path.glob(".*.tmp")) == [kept]
