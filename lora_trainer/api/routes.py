"""`/lora-trainer/v1`: the page's services for programs. The same objects do the work, so the same checks hold.

Bodies are plain JSON objects that are checked here, since WebUIs come with pydantic 1 as well as 2.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from fastapi import APIRouter, Body, Depends, FastAPI, File, Query, UploadFile

from lora_trainer.adapters.table import ADAPTERS
from lora_trainer.amount import with_preset
from lora_trainer.api.errors import RequestError, Route, find
from lora_trainer.captioning.table import CAPTIONERS
from lora_trainer.config.check import check_config
from lora_trainer.config.presets import load_presets
from lora_trainer.config.schema import default_of, field_infos, required_names
from lora_trainer.dataset.library import DatasetLibrary, Upload
from lora_trainer.dataset.overview import read_overview
from lora_trainer.errors import ConfigError, Problem
from lora_trainer.host.base import Host
from lora_trainer.jobs import JOBS, JobQueue
from lora_trainer.jobs.settings import train_config
from lora_trainer.jobs.view import to_plain
from lora_trainer.models.table import FAMILIES
from lora_trainer.plan import make_plan
from lora_trainer.registry import Registry, did_you_mean
from lora_trainer.training.table import OPTIMIZERS, SCHEDULES

PREFIX = "/lora-trainer/v1"
MOST_EVENTS = 10_000
Json = dict[str, Any]


class Services(Protocol):
    """What the routes work with; see `ui.services`."""

    @property
    def host(self) -> Host: ...

    @property
    def queue(self) -> JobQueue: ...

    @property
    def library(self) -> DatasetLibrary: ...


def add_routes(app: FastAPI, services: Services, login: Callable[..., Any] | None = None) -> None:
    """Adds the routes to an application and to its OpenAPI page.

    Args:
        app: the host's, or one of our own.
        services: of the page.
        login: a FastAPI dependency that lets nobody pass who may not; applied to every route.
    """
    router = APIRouter(
        prefix=PREFIX, tags=["LoRA Trainer"], route_class=Route, dependencies=[Depends(login)] if login is not None else []
    )
    _add_datasets(router, services)
    _add_jobs(router, services)
    _add_choices(router, services)
    app.include_router(router)
    app.openapi_schema = None  # made anew when it is next asked for


def _add_datasets(router: APIRouter, services: Services) -> None:
    library = services.library

    @router.get("/datasets", summary="Data sets, by name")
    def list_datasets() -> Json:
        return {"datasets": [{"name": name, "path": str(library.path(name))} for name in library.names()]}

    @router.post("/datasets", status_code=201, summary='Make an empty data set: {"name": ...}')
    def create_dataset(body: Any = Body(...)) -> Json:
        name = _text(_fields(body, "name"), "name")
        return {"name": name, "path": str(library.create(name))}

    @router.get("/datasets/{name}/pictures", summary="Pictures of a data set, with sizes and captions")
    def list_pictures(name: str) -> Json:
        overview = read_overview(find(library.path, name))
        pictures = [
            {"name": picture.name, "width": picture.width, "height": picture.height, "caption": picture.caption}
            | {"repeats": picture.repeats, "error": picture.error}
            for picture in overview.pictures
        ]
        problems = [dataclasses.asdict(problem) for problem in overview.problems]
        return {"pictures": pictures, "removed": library.removed(name), "problems": problems}

    @router.post("/datasets/{name}/files", summary="Add pictures, captions, metadata.csv and ZIP files, in any mix")
    def add_files(name: str, files: list[UploadFile] = File(...)) -> Json:
        find(library.path, name)  # before anything is written
        with tempfile.TemporaryDirectory(prefix="lora_trainer-") as folder:
            uploads = [_save(file, Path(folder, str(number))) for number, file in enumerate(files)]
            return {"results": [dataclasses.asdict(result) for result in library.add(name, uploads)]}

    @router.post("/datasets/{name}/remove", summary='Take pictures out, to be restored: {"pictures": [...]}')
    def remove_pictures(name: str, body: Any = Body(...)) -> Json:
        find(library.path, name)
        library.remove(name, _texts(_fields(body, "pictures"), "pictures"))
        return {"removed": library.removed(name)}

    @router.post("/datasets/{name}/restore", summary='Put removed pictures back: {"pictures": [...]}')
    def restore_pictures(name: str, body: Any = Body(...)) -> Json:
        find(library.path, name)
        return {"restored": library.restore(name, _texts(_fields(body, "pictures"), "pictures"))}


def _add_jobs(router: APIRouter, services: Services) -> None:
    queue = services.queue

    @router.get("/jobs", summary="Jobs: the queued ones in order, the active one, the past ones")
    def list_jobs() -> Json:
        return {"jobs": [view.to_json() for view in queue.list()]}

    @router.post(
        "/jobs",
        status_code=201,
        summary='Queue a job: {"kind": "train", "settings": {...}, "dataset"?, "preset"?, "title"?, "start"?}',
    )
    def submit_job(body: Any = Body(...)) -> Json:
        values = _fields(body, "kind", "settings", "dataset", "preset", "title", "start")
        kind, start = _text(values, "kind"), values.get("start", True)
        if not isinstance(start, bool):
            raise RequestError(422, Problem("start", f"({start!r}) must be true or false."))
        settings = _settings(values, services, kind)
        if kind == "train":  # the page shows this before Start; a program gets it as the answer
            make_plan(train_config(settings, services.host, title=_text(values, "title", "")))
        return {"id": queue.submit(kind, settings, title=_text(values, "title", ""), start=start)}

    @router.post("/jobs/check", summary="What a training would come to, and what is wrong with its settings; as POST /jobs")
    def check_job(body: Any = Body(...)) -> Json:
        values = _fields(body, "kind", "settings", "dataset", "preset", "title", "start")
        config = train_config(_settings(values, services, "train"), services.host, title=_text(values, "title", ""))
        try:
            plan = make_plan(config)
        except ConfigError as error:
            return {"problems": [dataclasses.asdict(problem) for problem in error.problems], "total_steps": 0}
        return {
            "problems": [dataclasses.asdict(problem) for problem in (*check_config(config), *plan.problems)],
            "family": plan.detection.family,
            "num_pictures": len(plan.scan.items),
            "num_held_out": len(plan.held_out),
            "steps_per_epoch": plan.steps_per_epoch,
            "total_steps": plan.total_steps,
            "resolutions": list(plan.resolutions),
            "output_dir": str(config.output_dir),
        }

    @router.get("/jobs/{id}", summary="One job")
    def show_job(id: str) -> Json:
        return find(queue.view, id).to_json()

    @router.get("/jobs/{id}/events", summary="Events of a job, from the one with index `after` on; ask again with `next`")
    def list_events(id: str, after: int = Query(0, ge=0)) -> Json:
        find(queue.view, id)
        events = queue.events(id, after)[:MOST_EVENTS]
        found = [{"kind": event.kind, "time": event.time, "data": event.data} for event in events]
        return {"events": found, "next": after + len(events)}

    @router.get("/jobs/{id}/settings", summary="The settings of a job, to queue the like")
    def show_settings(id: str) -> Json:
        return {"settings": find(queue.settings, id)}

    @router.get("/jobs/{id}/log", summary="The last lines of a job's log")
    def show_log(id: str, lines: int = Query(200, ge=0, le=10_000)) -> Json:
        return {"log": find(lambda id: queue.log_tail(id, lines), id)}

    @router.post(
        "/jobs/{id}/commands",
        summary='{"command": "stop" | "discard" | "pause" | "continue" | "save" | "sample" | "cancel" | "up" | "down" | "retry"}',
    )
    def command_job(id: str, body: Any = Body(...)) -> Json:
        find(queue.view, id)
        queue.command(id, _text(_fields(body, "command"), "command"))
        return queue.view(id).to_json()


def _add_choices(router: APIRouter, services: Services) -> None:
    @router.get("/options", summary="What can be chosen here: models, presets, captioners, and the tables of the settings")
    def list_options() -> Json:
        host = services.host
        tables = {"adapters": ADAPTERS, "families": FAMILIES, "optimizers": OPTIMIZERS, "schedules": SCHEDULES}
        return {
            "host": host.title,
            "checkpoints": [{"name": model.name, "path": str(model.path)} for model in host.checkpoints()],
            "vaes": [{"name": model.name, "path": str(model.path)} for model in host.vaes()],
            "presets": [to_plain(dataclasses.asdict(preset)) for preset in load_presets().values()],
            "captioners": _entries(CAPTIONERS),
            "jobs": _entries(JOBS),
            **{name: _entries(table) for name, table in tables.items()},
        }

    @router.get("/schema", summary="Every setting of a training: kind, default, range, unit, label and help")
    def show_schema() -> Json:
        required = required_names()
        return {
            "settings": [
                {"name": name, "required": name in required, "default": None if name in required else to_plain(default_of(name))}
                | dataclasses.asdict(info)
                for name, info in field_infos().items()
            ]
        }


def _entries(table: Registry) -> list[Json]:
    return [{"name": entry.name, "label": entry.label, "help": entry.help, "package": entry.package} for entry in table]


def _settings(values: Mapping[str, Any], services: Services, kind: str) -> Json:
    """Returns the settings of a request: those of the preset, of the named data set, and its own, the later ones counting."""
    given = values.get("settings", {})
    if not isinstance(given, dict):
        raise RequestError(422, Problem("settings", f"({type(given).__name__}) must be an object of settings by name."))
    settings: Json = {}
    if "dataset" in values:
        field = "train_data_dir" if kind == "train" else "input_dir"
        settings[field] = str(services.library.path(_text(values, "dataset")))
    settings |= given
    if "preset" in values:
        presets, name = load_presets(), _text(values, "preset")
        if name not in presets:
            raise RequestError(422, Problem("preset", f"({name}) does not exist{did_you_mean(name, tuple(presets))}"))
        settings = with_preset(presets[name], settings)
    return settings


def _fields(body: Any, *known: str) -> Json:
    """Returns a body that is an object of known fields."""
    if not isinstance(body, dict):
        raise RequestError(422, Problem("", f"the body ({type(body).__name__}) must be a JSON object."))
    unknown = [Problem(str(name), f"is unknown{did_you_mean(str(name), known)}") for name in body if name not in known]
    if unknown:
        raise RequestError(422, *unknown)
    return body


def _text(values: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = values.get(name, default)
    if not isinstance(value, str):
        what = "is missing" if name not in values else f"({value!r}) must be text"
        raise RequestError(422, Problem(name, f"{what}."))
    return value


def _texts(values: Mapping[str, Any], name: str) -> list[str]:
    value = values.get(name)
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise RequestError(422, Problem(name, "must be a list of names."))
    return value


def _save(file: UploadFile, path: Path) -> Upload:
    with open(path, "wb") as target:
        shutil.copyfileobj(file.file, target)
    return Upload(file.filename or "", path)
