"""The start on any machine: which packages, where they go, what is said. Tiny wheels are really installed."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lora_trainer import bootstrap, cli
from lora_trainer.bootstrap import (
    FORGE,
    HOSTS,
    NEWEST,
    TEST_MODULES,
    TORCH_PIN,
    UV,
    Environment,
    PackageSet,
    SetupError,
    choose_set,
    missing_modules,
)
from lora_trainer.entry import HELP
from lora_trainer.files import lock_byte, unlock_byte
from tests.architecture.source import ROOT
from tests.tiny_wheels import make_wheel

REQUIREMENTS = ROOT / "requirements"
LOCKED = sorted(REQUIREMENTS.glob("*.txt"))
PIN = re.compile(r"^([a-z0-9-]+)==([^ ;]+)(?: ; .+)?$")


class TestPackageSets:
    @pytest.mark.parametrize(
        ("python", "expected"), [((3, 10), FORGE), ((3, 11), NEWEST), ((3, 12), NEWEST), ((3, 13), NEWEST)], ids=str
    )
    def test_each_python_has_its_set(self, python, expected):
        assert choose_set(python) is expected

    @pytest.mark.parametrize("python", [(3, 9), (3, 14)], ids=str)
    def test_a_python_without_packages_is_told_which_has_some(self, python):
        with pytest.raises(
            SetupError, match=rf"Python 3\.{python[1]} cannot be used; Python 3\.10, 3\.11, 3\.12, 3\.13 can"
        ) as error:
            choose_set(python)
        assert "-m lora_trainer" in str(error.value)

    def test_the_sets_have_these_files_and_no_others(self):
        wanted = {a.locked_file(tests=tests) for a in (NEWEST, FORGE, *HOSTS.values()) for tests in (False, True)}
        assert wanted == set(LOCKED)

    @pytest.mark.parametrize("path", LOCKED, ids=lambda path: path.name)
    def test_every_line_is_a_pin_and_none_brings_torch(self, path):
        names = [PIN.match(line).group(1) for line in path.read_text(encoding="utf-8").splitlines()]
        assert not [name for name in names if re.match("torch|nvidia|cuda|triton", name)]

    @pytest.mark.parametrize("name", ["newest", "forge"])
    def test_what_the_tests_need_comes_on_top_in_equal_versions(self, name):
        runtime, tests = (pins(REQUIREMENTS / f"{name}{end}.txt") for end in ("", "-test"))
        assert runtime < tests

    @pytest.mark.parametrize(
        ("name", "wanted"),
        [
            (
                "forge.txt",
                "diffusers==0.31.0 peft==0.13.2 transformers==4.46.1 accelerate==0.31.0 gradio==4.40.0 pydantic==2.8.2",
            ),
            ("a1111-test.txt", "diffusers==0.31.0 peft==0.13.2 transformers==4.30.2 accelerate==0.21.0 gradio==3.41.2"),
            ("a1111-test.txt", "safetensors==0.4.2 pillow==9.5.0 numpy==1.26.2"),
        ],
    )
    def test_host_sets_are_what_the_host_pins(self, name, wanted):
        assert set(wanted.split()) <= pins(REQUIREMENTS / name)

    def test_no_file_of_ours_names_an_index(self):
        for path in [
            *REQUIREMENTS.iterdir(),
            ROOT / "pyproject.toml",
            *(ROOT / "lora_trainer").glob("*.py"),
            ROOT / ".ci" / "run",
        ]:
            if path.is_file():
                text = path.read_text(encoding="utf-8")
                assert not re.search(r"index-url|--index|find-links|pypi|whl/", text), path

    @pytest.mark.hosts
    def test_this_environment_has_all_that_the_tests_need(self):
        assert missing_modules(TEST_MODULES) == []

    def test_a_folder_of_a_packages_name_is_not_the_package(self, tmp_path, monkeypatch):
        (tmp_path / "torchish").mkdir()
        monkeypatch.syspath_prepend(tmp_path)
        assert missing_modules(["torchish", "json"]) == ["torchish"]


class TestStart:
    @pytest.mark.parametrize("arguments", [["--help"], ["-h"]])
    def test_help_needs_no_packages(self, arguments):
        result = start_bare(*arguments)
        assert (result.returncode, result.stdout.strip()) == (0, HELP)

    @pytest.mark.hosts
    def test_help_names_every_command(self, capsys):
        with pytest.raises(SystemExit):
            cli.main(["--help"])
        commands = re.findall(r"^ {4}(\w+) ", capsys.readouterr().out, re.MULTILINE)
        assert "train" in commands
        usages = [re.split(" {2,}", line.strip())[0] for line in HELP.splitlines() if line.startswith("  ")]
        assert set(commands) <= {word for usage in usages for word in re.findall(r"\w+", usage)}

    def test_an_old_python_gets_a_sentence(self):
        code = "import runpy, sys; sys.version_info = (3, 9, 18); sys.version = '3.9.18 (main)'\n"
        code += "runpy.run_module('lora_trainer', run_name='__main__')"
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
        assert result.returncode == 1
        assert result.stderr.startswith("Python 3.9.18 is too old for the LoRA trainer; Python 3.10 to 3.13 can be used.")

    @pytest.mark.parametrize("name", ["__main__", "__init__"])
    def test_an_old_python_can_read_as_far_as_that_sentence(self, name):
        """Python 2.7 and 3.6 know neither annotations as text nor, the older, f-strings."""
        tree = ast.parse((ROOT / "lora_trainer" / f"{name}.py").read_text(encoding="utf-8"), feature_version=(3, 3))
        assert not [node for node in ast.walk(tree) if isinstance(node, (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr))]
        assert "__future__" not in {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}

    def test_an_unknown_host_is_named_with_the_known_ones(self):
        result = start_bare("test", "--host", "comfy")
        assert result.returncode == 1
        assert result.stderr == "error: --host 'comfy' is unknown; allowed: a1111, forge.\n"

    @pytest.mark.skipif(os.name == "nt", reason="the stand-in for Python is a shell script")
    def test_it_starts_itself_again_where_the_packages_are(self, tmp_path):
        """Arguments, streams and exit code go through, and a ready environment is neither made nor asked anything."""
        environment = ready_environment(tmp_path, '#!/bin/sh\ncat\necho "$@" "[$PYTHONPATH]"\nexit 130\n')
        result = start_bare("train", "--config", "水 墨.yaml", environments=tmp_path, standard_input="typed\n")
        assert environment.is_ready(tests=False)
        assert result.stdout == f"typed\n-m lora_trainer train --config 水 墨.yaml [{ROOT}]\n"
        assert (result.returncode, result.stderr) == (130, "")

    @pytest.mark.skipif(os.name == "nt", reason="the stand-in for Python is a shell script")
    @pytest.mark.parametrize("arguments", [[], ["--port", "7870"]])
    def test_without_a_command_it_is_the_page(self, tmp_path, arguments):
        ready_environment(tmp_path, '#!/bin/sh\necho "$@"\n')
        result = start_bare(*arguments, environments=tmp_path)
        assert result.stdout.split() == ["-m", "lora_trainer", "app", *arguments]

    @pytest.mark.skipif(os.name == "nt", reason="sends the signal of Ctrl-C as Linux does")
    def test_ctrl_c_reaches_the_child_once_and_its_exit_code_comes_back(self):
        child = (
            "import signal, sys, time\n"
            "def stop(*_): print('saved', flush=True); time.sleep(0.3); sys.exit(130)\n"
            "signal.signal(signal.SIGINT, stop); print('ready', flush=True); time.sleep(60)\n"
        )
        code = f"import sys; from lora_trainer.bootstrap import run_child; sys.exit(run_child([sys.executable, '-c', {child!r}]))"
        command = [sys.executable, "-c", code]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8", start_new_session=True) as process:
            assert process.stdout.readline() == "ready\n"
            os.killpg(process.pid, signal.SIGINT)
            assert process.stdout.read() == "saved\n"
        assert process.returncode == 130

    def test_a_child_that_was_killed_counts_as_a_shell_counts(self):
        code = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
        assert bootstrap.run_child([sys.executable, "-c", code]) == (143 if os.name != "nt" else signal.SIGTERM)

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a pipe that breaks")
    def test_a_reader_that_leaves_is_no_error(self):
        command = f"{sys.executable} -m lora_trainer --help | true"
        result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
        assert result.stderr == ""


@dataclass
class Shop:
    """Tiny wheels in a folder, which stands for the package index, and a set of them.

    Attributes:
        folder: holds the wheels.
        package_set: its locked files name `gauze`, and for tests `gauze` and `needle`.
        log: what the stand-in for uv was called with, one JSON list a line.
        settings: further environment variables, which steer the stand-in.
    """

    folder: Path
    package_set: PackageSet
    log: Path
    settings: dict[str, str] = field(default_factory=dict)

    def prepare(self, environment: Environment, *, tests: bool = False) -> subprocess.CompletedProcess[str]:
        """Prepares an environment in a process of its own, so that it can be killed."""
        return subprocess.run(**self.preparing(environment, tests=tests), capture_output=True, check=False)

    def preparing(self, environment: Environment, *, tests: bool = False) -> dict[str, Any]:
        """Returns what starts that process."""
        return self.calling(environment, f"prepare(tests={tests})")

    def calling(self, environment: Environment, call: str) -> dict[str, Any]:
        """Returns what starts a process that calls a method of the environment."""
        code = (
            "import os, sys; from pathlib import Path; from lora_trainer import bootstrap\n"
            "from lora_trainer.bootstrap import Environment, PackageSet, SetupError\n"
            "sys.path += filter(None, [os.environ.get('SHOP_BASE')])\n"
            "bootstrap.PIPS_TORCH_HAS_CUDA = 'SHOP_IS_WINDOWS' not in os.environ\n"
            "folder, requirements, minor = sys.argv[1:]\n"
            "package_set = PackageSet('shop', ((3, int(minor)),), (2, 6), requirements=Path(requirements))\n"
            f"try: Environment(Path(folder), package_set).{call}\n"
            "except SetupError as error: sys.exit(f'error: {error}')\n"
        )
        words = [environment.folder, self.package_set.requirements, str(sys.version_info[1])]
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.folder), "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0"}
        variables = {**os.environ, **offline, "PYTHONIOENCODING": "utf-8", "SHOP_LOG": str(self.log), **self.settings}
        # -S: a Python that has no torch that the new environment could share.
        command = [sys.executable, "-S", "-c", code, *words]
        return {"args": command, "cwd": ROOT, "env": variables, "encoding": "utf-8"}

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self.log.read_text("utf-8").splitlines()] if self.log.exists() else []


@pytest.fixture
def shop(tmp_path) -> Shop:
    wheels = tmp_path / "wheels"
    make_wheel(wheels, *UV.split("=="), files={"__main__.py": (Path(__file__).parent / "tiny_uv.py").read_text("utf-8")})
    make_wheel(wheels, *TORCH_PIN.split("=="))
    make_wheel(wheels, "gauze", "1.0", needs="torch")
    make_wheel(wheels, "needle", "2.0")
    requirements = tmp_path / "requirements"
    requirements.mkdir()
    (requirements / "shop.txt").write_text("gauze==1.0\n", encoding="utf-8")
    (requirements / "shop-test.txt").write_text("gauze==1.0\nneedle==2.0\n", encoding="utf-8")
    package_set = PackageSet("shop", (sys.version_info[:2],), (2, 6), requirements=requirements)
    return Shop(wheels, package_set, tmp_path / "log.jsonl")


@pytest.fixture
def environment(tmp_path, shop) -> Environment:
    return Environment(tmp_path / "env 水墨", shop.package_set, lambda line: None)


@pytest.fixture(scope="session")
def bare_environment(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bare") / "env"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder


@pytest.fixture
def made(environment, bare_environment) -> Environment:
    """An environment as the first step leaves it, copied to save that step's seconds."""
    shutil.copytree(bare_environment, environment.folder, symlinks=True)
    return environment


def has(environment: Environment, module: str) -> bool:
    code = f"import {module}"
    return subprocess.run([environment.python, "-c", code], capture_output=True, check=False).returncode == 0


class TestInstalling:
    def test_a_bare_machine_is_set_up_and_then_ready(self, shop, environment):
        """What an interrupted first step left is in the way, and is replaced."""
        environment.folder.mkdir()
        (environment.folder / "lora_trainer.json").write_text('{"doing": "environment", "locked": []}', encoding="utf-8")
        (environment.folder / "left over").touch()
        assert not environment.is_ready(tests=False)
        result = shop.prepare(environment)
        assert result.returncode == 0, result.stderr
        assert [line[:5] for line in result.stdout.splitlines() if line.startswith("[")] == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]
        assert not (environment.folder / "left over").exists()
        assert environment.is_ready(tests=False)
        assert not environment.is_ready(tests=True)
        assert has(environment, "torch")
        assert has(environment, "gauze")
        first, second, third = shop.calls()
        assert {"--dry-run", "--torch-backend=auto"} <= set(first)
        assert "--torch-backend=auto" in second
        assert "--no-deps" in third

    def test_tests_add_only_what_is_missing(self, shop, made):
        shop.prepare(made)
        shop.log.unlink()
        result = shop.prepare(made, tests=True)
        assert result.returncode == 0, result.stderr
        assert "torch 2.13.0 is there and is kept" in result.stdout
        assert has(made, "needle")
        assert made.is_ready(tests=True)
        assert made.is_ready(tests=False)
        (call,) = shop.calls()
        assert "--reinstall" not in call

    def test_without_torchs_own_source_pip_brings_the_pin(self, shop, made):
        shop.settings["SHOP_NO_TORCH_SOURCE"] = "1"
        result = shop.prepare(made)
        assert result.returncode == 0, result.stderr
        assert "did not answer" in result.stdout
        assert has(made, "torch")

    def test_on_windows_pips_torch_is_not_taken_where_a_card_is(self, shop, made, tmp_path):
        shop.settings |= {"SHOP_NO_TORCH_SOURCE": "1", "SHOP_IS_WINDOWS": "1", "PATH": str(tmp_path)}
        program = tmp_path / ("nvidia-smi.bat" if os.name == "nt" else "nvidia-smi")
        program.touch(mode=0o755)
        result = shop.prepare(made)
        assert result.returncode == 1
        assert "error: Failed to fetch" in result.stderr and "start the same command again" in result.stderr
        assert f'"{made.python}" -m pip install --no-deps' in result.stderr
        assert not has(made, "torch") and not made.is_ready(tests=False)
        by_hand = [made.python, "-m", "pip", "install", "--quiet", "--no-index", *shop.folder.glob("torch-*")]
        subprocess.run(by_hand, check=True)
        result = shop.prepare(made)
        assert result.returncode == 0, result.stderr
        assert "torch 2.13.0 is there and is kept" in result.stdout

    def test_on_windows_without_a_card_it_is_told_that_pips_torch_knows_none(self, shop, made, tmp_path):
        shop.settings |= {"SHOP_NO_TORCH_SOURCE": "1", "SHOP_IS_WINDOWS": "1", "PATH": str(tmp_path)}
        result = shop.prepare(made)
        assert result.returncode == 0, result.stderr
        assert "error: Failed to fetch" in result.stdout and "for the CPU alone" in result.stdout
        assert has(made, "torch")

    @pytest.mark.parametrize("phase", ["torch", "packages"])
    def test_an_installation_that_was_killed_is_repaired(self, shop, made, phase):
        shop.settings["SHOP_KILL_AT"] = phase
        assert shop.prepare(made).returncode != 0
        assert not made.is_ready(tests=False)
        shop.settings.clear()
        shop.log.unlink()
        result = shop.prepare(made)
        assert result.returncode == 0, result.stderr
        assert made.is_ready(tests=False)
        assert "[1/4]" not in result.stdout
        repairs = [word for call in shop.calls() for word in call if word.startswith("--reinstall")]
        assert repairs == {"torch": ["--reinstall-package"], "packages": ["--reinstall"]}[phase]

    def test_a_torch_that_is_there_is_kept_whatever_its_version(self, shop, made):
        make_wheel(shop.folder / "old", "torch", "2.7.1")
        install = [made.python, "-m", "pip", "install", "--quiet", "--no-index", *(shop.folder / "old").iterdir()]
        subprocess.run(install, check=True)
        result = shop.prepare(made)
        assert result.returncode == 0, result.stderr
        assert "torch 2.7.1 is there and is kept" in result.stdout
        assert made.is_ready(tests=False)

    def test_a_machine_without_network_is_told_so(self, shop, made):
        for wheel in shop.folder.iterdir():
            wheel.unlink()
        result = shop.prepare(made)
        assert result.returncode == 1
        assert "error: uv could not be installed." in result.stderr
        assert "network" in result.stderr
        assert not made.is_ready(tests=False)

    @pytest.mark.parametrize(("version", "is_shared"), [("2.5.1", False), ("2.8.0+rocm6.4", True)])
    def test_a_torch_of_the_base_python_is_shared_if_recent(self, shop, made, tmp_path, version, is_shared):
        base = tmp_path / "base 水墨"
        make_wheel(tmp_path / "old", "torch", version)
        shutil.unpack_archive(next((tmp_path / "old").iterdir()), base, "zip")
        shop.settings["SHOP_BASE"] = str(base)
        result = subprocess.run(**shop.calling(made, "share_torch()"), capture_output=True, check=False)
        assert result.returncode == 0, result.stderr
        assert has(made, "torch") is is_shared

    def test_a_second_start_waits_for_the_first(self, shop, environment):
        """The first is stood for by a lock held here, and by the finished environment that appears meanwhile."""
        with open(environment.folder.with_name(f"{environment.folder.name}.lock"), "ab") as lock:
            lock_byte(lock)
            with subprocess.Popen(**shop.preparing(environment), stdout=subprocess.PIPE) as second:
                assert "Another start is installing" in second.stdout.readline()
                make_ready(environment)
                unlock_byte(lock)
                assert second.stdout.read() == ""
        assert second.returncode == 0
        assert shop.calls() == []


class TestState:
    def test_changed_requirements_are_noticed(self, tmp_path, shop):
        environment = ready_environment(tmp_path, "", folder=tmp_path / "env", package_set=shop.package_set)
        assert environment.is_ready(tests=False)
        (shop.package_set.requirements / "shop.txt").write_text("gauze==1.1\n", encoding="utf-8")
        assert not environment.is_ready(tests=False)

    def test_other_line_ends_are_no_change(self, tmp_path, shop):
        environment = ready_environment(tmp_path, "", folder=tmp_path / "env", package_set=shop.package_set)
        (shop.package_set.requirements / "shop.txt").write_bytes(b"gauze==1.0\r\n")
        assert environment.is_ready(tests=False)

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"doing": ""}', "\0\0"])
    def test_a_damaged_state_file_is_not_believed(self, tmp_path, shop, text):
        environment = ready_environment(tmp_path, "", folder=tmp_path / "env", package_set=shop.package_set)
        (environment.folder / "lora_trainer.json").write_text(text, encoding="utf-8")
        assert not environment.is_ready(tests=False)

    def test_an_environment_whose_base_python_is_gone_is_not_ready(self, tmp_path, shop):
        environment = ready_environment(tmp_path, "", folder=tmp_path / "env", package_set=shop.package_set)
        (environment.folder / "pyvenv.cfg").write_text("home = /nowhere/bin\nversion = 3.11.7\n", encoding="utf-8")
        assert not environment.is_ready(tests=False)

    def test_an_environment_of_another_python_is_not_ready(self, tmp_path, shop):
        environment = ready_environment(tmp_path, "", folder=tmp_path / "env", package_set=shop.package_set)
        (environment.folder / "pyvenv.cfg").write_text(
            f"home = {Path(sys.executable).parent}\nversion = 3.9.1\n", encoding="utf-8"
        )
        assert not environment.is_ready(tests=False)

    def test_a_folder_of_somebody_else_is_never_deleted(self, tmp_path, shop):
        environment = Environment(tmp_path / "env", shop.package_set, lambda line: None)
        environment.folder.mkdir()
        (environment.folder / "thesis.odt").touch()
        with pytest.raises(SetupError, match="was not made by this program"):
            environment.prepare(tests=False)
        assert (environment.folder / "thesis.odt").exists()

    def test_a_python_without_venv_is_told_which_package_has_it(self, tmp_path, shop, monkeypatch):
        environment = Environment(tmp_path / "env", shop.package_set, lambda line: None)
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else find_spec(name))
        with pytest.raises(SetupError, match=r"sudo apt install python3\.\d+-venv"):
            environment.prepare(tests=False)

    def test_a_place_that_cannot_be_written_is_named(self, tmp_path, shop):
        (tmp_path / "file").touch()
        environment = Environment(tmp_path / "file" / "env", shop.package_set, lambda line: None)
        with pytest.raises(SetupError, match=r"cannot be written: .*LORA_TRAINER_ENVIRONMENTS"):
            environment.prepare(tests=False)

    def test_asking_takes_milliseconds_of_work(self, tmp_path, shop):
        """Not a time limit: asking starts no process."""
        environment = ready_environment(tmp_path, "", folder=tmp_path / "env", package_set=shop.package_set)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(subprocess, "Popen", lambda *_: pytest.fail("a process was started"))
            assert environment.is_ready(tests=False)


def ready_environment(
    folder_of_all: Path, script: str, *, folder: Path | None = None, package_set: PackageSet | None = None
) -> Environment:
    """Makes what looks like a finished environment, with a script as its Python."""
    package_set = package_set or choose_set()
    if folder is None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LORA_TRAINER_ENVIRONMENTS", str(folder_of_all))
            folder = bootstrap.own_folder(package_set)
    environment = Environment(folder, package_set)
    environment.python.parent.mkdir(parents=True)
    environment.python.write_text(script, encoding="utf-8")
    environment.python.chmod(0o755)
    make_ready(environment)
    return environment


def make_ready(environment: Environment) -> None:
    """Leaves the marks of a finished installation."""
    environment.python.parent.mkdir(parents=True, exist_ok=True)
    environment.python.touch()
    version = ".".join(map(str, sys.version_info[:3]))
    home = Path(sys.executable).parent
    (environment.folder / "pyvenv.cfg").write_text(f"home = {home}\nversion = {version}\n", encoding="utf-8")
    locked = [bootstrap._hash(environment.package_set.locked_file(tests=False))]
    (environment.folder / "lora_trainer.json").write_text(json.dumps({"doing": "", "locked": locked}), encoding="utf-8")


def pins(path: Path) -> set[str]:
    return {line.partition(" ;")[0] for line in path.read_text(encoding="utf-8").splitlines()}


def start_bare(*arguments: str, environments: Path | None = None, standard_input: str = "") -> subprocess.CompletedProcess[str]:
    """Starts the program in a Python without any packages."""
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LORA_TRAINER_ENVIRONMENTS")}
    variables["PYTHONIOENCODING"] = "utf-8"
    if environments:
        variables["LORA_TRAINER_ENVIRONMENTS"] = str(environments)
    command = [sys.executable, "-S", "-m", "lora_trainer", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=variables, input=standard_input, capture_output=True, encoding="utf-8", check=False
    )
