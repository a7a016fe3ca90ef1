"""What users choose for the trainer in a WebUI: one flag at the start, and a section of its settings page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modules import paths, shared

from lora_trainer.host.base import Folders, HostOptions

SECTION = ("lora_trainer", "LoRA Trainer")
DATA_DIR = "lora_trainer_dir"
SECOND_LORA_DIR = "lora_trainer_second_lora_dir"
CAPTIONER = "lora_trainer_captioner"
SAVE_STEPS = "lora_trainer_save_steps"
GIVES_WAY = "lora_trainer_gives_way"


def add_settings(captioners: Sequence[str]) -> None:
    """Adds our section to the WebUI's settings page; for its `on_ui_settings`.

    Args:
        captioners: their names, to choose one from; the best of them is taken where none is chosen.
    """
    import gradio

    def add(name: str, default: Any, label: str, help: str, **more: Any) -> None:
        shared.opts.add_option(name, shared.OptionInfo(default, label, section=SECTION, **more).info(help))

    flag = "--" + DATA_DIR.replace("_", "-")
    help = f"empty for lora_trainer in the WebUI's data folder; the flag {flag} goes before it; takes effect after Reload UI"
    folders = {"component_args": {"visible": not _hides_folders()}}  # what is not visible cannot be set, by a program neither
    add(DATA_DIR, "", "Folder of data sets, runs and cache", help, **folders)
    help = "a copy goes there for another extension; empty for none"
    add(SECOND_LORA_DIR, "", "Second folder for finished LoRA files", help, **folders)
    choices = {"choices": ["", *captioners]}
    add(CAPTIONER, "", "Captioner", "empty for the best that is there", component=gradio.Dropdown, component_args=choices)
    add(SAVE_STEPS, 0, "Save every so many steps", "what a new training starts with; 0 for the trainer's own default")
    add(
        GIVES_WAY,
        True,
        "Generation may interrupt training",
        "where the card has no room for both, training waits for a picture; off: the picture waits for training",
    )


def read_folders() -> Folders:
    """Returns the folders by flags and settings of now."""
    flags = shared.cmd_opts
    data_dir = getattr(flags, DATA_DIR, None) or _chosen(DATA_DIR) or Path(paths.data_path) / "lora_trainer"
    second = _chosen(SECOND_LORA_DIR)
    ours = [_absolute(path) for path in (data_dir, flags.lora_dir, second) if path]
    open = (*ours, Path(paths.models_path).absolute()) if _hides_folders() else None
    return Folders(ours[0], ours[1], ours[2] if second else None, open)


def read_options() -> HostOptions:
    """Returns the choices of now."""
    values = shared.opts.data
    return HostOptions(_chosen(CAPTIONER), int(values.get(SAVE_STEPS) or 0) or None, bool(values.get(GIVES_WAY, True)))


def _hides_folders() -> bool:
    """Whether the WebUI was started for visitors who shall not see the folders of the computer."""
    return bool(getattr(shared.cmd_opts, "hide_ui_dir_config", False))


def _chosen(name: str) -> str:
    return (shared.opts.data.get(name) or "").strip()


def _absolute(path: str | Path) -> Path:
    return Path(paths.data_path, Path(path).expanduser()).absolute()
