"""The one thread in which models are used; what fails there is printed, and the caller gets None."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_pool = ThreadPoolExecutor(1, thread_name_prefix="forge-main")
threads: list[str] = []


def run_and_wait_result(function: Callable[..., Any], *arguments: Any) -> Any:
    def work() -> Any:
        threads.append(threading.current_thread().name)
        try:
            return function(*arguments)
        except Exception as error:
            print(error)
            return None

    return _pool.submit(work).result()
