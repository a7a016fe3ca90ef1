"""Flags, settings, and the state that the progress display reads."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch

device = torch.device("cpu")
cmd_opts = Namespace(
    lora_dir="",
    clip_models_path=None,
    api=False,
    no_half=False,
    api_auth=None,
    gradio_auth=None,
    gradio_auth_path=None,
    skip_load_model_at_start=False,
)
sd_model: Any = None
interrogator: Any = None  # set when the program starts


class OptionInfo:
    def __init__(self, default: Any = None, label: str = "", component: Any = None, component_args: Any = None, **more: Any):
        self.default, self.label, self.component, self.component_args = default, label, component, component_args
        self.section = more.get("section")
        self.help = ""

    def info(self, text: str) -> OptionInfo:
        self.help = text
        return self


class Options:
    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.data_labels: dict[str, OptionInfo] = {}

    def add_option(self, name: str, info: OptionInfo) -> None:
        self.data_labels[name] = info
        self.data.setdefault(name, info.default)


class State:
    """What `/sdapi/v1/progress` shows. `begin` forgets an interruption, as the real one does."""

    def __init__(self) -> None:
        self.job, self.job_no, self.job_count, self.textinfo = "", 0, 0, None
        self.interrupted = False

    def begin(self, job: str = "(unknown)") -> None:
        self.job, self.job_no, self.job_count, self.textinfo = job, 0, -1, None
        self.interrupted = False

    def end(self) -> None:
        self.job, self.job_count = "", 0


opts = Options()
state = State()
