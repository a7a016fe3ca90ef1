"""What people drop on a set, and what becomes of it. Pictures are real ones, ZIP files are made as systems make them."""

from __future__ import annotations

import io
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lora_trainer.dataset.caption_store import CaptionStore
from lora_trainer.dataset.library import AddResult, DatasetLibrary, Upload
from lora_trainer.dataset.scan import scan_dataset
from lora_trainer.errors import DatasetError

pytestmark = pytest.mark.hosts


@pytest.fixture
def library(tmp_path) -> DatasetLibrary:
    library = DatasetLibrary(tmp_path / "datasets")
    library.create("ink")
    return library


@pytest.fixture
def folder(library) -> Path:
    return library.path("ink")


@pytest.fixture
def picture(chelsea) -> Callable[..., bytes]:
    """Returns the bytes of a picture; another number, another picture."""

    def make(number: int = 0, form: str = "PNG") -> bytes:
        data = io.BytesIO()
        chelsea.crop((number, 0, number + 96, 64)).save(data, form)
        return data.getvalue()

    return make


@pytest.fixture
def drop(library, tmp_path) -> Callable[..., dict[str, AddResult]]:
    """Drops files on the set, from a folder of names that say nothing, as an upload has them."""
    count = 0

    def drop_files(*files: tuple[str, bytes | str]) -> dict[str, AddResult]:
        nonlocal count
        uploads = []
        for name, content in files:
            count += 1
            path = tmp_path / f"upload-{count}"
            path.write_bytes(content.encode() if isinstance(content, str) else content)
            uploads.append(Upload(name, path))
        results = library.add("ink", uploads)
        assert all(upload.path.exists() for upload in uploads), "an upload was moved away"
        return {result.file_name: result for result in results}

    return drop_files


def pack(*files: tuple[str | zipfile.ZipInfo, bytes | str], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as archive:
        for name, content in files:
            archive.writestr(name, content, compress_type=method)
    return data.getvalue()


def statuses(results: dict[str, AddResult]) -> dict[str, str]:
    return {name: result.status for name, result in results.items()}


def captions(folder: Path) -> dict[str, str]:
    return CaptionStore(folder).read().captions


def files_of(folder: Path) -> set[str]:
    """Returns all files of a set, hidden ones but for the journal too."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if "captions.jsonl" not in name}


class TestSets:
    def test_named_sets_in_order(self, library):
        for name in ("水墨", "Boats", "10 seals"):
            library.create(name)
        assert library.names() == ["10 seals", "Boats", "ink", "水墨"]
        assert library.path("水墨") == library.root / "水墨"

    def test_no_library_yet(self, tmp_path):
        assert DatasetLibrary(tmp_path / "nothing").names() == []

    @pytest.mark.parametrize(
        "name", ["", " ", ".", "..", "a/b", "../x", "/tmp", "C:\\x", "\\\\host\\x", "CON", "a.", ".git", "a\0"]
    )
    def test_no_name_leads_out(self, library, tmp_path, name):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(DatasetError):
            library.create(name)
        for ask in (library.path, library.removed, lambda name: library.add(name, [])):
            with pytest.raises(DatasetError):
                ask(name)
        assert sorted(tmp_path.rglob("*")) == before

    def test_a_taken_name_in_another_case_too(self, library):
        with pytest.raises(DatasetError, match="there is a data set ink already"):
            library.create("INK")

    def test_an_unknown_set_is_told_with_the_known_ones(self, library):
        with pytest.raises(DatasetError, match=r"no data set 'wash'\. Known: ink"):
            library.path("wash")

    def test_a_link_that_leads_out_is_no_set(self, library, tmp_path):
        (tmp_path / "private").mkdir()
        try:
            (library.root / "link").symlink_to(tmp_path / "private")
        except OSError:
            pytest.skip("links need a privilege here")
        with pytest.raises(DatasetError, match="is a link to another place"):
            library.path("link")


class TestMix:
    def test_pictures_captions_table_and_zip_in_any_order(self, drop, folder, picture):
        results = drop(
            ("metadata.csv", "file_name,text\nb.png,from the table\n"),
            ("a.txt", "from a file"),
            ("set.zip", pack(("c.jpg", picture(3, "JPEG")), ("c.txt", "from the ZIP"))),
            ("b.png", picture(2)),
            ("a.png", picture(1)),
        )
        assert set(statuses(results).values()) == {"added"}
        assert list(results) == ["metadata.csv", "a.txt", "set.zip/c.jpg", "set.zip/c.txt", "b.png", "a.png"]
        assert captions(folder) == {"a.png": "from a file", "b.png": "from the table", "c.jpg": "from the ZIP"}
        assert len(scan_dataset(folder).items) == 3

    def test_three_hundred_files_at_once(self, drop, folder, picture):
        files = [(f"{number:03}.png", picture(number)) for number in range(150)]
        files += [(f"{number:03}.txt", f"part {number}") for number in range(150)]
        results = drop(*files)
        assert len(results) == 300
        assert set(statuses(results).values()) == {"added"}
        assert captions(folder)["149.png"] == "part 149"

    def test_sub_folders_with_repeats_stay_and_a_folder_that_was_only_packed_goes(self, drop, folder, picture):
        drop(("one.zip", pack(("my set/a.png", picture(1)), ("my set/a.txt", "a cat"))))
        drop(("two.zip", pack(("10_ink/b.png", picture(2)), ("10_ink/metadata.csv", "b.png,an ink cat\n"))))
        assert captions(folder) == {"10_ink/b.png": "an ink cat", "a.png": "a cat"}
        assert {item.name: item.repeats for item in scan_dataset(folder).items} == {"10_ink/b.png": 10, "a.png": 1}

    def test_two_drops_at_a_time(self, library, folder, tmp_path, picture):
        def drop_ten(start: int) -> None:
            uploads = []
            for number in range(start, start + 10):
                path = tmp_path / f"{number}.bin"
                path.write_bytes(picture(number))
                uploads.append(Upload(f"{number - start}.png", path))
            library.add("ink", uploads)

        threads = [threading.Thread(target=drop_ten, args=(start,)) for start in (0, 20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(captions(folder)) == 20

    def test_nothing_stays_behind(self, drop, folder, picture):
        drop(("a.zip", pack(("a.png", picture()), ("bad.png", "no picture"), ("inner.zip", pack(("b.png", picture(1)))))))
        assert files_of(folder) == {"a.png", "b.png"}


class TestSame:
    def test_the_same_content_is_skipped_under_any_name(self, drop, folder, picture):
        drop(("a.png", picture()))
        results = drop(("a.png", picture()), ("copy.png", picture()), ("B.PNG", picture(1)), ("b copy.png", picture(1)))
        assert list(statuses(results).values()) == ["skipped", "skipped", "added", "skipped"]
        assert results["copy.png"].message == "a.png is the same picture."
        assert set(captions(folder)) == {"a.png", "B.PNG"}

    def test_a_removed_picture_may_come_again(self, drop, library, folder, picture):
        drop(("a.png", picture()))
        library.remove("ink", ["a.png"])
        assert statuses(drop(("a.png", picture()))) == {"a.png": "added"}

    def test_a_caption_of_a_skipped_picture_is_taken_where_there_is_none(self, drop, folder, picture):
        drop(("a.png", picture()))
        results = drop(("copy.png", picture()), ("copy.txt", "a cat"))
        assert results["copy.txt"] == AddResult("copy.txt", "added", "to a.png.")
        assert captions(folder) == {"a.png": "a cat"}
        results = drop(("other.png", picture()), ("other.txt", "a dog"))
        assert results["other.txt"].message == "a.png has another caption, which stays."
        assert captions(folder) == {"a.png": "a cat"}

    @pytest.mark.parametrize("name", ["a.png", "A.PNG", "a.jpg"])
    def test_another_picture_of_a_taken_name_gets_the_next_one_and_its_caption_follows(self, drop, folder, picture, name):
        drop(("a.png", picture(0)), ("a.txt", "the first"))
        form = "JPEG" if name.endswith("jpg") else "PNG"
        results = drop((name, picture(1, form)), ("a.txt", "the second"))
        new = f"{name[0]}-2{name[1:]}"
        assert results[name].message == f"as {new}: there is another {name} already."
        assert captions(folder) == {"a.png": "the first", new: "the second"}

    def test_rows_of_a_renamed_picture_follow_and_the_old_one_keeps_its_own(self, drop, folder, picture):
        drop(("a.png", picture(0)), ("b.png", picture(1)))
        drop(("set.zip", pack(("a.png", picture(2)), ("metadata.csv", "a.png,the second\nlater.png,not yet\n"))))
        assert captions(folder) == {"a.png": "", "a-2.png": "the second", "b.png": ""}
        drop(("later.png", picture(3)))
        assert captions(folder)["later.png"] == "not yet"

    def test_two_zip_files_with_equal_names(self, drop, folder, picture):
        zips = [(f"{number}.zip", pack(("a.png", picture(number)), ("a.txt", f"of {number}"))) for number in range(2)]
        drop(*zips)
        assert captions(folder) == {"a.png": "of 0", "a-2.png": "of 1"}

    def test_the_next_name_does_not_take_a_caption_that_waits(self, drop, folder, picture):
        drop(("a.png", picture(0)), ("a-2.txt", "of a picture to come"))
        drop(("a.png", picture(1)))
        assert captions(folder) == {"a.png": "", "a-3.png": ""}


class TestCaptions:
    def test_a_new_caption_replaces_and_the_old_one_is_in_the_history(self, drop, folder, picture):
        drop(("a.png", picture()), ("a.txt", "old"))
        results = drop(("a.txt", "new"))
        assert statuses(results) == {"a.txt": "replaced"}
        assert [version.text for version in CaptionStore(folder).versions("a.png")][:2] == ["new", "old"]
        assert statuses(drop(("a.txt", "new\n"))) == {"a.txt": "skipped"}

    def test_a_folder_dropped_again_with_edited_captions(self, drop, folder, picture):
        drop(("a.png", picture()), ("a.txt", "old"))
        results = drop(("a.png", picture()), ("a.txt", "edited"))
        assert statuses(results) == {"a.png": "skipped", "a.txt": "replaced"}
        assert captions(folder) == {"a.png": "edited"}

    def test_captions_before_their_pictures(self, drop, folder, picture):
        results = drop(("a.txt", "a cat"), ("metadata.csv", "file_name,text\nb.png,a dog\nc.png,a bird\n"))
        assert "no picture has this name yet" in results["a.txt"].message
        assert "2 name no picture yet" in results["metadata.csv"].message
        drop(("a.png", picture(0)), ("b.png", picture(1)))
        assert captions(folder) == {"a.png": "a cat", "b.png": "a dog"}
        drop(("more.csv", "d.png,a fish\nc.png,another bird\n"))
        drop(("d.png", picture(3)), ("c.png", picture(2)))
        assert captions(folder) == {"a.png": "a cat", "b.png": "a dog", "c.png": "a bird", "d.png": "a fish"}

    def test_a_waiting_caption_that_comes_again_is_not_lost(self, drop, folder):
        drop(("a.txt", "one"))
        drop(("a.txt", "two"))
        assert (folder / "a.txt").read_text(encoding="utf-8") == "two"
        assert (folder / ".lora_trainer/removed/a.txt").read_text(encoding="utf-8") == "one"

    def test_a_table_merges_into_what_is_there(self, drop, folder, picture):
        drop(*((f"{letter}.png", picture(number)) for number, letter in enumerate("abcd")))
        drop(("a.txt", "of a"), ("metadata.csv", "file_name,text,score\nb.png,of b,7\nx.png,of x,1\n"))
        results = drop(("new.zip", pack(("metadata.csv", 'a.png,"of a, new"\nb.png,of b\nc.png,of c\n'))))
        assert results["new.zip/metadata.csv"].status == "replaced"
        assert captions(folder) == {"a.png": "of a, new", "b.png": "of b", "c.png": "of c", "d.png": ""}
        assert "x.png,of x,1" in (folder / "metadata.csv").read_text(encoding="utf-8-sig")

    def test_a_file_of_a_caption_counts_before_a_row(self, drop, folder, picture):
        results = drop(("a.png", picture()), ("metadata.csv", "a.png,row\n"), ("a.txt", "file"))
        assert captions(folder) == {"a.png": "file"}
        assert "not taken" in results["metadata.csv"].message

    def test_jsonl_and_other_table_names(self, drop, folder, picture):
        drop(("a.png", picture()), ("labels.jsonl", '{"file_name": "a.png", "text": "a cat"}\n'))
        assert captions(folder) == {"a.png": "a cat"}

    def test_names_from_other_systems(self, drop, folder, picture):
        drop(("e\u0301te\u0301.png", picture()), ("\u00e9t\u00e9.txt", "summer"))
        assert captions(folder) == {"\u00e9t\u00e9.png": "summer"}

    @pytest.mark.parametrize("content", [b"\0\1\2\3", b"MZ\x90\0", b"x" * 300_000, b"\xff\xfe\xff"])
    def test_what_is_no_text_is_refused(self, drop, folder, picture, content):
        drop(("a.png", picture()), ("a.txt", "a cat"))
        assert statuses(drop(("a.txt", content))) == {"a.txt": "refused"}
        assert captions(folder) == {"a.png": "a cat"}

    @pytest.mark.parametrize("content", ["", "no table\n", "file_name,width\na.png,3\n", "{broken"])
    @pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
    def test_what_is_no_table_is_refused(self, drop, folder, name, content):
        assert statuses(drop((name, content))) == {name: "refused"}
        assert files_of(folder) == set()


class TestContent:
    """A file is what its content says."""

    @pytest.mark.parametrize(
        "content",
        [b"", b"GIF89a", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", b"%!PS-Adobe-3.0 EPSF\n", b"PK\3\4"],
        ids=["empty", "truncated", "svg", "postscript", "zip"],
    )
    @pytest.mark.parametrize("name", ["a.png", "a.jpg", "a", "a.exe", "a.svg"])
    def test_what_cannot_be_decoded_is_refused(self, drop, folder, name, content):
        results = drop((name, content))
        assert statuses(results) == {name: "refused"}
        assert "upload-" not in results[name].message
        assert files_of(folder) == set()

    def test_a_truncated_picture_is_refused(self, drop, picture):
        assert "truncated" in drop(("a.png", picture()[:-500]))["a.png"].message

    def test_a_picture_that_claims_to_be_huge_is_refused(self, drop):
        data = io.BytesIO()
        Image.new("1", (20_000, 20_000)).save(data, "PNG")
        assert "at most 89 million are read" in drop(("a.png", data.getvalue()))["a.png"].message

    def test_a_picture_without_a_known_suffix_gets_one(self, drop, folder, picture):
        results = drop(("a", picture(0)), ("b.jfif", picture(1, "JPEG")), ("b.txt", "of b"), ("c.dat", picture(2, "WEBP")))
        assert set(statuses(results).values()) == {"added"}, results
        assert captions(folder) == {"a.png": "", "b.jpg": "of b", "c.dat.webp": ""}

    def test_another_suffix_than_the_content_is_fine(self, drop, folder, picture):
        drop(("a.png", picture(0, "JPEG")))
        assert captions(folder) == {"a.png": ""}


BAD_NAMES = [
    *("../a.png", "a/../../b.png", "/etc/a.png", "C:/a.png", "C:a.png", "..\\a.png", "\\\\host\\share\\a.png", "a/./b.png"),
    *("con.png", "LPT1.png", "a./b.png", "a /b.png", ".git/hooks/a.png", "a\nb.png", "a\u202egpj.png", "a:b.png", "a?.png"),
]


class TestNames:
    @pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
    def test_no_upload_leads_out(self, drop, folder, tmp_path, picture, name):
        results = drop((name, picture()))
        assert statuses(results) == {name: "refused"}
        assert [path for path in tmp_path.rglob("*") if path.suffix == ".png"] == []

    @pytest.mark.parametrize("name", [name for name in BAD_NAMES if ".git" not in name], ids=ascii)
    def test_no_entry_of_a_zip_file_leads_out_and_the_others_are_taken(self, drop, folder, tmp_path, picture, name):
        results = drop(("x.zip", pack((zipfile.ZipInfo(name), picture(1)), ("good.png", picture(2)))))
        assert sorted(statuses(results).values()) == ["added", "refused"]
        assert [path.name for path in tmp_path.rglob("*.png")] == ["good.png"]

    def test_rows_that_lead_out_name_no_picture(self, drop, folder, tmp_path, picture):
        (folder.parent / "a.png").write_bytes(picture())
        drop(("b.png", picture(1)), ("metadata.csv", "../a.png,mine now\n/etc/passwd,root\n"))
        assert captions(folder) == {"b.png": ""}
        assert not (folder.parent / "a.txt").exists()

    def test_a_link_inside_a_set_is_not_written_through(self, drop, folder, tmp_path, picture):
        (tmp_path / "private").mkdir()
        try:
            (folder / "sub").symlink_to(tmp_path / "private")
        except OSError:
            pytest.skip("links need a privilege here")
        results = drop(("sub/deep/a.png", picture()), ("sub/a.txt", "text"))
        assert set(statuses(results).values()) == {"refused"}
        assert list((tmp_path / "private").iterdir()) == []

    def test_the_hidden_folder_cannot_be_written(self, drop, folder, picture):
        assert statuses(drop((".lora_trainer/removed/a.png", picture()))) == {".lora_trainer/removed/a.png": "refused"}


class TestZip:
    def test_a_link_is_refused(self, drop, folder):
        link = zipfile.ZipInfo("a.png")
        link.external_attr = 0o120777 << 16
        results = drop(("x.zip", pack((link, "/etc/passwd"))))
        assert results["x.zip/a.png"].message == "it is a link or a device, not a file."
        assert files_of(folder) == set()

    def test_a_bomb_is_refused_by_its_ratio(self, drop, folder):
        results = drop(("x.zip", pack(("a.png", bytes(200 << 20)))))
        assert "decompression bomb" in results["x.zip/a.png"].message

    def test_one_that_lies_about_its_size_too(self, drop, folder):
        data = pack(("a.png", bytes(20 << 20)))
        lie = (100).to_bytes(4, "little")
        data = data.replace((20 << 20).to_bytes(4, "little"), lie)
        assert statuses(drop(("x.zip", data)))["x.zip/a.png"] == "refused"
        assert files_of(folder) == set()

    def test_all_together_are_limited(self, drop, monkeypatch, picture):
        from lora_trainer.dataset import uploads

        monkeypatch.setattr(uploads._Budget.__init__, "__defaults__", (len(picture(0)) + len(picture(1)) + 10, 20_000))
        results = drop(("x.zip", pack(*((f"{number}.png", picture(number)) for number in range(4)))))
        assert list(statuses(results).values()) == ["added", "added", "refused", "refused"]

    def test_the_number_of_files_is_limited(self, drop, monkeypatch, picture):
        from lora_trainer.dataset import uploads

        monkeypatch.setattr(uploads._Budget.__init__, "__defaults__", (1 << 30, 2))
        results = drop(("x.zip", pack(*((f"{number}.png", picture(number)) for number in range(4)))))
        assert [name for name, status in statuses(results).items() if status == "added"] == ["x.zip/0.png", "x.zip/1.png"]
        assert results["x.zip"].status == "refused"

    def test_one_zip_inside_another_and_no_further(self, drop, folder, picture):
        inner = pack(("b.png", picture(1)), ("deep.zip", pack(("c.png", picture(2)))))
        results = drop(("x.zip", pack(("a.png", picture(0)), ("inner.zip", inner))))
        assert statuses(results) == {
            "x.zip/a.png": "added",
            "x.zip/inner.zip/b.png": "added",
            "x.zip/inner.zip/deep.zip": "refused",
        }

    def test_what_systems_leave_behind_is_passed_over(self, drop, folder, picture):
        system = [("__MACOSX/._a.png", "x"), (".DS_Store", "x"), ("Thumbs.db", "x"), ("sub/desktop.ini", "x")]
        assert statuses(drop(("x.zip", pack(("a.png", picture()), *system)))) == {"x.zip/a.png": "added"}

    @pytest.mark.parametrize("content", [b"", b"no zip", b"PK\3\4" + bytes(40)])
    def test_what_is_no_zip_is_refused(self, drop, folder, content):
        assert statuses(drop(("x.zip", content))) == {"x.zip": "refused"}

    def test_an_empty_zip_is_refused(self, drop):
        assert drop(("x.zip", pack()))["x.zip"].message == "it holds no files."

    def test_a_locked_entry_is_told(self, drop, picture):
        data = bytearray(pack(("a.png", picture()), method=zipfile.ZIP_STORED))
        for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
            data[data.index(mark) + at] |= 1
        assert "password" in drop(("x.zip", bytes(data)))["x.zip/a.png"].message

    def test_a_damaged_entry_does_not_take_the_others_along(self, drop, picture):
        data = bytearray(pack(("a.png", picture(0)), ("b.png", picture(1)), method=zipfile.ZIP_STORED))
        data[200] ^= 0xFF
        results = drop(("x.zip", bytes(data)))
        assert list(statuses(results).values()) == ["refused", "added"]

    @pytest.mark.parametrize(("encoding", "name"), [("gb2312", "水墨画.png"), ("utf-8", "été.png"), ("cp437", "Mädchen.png")])
    def test_names_in_the_encoding_of_the_system_that_packed(self, drop, folder, picture, encoding, name):
        placeholder = "x" * len(name.encode(encoding))
        data = pack((placeholder, picture())).replace(placeholder.encode(), name.encode(encoding))
        drop(("x.zip", data))
        assert list(captions(folder)) == [name]


class TestRemove:
    @pytest.fixture(autouse=True)
    def pictures(self, drop, picture):
        drop(("a.png", picture(0)), ("a.txt", "of a"), ("b.png", picture(1)), ("b.txt", "of b"), ("c.png", picture(2)))

    def test_removed_is_out_of_the_set_and_comes_back_with_its_caption(self, library, folder):
        library.remove("ink", ["a.png", "c.png"])
        assert captions(folder) == {"b.png": "of b"}
        assert library.removed("ink") == ["a.png", "c.png"]
        assert library.removed_path("ink", "a.png").is_file()
        assert library.restore("ink", ["a.png"]) == ["a.png"]
        assert captions(folder) == {"a.png": "of a", "b.png": "of b"}
        assert library.removed("ink") == ["c.png"]

    def test_a_caption_in_a_table_goes_along(self, library, drop, folder):
        drop(("metadata.csv", "c.png,of c\n"))
        library.remove("ink", ["c.png"])
        (folder / "metadata.csv").unlink(missing_ok=True)
        library.restore("ink", ["c.png"])
        assert captions(folder)["c.png"] == "of c"

    def test_the_name_was_taken_meanwhile(self, library, drop, folder, picture):
        library.remove("ink", ["a.png"])
        drop(("a.png", picture(9)), ("a.txt", "another"))
        assert library.restore("ink", ["a.png"]) == ["a-2.png"]
        assert captions(folder)["a-2.png"] == "of a"
        assert captions(folder)["a.png"] == "another"

    def test_two_of_one_name_are_both_kept(self, library, drop, picture):
        library.remove("ink", ["a.png"])
        drop(("a.png", picture(9)))
        library.remove("ink", ["a.png"])
        assert library.removed("ink") == ["a-2.png", "a.png"]

    @pytest.mark.parametrize("name", ["nothing.png", "../ink/a.png", "a.txt", "/etc/passwd", "", "A.PNG"])
    def test_what_is_no_picture_of_the_set_moves_nothing(self, library, folder, name):
        before = files_of(folder)
        for ask in (library.remove, library.restore):
            with pytest.raises(DatasetError, match="has no picture"):
                ask("ink", ["a.png", name] if ask == library.remove else [name])
        with pytest.raises(DatasetError):
            library.removed_path("ink", name)
        assert files_of(folder) == before

    def test_a_shared_caption_file_stays_for_the_other(self, library, folder, picture):
        (folder / "a.jpg").write_bytes(picture(5, "JPEG"))
        library.remove("ink", ["a.png"])
        assert captions(folder)["a.jpg"] == "of a"
        library.restore("ink", ["a.png"])
        assert sorted(captions(folder).values()) == ["", "of a", "of a", "of b"]
