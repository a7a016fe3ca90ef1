"""Moves models by itself; they are loaded again by the next generation."""

from __future__ import annotations

import threading

unloaded_in: list[str] = []


def unload_all_models() -> None:
    unloaded_in.append(threading.current_thread().name)
