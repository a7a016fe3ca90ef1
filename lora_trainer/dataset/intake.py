"""One drop on a set: what becomes of each file, and which caption goes to which picture.

Captions are written last and together, by the set's store, so that those they replace are in its journal.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lora_trainer.dataset.caption_store import CaptionStore
from lora_trainer.dataset.places import folded_stem, free_name, move_aside
from lora_trainer.dataset.table_writing import edit_table
from lora_trainer.dataset.tables import TABLE_SUFFIXES, NameIndex, clean_caption, read_table
from lora_trainer.dataset.uploads import AddResult, Found, judge, read_caption, read_rows
from lora_trainer.errors import DatasetError, examples
from lora_trainer.files import replace_file, write_bytes, write_whole

_NUM_THREADS = 4  # each holds one decoded picture; Pillow decodes without Python's lock
_HASH_CHUNK = 1 << 20


@dataclass
class Intake:
    """Takes up files into the set in `folder`; one object for one drop.

    Attributes:
        before: its captions before the drop, by picture.
        names: its pictures.
        by_size, digests: its pictures by their number of bytes, and a hash of those that were compared.
        results: by the place of the file; filled in any order.
        placed: the pictures of this drop by origin and the name that they were dropped under.
        duplicates: pictures of the set that came again under another name: by origin and that name.
        wanted: the new captions, by picture.
        table_was_kept: whether a whole table was taken up.
    """

    folder: Path
    before: dict[str, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    by_size: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    digests: dict[str, bytes] = field(default_factory=dict)
    results: dict[int, AddResult] = field(default_factory=dict)
    placed: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    duplicates: set[tuple[str, str]] = field(default_factory=set)
    wanted: dict[str, str] = field(default_factory=dict)
    table_was_kept: bool = False

    def take(self, drops: Iterable[Iterator[Found | AddResult]]) -> list[AddResult]:
        """Takes up what was dropped and returns what became of each file, in the order given."""
        self.before = CaptionStore(self.folder).read().captions
        self.names = list(self.before)
        for name in self.names:
            self.by_size[(self.folder / name).stat().st_size].append(name)
        found = [entry for drop in drops for entry in drop]
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            judged = list(pool.map(lambda entry: judge(entry) if isinstance(entry, Found) else entry, found))
        files: dict[str | None, list[tuple[int, Found]]] = defaultdict(list)
        for place, entry in enumerate(judged):
            if isinstance(entry, AddResult):
                self.results[place] = entry
            else:
                files[entry.kind].append((place, entry))
        # Captions need their pictures; a file of a caption counts before a row of a table, as in a set.
        for place, entry in files["picture"]:
            self.results[place] = self._take_picture(entry)
        for place, entry in files["caption"]:
            self.results[place] = self._take_caption(entry)
        sidecars = set(self.wanted)
        for place, entry in files["table"]:
            self.results[place] = self._take_table(entry, sidecars)
        self._save_captions([*files["caption"], *files["table"]])
        return [self.results[place] for place in range(len(judged))]

    def _take_picture(self, found: Found) -> AddResult:
        known = self._same_content(found.path)
        if known is not None:
            self.placed[found.origin][found.name] = known
            if folded_stem(known) != folded_stem(found.name):
                self.duplicates.add((found.origin, found.name))
            return AddResult(found.label, "skipped", f"{known} is the same picture.")
        name = free_name(self.folder, found.name, self.names)
        size, digest = found.path.stat().st_size, self.digests.pop(str(found.path))
        refusal = self._store(found, name)
        if refusal is not None:
            return refusal
        self.placed[found.origin][found.name] = name
        self.names.append(name)
        self.by_size[size].append(name)
        self.digests[name] = digest
        is_renamed = folded_stem(name) != folded_stem(found.name)
        return AddResult(found.label, "added", f"as {name}: there is another {found.name} already." if is_renamed else "")

    def _take_caption(self, found: Found) -> AddResult:
        caption = clean_caption(read_caption(found.path))
        if not caption:
            return AddResult(found.label, "skipped", "it is empty.")
        pictures = self._pictures_of(found)
        if not pictures:
            return self._keep_for_later(found, caption)
        names = examples(list(pictures))
        outcomes = {self._want(picture, caption, is_duplicate) for picture, is_duplicate in pictures.items()}
        if "replaced" in outcomes:
            return AddResult(found.label, "replaced", f"the caption of {names}; the old one is in the history.")
        if "added" in outcomes:
            is_plain = all(folded_stem(name) == folded_stem(found.name) for name in pictures)
            return AddResult(found.label, "added", "" if is_plain else f"to {names}.")
        if "kept" in outcomes:
            return AddResult(found.label, "skipped", f"{names} has another caption, which stays.")
        return AddResult(found.label, "skipped", f"{names} has this caption already.")

    def _take_table(self, found: Found, sidecars: set[str]) -> AddResult:
        table = read_rows(found.path, found.name)
        dropped = self.placed[found.origin]
        in_drop, in_set = NameIndex(dropped), NameIndex(self.names)
        later: dict[str, str] = {}
        counts: dict[str, int] = defaultdict(int)
        for row in table.rows:
            if not row.caption:
                continue
            pictures = {dropped[name]: (found.origin, name) in self.duplicates for name in in_drop.find(row.name)[1]}
            pictures = pictures or dict.fromkeys(in_set.find(row.name)[1], False)
            if len(pictures) != 1:
                later[row.name] = row.caption
                counts["ambiguous" if pictures else "later"] += 1
                continue
            ((picture, is_duplicate),) = pictures.items()
            counts["file" if picture in sidecars else self._want(picture, row.caption, is_duplicate)] += 1
        message = _describe_rows(counts, table.faults)
        if later and not self._keep_rows(found, later):
            message += f" Not kept: {examples(list(later))}."
        is_new = counts["added"] or later
        return AddResult(found.label, "replaced" if counts["replaced"] else "added" if is_new else "skipped", message)

    def _want(self, picture: str, caption: str, is_duplicate: bool) -> str:
        """Notes a caption. Returns "added", "replaced", "same" where it is there already, or "kept" where another one stays:
        that of a picture which only came again under another name, or one of the same drop."""
        old = self.wanted.get(picture, self.before.get(picture, ""))
        if old == caption:
            return "same"
        if old and (is_duplicate or picture in self.wanted):
            return "kept"
        self.wanted[picture] = caption
        return "replaced" if old else "added"

    def _pictures_of(self, found: Found) -> dict[str, bool]:
        """Returns the pictures of a caption file's stem, of the same drop or else of the set, and whether each is a duplicate."""
        stem = folded_stem(found.name)
        dropped = {
            stored: (found.origin, name) in self.duplicates
            for name, stored in self.placed[found.origin].items()
            if folded_stem(name) == stem
        }
        return dropped or {name: False for name in self.names if folded_stem(name) == stem}

    def _keep_for_later(self, found: Found, caption: str) -> AddResult:
        target = self.folder / found.name
        if target.exists():
            if clean_caption(read_caption(target)) == caption:
                return AddResult(found.label, "skipped", "it is there already.")
            move_aside(self.folder, found.name)
        message = "no picture has this name yet; it is kept for when one comes."
        return self._store(found, found.name) or AddResult(found.label, "added", message)

    def _keep_rows(self, found: Found, rows: dict[str, str]) -> bool:
        """Keeps rows of pictures that are not there yet, in the set's table; returns whether it could."""
        parent = PurePosixPath(found.name).parent
        known = [parent / f"metadata{suffix}" for suffix in (PurePosixPath(found.name).suffix.lower(), *TABLE_SUFFIXES)]
        path = next((self.folder / name for name in known if (self.folder / name).exists()), None)
        if path is None:
            self.table_was_kept = self._store(found, str(known[0])) is None
            return self.table_was_kept
        try:
            there = {row.name for row in read_table(path).rows}
            write_bytes(path, edit_table(path, {}, {name: text for name, text in rows.items() if name not in there}))
        except (DatasetError, OSError):
            return False
        return True

    def _save_captions(self, sources: list[tuple[int, Found]]) -> None:
        """Writes the new captions, and the old ones again where a table that was kept for its other rows changed them."""
        store = CaptionStore(self.folder)
        try:
            if self.table_was_kept:
                now = store.read().captions
                self.wanted = {name: self.before.get(name, "") for name in now if now[name]} | self.wanted
            if self.wanted:
                store.save_all(self.wanted, None, title="uploaded")
        except DatasetError as error:
            for place, found in sources:
                if self.results[place].status in ("added", "replaced"):
                    self.results[place] = AddResult(found.label, "refused", str(error))

    def _same_content(self, path: Path) -> str | None:
        """Returns the picture of the set with the same bytes."""
        digest = self.digests[str(path)] = _digest(path)
        for name in self.by_size[path.stat().st_size]:
            if name not in self.digests:
                self.digests[name] = _digest(self.folder / name)
            if self.digests[name] == digest:
                return name
        return None

    def _store(self, found: Found, name: str) -> AddResult | None:
        """Puts a file into the set; returns why it could not be."""
        target = self.folder / name
        try:
            if not target.parent.resolve().is_relative_to(self.folder.resolve()):
                where = PurePosixPath(name).parent
                return AddResult(found.label, "refused", f"{where} is a link that leads out of the data set.")
            target.parent.mkdir(parents=True, exist_ok=True)
            if found.is_ours:
                replace_file(found.path, target)
            else:
                write_whole(target, lambda temporary: shutil.copyfile(found.path, temporary))
        except OSError as error:
            return AddResult(found.label, "refused", f"it cannot be written: {error.strerror or error}.")
        return None


def _describe_rows(counts: dict[str, int], faults: Sequence[str]) -> str:
    words = {
        "added": "{} captions added",
        "replaced": "{} replaced, the old ones are in the history",
        "same": "{} were there already",
        "kept": "{} not taken, since the picture has another one",
        "file": "{} not taken, since the picture's own file came with it",
        "later": "{} name no picture yet and are kept for when one comes",
        "ambiguous": "{} fit several pictures",
    }
    parts = [text.format(counts[key]) for key, text in words.items() if counts[key]]
    if faults:
        parts.append(f"{len(faults)} rows could not be read ({faults[0]})")
    return f"{'; '.join(parts)}." if parts else "its captions are empty."


def _digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.digest()
