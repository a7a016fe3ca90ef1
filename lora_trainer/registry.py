"""Tables of things that can be chosen by name: model families, adapters, optimizers, schedules, captioners.

An entry is light: name, label, help. What it stands for is named as "module:attribute" and imported by `load()`, so that
listing a table imports no heavy library.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One line of a table.

    Attributes:
        name: the word used in YAML.
        label: the words shown to people.
        help: one sentence: what it is and when to take it.
        target: "package.module:attribute", imported by `load`.
        package: the optional pip package it needs, or "".
        options: light facts about the entry that callers read without loading it.
    """

    name: str
    label: str
    help: str
    target: str
    package: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def load(self) -> Any:
        """Imports and returns the object that `target` names."""
        module, _, attribute = self.target.partition(":")
        return getattr(importlib.import_module(module), attribute)


class Registry:
    """A table of entries by name.

    Args:
        kind: what an entry is, in the singular, for messages ("optimizer").
        entries: the lines of the table, in the order shown to people.
    """

    def __init__(self, kind: str, entries: tuple[Entry, ...]) -> None:
        self.kind = kind
        self._entries = {entry.name: entry for entry in entries}

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def get(self, name: str) -> Entry:
        """Returns the entry of that name.

        Raises:
            KeyError: no such entry; the message lists the names and the nearest one.
        """
        if name not in self._entries:
            raise KeyError(
                f"{self.kind} {name!r} does not exist{did_you_mean(name, self.names())} Known: {', '.join(self.names())}."
            )
        return self._entries[name]


def did_you_mean(word: str, known: tuple[str, ...]) -> str:
    """Returns "; did you mean 'x'?" for the nearest of the known words, or "." when none is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else "."
