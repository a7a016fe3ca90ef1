"""Caption tables, `metadata.csv` and `metadata.jsonl`, and the search for the picture that a row names.

A table names pictures relative to its own folder. People move and rename folders, so a row finds its picture without the
sub-folder, without the suffix or in another case too, as long as one picture fits best.
"""

from __future__ import annotations

import csv
import io
import json
import locale
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lora_trainer.errors import DatasetError

NAME_COLUMNS = ("filename", "file_name", "file", "path", "image", "image_path", "image_file")
CAPTION_COLUMNS = ("prompt", "text", "caption", "captions", "tags", "description")
TABLE_SUFFIXES = (".jsonl", ".csv")


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        name: the picture's, as it is written there.
        caption: cleaned, see `clean_caption`.
        first, end: the lines of the file that the row takes, counted from 0; `end` is the one after its last.
    """

    name: str
    caption: str
    first: int
    end: int


class Columns(NamedTuple):
    """How a CSV file is laid out: what separates the cells, where name and caption are, and how many cells a row has."""

    delimiter: str
    name: int
    caption: int
    num_cells: int


@dataclass(frozen=True)
class Table:
    """A caption table.

    Attributes:
        rows: in the order of the file.
        faults: what could not be understood, each as "line 7: ...".
        encoding: the encoding when it was neither UTF-8 nor UTF-16, else "".
        columns: of a CSV file; None for JSON lines, and for a CSV file without a row.
    """

    rows: tuple[Row, ...]
    faults: tuple[str, ...]
    encoding: str
    columns: Columns | None = None


def read_table(path: Path) -> Table:
    """Reads a `.jsonl` or `.csv` file. A CSV may have a header with one of `NAME_COLUMNS` and one of `CAPTION_COLUMNS`, or none.

    Raises:
        DatasetError: it cannot be read, is of another kind, or its header names no caption column.
    """
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise DatasetError(f"{path} is no caption table: its name must end in {' or '.join(TABLE_SUFFIXES)}.")
    return parse_table(*read_text(path), path)


def parse_table(text: str, encoding: str, path: Path) -> Table:
    """Returns `read_table` of a file's text; `path` tells its kind, and names it in errors.

    Raises:
        DatasetError: its header names no caption column.
    """
    if path.suffix.lower() == ".jsonl":
        rows, faults = _read_jsonl(text)
        return Table(tuple(rows), tuple(faults), encoding)
    rows, faults, columns = _read_csv(text, path)
    return Table(tuple(rows), tuple(faults), encoding, columns)


def read_text(path: Path) -> tuple[str, str]:
    """Returns a file's text with line ends as "\\n", and its encoding when that was only the system's own, else "".

    Raises:
        DatasetError: it cannot be read, or is neither UTF-8, UTF-16 with its mark, nor in the system's encoding.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}.") from error
    is_utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    own = locale.getpreferredencoding(False)
    for encoding in ("utf-16",) if is_utf16 else ("utf-8-sig", own):
        try:
            text = data.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
        return text.replace("\r\n", "\n").replace("\r", "\n"), encoding if encoding == own and not is_utf16 else ""
    raise DatasetError(f"{path} is neither UTF-8 nor in this system's encoding ({own}). Save it as UTF-8.")


def clean_caption(text: str) -> str:
    """Returns the caption as every kind of file keeps it: no space around it, line breaks as "\\n".

    NUL and the byte-order mark, which is no text, are left out. Half a surrogate pair, which no encoding writes, becomes "?".
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "").replace("\ufeff", "")
    return text.encode("utf-8", "replace").decode("utf-8").strip()


def normal(name: str) -> str:
    """Returns a name in the Unicode form NFC, so that names written on different systems compare equal."""
    return unicodedata.normalize("NFC", name)


class NameIndex:
    """Finds the pictures that a row means.

    Args:
        names: of the pictures, relative to the table's folder, with "/" between parts.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._by_last_part: dict[str, list[str]] = {}
        for name in names:
            last = _folded(name.rpartition("/")[2])
            for key in {last, split_suffix(last)[0]}:
                self._by_last_part.setdefault(key, []).append(name)

    def find(self, written: str) -> tuple[int, list[str]]:
        """Returns how exactly the best fit fits (0 is to the letter, lower is better) and all pictures that fit so."""
        wanted = normal(written.strip().replace("\\", "/")).removeprefix("./")
        fits: dict[int, list[str]] = {}
        for name in self._by_last_part.get(_folded(wanted.rstrip("/").rpartition("/")[2]), ()):
            rank = _rank(wanted, name)
            if rank is not None:
                fits.setdefault(rank, []).append(name)
        best = min(fits, default=0)
        return best, fits.get(best, [])


def _rank(wanted: str, name: str) -> int | None:
    """Returns 0 same, 1 other case, 2 no suffix, 3 and 4 likewise where one of the two lacks leading folders; None: no fit."""
    if wanted == normal(name):
        return 0
    wanted, name = _folded(wanted), _folded(name)
    for rank, candidate in ((1, name), (2, split_suffix(name)[0])):
        if wanted == candidate:
            return rank
        if f"/{wanted}".endswith(f"/{candidate}") or f"/{candidate}".endswith(f"/{wanted}"):
            return rank + 2
    return None


def _folded(name: str) -> str:
    return normal(normal(name).casefold())


def split_suffix(name: str) -> tuple[str, str]:
    """Returns a name without its suffix, and the suffix, as pathlib does, which takes ten times as long for a thousand names."""
    folder, slash, last = name.rpartition("/")
    dot = last.rfind(".")
    return (folder + slash + last[:dot], last[dot:]) if 0 < dot < len(last) - 1 else (name, "")


def _read_jsonl(text: str) -> tuple[list[Row], list[str]]:
    rows, faults = [], []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON strings may hold U+2028
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            faults.append(f"line {number}: it is not JSON")
            continue
        entry = {str(key).lower(): value for key, value in entry.items()} if isinstance(entry, dict) else {}
        name = _first_text(entry, NAME_COLUMNS)
        caption = _first_text(entry, CAPTION_COLUMNS)
        if name is None or caption is None:
            missing = f"one of {', '.join(NAME_COLUMNS if name is None else CAPTION_COLUMNS)}"
            faults.append(f"line {number}: lacks {missing} with text")
            continue
        rows.append(Row(name, clean_caption(caption), number - 1, number))
    return rows, faults


def _first_text(entry: dict[str, object], keys: tuple[str, ...]) -> str | None:
    return next((value for key in keys if isinstance(value := entry.get(key), str)), None)


def _read_csv(text: str, path: Path) -> tuple[list[Row], list[str], Columns | None]:
    delimiter = _delimiter(text)
    rows: list[Row] = []
    faults: list[str] = []
    columns: Columns | None = None
    end = 0
    for line, cells in csv_lines(text, delimiter):
        first, end = end, line
        if isinstance(cells, csv.Error):
            faults.append(f"line {line}: {cells}")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if columns is None:
            header = _header_columns(cells, path)
            columns = Columns(delimiter, *(header or (0, 1)), len(cells) if header else 2)
            if header:
                continue
        found = split_csv_row(cells, columns)
        if isinstance(found, str):
            faults.append(f"line {line}: {found}")
        else:
            rows.append(Row(found[columns.name].strip(), _unquoted(found[columns.caption]), first, end))
    return rows, faults, columns


def csv_lines(text: str, delimiter: str) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Yields of each row the number of lines up to its end, and its cells or what is wrong with it."""
    # Strict: otherwise a quote that is never closed would quietly take the rest of the file into one caption.
    reader = csv.reader(io.StringIO(text.replace("\0", ""), newline=""), delimiter=delimiter, strict=True)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield reader.line_num, error
        else:
            yield reader.line_num, cells


def _delimiter(text: str) -> str:
    """Returns what separates the cells: a comma, unless the first line is a header with semicolons or tabs."""
    first = text.lstrip().partition("\n")[0]
    for delimiter in ";\t":
        cells = {_column_name(cell) for cell in first.split(delimiter)}
        if cells & set(NAME_COLUMNS) and cells & set(CAPTION_COLUMNS):
            return delimiter
    return ","


def _header_columns(cells: list[str], path: Path) -> tuple[int, int] | None:
    """Returns the places of name and caption in a header, or None when the line is none."""
    words = [_column_name(cell) for cell in cells]
    name = next((words.index(word) for word in NAME_COLUMNS if word in words), None)
    caption = next((words.index(word) for word in CAPTION_COLUMNS if word in words and words.index(word) != name), None)
    if name is None:
        return None
    if caption is None:
        raise DatasetError(
            f"{path} has the columns {', '.join(words)} and none for the caption; call it one of {', '.join(CAPTION_COLUMNS)}."
        )
    return name, caption


def _column_name(cell: str) -> str:
    return cell.strip().strip('"').strip().lower()


def split_csv_row(cells: list[str], columns: Columns) -> list[str] | str:
    """Returns the cells of a row, one for each column, or what is wrong with it."""
    if len(cells) <= max(columns.name, columns.caption):
        return f"has {len(cells)} of {columns.num_cells} cells"
    if len(cells) > columns.num_cells:
        if columns.caption != columns.num_cells - 1:
            return f"has {len(cells)} cells for {columns.num_cells} columns; put the caption in quotes"
        # A caption with commas and no quotes: it is the last column, so the rest of the line is its own.
        return [*cells[: columns.caption], columns.delimiter.join(cells[columns.caption :])]
    return cells


def _unquoted(caption: str) -> str:
    if caption.startswith(" ") and caption.strip().startswith('"') and caption.strip().endswith('"'):
        caption = caption.strip()[1:-1].replace('""', '"')  # a space before the quotes hides them from the csv module
    return clean_caption(caption)
