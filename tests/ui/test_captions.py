"""What the part Captions answers, with real services and no browser."""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import re
import zipfile
from pathlib import Path

import gradio as gr
import pytest
from PIL import Image

from lora_trainer.dataset.caption_store import CaptionStore
from lora_trainer.errors import DatasetError
from lora_trainer.ui.caption_view import EDITS, FILTERS
from lora_trainer.ui.page import Page

pytestmark = pytest.mark.hosts

EVIL = "<img src=x onerror=alert(1)> ${x} {{y}} \"q\" 'z' & \nline, 水墨 🎨"


@pytest.fixture
def part(services):
    with gr.Blocks():
        page = Page(services)
        page.build()
    return page.parts["captions"]


def values_of(**changes: object) -> dict[str, object]:
    looks = {"source": "ink", "trigger": "", "resolution": "", "shows": "All", "contains": "", "order": "By name", "size": "12"}
    bulk = {"find": "", "other": "", "ignore_case": False, "whole_words": False, "page_number": 0, "edits": ""}
    return {**looks, **bulk, **changes}


def fields(drawn: str) -> dict[str, str]:
    found = re.findall(r'<textarea data-caption="([^"]*)"[^>]*>([^<]*)</textarea>', drawn)
    return {html.unescape(name): html.unescape(text) for name, text in found}


def told(answer: str) -> dict[str, dict[str, object]]:
    return json.loads(html.unescape(re.search(r'data-told="([^"]*)"', answer)[1]))


def exported(part, kind: str) -> tuple[str, bytes]:
    file = json.loads(part._export(values_of(), kind)["exported"])
    return file["name"], base64.b64decode(file["data"])


NUMBERS = itertools.count(100)


def message(folder: Path | str, edits: dict[str, list[str]], number: int = 7) -> str:
    return json.dumps({"window": "w", "id": number, "sets": {str(folder): edits}})


def save(part, folder: Path, name: str, text: str, *seen: str, number: int = 0) -> dict[str, object]:
    edits = message(folder, {name: [text, *seen]}, number or next(NUMBERS))
    return told(part._save(values_of(edits=edits))["answer"])[str(folder)][name]


def test_pages_of_each_size(part, make_set):
    make_set(num_pictures=50, size=(64, 64))
    for size, pages in ((12, 5), (24, 3), (48, 2)):
        last = part.show(values_of(size=str(size), page_number=99))
        assert last["page_number"] == pages - 1
        assert len(fields(last["cards"])) == 50 - size * (pages - 1)
    assert part._turn(values_of(page_number=1), -1)["page_number"] == 0


def test_any_text_is_shown_as_it_is_and_saved(part, make_set):
    folder = make_set(num_pictures=2)
    assert "saved" in save(part, folder, "000.png", EVIL, "a boat 0")
    shown = part.show(values_of())["cards"]
    assert fields(shown)["000.png"] == EVIL and "<img src=x" not in shown
    assert CaptionStore(folder).read().captions["000.png"] == EVIL


def test_the_later_window_is_told_what_stands_there(part, make_set):
    folder = make_set(num_pictures=1)
    CaptionStore(folder).save("000.png", "theirs", seen="a boat 0")
    answer = save(part, folder, "000.png", "mine", "a boat 0")
    assert answer["current"] == "theirs" and "meanwhile" in answer["reason"]
    assert CaptionStore(folder).read().captions["000.png"] == "theirs"


def test_captions_go_to_the_set_they_were_typed_in(part, make_set):
    ink, other = make_set("ink", num_pictures=1), make_set("other", num_pictures=1)
    assert "saved" in save(part, other, "000.png", "mine", "a boat 0")  # while ink is chosen
    assert CaptionStore(other).read().captions == {"000.png": "mine"}
    assert CaptionStore(ink).read().captions == {"000.png": "a boat 0"}


def test_captions_of_a_folder_that_was_never_shown_are_not_written(part, make_set, tmp_path):
    make_set(num_pictures=1)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "000.png").write_bytes(b"")
    answer = part._save(values_of(edits=message(elsewhere, {"000.png": ["mine", ""]})))
    assert "choose that data set" in told(answer["answer"])[str(elsewhere)]["000.png"]["failed"]
    assert "choose that data set" in answer["message"] and not (elsewhere / "000.txt").exists()
    part.show(values_of(source=str(elsewhere)))
    assert "saved" in save(part, elsewhere, "000.png", "mine", "")


def test_what_was_typed_is_saved_before_a_button_does_its_work(part, make_set):
    folder = make_set(num_pictures=2)
    edits = message(folder, {"000.png": ["typed", "a boat 0"]})
    part._typed.take(edits)  # as every button does first
    part._undo(values_of(edits=edits), "undo")
    assert "saved" in told(part._save(values_of(edits=edits))["answer"])[str(folder)]["000.png"]
    assert CaptionStore(folder).read().captions["000.png"] == "a boat 0"  # the undo is not undone by the message's own saving


def test_a_text_that_was_sent_before_is_no_other_window(part, make_set):
    folder = make_set(num_pictures=1)
    assert "saved" in save(part, folder, "000.png", "one", "a boat 0")
    assert "saved" in save(part, folder, "000.png", "two", "a boat 0", "one")  # sent before "one" was answered
    assert "saved" in save(part, folder, "000.png", "late", "a boat 0", number=7)  # overtaken on the way
    assert CaptionStore(folder).read().captions["000.png"] == "two"


def test_a_bulk_change_does_exactly_what_was_previewed(part, make_set):
    folder = make_set(num_pictures=3)
    found = part._preview(values_of(edit="Find and replace", find="boat", other="ship", contains="1"))
    assert "<strong>1</strong> / 1" in found["previewed"] and "a ship 1" in found["previewed"]
    CaptionStore(folder).save("002.png", "a boat 1 too", seen="a boat 2")  # fits the filter now, and was not previewed
    done = part._apply(values_of(pending=found["pending"], contains="1"))
    assert "1 caption" in done["message"] and done["pending"] is None
    assert CaptionStore(folder).read().captions == {"000.png": "a boat 0", "001.png": "a ship 1", "002.png": "a boat 1 too"}
    assert "find and replace boat ship" in done["history"]
    part._undo(values_of(), "undo")
    assert CaptionStore(folder).read().captions["001.png"] == "a boat 1"
    part._undo(values_of(), "redo")
    assert CaptionStore(folder).read().captions["001.png"] == "a ship 1"


def test_without_a_preview_nothing_is_changed(part, make_set):
    folder = make_set(num_pictures=1)
    assert "Preview" in part._apply(values_of(pending=None))["message"]
    make_set("other", num_pictures=1)
    pending = part._preview(values_of(edit="lowercase", source="other"))["pending"]
    assert pending is None
    pending = part._preview(values_of(edit="UPPERCASE", source="other"))["pending"]
    assert "Preview" in part._apply(values_of(pending=pending))["message"]
    assert CaptionStore(folder).read().captions["000.png"] == "a boat 0"


@pytest.mark.parametrize("edit", EDITS)
def test_every_change_can_be_previewed(part, make_set, edit):
    make_set(num_pictures=1)
    find = "boat = ship" if "=" in edit else "boat"
    part._preview(values_of(edit=edit, find=find, other="x", trigger="ink"))


@pytest.mark.parametrize("shows", FILTERS)
def test_every_filter_can_be_shown_before_and_after_a_check(part, make_set, shows):
    folder = make_set(num_pictures=3, size=(96, 96))
    part.show(values_of(shows=shows))
    from lora_trainer.dataset.report import report_path, report_quality

    report_quality(folder).save(report_path(folder))
    shown = fields(part.show(values_of(shows=shows, trigger="ink"))["cards"])
    assert len(shown) == (3 if shows in ("All", "Without trigger word", "With any finding", "Too small", "Single colour") else 0)


def test_patterns_and_texts_filter(part, make_set):
    make_set(num_pictures=12)
    assert len(fields(part.show(values_of(contains="BOAT 1"))["cards"])) == 3
    assert list(fields(part.show(values_of(contains=r"/boat \d$/"))["cards"])) == [f"{number:03}.png" for number in range(10)]


def test_large_view_shows_pictures_of_the_set_alone(part, make_set, tmp_path):
    make_set(num_pictures=1)
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    assert "data:image" in part._enlarge(values_of(wanted='["000.png", 1]'))["large"]
    assert part._enlarge(values_of(wanted=json.dumps([str(tmp_path / "secret.png"), 1])))["large"] == ""
    assert part._enlarge(values_of(wanted='["../../secret.png", 1]'))["large"] == ""


def test_the_table_that_is_saved_is_what_is_seen(part, make_set, tmp_path):
    from lora_trainer.dataset.tables import read_table

    folder = make_set(num_pictures=3)
    save(part, folder, "000.png", EVIL, "a boat 0")
    for kind in ("csv", "jsonl"):
        name, data = exported(part, kind)
        (tmp_path / name).write_bytes(data)
        rows = {row.name: row.caption for row in read_table(tmp_path / f"metadata.{kind}").rows}
        assert rows == fields(part.show(values_of())["cards"])
    _, data = exported(part, "zip")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        texts = {name: archive.read(name).decode().removesuffix("\n") for name in archive.namelist()}
    assert texts == {"000.txt": EVIL, "001.txt": "a boat 1", "002.txt": "a boat 2"}


def test_earlier_versions_stand_below_a_caption(part, make_set):
    folder = make_set(num_pictures=2)
    assert "data-version" not in part.show(values_of())["cards"]
    for text, seen in ((EVIL, "a boat 0"), ("third", EVIL), (EVIL, "third"), ("last", EVIL)):
        save(part, folder, "000.png", text, seen)
    found = re.findall(r'data-version="([^"]*)"', part.show(values_of())["cards"])
    assert [html.unescape(text) for text in found] == [EVIL, "third", "a boat 0"]


def test_removing_needs_a_filter_and_a_set_of_ours(part, services, make_set):
    folder = make_set(num_pictures=3)
    with pytest.raises(DatasetError, match="every picture"):
        part.pictures._leave_out(values_of())
    with pytest.raises(DatasetError, match="named data set"):
        part.pictures._leave_out(values_of(source=str(folder), contains="1"))
    part.pictures._leave_out(values_of(contains="1"))
    assert services.library.removed("ink") == ["001.png"]


def test_no_set_is_no_error_until_something_is_asked_for(part):
    assert "Choose a data set" in part.show(values_of(source=None))["cards"]
    with pytest.raises(DatasetError, match="no data set"):
        part._export(values_of(source=None))


def test_the_captions_of_a_past_caption_run_come_back(part, make_set):
    folder = make_set(num_pictures=2)
    store = CaptionStore(folder)
    store.save_all({"000.png": "by blip"}, None, title="captions by BLIP", run="job-1")
    store.end_run("job-1")
    store.save("000.png", "mine", seen="by blip")
    (name,) = part.show(values_of())["runs"]["choices"]
    name = name[0] if isinstance(name, tuple | list) else name
    assert name.startswith("captions by BLIP, ")
    assert "1 caption" in part._take(values_of(run=name))["message"]
    assert store.read().captions["000.png"] == "by blip"
