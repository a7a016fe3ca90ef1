"""The captions of a data set, to be changed in place, with a journal of every change.

A caption is written to every file that names its picture. Where none does, it goes to the nearest table, and where the set has
no table, to `<stem>.txt`. Each file is replaced whole. A change is in the journal, on the disk, before the first file is
touched: what a kill leaves half done, the next one who opens the set finishes, so that a bulk change is done wholly or not at
all. What the system refuses to write waits, and keeps nothing else from being changed. Whoever changes a caption says what text
was seen; if another has written meanwhile, nothing is lost and both are told.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lora_trainer.dataset.captions import SIDECAR_SUFFIXES, Source, merge_sources, read_sources
from lora_trainer.dataset.journal import KEPT_FOLDER, Change, Journal, next_to_redo, next_to_undo
from lora_trainer.dataset.scan import list_files, picture_names
from lora_trainer.dataset.table_writing import edit_table
from lora_trainer.dataset.tables import NameIndex, clean_caption, read_table, read_text
from lora_trainer.errors import DatasetError, Problem
from lora_trainer.files import TEMPORARY_SUFFIX, leftover_mark, replace_file, temporary_for


@dataclass(frozen=True)
class Conflict:
    """A caption that was not changed.

    Attributes:
        name: of the picture.
        seen: the text that it was to be changed from.
        wanted: the text that it was to be changed to.
        current: the text that stands there; None when the picture is gone.
        reason: for the user.
    """

    name: str
    seen: str
    wanted: str
    current: str | None
    reason: str


@dataclass(frozen=True)
class SaveResult:
    """What became of a change.

    Attributes:
        change: its number in the journal, None when nothing had to be changed.
        saved: the captions that are others now, by picture.
        conflicts: those that were left as they are.
    """

    change: int | None = None
    saved: dict[str, str] = field(default_factory=dict)
    conflicts: tuple[Conflict, ...] = ()


@dataclass(frozen=True)
class Version:
    """A caption as it was once: its text after a change, the change's title, and when that was, in seconds since 1970."""

    text: str
    title: str
    time: float


@dataclass(frozen=True)
class CaptionSet:
    """The captions of a set at one moment.

    Attributes:
        captions: of all pictures, sorted by name; "" where there is none.
        problems: what is doubtful about them.
    """

    captions: dict[str, str]
    problems: tuple[Problem, ...]


class CaptionStore:
    """The captions of one folder. Building it touches nothing. Safe to be used by several threads and processes.

    Args:
        folder: the data set.
        metadata_path: a table that counts before all other captions, as in a training's settings.
    """

    def __init__(self, folder: Path, metadata_path: Path | None = None) -> None:
        self.folder, self._metadata_path = folder, metadata_path
        self._journal = Journal(folder / KEPT_FOLDER / "captions.jsonl")

    def read(self) -> CaptionSet:
        """Returns all captions as training would read them. A change that was interrupted is finished first, if it can be.

        Raises:
            DatasetError: the folder or the chosen table cannot be read.
        """
        problems = []
        if self._journal.unfinished():
            try:
                with self._journal.locked():
                    self._finish_interrupted()
            except DatasetError as error:
                problems.append(Problem("", f"the last change was interrupted, and cannot be finished: {error}", "warning"))
        listing = self._list()
        return CaptionSet(listing.captions, (*problems, *listing.problems))

    def save(self, name: str, text: str, *, seen: str, title: str = "edited") -> SaveResult:
        """Changes one caption, as `save_all` does."""
        return self.save_all({name: text}, {name: seen}, title=title)

    def save_all(
        self,
        wanted: Mapping[str, str],
        seen: Mapping[str, str] | None,
        *,
        title: str,
        change: int | None = None,
        run: str = "",
    ) -> SaveResult:
        """Changes captions. Those that are not as they were seen are left, and told in the result.

        Args:
            wanted: the new captions by picture; "" takes one away.
            seen: what the captions were when the change was decided on; None overwrites whatever is there.
            title: for the journal.
            change: the number of an earlier change that this one belongs to: a caption run saves each caption as it comes, and is
                taken back as one.
            run: the name of that run, see `unfinished_run`.

        Raises:
            DatasetError: a file cannot be read or written, and the message says which. No caption is lost.
        """
        return self._change(wanted, seen, title=title, change=change, run=run)

    def unfinished_run(self, run: str) -> Change | None:
        """Returns what a caption run has written so far, where it did not come to its end and was not taken back; else None.

        Args:
            run: its name; whoever goes on with it gives that, and the number of this change, to `save_all`.
        """
        return self._journal.unfinished_run(run)

    def end_run(self, run: str) -> None:
        """Tells that a caption run came to its end: the same once more is a new one."""
        with self._journal.locked():
            self._journal.end_run(run)

    def runs(self) -> list[Change]:
        """Returns what the caption runs of this set wrote, the latest first."""
        return [change for change in self.history() if change.run]

    def restore(self, change: int) -> SaveResult:
        """Brings back the captions as one change left them, whatever was done since; the others stay.

        Raises:
            DatasetError: as `revert`.
        """
        found = self._find(change)
        wanted = {name: after for name, (_, after) in found.values.items()}
        present = self._list().captions
        return self._change(
            {name: text for name, text in wanted.items() if name in present}, None, title=f"captions as after: {found.title}"
        )

    def undo(self) -> SaveResult:
        """Takes back the latest change that counts, this window's or another's; captions changed since by other programs stay."""
        return self._revert(next_to_undo(self._journal.changes()), "undo: {}")

    def redo(self) -> SaveResult:
        """Takes back the latest undo."""
        return self._revert(next_to_redo(self._journal.changes()), "redo: {}")

    def revert(self, change: int) -> SaveResult:
        """Takes back one change, where its captions are still as it left them.

        Raises:
            DatasetError: the journal has no such change; else as `save_all`.
        """
        return self._revert(self._find(change), "undo: {}")

    def history(self) -> list[Change]:
        """Returns all changes, the latest first."""
        return self._journal.changes()[::-1]

    def versions(self, name: str) -> list[Version]:
        """Returns what a caption has been, the latest first. To restore one, save its text."""
        return self.versions_of([name])[name]

    def versions_of(self, names: Iterable[str]) -> dict[str, list[Version]]:
        """Returns `versions` of several captions."""
        found: dict[str, list[Version]] = {name: [] for name in names}
        for change in self._journal.changes():
            for name in found.keys() & change.values.keys():
                before, after = change.values[name]
                if not found[name]:
                    found[name].append(Version(before, "before the first change", change.time))
                found[name].append(Version(after, change.title, change.time))
        return {name: versions[::-1] for name, versions in found.items()}

    def undoable(self) -> Change | None:
        """Returns the change that `undo` would take back."""
        return next_to_undo(self._journal.changes())

    def redoable(self) -> Change | None:
        """Returns the undo that `redo` would take back."""
        return next_to_redo(self._journal.changes())

    def take_table(self, path: Path, *, title: str = "") -> SaveResult:
        """Takes the captions of a table, such as an edited copy, or the record that a run keeps (`RunFolder.captions_path`).

        Rows that name no picture of this set, and pictures without a row, are left alone.

        Args:
            path: of a `.csv` or `.jsonl` file anywhere.
            title: for the journal; by default it names the file.

        Raises:
            DatasetError: the table cannot be read; else as `save_all`.
        """
        index = NameIndex(picture_names(list_files(self.folder)))
        wanted: dict[str, str] = {}
        ranks: dict[str, int] = {}
        for row in read_table(path).rows:
            rank, fits = index.find(row.name)
            if len(fits) == 1 and rank < ranks.get(fits[0], 99):
                wanted[fits[0]], ranks[fits[0]] = row.caption, rank
        return self.save_all(wanted, None, title=title or f"captions of {path.name}")

    def _find(self, change: int) -> Change:
        found = next((known for known in self._journal.changes() if known.id == change), None)
        if found is None:
            raise DatasetError(f"the captions of {self.folder} have no change {change}. Choose one of the history.")
        return found

    def _revert(self, change: Change | None, title: str) -> SaveResult:
        if change is None:
            return SaveResult()
        inverse = change.inverse()
        wanted = {name: after for name, (_, after) in inverse.items()}
        seen = {name: before for name, (before, _) in inverse.items()}
        bare = change.title.removeprefix("undo: ").removeprefix("redo: ")
        return self._change(wanted, seen, title=title.format(bare), reverts=change.id)

    def _change(
        self,
        wanted: Mapping[str, str],
        seen: Mapping[str, str] | None,
        *,
        title: str,
        change: int | None = None,
        reverts: int | None = None,
        run: str = "",
    ) -> SaveResult:
        with self._journal.locked():
            with suppress(DatasetError):  # `read` tells of it
                self._finish_interrupted()
            listing = self._list()
            values, conflicts = listing.compare(wanted, seen)
            if not values and (reverts is None or conflicts):
                return SaveResult(change, {}, tuple(conflicts))
            texts = {name: after for name, (_, after) in values.items()}
            contents = listing.contents(texts)
            number = self._journal.begin(title, values, change=change, reverts=reverts, run=run)
            for path, data in contents.items():
                _replace(path, data)
            self._journal.finish(left=self._journal.unfinished().keys() - wanted.keys() - values.keys())
            return SaveResult(number, texts, tuple(conflicts))

    def _finish_interrupted(self) -> None:
        """Writes what a change would have written had it not been killed or refused; captions that others wrote since stay.

        Raises:
            DatasetError: it is refused still.
        """
        values = self._journal.unfinished()
        if not values:
            return
        listing = self._list()
        texts = {name: after for name, (before, after) in values.items() if listing.captions.get(name) in (before, after)}
        contents = listing.contents(texts)
        _remove_leftovers(contents)
        for path, data in contents.items():
            _replace(path, data)
        self._journal.finish()

    def _list(self) -> _Listing:
        files = list_files(self.folder)
        names = picture_names(files)
        sources, problems = read_sources(self.folder, names, files, self._metadata_path)
        merged = merge_sources(names, sources)
        captions = {name: merged.by_name.get(name, "") for name in names}
        return _Listing(self.folder, self._metadata_path, captions, sources, [*problems, *merged.problems])


@dataclass(frozen=True)
class _Listing:
    """What was found in the folder, while it is locked."""

    folder: Path
    metadata_path: Path | None
    captions: dict[str, str]
    sources: list[Source]
    problems: list[Problem]

    def compare(
        self, wanted: Mapping[str, str], seen: Mapping[str, str] | None
    ) -> tuple[dict[str, tuple[str, str]], list[Conflict]]:
        """Returns before and after of the captions that may be changed, and those that may not."""
        values: dict[str, tuple[str, str]] = {}
        conflicts = []
        for name, text in wanted.items():
            before, after = self.captions.get(name), clean_caption(text)
            saw = before or "" if seen is None else clean_caption(seen.get(name, ""))
            if before is None:
                conflicts.append(Conflict(name, saw, after, None, "the picture is not in the set any more"))
            elif before == after:
                continue
            elif before != saw:
                conflicts.append(Conflict(name, saw, after, before, "the caption was changed elsewhere meanwhile"))
            else:
                values[name] = (before, after)
        return self._with_sharers(values, conflicts), conflicts

    def _with_sharers(self, values: dict[str, tuple[str, str]], conflicts: list[Conflict]) -> dict[str, tuple[str, str]]:
        """Adds the pictures that share a caption file with one of these; of two that want different texts the first gets it."""
        users: dict[Path, list[str]] = {}
        for name in self.captions:
            for path in self._places(name):
                if path.suffix.lower() in SIDECAR_SUFFIXES:
                    users.setdefault(path, []).append(name)
        together: dict[str, tuple[str, str]] = {}
        for names in users.values():
            wanting = [name for name in values if name in names] if len(names) > 1 else []
            if wanting:
                _, after = values[wanting[0]]
                for name in wanting[1:]:
                    if values[name][1] != after:
                        reason = f"it shares its caption file with {wanting[0]}; rename one of the pictures"
                        conflicts.append(Conflict(name, values[name][0], values[name][1], values[name][0], reason))
                together |= {name: (self.captions[name], after) for name in names}
        return values | together

    def contents(self, texts: Mapping[str, str]) -> dict[Path, bytes]:
        """Returns what each file has to hold, so that the pictures have these captions."""
        sidecars: dict[Path, str] = {}
        tables: dict[Path, dict[str, str]] = {}
        for name, text in texts.items():
            for path in self._places(name):
                if path.suffix.lower() in SIDECAR_SUFFIXES:
                    sidecars[path] = text
                else:
                    tables.setdefault(path, {})[name] = text
        contents = {path: self._table(path, captions) for path, captions in tables.items()}
        seen = {source.paths[name] for source in self.sources for name, text in source.captions.items() if text}
        for path in (*tables, *sidecars):
            if not os.access(path, os.W_OK) and path.exists():
                raise DatasetError(f"{path} is write-protected, so nothing was changed. Allow writing, or copy the set.")
        for path, text in sidecars.items():
            if path not in seen and path.exists():
                read_text(path)  # one in an unknown encoding may hold a text that the editor never saw
            contents[path] = f"{text}\n".encode() if text else b""
        return contents

    def _places(self, name: str) -> list[Path]:
        """Returns the files that a caption is to be written to."""
        places = [source.paths[name] for source in self.sources if name in source.paths]
        if places:
            return places
        if self.metadata_path is not None:
            return [self.metadata_path]
        picture = self.folder / name
        tables = [table for source in self.sources for table in source.tables if table.parent in picture.parents]
        return [max(tables, key=lambda table: len(table.parts), default=picture.with_suffix(SIDECAR_SUFFIXES[0]))]

    def _table(self, path: Path, captions: dict[str, str]) -> bytes:
        """Returns a table's new content; rows are told apart as `read_captions` does."""
        prefix = "" if path == self.metadata_path else f"{path.parent.relative_to(self.folder).as_posix()}/".removeprefix("./")
        index = NameIndex(name.removeprefix(prefix) for name in self.captions if name.startswith(prefix))
        changed: dict[int, str] = {}
        found = set()
        for number, row in enumerate(read_table(path).rows):
            _, fits = index.find(row.name)
            if len(fits) == 1 and prefix + fits[0] in captions:
                found.add(prefix + fits[0])
                changed[number] = captions[prefix + fits[0]]
        added = {name.removeprefix(prefix): text for name, text in captions.items() if name not in found}
        return edit_table(path, changed, added)


def _replace(path: Path, data: bytes) -> None:
    """Replaces a file whole, without waiting for the disk: a thousand times takes seconds. The journal outlives a power cut."""
    temporary = temporary_for(path)
    try:
        temporary.write_bytes(data)
        written = replace_file(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DatasetError(_unfinished(path, error.strerror or str(error))) from error
    if written != path:
        written.unlink(missing_ok=True)
        raise DatasetError(_unfinished(path, "another program has it open"))


def _remove_leftovers(paths: Iterable[Path]) -> None:
    """Removes the temporary files of those who were killed while they wrote these files."""
    by_folder: dict[Path, set[str]] = {}
    for path in paths:
        by_folder.setdefault(path.parent, set()).add(path.name)
    for folder, names in by_folder.items():
        marks = tuple(map(leftover_mark, names))
        for path in folder.iterdir():
            if path.name.startswith(marks) and path.name.endswith(TEMPORARY_SUFFIX):
                with suppress(OSError):  # it harms nobody, as a scan does not see it
                    path.unlink()


def _unfinished(path: Path, reason: str) -> str:
    return (
        f"{path} cannot be written: {reason}. The change is in the journal: it is finished at the next one when this is mended, "
        "or taken back by undo. Other pictures' captions can be changed meanwhile."
    )
