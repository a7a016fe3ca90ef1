"""Caption tables written: new ones, and old ones in which only the rows of changed captions are touched.

Other columns, rows that name no picture, the order, the separator, line ends and the byte-order mark of an old table stay. A
table that was not UTF-8 becomes UTF-8 with a mark.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from lora_trainer.dataset.tables import CAPTION_COLUMNS, Table, clean_caption, csv_lines, parse_table, read_text, split_csv_row
from lora_trainer.errors import DatasetError

HEADERS = {".csv": ("filename", "prompt"), ".jsonl": ("file_name", "text")}
_MARK = b"\xef\xbb\xbf"
_MARKS = (_MARK, b"\xff\xfe", b"\xfe\xff")


def format_table(captions: Mapping[str, str], suffix: str) -> bytes:
    """Returns a new table of captions by picture, `.jsonl` or `.csv`; that with a mark by which spreadsheets know UTF-8."""
    header = HEADERS[suffix]
    if suffix == ".jsonl":
        return "".join(_json_line(dict(zip(header, entry, strict=True))) for entry in captions.items()).encode()
    text = "".join(_csv_line(cells, ",") for cells in (header, *captions.items()))
    return _MARK + text.encode("utf-8")


def pack_sidecars(captions: Mapping[str, str]) -> bytes:
    """Returns a ZIP file with a text file for each picture that has a caption, in the pictures' folders.

    Raises:
        DatasetError: two pictures would share a text file and have different captions.
    """
    texts: dict[str, tuple[str, str]] = {}
    for name, caption in captions.items():
        path = PurePosixPath(name).with_suffix(".txt").as_posix()
        first, known = texts.setdefault(path, (name, caption))
        if known != caption:
            raise DatasetError(f"{first} and {name} would share {path}, and have different captions. Rename one of the pictures.")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, (_, caption) in texts.items():
            if caption:
                archive.writestr(path, f"{caption}\n".encode())
    return buffer.getvalue()


def edit_table(path: Path, changed: Mapping[int, str], added: Mapping[str, str]) -> bytes:
    """Returns what a table has to hold for its captions to be others. Nothing is written.

    Args:
        path: of the table.
        changed: captions by the index of their row.
        added: captions of pictures that have no row, by the name to write.

    Raises:
        DatasetError: the table cannot be read, or is so damaged that a caption could not be found in it again.
    """
    data, (text, encoding) = path.read_bytes(), read_text(path)
    table = parse_table(text, encoding, path)
    lines = text.split("\n")
    pieces, end = [], 0
    for index, row in enumerate(table.rows):
        pieces.append(_joined(lines[end : row.first]))
        old, end = lines[row.first : row.end], row.end
        pieces.append(_edited_row(old, changed[index], table) if index in changed else _joined(old))
    pieces.append("\n".join(lines[end:]))
    edited = "".join(pieces)
    if added:
        edited += "" if not edited or edited.endswith("\n") else "\n"
        edited += _csv_line(HEADERS[".csv"], ",") if path.suffix.lower() == ".csv" and table.columns is None else ""
        edited += "".join(_new_row(name, caption, path, table) for name, caption in added.items())
    expected = [changed.get(index, row.caption) for index, row in enumerate(table.rows)] + list(added.values())
    if [row.caption for row in parse_table(edited, "", path).rows] != list(map(clean_caption, expected)):
        fault = f": {table.faults[0]}" if table.faults else ""
        raise DatasetError(f"{path} is too damaged to be changed{fault}. Correct the file in a text editor.")
    newline = b"\r\n" if b"\r\n" in data else b"\n"
    has_mark = bool(encoding) or data.startswith(_MARKS)
    return (_MARK if has_mark else b"") + edited.encode("utf-8", "backslashreplace").replace(b"\n", newline)


def _joined(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _edited_row(lines: list[str], caption: str, table: Table) -> str:
    if table.columns is None:
        return _edited_json(lines[0], caption)
    _, cells = next(iter(csv_lines(_joined(lines), table.columns.delimiter)))
    assert isinstance(cells, list)
    whole = split_csv_row(cells, table.columns)
    assert isinstance(whole, list)
    whole[table.columns.caption] = caption
    return _csv_line(whole, table.columns.delimiter)


def _edited_json(line: str, caption: str) -> str:
    entry = json.loads(line)
    keys = {key.lower(): key for key in entry}
    entry[next(keys[word] for word in CAPTION_COLUMNS if isinstance(entry.get(keys.get(word, "")), str))] = caption
    return _json_line(entry, is_ascii=line.isascii() and "\\u" in line)


def _new_row(name: str, caption: str, path: Path, table: Table) -> str:
    if path.suffix.lower() == ".jsonl":
        return _json_line(dict(zip(HEADERS[".jsonl"], (name, caption), strict=True)))
    columns = table.columns
    if columns is None:
        return _csv_line((name, caption), ",")
    cells = [""] * columns.num_cells
    cells[columns.name], cells[columns.caption] = name, caption
    return _csv_line(cells, columns.delimiter)


def _csv_line(cells: Iterable[str], delimiter: str) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _json_line(entry: Mapping[str, object], *, is_ascii: bool = False) -> str:
    return json.dumps(entry, ensure_ascii=is_ascii) + "\n"
