"""A kind of job made in a test: it does what it is told through a queue of words, one after the other, and obeys its control."""

from __future__ import annotations

import queue
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_trainer.errors import ConfigError, Problem
from lora_trainer.host.base import Host
from lora_trainer.jobs.context import JobContext
from lora_trainer.registry import Entry

ENTRY = Entry("scripted", "Scripted", "For tests.", f"{__name__}:run", options={"prepare": f"{__name__}:prepare"})
WORDS: dict[str, queue.Queue[Any]] = {}


def words(name: str = "script") -> queue.Queue[Any]:
    return WORDS.setdefault(name, queue.Queue())


def prepare(settings: Mapping[str, Any], host: Host, title: str) -> Path | None:
    if "wrong" in settings:
        raise ConfigError([Problem("wrong", "(yes) is wrong.")])
    return Path(settings["folder"]) if "folder" in settings else None


def run(settings: Mapping[str, Any], context: JobContext) -> Path | None:
    step = 0
    with context.borrow() as lease:
        context.emit("started", total_steps=10, num_items=1, family="scripted")
        while not context.control.is_requested("stop"):
            try:
                word = words(settings.get("script", "script")).get(timeout=0.05)
            except queue.Empty:
                continue
            if word == "end":
                return context.folder / "made.txt"
            if word == "yield":
                lease.give_way(lambda: None, lambda: None, is_paused=lambda: False)
            elif word == "exit":
                sys.exit("a job must not do this")
            elif isinstance(word, BaseException):
                raise word
            else:
                step += 1
                context.emit(
                    "step", step=step, epoch=step, loss=float(word), learning_rate=1e-4, grad_norm=1, seconds=2, memory_gib=1.5
                )
    return None
