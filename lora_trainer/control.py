"""What the outside may ask of a running training: stop, pause, save now, sample now.

The loop reads it between steps; any thread or signal handler may set it.
"""

from __future__ import annotations

import threading

COMMANDS = ("stop", "pause", "continue", "save", "sample")


class TrainControl:
    """Requests to a running training. Setting one is safe from any thread and from a signal handler."""

    def __init__(self) -> None:
        self._requests = {name: threading.Event() for name in ("stop", "pause", "save", "sample")}

    def request(self, command: str) -> None:
        """Asks for one of `COMMANDS`; "continue" takes a pause back.

        Raises:
            ValueError: the command is none of them.
        """
        if command == "continue":
            self._requests["pause"].clear()
        elif command in self._requests:
            self._requests[command].set()
        else:
            raise ValueError(f"command {command!r} is unknown; allowed: {', '.join(COMMANDS)}.")

    def is_requested(self, command: str) -> bool:
        """Whether it was asked for and not yet taken."""
        return self._requests[command].is_set()

    def take(self, command: str) -> bool:
        """Returns whether it was asked for, and forgets the request."""
        was_set = self._requests[command].is_set()
        self._requests[command].clear()
        return was_set
