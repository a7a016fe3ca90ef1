"""The stand-alone page in a process of its own, and the system's Chromium to look at it."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

from lora_trainer.bootstrap import ROOT
from lora_trainer.config.schema import SECTIONS, field_infos

PATIENCE_MS = 120_000  # a guard against hanging for ever, not a measure of speed
# Without these Chromium asks services of its maker at every start.
QUIET = ("disable-quic", "no-first-run", "disable-background-networking", "disable-component-update", "disable-sync")
INK = ROOT / "lora_trainer" / "demo" / "datasets" / "ink" / "train"


@dataclass
class Server:
    """A page that is being served.

    Attributes:
        url: its address.
        data_dir: its data folder.
        process: it.
    """

    url: str
    data_dir: Path
    process: subprocess.Popen[str]

    @property
    def lora_dir(self) -> Path:
        return self.data_dir / "models" / "Lora"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    program = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
    if program is None:
        assert not os.environ.get("CI"), "CI must have Chromium: apt-get install chromium"
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", *(f"--{flag}" for flag in QUIET)]
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import make_checkpoint

    return make_checkpoint("sd1", tmp_path_factory.mktemp("base"))


@pytest.fixture
def start_server(tmp_path: Path, tiny_base: Path) -> Iterator[Callable[..., Server]]:
    """Returns a starter of the stand-alone page on a data folder with one tiny base model."""
    servers: list[Server] = []

    def start(*words: str) -> Server:
        data_dir = tmp_path / "data"
        bases = data_dir / "models" / "Stable-diffusion"
        bases.mkdir(parents=True, exist_ok=True)
        for path in tiny_base.parent.glob("*.*"):
            shutil.copyfile(path, bases / path.name)
        port = _free_port()
        command = [sys.executable, "-m", "lora_trainer", "app", "--port", str(port), "--data-dir", str(data_dir), *words]
        log = open(tmp_path / f"server-{len(servers)}.log", "w+", encoding="utf-8")  # noqa: SIM115 - the child's, as long as it runs
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, encoding="utf-8")
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("LoRA Trainer: "):
                break
        else:
            log.seek(0)
            pytest.fail(f"the page did not start: {''.join(lines)}{log.read()}")
        servers.append(Server(f"http://127.0.0.1:{port}/", data_dir, process))
        return servers[-1]

    yield start
    for server in servers:
        server.process.terminate()
        server.process.wait()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Returns an opener of pages; an error of their scripts fails the test."""
    contexts, errors = [], []

    def open_one(url: str, *, width: int = 1280, height: int = 900, theme: str = "light", **options: Any) -> Any:
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{url}?__theme={theme}", wait_until="domcontentloaded")
        # The page asks for its contents once it is seen; what is dropped before the answer would be drawn over by it.
        gallery = "#lora_trainer_dataset_gallery"
        page.wait_for_selector(f"{gallery} .lora_trainer_empty, {gallery} .lora_trainer_card")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not errors


def drop_files(page: Any, paths: list[Path]) -> None:
    """Drops files on the part Dataset, as a mouse does."""
    files = [{"name": path.name, "data": base64.b64encode(path.read_bytes()).decode()} for path in paths]
    transfer = page.evaluate_handle(
        """(files) => {
            const transfer = new DataTransfer();
            for (const file of files) {
                const bytes = Uint8Array.from(atob(file.data), (letter) => letter.charCodeAt(0));
                const type = file.name.endsWith(".png") ? "image/png" : "text/plain";
                transfer.items.add(new File([bytes], file.name, {type}));
            }
            return transfer;
        }""",
        files,
    )
    target = page.locator("#lora_trainer_dataset_files input[type=file]").locator("xpath=..")
    for kind in ("dragenter", "dragover", "drop"):
        target.dispatch_event(kind, {"dataTransfer": transfer})


def show_part(page: Any, title: str) -> None:
    # gradio 6 keeps a copy of the tabs to measure them, without their role.
    page.locator("#lora_trainer_parts button[role=tab], #lora_trainer_parts .tab-nav > button", has_text=title).first.click()


def set_field(page: Any, name: str, value: object) -> None:
    """Types into a field of the part Train, opening the section that holds it."""
    field = page.locator(f"#lora_trainer_train_{name}").locator("input, textarea").first
    if not field.is_visible():
        page.evaluate(
            "([name, section]) => window.loraTrainer.goTo(name, section)",
            [name, f"lora_trainer_train_section_{SECTIONS.index(field_infos()[name].section)}"],
        )
        field.wait_for(state="visible")
    field.fill(str(value))


def choose(page: Any, name: str, option: str) -> None:
    """Chooses from a list of the part Train."""
    page.locator(f"#lora_trainer_train_{name} input").first.click()
    page.locator("[role=option], [data-testid=dropdown-option]", has_text=option).first.click()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
