from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from lora_trainer.dataset.scan import dataset_metadata, find_pictures, scan_dataset
from lora_trainer.errors import DatasetError, Problem

pytestmark = pytest.mark.hosts

Write = Callable[..., Path]


def about(problems: tuple[Problem, ...], field: str) -> Problem:
    (problem,) = [problem for problem in problems if problem.field == field]
    return problem


def test_a_folder_becomes_items_sorted_by_name(tmp_path: Path, write: Write, chelsea: Image.Image) -> None:
    write("b.png", caption="b")
    write("sub/deep/a.jpg", chelsea, caption="deep")
    write("水墨 🎨.webp", caption="远山, mist")
    write("A.PNG", caption="upper", format="PNG")
    progress: list[tuple[int, int]] = []
    scan = scan_dataset(tmp_path, on_progress=lambda *at: progress.append(at))
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [(item.name, item.caption) for item in scan.items] == [
        ("A.PNG", "upper"),
        ("b.png", "b"),
        ("sub/deep/a.jpg", "deep"),
        ("水墨 🎨.webp", "远山, mist"),
    ]
    item = scan.items[2]
    assert (item.width, item.height, item.repeats, item.folder, item.has_alpha) == (451, 300, 1, "sub/deep", False)
    assert item.path == tmp_path / "sub" / "deep" / "a.jpg"
    assert scan.problems == ()
    assert find_pictures(tmp_path) == [item.path for item in scan.items]


def test_kohya_folders_mean_repeats(tmp_path: Path, write: Write) -> None:
    write("10_ink cat/a.png")
    write("10_ink cat/close/b.png")
    write("dogs/c.png")
    write("d.png")
    write("0_off/e.png")
    write("2024_summer/f.png")
    scan = scan_dataset(tmp_path)
    assert [(item.name, item.repeats, item.folder) for item in scan.items] == [
        ("10_ink cat/a.png", 10, "ink cat"),
        ("10_ink cat/close/b.png", 10, "ink cat"),
        ("2024_summer/f.png", 2024, "summer"),
        ("d.png", 1, ""),
        ("dogs/c.png", 1, "dogs"),
    ]
    assert scan.left_out["without repeats"] == 1
    assert "2024 times" in about(scan.problems, "2024_summer").message


def test_unusable_pictures_are_named_counted_and_left_out(tmp_path: Path, write: Write, astronaut: Image.Image) -> None:
    write("good.png")
    write("small.png", astronaut.resize((200, 63)))
    write("silent.png", caption=None)
    write("blank.png", caption="  \n")
    write("text.png").write_text("not a picture", encoding="utf-8")
    write("empty.png").write_bytes(b"")
    half = write("half.jpg", astronaut)
    half.write_bytes(half.read_bytes()[:9000])
    scan = scan_dataset(tmp_path)
    assert [item.name for item in scan.items] == ["good.png"]
    assert scan.num_found == 7
    assert scan.left_out == {"unreadable": 3, "too small": 1, "invisible": 0, "without caption": 2, "without repeats": 0}
    assert "truncated" in about(scan.problems, "half.jpg").message
    assert "200 x 63" in about(scan.problems, "small.png").message
    assert "silent.txt" in about(scan.problems, "silent.png").hint
    assert "not a picture" in about(scan.problems, "text.png").message
    assert "0 bytes" in about(scan.problems, "empty.png").message
    assert all(problem.severity == "warning" for problem in scan.problems)
    assert len(scan_dataset(tmp_path, min_side=50).items) == 2


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_left_out(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("good.png")
    write("bomb.png", Image.new("1", (200, 200)))
    write("large.png", Image.new("1", (120, 120)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    scan = scan_dataset(tmp_path)
    assert [item.name for item in scan.items] == ["good.png"]
    for name in ("bomb.png", "large.png"):
        assert "decompression bomb" in about(scan.problems, name).message


def test_a_host_that_accepts_truncated_pictures_is_told(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("good.png")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert "LOAD_TRUNCATED_IMAGES" in about(scan_dataset(tmp_path).problems, "").message


def test_sizes_are_those_of_the_upright_picture(tmp_path: Path, write: Write, chelsea: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    write("turned.jpg", chelsea, exif=exif)
    (item,) = scan_dataset(tmp_path).items
    assert (item.width, item.height) == (300, 451)


def test_alpha_and_animation_are_noted(tmp_path: Path, write: Write, chelsea: Image.Image) -> None:
    rgba = chelsea.copy()
    rgba.putalpha(128)
    write("alpha.png", rgba)
    write("moving.gif", chelsea, save_all=True, append_images=[chelsea.rotate(90)])
    scan = scan_dataset(tmp_path)
    assert [item.has_alpha for item in scan.items] == [True, False]
    assert about(scan.problems, "moving.gif").severity == "notice"


def test_two_pictures_with_one_sidecar_are_told(tmp_path: Path, write: Write) -> None:
    write("a.png")
    write("a.jpg")
    scan = scan_dataset(tmp_path)
    assert len(scan.items) == 2
    assert "a.jpg, a.png" in about(scan.problems, "a.txt").message


def test_hidden_files_system_folders_and_runs_are_passed_over(tmp_path: Path, write: Write) -> None:
    for name in ("good.png", ".hidden.png", ".cache/b.png", "__MACOSX/c.png", "output/samples/d.png"):
        write(name)
    (tmp_path / "output" / "events.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    scan = scan_dataset(tmp_path)
    assert [item.name for item in scan.items] == ["good.png"]
    assert scan.num_found == 1


def test_pictures_of_other_kinds_are_told(tmp_path: Path, write: Write) -> None:
    write("good.png")
    (tmp_path / "phone.HEIC").write_bytes(b"x")
    assert "phone.HEIC" in about(scan_dataset(tmp_path).problems, "").message


def test_a_chosen_table_counts_first(tmp_path: Path, write: Write) -> None:
    write("a.png", caption="from the sidecar")
    (tmp_path / "my.csv").write_text("filename,prompt\na.png,from the table\n", encoding="utf-8")
    scan = scan_dataset(tmp_path, tmp_path / "my.csv")
    assert scan.items[0].caption == "from the table"
    assert len(scan.problems) == 1


def test_nothing_left_says_why_and_what_to_do(tmp_path: Path, write: Write) -> None:
    with pytest.raises(DatasetError, match="holds no pictures"):
        scan_dataset(tmp_path)
    write("a.png", caption=None)
    write("b.png").write_bytes(b"")
    with pytest.raises(DatasetError) as caught:
        scan_dataset(tmp_path)
    message = str(caught.value)
    assert "None of the 2 pictures" in message
    assert "1 without caption" in message and "1 unreadable" in message
    assert "metadata.csv" in message


@pytest.mark.parametrize("name", ["gone", "file.txt"])
def test_a_folder_that_is_none_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").write_text("x", encoding="utf-8")
    with pytest.raises(DatasetError, match=name):
        scan_dataset(tmp_path / name)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow only Unicode names")
def test_a_name_that_is_not_unicode_is_told(tmp_path: Path, write: Write) -> None:
    good = write("good.png")
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(good.read_bytes())
    scan = scan_dataset(tmp_path)
    assert len(scan.items) == 1
    str(about(scan.problems, "")).encode("utf-8")


@pytest.mark.skipif(sys.platform == "win32", reason="making a link needs rights there")
def test_a_link_to_a_folder_around_it_ends(tmp_path: Path, write: Write) -> None:
    write("data/a.png")
    write("elsewhere/b.png")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data", target_is_directory=True)
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert [item.name for item in scan_dataset(tmp_path / "data").items] == ["a.png", "more/b.png"]


def test_metadata_counts_pictures_and_tags_by_folder(tmp_path: Path, write: Write) -> None:
    write("10_cat/a.png", caption="Ink, mist, ink")
    write("10_cat/b.png", caption="ink")
    write("c.png", caption="a boat")
    assert dataset_metadata(scan_dataset(tmp_path).items) == {
        "ss_dataset_dirs": {
            "10_cat": {"n_repeats": 10, "img_count": 2},
            tmp_path.name: {"n_repeats": 1, "img_count": 1},
        },
        "ss_tag_frequency": {"10_cat": {"ink": 2, "mist": 1}, tmp_path.name: {"a boat": 1}},
    }
