"""What the outside may ask of a running training: stop, stop without saving (discard), pause, save now, sample now.

The loop reads it between steps; any thread or signal handler may set it.
"""

from __future__ import annotations

import threading

COMMANDS = ("stop", "discard", "pause", "continue", "save", "sample")


class TrainControl:
    """Requests to a running training. Setting one is safe from any thread and from a signal handler."""

    def __init__(self) -> None:
        self._requests = {name: threading.Event() for name in COMMANDS if name != "continue"}

    def request(self, command: str) -> None:
        """Asks for one of `COMMANDS`; "continue" takes a pause back, "discard" is a "stop" that keeps the last save.

        Raises:
            ValueError: the command is none of them.
        """
        if command == "continue":
            self._requests["pause"].clear()
        elif command in self._requests:
            self._requests[command].set()
            if command == "discard":  # only now, so that who sees the stop sees this too
                self._requests["stop"].set()
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
