"""The WebUI's own login, as a dependency of our routes: HTTP Basic with the names and passwords of its flags.

Routes that an extension adds are open to all unless they bring one.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any


def make_login(flags: Any) -> Callable[..., Any] | None:
    """Returns a dependency that lets in who may use the WebUI's API, or where that is open its page; None where both are.

    Args:
        flags: the WebUI's `cmd_opts`, with `api_auth`, `gradio_auth` and `gradio_auth_path`.
    """
    known = [pair.encode() for pair in _pairs(flags.api_auth) or _page_pairs(flags)]
    if not known:
        return None
    from fastapi import Depends, HTTPException
    from fastapi.security import HTTPBasic

    def login(credentials: Any = Depends(HTTPBasic())) -> str:  # how FastAPI is told
        given = f"{credentials.username}:{credentials.password}".encode()
        if not any([secrets.compare_digest(given, pair) for pair in known]):  # noqa: C419 - all are compared, for equal times
            raise HTTPException(401, "Incorrect user name or password", {"WWW-Authenticate": "Basic"})
        return str(credentials.username)

    return login


def _page_pairs(flags: Any) -> list[str]:
    path = flags.gradio_auth_path
    lines = Path(path).read_text(encoding="utf-8").splitlines() if path else []
    return [pair for text in (flags.gradio_auth, *lines) for pair in _pairs(text)]


def _pairs(text: str | None) -> list[str]:
    """Returns the parts "name:password" of a flag's value."""
    return [pair.strip() for pair in (text or "").split(",") if pair.strip()]
