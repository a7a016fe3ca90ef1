"""The composition root: what the WebUI is given, and what a broken start looks like."""

from __future__ import annotations

import runpy
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from types import ModuleType

import pytest

from lora_trainer import extension
from lora_trainer.host.login import make_login

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "lora_trainer_tab.py"


def test_the_flag_is_added():
    parser = ArgumentParser()
    runpy.run_path(str(ROOT / "preload.py"))["preload"](parser)
    assert parser.parse_args([]).lora_trainer_dir is None
    assert parser.parse_args(["--lora-trainer-dir", "/data/trainer"]).lora_trainer_dir == "/data/trainer"


def test_the_script_registers_tab_settings_and_routes_each_time(webui):
    runpy.run_path(str(SCRIPT))
    callbacks = webui.script_callbacks.callbacks
    assert callbacks == {
        "ui_settings": [extension.add_settings],
        "ui_tabs": [extension.build_tab],
        "app_started": [extension.add_routes],
    }
    callbacks.clear()  # "Reload UI" does this
    runpy.run_path(str(SCRIPT))
    assert len(callbacks) == 3


def test_loading_the_script_brings_none_of_the_heavy_libraries():
    code = f"""
import sys
sys.path[:0] = [{str(ROOT / "tests/hosts/webui")!r}, {str(ROOT)!r}]
import modules.shared
import runpy
before = set(sys.modules)
runpy.run_path({str(SCRIPT)!r})
print(sorted({{name.partition(".")[0] for name in set(sys.modules) - before}}))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    loaded = set(eval(result.stdout))
    assert "lora_trainer" in loaded
    assert not loaded & {"diffusers", "peft", "transformers", "accelerate", "safetensors", "numpy", "PIL", "gradio"}


class TestBrokenStart:
    @pytest.fixture
    def tab(self, webui, monkeypatch):
        pytest.importorskip("gradio")
        page = ModuleType("lora_trainer.ui.page")

        def build_page(services):
            raise RuntimeError("no such <component>")

        page.build_page = build_page
        monkeypatch.setitem(sys.modules, "lora_trainer.ui.page", page)
        monkeypatch.setattr(extension, "services", lambda: None)
        return extension.build_tab()

    def test_the_tab_shows_traceback_and_versions(self, tab):
        ((blocks, title, elem_id),) = tab
        assert (title, elem_id) == ("LoRA Trainer", "lora_trainer")
        (box,) = (block for block in blocks.blocks.values() if block.elem_id == "lora_trainer_report")
        report = box.value
        for part in ("RuntimeError: no such <component>", "build_page", "torch: ", "AUTOMATIC1111 v0.0.1", "Python 3."):
            assert part in report
        assert "peft: " in report

    def test_a_button_copies_it_in_the_browser(self, tab):
        ((blocks, _, _),) = tab
        (button,) = (block for block in blocks.blocks.values() if block.elem_id == "lora_trainer_copy_report")
        assert "execCommand" in str(blocks.get_config_file() if hasattr(blocks, "get_config_file") else blocks.config)
        assert button.value == "Copy report"


def test_a_report_comes_even_when_nothing_can_be_read(webui, monkeypatch):
    monkeypatch.delattr(webui.launch_utils, "git_tag")
    monkeypatch.setattr(extension, "PACKAGES", ("no-such-package",))
    report = extension.make_report("the error")
    assert "host: AttributeError" in report
    assert "no-such-package: PackageNotFoundError" in report
    assert report.endswith("the error")


class TestRoutes:
    @pytest.fixture
    def added(self, webui, monkeypatch):
        routes, calls = ModuleType("lora_trainer.api.routes"), []
        routes.add_routes = lambda app, services, login: calls.append((app, services, login))
        monkeypatch.setitem(sys.modules, "lora_trainer.api.routes", routes)
        monkeypatch.setattr(extension, "services", lambda: "services")
        return calls

    def test_only_with_the_flag(self, webui, added):
        extension.add_routes(None, "app")
        assert added == []
        webui.shared.cmd_opts.api = True
        extension.add_routes(None, "app")
        assert added == [("app", "services", None)]


class TestLogin:
    def client(self, **flags):
        fastapi = pytest.importorskip("fastapi")
        testclient = pytest.importorskip("fastapi.testclient")
        login = make_login(Namespace(**({"api_auth": None, "gradio_auth": None, "gradio_auth_path": None} | flags)))
        app = fastapi.FastAPI()
        app.get("/secret", dependencies=[fastapi.Depends(login)])(lambda: "open")
        return testclient.TestClient(app)

    def test_without_a_password_there_is_none(self):
        assert make_login(Namespace(api_auth=None, gradio_auth="", gradio_auth_path=None)) is None

    @pytest.mark.parametrize("flag", ["api_auth", "gradio_auth"])
    def test_names_and_passwords_are_those_of_the_flags(self, flag):
        client = self.client(**{flag: "anna:geheim, ben:pa:ss"})
        assert client.get("/secret").status_code == 401
        assert client.get("/secret", auth=("anna", "wrong")).status_code == 401
        assert client.get("/secret", auth=("ben", "geheim")).status_code == 401
        assert client.get("/secret", auth=("anna", "geheim")).status_code == 200
        assert client.get("/secret", auth=("ben", "pa:ss")).status_code == 200

    def test_a_file_of_passwords(self, tmp_path):
        (tmp_path / "auth.txt").write_text("zoë:größe\nben:pass", encoding="utf-8")
        client = self.client(gradio_auth_path=str(tmp_path / "auth.txt"))
        assert client.get("/secret", auth=("ben", "pass")).status_code == 200
        assert client.get("/secret", auth=("ben", "größe")).status_code == 401

    def test_the_apis_password_goes_before_the_pages(self):
        client = self.client(api_auth="anna:api", gradio_auth="anna:page")
        assert client.get("/secret", auth=("anna", "page")).status_code == 401
