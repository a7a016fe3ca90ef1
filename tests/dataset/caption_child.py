"""Run by test_caption_store.py in a process of its own: changes captions, and kills itself at the n-th touch of a file.

The audit hook sees every opening, renaming and deleting, so the kill lands in the journal, between files and within them.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from lora_trainer.captioning.places import StorePlace
from lora_trainer.captioning.wording import Wording
from lora_trainer.dataset.bulk import add_tags, preview
from lora_trainer.dataset.caption_store import CaptionStore

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.scandir")


def caption_run(store: CaptionStore) -> None:
    """Captions what has none, one by one, as a captioner does."""
    change = None
    for name, text in store.read().captions.items():
        if not text:
            change = store.save_all({name: f"a picture called {name}"}, {name: ""}, title="captioned", change=change).change


def append_run(store: CaptionStore) -> None:
    """Appends to all, two by two, as the job and the command do; started again it goes on."""

    def emit(kind: str, **data: object) -> None:
        raise AssertionError(data)

    place = StorePlace(store, Wording("append", trigger="shuimo"), title="captioned", run="run 1", emit=emit)
    names = [name for name in store.read().captions if name not in place.kept]
    for start in range(0, len(names), 2):
        place.save({name: f"a picture called {name}" for name in names[start : start + 2]})
    place.end()


def bulk_change(store: CaptionStore) -> None:
    found = preview(store.read().captions, add_tags(["水墨 🎨"]))
    store.save_all(found.wanted, found.seen, title="add a tag")


def main(folder: str, kind: str, kill_at: int) -> None:
    """Prints how often files below `folder` were touched."""
    touched = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal touched
        if event in EVENTS and str(arguments[0]).startswith(folder):
            touched += 1
            if touched == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    {"run": caption_run, "append": append_run, "bulk": bulk_change}[kind](CaptionStore(Path(folder)))
    print(touched)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
