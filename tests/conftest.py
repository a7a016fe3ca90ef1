"""What every test starts from: no network, one thread, fixed seeds, and Windows' rule about files that are in use."""

from __future__ import annotations

import os
import random
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ[name] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    connect = socket.socket.connect

    def connect_nearby(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            pytest.fail(f"the network was used: {address}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_nearby)
        yield


@pytest.fixture(autouse=True, scope="session")
def _windows_rule() -> Iterator[None]:
    """Fails a test in which this process moves or deletes a file that it still holds open or memory-mapped.

    Windows refuses that; Linux allows it, and tells in /proc what is held, so the whole suite checks it there.
    """
    with pytest.MonkeyPatch.context() as patch:
        if Path("/proc/self/maps").exists():
            for name in ("replace", "rename", "unlink", "remove"):
                patch.setattr(os, name, _refusing_held_files(getattr(os, name)))
        yield


def _refusing_held_files(function: Callable[..., None]) -> Callable[..., None]:
    def refusing(*paths: Any, **options: Any) -> None:
        if not options:  # with a folder's descriptor the paths are relative to that
            for path in paths:
                if how := holds(os.path.realpath(path)):
                    if threading.current_thread() is not threading.main_thread():
                        # Another thread may hold it, for a moment: what Windows says then is what retries are for.
                        raise PermissionError(13, "still open in another thread", os.fspath(path))
                    pytest.fail(f"os.{function.__name__}: {path} is still {how} in this process; Windows refuses that.")
        function(*paths, **options)

    return refusing


def holds(path: str | bytes) -> str:
    """Returns how this process holds a file, "open" or "memory-mapped", or "". Linux only."""
    name = os.fsdecode(path)
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            if str(descriptor.readlink()) == name:
                return "open"
        except OSError:  # the descriptor of this very listing
            continue
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        return "memory-mapped" if any(line.rstrip("\n").endswith(f" {name}") for line in file) else ""
