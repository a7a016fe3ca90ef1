"""What the page works with. Whoever starts it, a WebUI's tab or the stand-alone program, makes these."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_trainer.dataset.library import DatasetLibrary
from lora_trainer.errors import DatasetError
from lora_trainer.host.base import Host
from lora_trainer.host.places import HINT, may_name, say_outside
from lora_trainer.jobs.queue import JobQueue


@dataclass(frozen=True)
class Services:
    """The services that handlers call.

    Attributes:
        host: where we live.
        queue: of jobs, with its one background thread.
        library: the named data sets.
    """

    host: Host
    queue: JobQueue
    library: DatasetLibrary

    def path_of(self, source: Any) -> Path | None:
        """Returns the folder of a data set's name or of a path; None for nothing."""
        text = str(source or "").strip()
        if not text:
            return None
        return self.library.path(text) if text in self.library.names() else Path(text).expanduser()

    def folder_of(self, source: Any) -> Path | None:
        """Returns the same, to look into it.

        Raises:
            DatasetError: the host lets nobody of its page name the folder.
        """
        folder = self.path_of(source)
        if folder is not None and not may_name(self.host, folder):
            why = f"{say_outside(folder)} {HINT}"
            raise DatasetError(f"The folder {why}")
        return folder

    def name_of(self, path: Any) -> str:
        """Returns the name of the data set that a folder is, else its path."""
        text = str(path or "").strip()
        return next((name for name in self.library.names() if text and self.library.path(name) == Path(text)), text)

    @property
    def is_standalone(self) -> bool:
        """Whether there is no WebUI around the page, whose prompt could be filled in."""
        return self.host.name == "standalone"
