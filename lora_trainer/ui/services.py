"""What the page works with. Whoever starts it, a WebUI's tab or the stand-alone program, makes these."""

from __future__ import annotations

from dataclasses import dataclass

from lora_trainer.dataset.library import DatasetLibrary
from lora_trainer.host.base import Host
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

    @property
    def is_standalone(self) -> bool:
        """Whether there is no WebUI around the page, whose prompt could be filled in."""
        return self.host.name == "standalone"
