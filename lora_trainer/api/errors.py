"""How a route fails: `{"errors": [problem, ...]}` with a status of 4xx, whatever goes wrong, in every version of FastAPI."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from lora_trainer.errors import ConfigError, DatasetError, JobError, LoraTrainerError, Problem

log = logging.getLogger(__name__)
T = TypeVar("T")


class RequestError(LoraTrainerError):
    """A request cannot be answered.

    Args:
        status: of the response.
        problems: what is wrong with it.
    """

    def __init__(self, status: int, *problems: Problem) -> None:
        self.status, self.problems = status, problems
        super().__init__("\n".join(map(str, problems)))


def find(ask: Callable[[str], T], name: str) -> T:
    """Returns what is asked for by a name in the address.

    Raises:
        RequestError: 404: there is none of that name.
    """
    try:
        return ask(name)
    except (JobError, DatasetError) as error:
        raise RequestError(404, Problem("", str(error))) from error


class Route(APIRoute):
    """A route that answers errors as the module says, and takes no request that a foreign page made a browser send."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                _check_sender(request)
                return await handle(request)
            except HTTPException:  # of the login
                raise
            except Exception as error:
                return _answer(error)

        return answer


def _check_sender(request: Request) -> None:
    """Refuses what browsers send for a foreign page without asking the server first: forms, and bodies of an unnamed kind.

    A request with JSON is only sent across when the host's own CORS settings allow it.
    """
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return
    if kind != "multipart/form-data":
        raise RequestError(415, Problem("content-type", f"({kind or 'none'}) must be application/json."))
    if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "same-site", "none"):
        raise RequestError(403, Problem("", "files cannot be sent from a page of another site."))


def _answer(error: Exception) -> JSONResponse:
    if isinstance(error, RequestError):
        return _problems(error.status, error.problems)
    if isinstance(error, ConfigError):
        return _problems(422, error.problems)
    if isinstance(error, RequestValidationError):
        return _problems(422, (_of_fastapi(found) for found in error.errors()))
    if isinstance(error, JobError | DatasetError):
        return _problems(409, [Problem("", str(error))])
    if isinstance(error, LoraTrainerError):
        return _problems(400, [Problem("", str(error))])
    log.exception("a route failed")
    message = f"{type(error).__name__}: this was not foreseen; the log of the program says more."
    return _problems(500, [Problem("", message)])


def _problems(status: int, problems: Iterable[Problem]) -> JSONResponse:
    return JSONResponse({"errors": [dataclasses.asdict(problem) for problem in problems]}, status_code=status)


def _of_fastapi(found: Any) -> Problem:
    """Returns what FastAPI found wrong with a query or a body."""
    place = [str(part) for part in found.get("loc", ()) if part not in ("body", "query", "path")]
    return Problem(".".join(place), f"{found.get('msg', 'is wrong')}.")
