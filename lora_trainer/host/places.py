"""Which files and folders the people of a host's page may name: any, or only those below the host's own.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lora_trainer.errors import Problem
from lora_trainer.host.base import Host

HINT = "Choose one of the list, or put it into the data folder, the models' folder or the LoRA folder."


def may_name(host: Host, path: str | Path) -> bool:
    """Whether a file or folder may be named: see `base.Folders.open`. A model of the host's lists always may.

    Links are followed before it is judged; nothing is read of what lies there.
    """
    folders = host.folders().open
    if folders is None:
        return True
    try:
        wanted = Path(path).expanduser().resolve()
    except (OSError, ValueError, RuntimeError):  # a NUL character, a loop of links, or no such user
        return False
    listed = {model.path.resolve() for model in (*host.checkpoints(), *host.vaes())}
    return wanted in listed or any(wanted.is_relative_to(folder.resolve()) for folder in folders)


def judge_places(host: Host, places: Iterable[tuple[str, str | Path | None]]) -> list[Problem]:
    """Returns the problems of settings whose file or folder may not be named.

    Args:
        host: whose page they come from.
        places: names of settings, each with its path, or with nothing.
    """
    given = [(name, str(path or "").strip()) for name, path in places]
    return [Problem(name, say_outside(path), hint=HINT) for name, path in given if path and not may_name(host, path)]


def say_outside(path: str | Path) -> str:
    """Returns what is wrong with a file or folder that may not be named."""
    return f"({path}) lies outside of the folders that this WebUI, started with --hide-ui-dir-config, lets its page name."
