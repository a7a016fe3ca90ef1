from __future__ import annotations

import csv
import json
import locale
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.dataset.captions import Captions, read_captions, vary_caption
from lora_trainer.dataset.scan import list_files
from lora_trainer.dataset.tables import NameIndex, read_table
from lora_trainer.errors import DatasetError

pytestmark = pytest.mark.hosts

HARD_CAPTIONS = [
    "ink wash, mountains, mist",
    'a sign that says "closed, sorry"',
    "two\nlines, and\n\nmore",
    "水墨画，远山 🎨 e\u0301 \u2028 end",
    "semi;colon\tand tab",
    "'; DROP TABLE",
]


def read(folder: Path, *names: str, metadata_path: Path | None = None) -> Captions:
    return read_captions(folder, names, list_files(folder), metadata_path)


@pytest.mark.parametrize("caption", HARD_CAPTIONS)
@pytest.mark.parametrize("header", [("filename", "prompt"), ("file_name", "text"), ("image", "caption"), None])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_csv_keeps_every_caption(tmp_path: Path, caption: str, header: tuple[str, str] | None, encoding: str) -> None:
    with open(tmp_path / "metadata.csv", "w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows([*([header] if header else []), ("a.png", caption)])
    captions = read(tmp_path, "a.png")
    assert captions.by_name == {"a.png": caption}
    assert captions.problems == []


@pytest.mark.parametrize("caption", HARD_CAPTIONS)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_jsonl_keeps_every_caption(tmp_path: Path, caption: str, ascii_only: bool) -> None:
    line = json.dumps({"file_name": "a.png", "text": caption}, ensure_ascii=ascii_only)
    (tmp_path / "metadata.jsonl").write_text(line + "\n", encoding="utf-8")
    captions = read(tmp_path, "a.png")
    assert captions.by_name == {"a.png": caption}
    assert captions.problems == []


@pytest.mark.parametrize("caption", HARD_CAPTIONS)
@pytest.mark.parametrize("suffix", [".txt", ".caption", ".TXT"])
def test_sidecars_keep_every_caption(tmp_path: Path, caption: str, suffix: str) -> None:
    (tmp_path / f"v1.0{suffix}").write_bytes((caption + "\n").replace("\n", "\r\n").encode("utf-8-sig"))
    assert read(tmp_path, "v1.0.png").by_name == {"v1.0.png": caption}


def test_the_order_of_sources_decides_and_disagreement_is_told(tmp_path: Path) -> None:
    sources = ["chosen.csv", "a.txt", "a.caption", "metadata.jsonl", "metadata.csv"]
    (tmp_path / "chosen.csv").write_text("filename,prompt\na.png,from chosen.csv\n", encoding="utf-8")
    (tmp_path / "a.txt").write_text("from a.txt", encoding="utf-8")
    (tmp_path / "a.caption").write_text("from a.caption", encoding="utf-8")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "from metadata.jsonl"}', encoding="utf-8")
    (tmp_path / "metadata.csv").write_text("filename,prompt\na.png,from metadata.csv\n", encoding="utf-8")
    for place, source in enumerate(sources):
        chosen = tmp_path / "chosen.csv" if source == "chosen.csv" else None
        captions = read(tmp_path, "a.png", metadata_path=chosen)
        assert captions.by_name == {"a.png": f"from {source}"}
        assert len(captions.problems) == len(sources) - 1 - place
        assert all(problem.severity == "warning" and "a.png" in problem.message for problem in captions.problems)
        (tmp_path / source).unlink()


def test_sources_that_agree_are_no_problem(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a  cat \n", encoding="utf-8")
    (tmp_path / "metadata.csv").write_text("filename,prompt\na.png,a cat\n", encoding="utf-8")
    assert read(tmp_path, "a.png").problems == []


def test_an_empty_caption_gives_way_to_the_next_source(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "metadata.csv").write_text("filename,prompt\na.png,a cat\nb.png,\n", encoding="utf-8")
    assert read(tmp_path, "a.png", "b.png").by_name == {"a.png": "a cat"}


@pytest.mark.parametrize(
    ("written", "picture"),
    [
        ("a.png", "a.png"),
        ("A.PNG", "a.png"),
        ("a", "a.png"),
        ("./a.png", "a.png"),
        ("a.png", "sub/a.png"),
        ("sub/a.png", "a.png"),
        ("sub\\a.png", "sub/a.png"),
        ("C:\\Users\\me\\data\\sub\\a.png", "sub/a.png"),
        ("caf\u00e9.png", "cafe\u0301.png"),
        ("cafe\u0301", "caf\u00c9.png"),
        ("v1.0", "v1.0.png"),
    ],
)
def test_a_row_finds_its_picture(written: str, picture: str) -> None:
    assert NameIndex([picture, "other.png"]).find(written)[1] == [picture]


@pytest.mark.parametrize(
    ("written", "picture"), [("a.jpg", "a.png"), ("x/a.png", "y/a.png"), ("", "a.png"), ("ba.png", "a.png"), ("..", "a.png")]
)
def test_a_row_does_not_find_a_picture_with_another_name(written: str, picture: str) -> None:
    assert NameIndex([picture]).find(written)[1] == []


def test_the_exact_name_wins_and_ambiguous_rows_are_told(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("a.png,exact\nb,which one\nX/c.png,sub\n", encoding="utf-8")
    captions = read(tmp_path, "a.png", "x/a.png", "b.png", "b.jpg", "x/c.png")
    assert captions.by_name == {"a.png": "exact", "x/c.png": "sub"}
    (problem,) = captions.problems
    assert "1 row fit several pictures" in problem.message and "b" in problem.message


def test_rows_without_a_picture_are_counted_with_examples(tmp_path: Path) -> None:
    rows = "".join(f"gone{number}.png,x\n" for number in range(5))
    (tmp_path / "metadata.csv").write_text("filename,prompt\na.png,a cat\n" + rows, encoding="utf-8")
    captions = read(tmp_path, "a.png")
    (problem,) = captions.problems
    assert problem.severity == "warning" and problem.field == "metadata.csv"
    assert problem.message == "5 rows name no picture: gone0.png, gone1.png, gone2.png and 2 more."


def test_two_rows_for_a_picture_are_told_and_the_first_counts(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("a.png,first\na.png,second\n", encoding="utf-8")
    captions = read(tmp_path, "a.png")
    assert captions.by_name == {"a.png": "first"}
    assert "a.png" in captions.problems[0].message


def test_commas_without_quotes_stay_in_the_caption(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("filename,prompt\na.png,1girl, solo, red hair\n", encoding="utf-8")
    assert read(tmp_path, "a.png").by_name == {"a.png": "1girl, solo, red hair"}


def test_commas_without_quotes_before_another_column_are_told(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("prompt,filename\n1girl, solo,a.png\nok,b.png\nshort\n", encoding="utf-8")
    captions = read(tmp_path, "a.png", "b.png")
    assert captions.by_name == {"b.png": "ok"}
    assert "line 2: has 3 cells for 2 columns" in captions.problems[0].message
    assert "line 4: has 1 of 2 cells" in captions.problems[0].message


def test_quotes_after_a_space_are_quotes(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text('a.png, "ink, ""old"" style"\n', encoding="utf-8")
    assert read(tmp_path, "a.png").by_name == {"a.png": 'ink, "old" style'}


def test_a_quote_that_is_not_closed_takes_no_other_rows(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text('a.png,fine\nb.png,"open\nc.png,lost\n', encoding="utf-8")
    captions = read(tmp_path, "a.png", "b.png", "c.png")
    assert captions.by_name == {"a.png": "fine"}
    assert "unexpected end" in captions.problems[0].message
    (tmp_path / "metadata.csv").write_text('a.png,"half" quoted\nb.png,fine\n', encoding="utf-8")
    captions = read(tmp_path, "a.png", "b.png")
    assert captions.by_name == {"b.png": "fine"}
    assert "line 1" in captions.problems[0].message


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_tables_of_other_spreadsheets_are_read(tmp_path: Path, delimiter: str) -> None:
    text = f'"filename"{delimiter}"prompt"\na.png{delimiter}ink, mist\n'
    (tmp_path / "metadata.csv").write_text(text, encoding="utf-8")
    assert read(tmp_path, "a.png").by_name == {"a.png": "ink, mist"}


def test_a_table_in_a_sub_folder_names_its_own_pictures(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "metadata.csv").write_text("a.png,sub\n", encoding="utf-8")
    (tmp_path / "metadata.csv").write_text("a.png,top\n", encoding="utf-8")
    captions = read(tmp_path, "a.png", "sub/a.png")
    assert captions.by_name == {"a.png": "top", "sub/a.png": "sub"}


def test_damaged_lines_are_told_and_the_others_kept(tmp_path: Path) -> None:
    lines = [
        '{"file_name": "a.png", "text": "ok"}',
        "{broken",
        '{"file_name": "b.png"}',
        "[1]",
        '{"file_name": "b.png", "text": 3}',
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    captions = read(tmp_path, "a.png", "b.png")
    assert captions.by_name == {"a.png": "ok"}
    (problem,) = captions.problems
    assert problem.message.startswith("4 rows could not be read: line 2: it is not JSON")


@pytest.mark.parametrize("name", ["gone.csv", "a.xlsx", "wrong.csv", "bytes.csv"])
def test_a_chosen_table_that_cannot_be_read_ends_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.xlsx").write_text("x", encoding="utf-8")
    (tmp_path / "wrong.csv").write_text("filename,width\na.png,3\n", encoding="utf-8")
    (tmp_path / "bytes.csv").write_bytes(b"a.png,\xff\xfe\xfd\x81")
    if name == "bytes.csv" and locale.getpreferredencoding(False).lower().replace("-", "") != "utf8":
        pytest.skip("this system's encoding reads any bytes")
    with pytest.raises(DatasetError, match=name):
        read(tmp_path, "a.png", metadata_path=tmp_path / name)


def test_the_systems_encoding_is_tried_last_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locale, "getpreferredencoding", lambda do_setlocale=True: "gbk")
    (tmp_path / "a.txt").write_bytes("水墨画，很美".encode("gbk"))
    captions = read(tmp_path, "a.png")
    assert captions.by_name == {"a.png": "水墨画，很美"}
    assert [(problem.severity, "gbk" in problem.message) for problem in captions.problems] == [("notice", True)]


def test_a_sidecar_in_no_known_encoding_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locale, "getpreferredencoding", lambda do_setlocale=True: "UTF-8")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 \xff")
    captions = read(tmp_path, "a.png")
    assert captions.by_name == {}
    assert "Save it as UTF-8" in captions.problems[0].message


@given(st.text())
def test_any_text_as_a_table_gives_rows_or_faults(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("tables")
    for name in ("metadata.csv", "metadata.jsonl"):
        (folder / name).write_text(text, encoding="utf-8", errors="replace")
        try:
            table = read_table(folder / name)
        except DatasetError:
            continue
        NameIndex(["a.png", "x/b.jpg"]).find(table.rows[0].name if table.rows else text)


def test_a_caption_is_untouched_by_default() -> None:
    caption = " trigger,,  b ,c\n"
    assert vary_caption(caption, random.Random(0)) == caption


@given(st.lists(st.sampled_from("abcdefg"), unique=True), st.integers(0, 8), st.integers(0, 1000))
def test_shuffling_keeps_all_tags_and_the_first_in_place(tags: list[str], keep: int, seed: int) -> None:
    varied = vary_caption(", ".join(tags), random.Random(seed), shuffle=True, keep_tokens=keep)
    result = varied.split(", ") if varied else []
    assert sorted(result) == sorted(tags)
    assert result[:keep] == tags[:keep]
    assert varied == vary_caption(", ".join(tags), random.Random(seed), shuffle=True, keep_tokens=keep)


def test_shuffling_gives_every_order_alike() -> None:
    rng = random.Random(1)
    orders = [vary_caption("a,b,c", rng, shuffle=True) for _ in range(6000)]
    assert len(set(orders)) == 6
    assert all(850 < orders.count(order) < 1150 for order in set(orders))


def test_dropout_rates_are_met_and_kept_tags_stay() -> None:
    rng = random.Random(2)
    varied = [vary_caption("t,a,b", rng, keep_tokens=1, tag_dropout=0.25, caption_dropout=0.1) for _ in range(8000)]
    empty = varied.count("") / len(varied)
    kept = [caption.split(", ") for caption in varied if caption]
    assert abs(empty - 0.1) < 0.02
    assert all(tags[0] == "t" for tags in kept)
    assert abs(sum("a" in tags for tags in kept) / len(kept) - 0.75) < 0.02
    assert vary_caption("t,a,b", rng, tag_dropout=1.0) == ""
    assert vary_caption("t,a,b", rng, caption_dropout=1.0) == ""
