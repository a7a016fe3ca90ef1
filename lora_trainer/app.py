"""`python -m lora_trainer`: the page by itself, at an address of this computer alone, with the demo's base and pictures."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_trainer.errors import LoraTrainerError
from lora_trainer.host.base import DEFAULT_DATA_DIR
from lora_trainer.host.standalone import Standalone

LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"
DEFAULT_PORT = 7870
DONE, FAILED, BAD_USE = 0, 1, 2
DEMO_SET = "demo_ink"


def main(arguments: Sequence[str]) -> int:
    """Serves the page until Ctrl-C and returns the exit code."""
    options = _parse(list(arguments))
    # Before gradio is imported: nothing of ours is told to anybody, and uploads do not fill the system's temporary folder.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("GRADIO_TEMP_DIR", str(options.data_dir.absolute() / "cache" / "uploads"))
    try:
        return _serve(options)
    except LoraTrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lora_trainer app", description="Serve the page without a WebUI.")
    parser.add_argument("--port", type=int, default=None, metavar="N", help=f"default: {DEFAULT_PORT}, or the next free one")
    parser.add_argument("--data-dir", type=Path, default=DEFAULT_DATA_DIR, metavar="DIR", help="data sets, runs, models, cache")
    parser.add_argument("--models-dir", type=Path, metavar="DIR", help="a WebUI's folder models, to use what is there")
    parser.add_argument("--listen", action="store_true", help="answer other computers too; needs --auth")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="who may open the page")
    parser.add_argument("--api", action="store_true", help="also answer at /lora-trainer/v1, described at /docs")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    options = parser.parse_args(arguments)
    if options.auth is not None and (not all(options.auth.partition(":")) or "," in options.auth):
        parser.error("--auth must be USER:PASSWORD, with both and no comma.")
    if options.listen and options.auth is None:
        parser.error("--listen lets other computers in, so it needs --auth USER:PASSWORD.")
    return options


def _serve(options: argparse.Namespace) -> int:
    from lora_trainer.dataset.library import DatasetLibrary
    from lora_trainer.jobs.queue import JobQueue
    from lora_trainer.ui.compat import launch
    from lora_trainer.ui.page import build_page
    from lora_trainer.ui.services import Services

    host = Standalone(options.data_dir, options.models_dir)
    library = DatasetLibrary(host.folders().datasets)
    if not host.data_dir.exists():
        _lay_out_demo(host, library)
    queue = JobQueue(host)
    services = Services(host, queue, library)
    page = build_page(services)
    settings: dict[str, Any] = {"server_name": EVERYWHERE if options.listen else LOOPBACK, "server_port": _find_port(options)}
    if options.auth is not None:
        settings["auth"] = tuple(options.auth.split(":", 1))
    web_app, *_ = launch(page, **settings)
    if options.api:
        from lora_trainer.api.routes import add_routes
        from lora_trainer.host.login import make_login

        login = make_login(argparse.Namespace(api_auth=options.auth, gradio_auth=None, gradio_auth_path=None))
        add_routes(web_app, services, login)
    address = f"http://{LOOPBACK}:{settings['server_port']}/"
    print(f"LoRA Trainer: {address}\nData: {host.data_dir}", flush=True)
    print("Ctrl-C ends it; a training that runs is saved and can be continued.", flush=True)
    if not options.no_browser and sys.stdout.isatty():
        webbrowser.open(address)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print("Stopping ...", flush=True)
    finally:
        queue.close()
        page.close()
    return DONE


def _find_port(options: argparse.Namespace) -> int:
    """Returns the port that was asked for, else the first free one from the default on."""
    import socket

    for port in [options.port] if options.port else range(DEFAULT_PORT, DEFAULT_PORT + 50):
        with socket.socket() as probe:
            if os.name != "nt":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was used a moment ago is free
            try:
                probe.bind((EVERYWHERE if options.listen else LOOPBACK, port))
                return int(port)
            except OSError:
                continue
    raise LoraTrainerError(f"The port {options.port or DEFAULT_PORT} is in use by another program. Name a free one with --port.")


def _lay_out_demo(host: Standalone, library: Any) -> None:
    """Puts the demo's base where base models are, and its pictures into a set, the first time that this data folder is used."""
    from lora_trainer.dataset.library import Upload
    from lora_trainer.demo.assets import BASE, DATA_SETS

    host.checkpoint_dir.mkdir(parents=True, exist_ok=True)
    for path in (BASE, BASE.with_suffix(".yaml")):
        shutil.copyfile(path, host.checkpoint_dir / path.name)
    library.create(DEMO_SET)
    library.add(DEMO_SET, [Upload(path.name, path) for path in sorted((DATA_SETS / "ink" / "train").iterdir())])
