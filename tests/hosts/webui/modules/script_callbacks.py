"""Where extensions register what the WebUI calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

callbacks: dict[str, list[Callable[..., Any]]] = {}


def _registrar(name: str) -> Callable[[Callable[..., Any]], None]:
    return lambda callback: callbacks.setdefault(name, []).append(callback)


on_ui_tabs = _registrar("ui_tabs")
on_ui_settings = _registrar("ui_settings")
on_app_started = _registrar("app_started")
