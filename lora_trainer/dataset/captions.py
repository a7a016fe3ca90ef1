"""Captions: which one a picture has, where several places tell, and how a caption varies while training."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lora_trainer.dataset.sampler import shuffled
from lora_trainer.dataset.tables import NameIndex, Table, clean_caption, normal, read_table, read_text, split_suffix
from lora_trainer.errors import DatasetError, Problem, examples

SIDECAR_SUFFIXES = (".txt", ".caption")
TABLE_NAMES = ("metadata.jsonl", "metadata.csv")


@dataclass
class Captions:
    """What was found for a set of pictures.

    Attributes:
        by_name: the caption that counts, by the picture's name; pictures without any are not in it.
        problems: what was doubtful on the way.
    """

    by_name: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


@dataclass
class Source:
    """A kind of place where captions stand.

    Attributes:
        label: what a user calls it: ".txt", "metadata.csv".
        captions: by the picture's name; an empty one says that there is a place for it.
        paths: the file that each of them stands in.
        tables: all tables of the kind that can be read, where it is one.
    """

    label: str
    captions: dict[str, str] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    tables: list[Path] = field(default_factory=list)


def read_captions(folder: Path, names: Sequence[str], files: Iterable[str], metadata_path: Path | None = None) -> Captions:
    """Returns the captions of pictures.

    Of several captions for a picture the first counts: the table at `metadata_path`, `<stem>.txt`, `<stem>.caption`,
    `metadata.jsonl`, `metadata.csv`. Captions that disagree are a warning; empty ones do not count.

    Args:
        folder: the data set.
        names: of the pictures, relative to the folder, with "/" between parts.
        files: all files of the folder, named likewise.
        metadata_path: a table that the user chose. Its names are relative to its own folder, or to `folder`.

    Raises:
        DatasetError: the table at `metadata_path` cannot be read.
    """
    sources, problems = read_sources(folder, names, files, metadata_path)
    merged = merge_sources(names, sources)
    return Captions(merged.by_name, problems + merged.problems)


def read_sources(
    folder: Path, names: Sequence[str], files: Iterable[str], metadata_path: Path | None = None
) -> tuple[list[Source], list[Problem]]:
    """Returns all places where the captions of pictures stand, the one that counts first, and what was doubtful in them.

    Arguments and errors are those of `read_captions`.
    """
    problems: list[Problem] = []
    sources = []
    if metadata_path is not None:
        matched = _match(read_table(metadata_path), metadata_path.name, names, "", problems)
        sources.append(Source(metadata_path.name, matched, dict.fromkeys(matched, metadata_path)))
    files = list(files)
    for suffix in SIDECAR_SUFFIXES:
        sources.append(_read_sidecars(folder, names, files, suffix, problems))
    for table_name in TABLE_NAMES:
        tables = [name for name in files if name.rpartition("/")[2].lower() == table_name]
        tables = [name for name in tables if metadata_path is None or not _is_same_file(folder / name, metadata_path)]
        sources.append(_read_tables(folder, names, tables, table_name, problems))
    return sources, problems


def vary_caption(
    caption: str,
    rng: random.Random,
    *,
    shuffle: bool = False,
    keep_tokens: int = 0,
    tag_dropout: float = 0.0,
    caption_dropout: float = 0.0,
) -> str:
    """Returns the caption as one epoch sees it; with all at their defaults, as it is written.

    Args:
        caption: tags or phrases with commas between.
        rng: the source of chance.
        shuffle: whether the tags change places.
        keep_tokens: so many tags at the start are neither moved nor dropped (the trigger word).
        tag_dropout: probability for each other tag to be left out.
        caption_dropout: probability for the whole caption to be empty.
    """
    if caption_dropout > 0 and rng.random() < caption_dropout:
        return ""
    if not shuffle and tag_dropout <= 0:
        return caption
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    kept, others = tags[:keep_tokens], tags[keep_tokens:]
    others = [tag for tag in others if rng.random() >= tag_dropout]
    return ", ".join(kept + (shuffled(others, rng) if shuffle else others))


def _read_sidecars(folder: Path, names: Sequence[str], files: list[str], suffix: str, problems: list[Problem]) -> Source:
    by_stem = {_stem(name): name for name in files if name.lower().endswith(suffix)}
    source = Source(suffix)
    users: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    for name in names:
        sidecar = by_stem.get(_stem(name))
        if sidecar is None:
            continue
        users.setdefault(sidecar, []).append(name)
        if sidecar not in texts:
            texts[sidecar] = _read_sidecar(folder / sidecar, sidecar, problems)
        source.captions[name], source.paths[name] = texts[sidecar], folder / sidecar
    for sidecar, shared in users.items():
        if len(shared) > 1:
            problems.append(
                Problem(
                    sidecar, f"is the caption of {len(shared)} pictures: {examples(shared)}.", "warning", "Rename all but one."
                )
            )
    return source


def _read_sidecar(path: Path, name: str, problems: list[Problem]) -> str:
    try:
        text, encoding = read_text(path)
    except DatasetError as error:
        problems.append(Problem(name, str(error), "warning"))
        return ""
    if encoding:
        problems.append(_encoding_notice(name, encoding))
    return clean_caption(text)


def _read_tables(folder: Path, names: Sequence[str], tables: list[str], label: str, problems: list[Problem]) -> Source:
    source = Source(label)
    # The table nearest to a picture counts: those in the deepest folders come first.
    for table in sorted(tables, key=lambda name: (-name.count("/"), name)):
        try:
            rows = read_table(folder / table)
        except DatasetError as error:
            problems.append(Problem(table, str(error), "warning"))
            continue
        source.tables.append(folder / table)
        parent = table.rpartition("/")[0]
        for name, caption in _match(rows, table, names, parent, problems).items():
            source.captions.setdefault(name, caption)
            source.paths.setdefault(name, folder / table)
    return source


def _match(table: Table, label: str, names: Sequence[str], parent: str, problems: list[Problem]) -> dict[str, str]:
    """Returns the captions of a table by the names of the pictures below `parent`."""
    prefix = f"{parent}/" if parent else ""
    index = NameIndex(name.removeprefix(prefix) for name in names if name.startswith(prefix))
    best: dict[str, tuple[int, str]] = {}
    unknown: list[str] = []
    ambiguous: list[str] = []
    doubled: list[str] = []
    for row in table.rows:
        rank, fits = index.find(row.name)
        if len(fits) != 1:
            (ambiguous if fits else unknown).append(row.name)
            continue
        earlier = best.get(fits[0])
        if earlier and earlier[1] != row.caption:
            doubled.append(row.name)
        if earlier is None or rank < earlier[0]:
            best[fits[0]] = (rank, row.caption)
    if table.encoding:
        problems.append(_encoding_notice(label, table.encoding))
    for found, message, hint in (
        (unknown, "{} name no picture", "Correct the names, or remove the rows."),
        (ambiguous, "{} fit several pictures and were not used", "Write the name with its folder and suffix."),
        (doubled, "{} repeat a picture with another caption; the best fit counts, then the first", "Remove all but one."),
        (list(table.faults), "{} could not be read", "Correct the file; a caption with commas needs quotes."),
    ):
        if found:
            problems.append(Problem(label, f"{message.format(_rows(len(found)))}: {examples(found)}.", "warning", hint))
    return {prefix + name: caption for name, (_, caption) in best.items()}


def merge_sources(names: Sequence[str], sources: Sequence[Source]) -> Captions:
    """Returns for each picture the first caption that is not empty, with a warning where another one differs."""
    captions = Captions()
    differing: dict[tuple[str, str], list[str]] = {}
    for name in names:
        told = [(source.label, source.captions[name]) for source in sources if source.captions.get(name)]
        if not told:
            continue
        captions.by_name[name] = told[0][1]
        for label, caption in told[1:]:
            if caption.split() != told[0][1].split():
                differing.setdefault((told[0][0], label), []).append(name)
    for (used, other), pictures in differing.items():
        captions.problems.append(
            Problem(
                other,
                f"differs from {used} for {len(pictures)} pictures: {examples(pictures)}. {used} counts.",
                "warning",
                "Remove the captions that are not meant.",
            )
        )
    return captions


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _stem(name: str) -> str:
    return normal(split_suffix(name)[0])


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _encoding_notice(field: str, encoding: str) -> Problem:
    return Problem(field, f"is not UTF-8; it was read as {encoding}, this system's encoding.", "notice", "Save it as UTF-8.")
