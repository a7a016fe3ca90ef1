"""The direction of imports. `LAYERS` is the whole rule: which room is in which layer, and what each layer may import."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from .source import PACKAGE, ROOT, Import, imports, module_name, parse, python_files

PICTURES = {"PIL", "numpy", "yaml"}
TORCH = PICTURES | {"torch", "diffusers", "peft", "transformers", "accelerate", "safetensors", "tokenizers", "tqdm"}
ANY = {"*"}
# No layer up to the command line knows of a page or of a WebUI.
PAGE_AND_WEBUI = {"gradio", "fastapi", "starlette", "uvicorn", "modules", "modules_forge", "backend", "launch"}


@dataclass(frozen=True)
class Layer:
    """What the modules of a layer may import.

    Attributes:
        ours: the layers that it may import, besides itself.
        libraries: third-party packages.
        delayed: layers that it may import inside functions.
        delayed_libraries: third-party packages that it may import inside functions; "*" is any.
    """

    ours: tuple[str, ...] = ()
    libraries: frozenset[str] = frozenset()
    delayed: tuple[str, ...] = ()
    delayed_libraries: frozenset[str] = frozenset()


LAYERS = {
    "start": Layer(("ground",), delayed=("programs",), delayed_libraries=frozenset({"torch"})),
    "ground": Layer(libraries=frozenset({"yaml"})),
    "data": Layer(("ground",), frozenset(PICTURES), delayed_libraries=frozenset({"tokenizers", "certifi"})),
    "models": Layer(("ground", "data"), frozenset(TORCH), delayed_libraries=frozenset(ANY)),
    "training": Layer(("ground", "data", "models"), frozenset(TORCH), delayed_libraries=frozenset(ANY)),
    "jobs": Layer(("ground",)),
    "kinds of jobs": Layer(("ground", "data", "jobs"), delayed=("models", "training"), delayed_libraries=frozenset(ANY)),
    "hosts": Layer(("ground",), frozenset({"modules", "modules_forge"}), ("training", "models", "data"), frozenset(ANY)),
    "page": Layer(("ground", "data", "jobs"), frozenset({"gradio", "fastapi", "yaml"}), ("hosts",)),
    "command line": Layer(("ground", "data", "jobs"), frozenset({"tqdm"}), ("models", "training"), frozenset(TORCH)),
    "programs": Layer(("ground", "data", "models", "training", "jobs", "hosts", "page", "command line"), frozenset(ANY)),
}

# The room of a module is the longest of these names that it starts with.
ROOMS = {
    "": "ground",  # the package itself: its version
    "__main__": "start",
    "entry": "start",
    "bootstrap": "start",
    "errors": "ground",
    "events": "ground",
    "control": "ground",
    "registry": "ground",
    "files": "ground",
    "names": "ground",
    "run_folder": "ground",
    "config": "ground",
    "host.base": "ground",
    "host.places": "ground",
    "host.table": "ground",
    "dataset": "data",
    "dataset.cache": "models",
    "plan": "data",
    "amount": "data",
    "forecast": "data",
    "card": "ground",
    "libraries": "ground",
    "models": "models",
    "models.table": "data",
    "models.detect": "data",
    "models.header": "data",
    "models.footprint": "data",
    "models.layers": "data",
    "models.tape": "data",
    "models.targets": "data",
    "models.recognise": "data",
    "models.sidecar": "data",
    "models.sizes": "data",
    "models.tokenizer": "data",
    "models.layout": "data",
    "models.webui": "data",
    "adapters": "models",
    "adapters.table": "data",
    "adapters.keys": "data",
    "adapters.names": "data",
    "adapters.tags": "data",
    "adapters.container": "data",
    "adapters.writing": "data",
    "adapters.metadata": "data",
    "adapters.inspect": "data",
    "adapters.folder": "data",
    "adapters.repair": "data",
    "adapters.library": "data",
    "adapters.lent": "data",
    "adapters.shelf": "data",
    "adapters.owned": "data",
    "adapters.self_test": "data",
    "adapters.diagnosis": "data",
    "captioning": "models",
    "captioning.table": "data",
    "captioning.options": "data",
    "captioning.wording": "data",
    "captioning.weights": "data",
    "captioning.download": "data",
    "training": "training",
    "training.table": "ground",
    "inference": "training",
    "inference.table": "data",
    "inference.settings": "data",
    "inference.rows": "data",
    "jobs": "jobs",
    "jobs.kinds": "kinds of jobs",
    "host": "hosts",
    "ui": "page",
    "api": "page",
    "cli": "command line",
    "commands": "command line",
    "progress": "command line",
    "app": "programs",
    "demo": "programs",
    "extension": "programs",
}

FILES = python_files(PACKAGE)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_one_way(path):
    module = module_name(path)
    wrong = [
        f"{path.relative_to(ROOT)}:{found.line}: {module} ({layer_of(module)}) must not import {found.module}"
        for found in imports(path)
        if not is_allowed(module, found)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=module_name)
def test_importing_a_room_costs_nothing(path):
    """Importing "models.detect" runs "models/__init__.py", so that must not bring the room's libraries."""
    room = layer_of(module_name(path))
    if room == "programs":
        return
    found = imports(path)
    assert [item.module for item in found if _is_library(item.module)] == []
    assert [item.module for item in found if _layer_of_ours(item) in ("models", "training")] == []


def test_every_module_has_a_layer():
    homeless = [module_name(path) for path in FILES if _room_of(module_name(path)) is None]
    assert not homeless, f"say in ROOMS which layer they are in: {homeless}"


def test_light_modules_bring_no_heavy_library():
    """What the page and the command line import at their start, seen in a real process."""
    light = [module_name(path) for path in FILES if layer_of(module_name(path)) in ("ground", "data", "jobs", "command line")]
    heavy = sorted({"torch", "diffusers", "peft", "transformers", "accelerate", "safetensors"} | PAGE_AND_WEBUI)
    assert _loaded_by(light, heavy) == []


def test_tables_bring_no_model_library():
    tables = [module_name(path) for path in FILES if _makes_a_table(path)]
    assert tables
    assert _loaded_by(tables, ["diffusers", "peft", "transformers", "accelerate"]) == []


def test_the_start_needs_the_standard_library_alone():
    code = "import sys; from lora_trainer import entry; print(*{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert {name for name in result.stdout.split() if _is_library(name)} <= {"lora_trainer", "__main__", "sitecustomize"}


@pytest.mark.parametrize(
    ("module", "imported", "is_delayed", "expected"),
    [
        ("lora_trainer.errors", "torch", True, False),
        ("lora_trainer.config.parse", "yaml", False, True),
        ("lora_trainer.config.parse", "lora_trainer.training.loop", True, False),
        ("lora_trainer.dataset.scan", "numpy", False, True),
        ("lora_trainer.dataset.scan", "torch", False, False),
        ("lora_trainer.dataset.cache", "torch", False, True),
        ("lora_trainer.models.detect", "lora_trainer.models.checkpoint", False, False),
        ("lora_trainer.models.detect", "lora_trainer.models.checkpoint", True, True),
        ("lora_trainer.models.sd1", "lora_trainer.training.loop", True, False),
        ("lora_trainer.training.optimizers", "bitsandbytes", False, False),
        ("lora_trainer.training.optimizers", "bitsandbytes", True, True),
        ("lora_trainer.training.loop", "gradio", True, False),
        ("lora_trainer.training.loop", "modules.shared", True, False),
        ("lora_trainer.cli", "lora_trainer.training.loop", False, False),
        ("lora_trainer.cli", "lora_trainer.training.loop", True, True),
        ("lora_trainer.bootstrap", "yaml", False, False),
        ("lora_trainer.jobs.queue", "lora_trainer.training.loop", True, False),
        ("lora_trainer.jobs.kinds.train", "lora_trainer.training.run", True, True),
        ("lora_trainer.jobs.kinds.train", "lora_trainer.training.run", False, False),
        ("lora_trainer.ui.train", "lora_trainer.training.loop", True, False),
    ],
)
def test_the_rule_itself(module, imported, is_delayed, expected):
    assert is_allowed(module, Import(imported, 1, is_delayed)) is expected


def layer_of(module: str) -> str:
    return ROOMS[_room_of(module) or ""]


def is_allowed(module: str, found: Import) -> bool:
    name = layer_of(module)
    layer = LAYERS[name]
    if _is_library(found.module):
        library = found.module.partition(".")[0]
        if library in PAGE_AND_WEBUI and name not in ("hosts", "page", "programs"):
            return False
        allowed = layer.libraries | (layer.delayed_libraries if found.is_delayed else frozenset())
        return library in allowed or "*" in allowed
    target = _layer_of_ours(found)
    if target is None or target in (name, *layer.ours):
        return True
    in_same_room = module.split(".")[:2] == found.module.split(".")[:2]
    return found.is_delayed and (in_same_room or target in layer.delayed)


def _layer_of_ours(found: Import) -> str | None:
    return layer_of(found.module) if found.module.partition(".")[0] == "lora_trainer" else None


def _is_library(module: str) -> bool:
    top = module.partition(".")[0]
    return top != "lora_trainer" and top not in sys.stdlib_module_names


def _room_of(module: str) -> str | None:
    inside = module.removeprefix("lora_trainer").removeprefix(".")
    if not inside:
        return ""
    parts = inside.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in ROOMS), None)


def _makes_a_table(path: Path) -> bool:
    return any(isinstance(node, ast.Assign) and "Registry(" in ast.unparse(node.value) for node in parse(path).body)


def _loaded_by(modules: list[str], libraries: list[str]) -> list[str]:
    code = f"""
import importlib, sys
for module in {modules!r}:
    importlib.import_module(module)
    loaded = [name for name in {libraries!r} if name in sys.modules]
    if loaded:
        sys.exit(f"{{module}} brings {{', '.join(loaded)}}")
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    return result.stderr.splitlines()
