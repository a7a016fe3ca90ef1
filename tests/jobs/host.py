"""A host in a folder: a real, small one. It counts who has the device, and can be told that its owner waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from lora_trainer.errors import LoraTrainerError
from lora_trainer.host.base import Folders, HostOptions, Lease, ModelFile, wait_while


class FolderHost:
    name, title, has_pipeline = "standalone", "folder 1.0", False

    def __init__(self, root: Path, *, models: Sequence[ModelFile] = (), second: bool = False, save_steps: int | None = None):
        self.root, self.models = root, models
        self.second_lora_dir = root / "second" if second else None
        self.save_steps = save_steps
        self.history: list[str] = []
        self.num_borrowers = 0
        self.on_wait: Callable[[], None] | None = None
        self.on_step: dict[int, Callable[[], object]] = {}
        self.thread_names: set[str] = set()

    def folders(self) -> Folders:
        return Folders(self.root / "data", self.root / "models" / "Lora", self.second_lora_dir)

    def options(self) -> HostOptions:
        return HostOptions(save_steps=self.save_steps)

    def checkpoints(self) -> Sequence[ModelFile]:
        return self.models

    def vaes(self) -> Sequence[ModelFile]:
        return []

    @contextmanager
    def borrow_device(self, title: str) -> Iterator[Lease]:
        self.num_borrowers += 1
        assert self.num_borrowers == 1, "two jobs have the device"
        self.history.append(f"lent for {title}")
        try:
            yield FolderLease(self)
        finally:
            self.num_borrowers -= 1
            self.history.append("given back")

    def clip(self) -> Any:
        return None

    def has_captioner(self) -> bool:
        return False

    def captioner(self) -> Any:
        raise LoraTrainerError("this host describes nothing.")

    def lora_changed(self, path: Path) -> None:
        self.history.append(f"new file {path.name}")

    def lora_read_at(self, path: Path) -> float | None:
        return None

    def generate(self, prompt: str, **settings: Any) -> Any:
        raise LoraTrainerError("this host draws nothing.")


class FolderLease:
    """While `on_wait` is set, the owner wants the device between two steps; it is called while he has it.

    What `on_step` holds for a number of steps is called when so many are done, in the thread that trains.
    """

    def __init__(self, host: FolderHost) -> None:
        self._host = host

    def building(self) -> AbstractContextManager[None]:
        return nullcontext()

    def is_waited_for(self) -> bool:
        return self._host.on_wait is not None

    def claim(self) -> bool:
        return False

    def give_way(self, away: Callable[[], None], back: Callable[[], None], *, is_paused: Callable[[], bool]) -> None:
        if self._host.on_wait is None and not is_paused():
            return
        away()
        if self._host.on_wait is not None:
            self._host.on_wait()
            self._host.on_wait = None
        wait_while(is_paused)
        back()

    def show(self, done: int, total: int) -> None:
        self._host.thread_names.add(threading.current_thread().name)
        self._host.on_step.pop(done, lambda: None)()
