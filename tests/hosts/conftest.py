"""The made-up WebUI in this process, for the length of a test."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_trainer import extension

WEBUI = Path(__file__).parent / "webui"
THEIRS = ("modules", "modules_forge", "backend", "ldm_patched", "networks", "clip")
OURS = tuple(f"lora_trainer.host.{name}" for name in ("webui", "a1111", "forge", "settings"))


class MadeUpWebUI:
    """Handles to its modules, and what a user of it does."""

    def __init__(self, folder: Path) -> None:
        names = (
            "paths",
            "shared",
            "devices",
            "interrogate",
            "call_queue",
            "sd_models",
            "sd_vae",
            "processing",
            "script_callbacks",
            "launch_utils",
        )
        for name in (*names, "script_callbacks", "launch_utils"):
            setattr(self, name, importlib.import_module(f"modules.{name}"))
        self.folder = folder
        self.paths.data_path = str(folder)
        self.paths.models_path = str(folder / "models")
        self.shared.interrogator = self.interrogate.InterrogateModels()
        self.shared.cmd_opts.clip_models_path = str(folder / "models" / "CLIP")
        self.shared.cmd_opts.lora_dir = str(folder / "models" / "Lora")
        self.model = self.sd_models.Model()
        self.sd_models.model_data.set_sd_model(self.model)
        self.log: list[str] = []

    def __getattr__(self, name: str) -> Any:  # the modules, for people who read the types
        raise AttributeError(name)

    def use_card(self) -> None:
        """From here on there is a graphics card, which has no room for both models."""
        self.shared.device = torch.device("meta")
        self.model.to_empty(device="meta")

    def add_blip(self) -> None:
        """Puts the weights of its own captioner onto the disk."""
        folder = self.folder / "models" / "BLIP"
        folder.mkdir(parents=True)
        (folder / "model_base_caption_capfilt_large.pth").write_bytes(b"")

    def add_checkpoints(self, *names: str) -> None:
        for name in names:
            info = self.sd_models.CheckpointInfo(f"{name} [0123456789]", str(self.folder / name))
            self.sd_models.checkpoints_list[info.title] = info
            self.sd_models.checkpoint_aliases |= {info.title: info, name: info}

    def generate(self, what: str = "generated") -> threading.Thread:
        """Presses Generate: waits for the lock in a thread, and notes whether the model was there to draw."""

        def work() -> None:
            with self.call_queue.queue_lock:
                self.shared.state.begin("txt2img")
                there = self.model.is_on_device or self.model.lowvram
                self.log.append(what if there else f"{what} without a model")
                time.sleep(0.02)
                self.shared.state.end()

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    def wait_until_queued(self, count: int = 1) -> None:
        until(lambda: len(self.call_queue.queue_lock._pending_threads) == count)

    def is_locked(self) -> bool:
        return self.call_queue.queue_lock._lock.locked()


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.005)


@pytest.fixture
def enter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., MadeUpWebUI]]:
    """Returns a function that starts the made-up WebUI of a kind: "a1111", "forge" or "reforge"."""

    def start(kind: str = "a1111") -> MadeUpWebUI:
        for folder in (WEBUI, *([] if kind == "a1111" else [WEBUI / kind])):
            monkeypatch.syspath_prepend(str(folder))
        webui = MadeUpWebUI(tmp_path)
        if kind != "a1111":
            importlib.import_module("modules_forge.forge_version")
            manager = {"forge": "backend.memory_management", "reforge": "ldm_patched.modules.model_management"}[kind]
            webui.memory = importlib.import_module(manager)
            webui.main_thread = importlib.import_module("modules_forge.main_thread")
        return webui

    extension.host.cache_clear()
    yield start
    extension.host.cache_clear()
    for name in [name for name in sys.modules if name in OURS or name.partition(".")[0] in THEIRS]:
        del sys.modules[name]


@pytest.fixture
def webui(enter: Callable[..., MadeUpWebUI]) -> MadeUpWebUI:
    return enter("a1111")


@pytest.fixture
def networks(webui: MadeUpWebUI) -> Any:
    """The built-in LoRA extension, loaded."""
    module = importlib.import_module("networks")
    module.lora_dir = webui.folder / "models" / "Lora"
    module.lora_dir.mkdir(parents=True)
    return module


@pytest.fixture
def network() -> Callable[..., Any]:
    """Returns a function that makes a loaded network of a file."""
    return lambda path, strength: SimpleNamespace(
        name=path.stem, strength=strength, network_on_disk=SimpleNamespace(filename=str(path))
    )
