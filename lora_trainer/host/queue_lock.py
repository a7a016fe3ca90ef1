"""The lock under which a WebUI generates, with what it lacks: nesting, who waits for it, and a fair hand-over.

The WebUI's `FIFOLock` sets the first waiter's event when it is released, and the waiter takes the lock when it wakes up. Whoever
releases and acquires at once overtakes it. So the lock is passed on by standing in its queue *before* releasing it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class QueueLock:
    """A WebUI's `queue_lock`, as seen by our threads, the worker's and the page's. A context manager that may be nested.

    Args:
        lock: `modules.call_queue.queue_lock`.
    """

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._owner: int | None = None
        self._depth = 0

    def __enter__(self) -> None:
        if not self.is_held():
            self._lock.acquire()
            self._owner = threading.get_ident()
        self._depth += 1

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._owner = None
            self._lock.release()

    def is_held(self) -> bool:
        """Whether the calling thread has it."""
        return self._owner == threading.get_ident()

    def is_waited_for(self) -> bool:
        """Whether another thread waits for it. Only the lock's private queue tells; where there is none, nobody ever waits."""
        return bool(getattr(self._lock, "_pending_threads", ()))

    @contextmanager
    def released(self) -> Iterator[None]:
        """Within it others may have the lock, however deeply we had it nested; afterwards it is ours again."""
        depth = self._depth
        self._owner, self._depth = None, 0
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()
            self._owner, self._depth = threading.get_ident(), depth

    def pass_on(self) -> None:
        """Lets all who wait now have the lock, one after the other, and returns when it is ours again."""
        turn = threading.Event()
        with self._lock._inner_lock:
            self._lock._pending_threads.append(turn)
        depth = self._depth
        self._owner, self._depth = None, 0  # a thread of the page's may take it meanwhile, through this same object
        self._lock.release()
        turn.wait()  # set by the release of the last who waited before us
        self._lock._lock.acquire()
        self._owner, self._depth = threading.get_ident(), depth
