"""Where a caption run saves: in the captions of the set, with its journal, or in a table elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from lora_trainer.captioning.run import TableFile, captions_to_keep
from lora_trainer.captioning.wording import Wording
from lora_trainer.dataset.caption_store import CaptionStore, SaveResult
from lora_trainer.events import Emit


class Place(Protocol):
    """Takes what a captioner wrote, and makes captions of it.

    Attributes:
        kept: captions that the run leaves alone, by picture.
    """

    kept: Mapping[str, str]

    def save(self, written: Mapping[str, str]) -> None:
        """Saves captions by picture; they are safe when it returns."""

    def end(self) -> None:
        """Is told that the run came to its end."""


class StorePlace:
    """The captions of a set. The run is one change of its journal, which can be taken back and brought back.

    A run of the same name that did not come to its end is gone on with: what it wrote is not written a second time.

    Args:
        store: of the set.
        wording: how captions are made.
        title: for the journal.
        run: the name of the run.
        emit: is told of captions that could not be saved.

    Raises:
        DatasetError: the set cannot be read.
    """

    def __init__(self, store: CaptionStore, wording: Wording, *, title: str, run: str, emit: Emit) -> None:
        self._store, self._wording, self._title, self._run, self._emit = store, wording, title, run, emit
        self._present = store.read().captions
        begun = store.unfinished_run(run)
        self._change = begun.id if begun else None
        done = begun.values if begun else {}
        keeps = wording.mode == "missing"
        self.kept: Mapping[str, str] = {name: text for name, text in self._present.items() if name in done or (keeps and text)}

    def save(self, written: Mapping[str, str]) -> None:
        result = self._save(written)
        for conflict in result.conflicts:
            if conflict.current is None or conflict.current == conflict.seen:  # gone, or it shares its file with another
                self._emit("warning", message=f"{conflict.name}: {conflict.reason}.")
        if self._wording.mode in ("prepend", "append"):  # put to what was written meanwhile
            changed = {one.name: one.current for one in result.conflicts if one.current not in (None, one.seen)}
            if changed:
                self._present |= {name: text or "" for name, text in changed.items()}
                self._save({name: written[name] for name in changed})

    def end(self) -> None:
        if self._change is not None:
            self._store.end_run(self._run)

    def _save(self, written: Mapping[str, str]) -> SaveResult:
        present = {name: self._present.get(name, "") for name in written}
        wanted = {name: self._wording.compose(text, present[name]) for name, text in written.items()}
        # One that the user wrote or changed meanwhile stays, unless all are to be written anew.
        seen = None if self._wording.mode == "overwrite" else present
        result = self._store.save_all(wanted, seen, title=self._title, change=self._change, run=self._run)
        self._change = result.change
        return result


class TablePlace:
    """A table, in the set or elsewhere.

    Args:
        table: the file.
        folder: the set, whose own captions are the ones that are there while the table does not exist.
        wording: how captions are made.

    Raises:
        DatasetError: the folder or the table cannot be read.
    """

    def __init__(self, table: TableFile, folder: Path, wording: Wording) -> None:
        self._table, self._wording = table, wording
        self._present = captions_to_keep(folder, "missing", table.path)
        self.kept: Mapping[str, str] = self._present if wording.mode == "missing" else {}

    def save(self, written: Mapping[str, str]) -> None:
        self._table.save({name: self._wording.compose(text, self._present.get(name, "")) for name, text in written.items()})

    def end(self) -> None:
        """A table has no journal."""
