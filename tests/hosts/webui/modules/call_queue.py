"""The lock under which everything generates: first come, first served, and handed over late.

It cannot be nested and has no timeout. `release` only wakes the first who waits, who takes the lock `late_seconds` later; until
then it is anybody's.
"""

from __future__ import annotations

import threading
import time
from collections import deque


class FIFOLock:
    late_seconds = 0.15

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inner_lock = threading.Lock()
        self._pending_threads: deque[threading.Event] = deque()

    def acquire(self) -> bool:
        with self._inner_lock:
            if self._lock.acquire(blocking=False):
                return True
            woken = threading.Event()
            self._pending_threads.append(woken)
        woken.wait()
        time.sleep(self.late_seconds)
        return self._lock.acquire()

    def release(self) -> None:
        with self._inner_lock:
            if self._pending_threads:
                self._pending_threads.popleft().set()
            self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


queue_lock = FIFOLock()
