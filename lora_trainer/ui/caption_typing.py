"""What was typed into captions, as the script of the page hands it over: saved once, in order, in the set that it belongs to.

The script sends all that it does not know to be saved, with a number that grows. The same message comes with every button of
the part, so that what was typed before a button was pressed is saved before the button does its work, and then once more by
itself, to be answered: a message that was dealt with already is only answered.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_trainer.dataset.caption_store import CaptionStore, SaveResult
from lora_trainer.dataset.tables import clean_caption
from lora_trainer.errors import DatasetError

MOST_WINDOWS = 100


@dataclass
class Typed:
    """What became of one message.

    Attributes:
        id: its number.
        wanted: the captions as they were typed, by folder and picture.
        results: by folder.
        failures: why those of a folder could not be saved, by folder; the script keeps them.
    """

    id: int = 0
    wanted: dict[str, dict[str, str]] = field(default_factory=dict)
    results: dict[str, SaveResult] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


class TypedCaptions:
    """Takes the script's messages. Safe to be used by several threads.

    Args:
        open_store: returns the captions of a folder that the page has shown or may show, None for any other.
    """

    def __init__(self, open_store: Callable[[str], CaptionStore | None]) -> None:
        self._open_store = open_store
        self._lock = threading.Lock()
        self._last: OrderedDict[str, Typed] = OrderedDict()

    def take(self, message: str | None) -> Typed:
        """Saves what a message holds, unless that or a later one of the same window was dealt with before.

        Args:
            message: `{"window": ..., "id": n, "sets": {folder: {picture: [text, seen, sent, ...]}}}`; "" for none. "sent" are
                texts that were sent before and are not known to be saved: any of them may stand there now.
        """
        asked: dict[str, Any] = json.loads(message) if message else {}
        if not asked:
            return Typed()
        window, number = str(asked["window"]), int(asked["id"])
        with self._lock:
            known = self._last.get(window)
            if known is not None and known.id >= number:
                return known
            typed = Typed(number)
            for folder, edits in asked["sets"].items():
                texts = {str(name): [clean_caption(str(text)) for text in chain] for name, chain in edits.items()}
                typed.wanted[folder] = {name: chain[0] for name, chain in texts.items()}
                try:
                    typed.results[folder] = self._save(folder, texts)
                except DatasetError as error:
                    typed.failures[folder] = str(error)
            self._last[window] = typed
            self._last.move_to_end(window)
            while len(self._last) > MOST_WINDOWS:
                self._last.popitem(last=False)
            return typed

    def _save(self, folder: str, texts: dict[str, list[str]]) -> SaveResult:
        store = self._open_store(folder)
        if store is None:
            raise DatasetError(f"Captions for {Path(folder).name} are not saved yet: choose that data set again.")
        present = store.read().captions
        seen = {name: present.get(name, "") if present.get(name) in before else before[0] for name, (_, *before) in texts.items()}
        title = f"edited {', '.join(texts)}" if len(texts) < 4 else "edited"
        return store.save_all({name: chain[0] for name, chain in texts.items()}, seen, title=title)
