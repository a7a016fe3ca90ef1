"""The packages of the stand-alone program: looked for, and where they are missing installed into an environment of its own.

Standard library only, so that it runs on a machine that has nothing but a Python. Nothing is ever installed into the Python
that it was started with: that may be the WebUI's, or the system's. An installation that was interrupted is noticed by its state
file and repaired at the next start.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from lora_trainer.files import lock_byte

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"

UV = "uv==0.13.9"
# For machines whose newest build is older than the pin; plain pip, which knows no older builds for older drivers, takes the pin.
TORCH_RANGE = "torch>=2.6,<=2.13.0"
TORCH_PIN = "torch==2.13.0"
# Of the builds that plain pip finds, those for Linux can use a card of NVIDIA's, and those for Windows none.
PIPS_TORCH_HAS_CUDA = os.name != "nt"

WINDOWS_CONTROL_C = 0xC000013A

RUNTIME_MODULES = (
    "torch",
    "diffusers",
    "peft",
    "transformers",
    "accelerate",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "PIL",
    "yaml",
    "gradio",
)
TEST_MODULES = (*RUNTIME_MODULES, "pytest", "xdist", "hypothesis", "skimage", "playwright")
LINT_MODULES = ("ruff", "mypy")


def _say(line: str) -> None:
    print(line, flush=True)  # before what the installers print


class SetupError(Exception):
    """The packages cannot be made ready; the message says what to do."""


@dataclass(frozen=True)
class PackageSet:
    """Versions that belong together.

    Attributes:
        name: the word used in file names and after `test --host`.
        pythons: the (major, minor) versions that it has packages for.
        oldest_torch: an older torch in the Python that we were started with is not used.
        torch_backend: what uv takes torch for: "auto" finds the graphics card, "cpu" is enough for tests.
        is_host: exists for `test --host` only.
        requirements: the folder of its locked files.
    """

    name: str
    pythons: tuple[tuple[int, int], ...]
    oldest_torch: tuple[int, int]
    torch_backend: str = "auto"
    is_host: bool = False
    requirements: Path = REQUIREMENTS

    def locked_file(self, *, tests: bool) -> Path:
        """Returns the locked requirements; those for tests contain the others, in equal versions."""
        return self.requirements / (f"{self.name}-test.txt" if tests or self.is_host else f"{self.name}.txt")


NEWEST = PackageSet("newest", ((3, 11), (3, 12), (3, 13)), oldest_torch=(2, 6))
FORGE = PackageSet("forge", ((3, 10),), oldest_torch=(2, 1))
HOSTS = {
    "a1111": PackageSet("a1111", ((3, 10), (3, 11)), oldest_torch=(2, 1), torch_backend="cpu", is_host=True),
    "forge": PackageSet("forge", ((3, 10), (3, 11)), oldest_torch=(2, 1), torch_backend="cpu", is_host=True),
}


def choose_set(python: tuple[int, int] = sys.version_info[:2]) -> PackageSet:
    """Returns the package set for a stand-alone start on that version of Python.

    Raises:
        SetupError: no set has packages for it.
    """
    for package_set in (NEWEST, FORGE):
        if python in package_set.pythons:
            return package_set
    raise unsupported_python(python, sorted({*NEWEST.pythons, *FORGE.pythons}))


def unsupported_python(python: tuple[int, int], supported: Sequence[tuple[int, int]]) -> SetupError:
    """Returns the error for a Python that a set has no packages for; it names one that is installed, if any is."""
    names = [f"{major}.{minor}" for major, minor in supported]
    found = next((name for name in reversed(names) if _runs(f"python{name}")), None)
    if found:
        advice = f"Start it with the Python {found} of this machine: python{found} -m lora_trainer"
    elif os.name == "nt":
        advice = f"Install Python {names[-1]} and start it with: py -{names[-1]} -m lora_trainer"
    else:
        advice = f"Install Python {names[-1]} and start it with: python{names[-1]} -m lora_trainer"
    return SetupError(f"Python {python[0]}.{python[1]} cannot be used; Python {', '.join(names)} can. {advice}")


def _runs(program: str) -> bool:
    path = shutil.which(program)  # may be a version manager's stand-in for what is not installed
    return path is not None and subprocess.run([path, "--version"], capture_output=True, check=False).returncode == 0


def missing_modules(modules: Sequence[str]) -> list[str]:
    """Returns those that the running Python does not find, without importing any. Milliseconds."""
    return [name for name in modules if not _is_installed(name)]


def _is_installed(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None  # a mere folder of that name has no origin


def own_folder(package_set: PackageSet) -> Path:
    """Returns where the environment of a set is: `.venv` beside the package, for hosts `.environments/<name>`.

    With LORA_TRAINER_ENVIRONMENTS set, all are in that folder, named by set, Python and a hash of their requirements, so that
    copies of the project share them.
    """
    shared = os.environ.get("LORA_TRAINER_ENVIRONMENTS")
    if shared:
        parts = [_hash(package_set.locked_file(tests=tests)) for tests in (False, True)]
        digest = hashlib.sha256("\n".join([*parts, TORCH_PIN]).encode()).hexdigest()[:12]
        return Path(shared).expanduser().resolve() / f"{package_set.name}-py{sys.version_info[0]}{sys.version_info[1]}-{digest}"
    return ROOT / ".environments" / package_set.name if package_set.is_host else ROOT / ".venv"


class Environment:
    """A virtual environment of ours, and the state file in it that tells whether it is whole.

    Args:
        folder: where it is or will be.
        package_set: what belongs into it.
        say: is given each line of progress.
    """

    def __init__(self, folder: Path, package_set: PackageSet, say: Callable[[str], None] = _say) -> None:
        self.folder = folder
        self.package_set = package_set
        self.say = say
        self.python = folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"
        self._state_file = folder / "lora_trainer.json"

    def is_running(self) -> bool:
        """Whether this very program runs in it."""
        return Path(sys.prefix).resolve() == self.folder.resolve()

    def is_ready(self, *, tests: bool) -> bool:
        """Whether it is whole and has the locked requirements as they are now."""
        locked = _hash(self.package_set.locked_file(tests=tests))
        return self._is_usable() and not self._state()["doing"] and locked in self._state()["locked"]

    def prepare(self, *, tests: bool) -> None:
        """Makes it, or adds what is missing, or repairs what was interrupted. Waits for another start that does the same.

        Raises:
            SetupError: something could not be installed.
        """
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with open(self.folder.with_name(f"{self.folder.name}.lock"), "ab") as lock:
                if self._wait_for(lock) and self.is_ready(tests=tests):
                    return
                self._install(tests=tests)
        except OSError as error:
            raise SetupError(
                f"{self.folder} cannot be written: {error}. Move the program to a folder that is yours, "
                "or name another place in the environment variable LORA_TRAINER_ENVIRONMENTS."
            ) from error

    def share_torch(self) -> None:
        """Lets the environment see the torch of the Python that we were started with, if that is recent enough."""
        spec = importlib.util.find_spec("torch")
        if spec is None or spec.origin is None:
            return
        version = importlib.metadata.version("torch")
        if tuple(int(part) for part in version.split(".")[:2]) < self.package_set.oldest_torch:
            return
        found_in = Path(spec.origin).resolve().parent.parent
        # A line of code, because site.py reads plain paths in the locale's encoding, which may lack the path's characters.
        line = f"import sys; sys.path.append({str(found_in)!a})"
        code = "import pathlib, sys, sysconfig; pathlib.Path(sysconfig.get_path('purelib'), sys.argv[1]).write_text(sys.argv[2])"
        self._run("The torch of this Python could not be shared.", self.python, "-c", code, "zz_torch_of_the_base.pth", line)

    def _wait_for(self, lock: BinaryIO) -> bool:
        """Returns whether there was anything to wait for."""
        waited = False
        while True:
            try:
                lock_byte(lock)
                return waited
            except OSError:
                if not waited:
                    self.say(f"Another start is installing into {self.folder}; waiting for it.")
                waited = True
                time.sleep(1)

    def _install(self, *, tests: bool) -> None:
        unfinished = self._state()["doing"]
        self.say(f"Setting up Python packages in {self.folder}")
        if not self._is_usable() or unfinished == "environment":
            self._make()
        if self._version("uv") != UV.partition("==")[2]:
            self.say("[2/4] uv, which installs the rest")
            if not self._version("pip"):  # an environment made by other means
                self._run("pip could not be installed.", self.python, "-m", "ensurepip")
            self._run("uv could not be installed.", self.python, "-m", "pip", "install", "--quiet", UV)
        self._install_torch(is_repair=unfinished == "torch")
        self._install_locked(tests=tests, is_repair=unfinished == "packages")
        self.say("The packages are ready.")

    def restart(self, arguments: Sequence[str]) -> NoReturn:
        """Ends this program and starts it again in the environment, with the same arguments, streams and exit code."""
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        command = [str(self.python), "-m", "lora_trainer", *arguments]
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if os.name == "nt":  # there, exec leaves a process in the background and the prompt returns at once
            sys.exit(run_child(command))
        os.execv(command[0], command)

    def _make(self) -> None:
        self.say(f"[1/4] A Python environment for {self.package_set.name} packages")
        if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
            version = f"{sys.version_info[0]}.{sys.version_info[1]}"
            raise SetupError(
                f"Python {version} ({sys.executable}) came without its module venv. "
                f"On Debian and Ubuntu it is a package of its own: sudo apt install python{version}-venv"
            )
        if self.folder.exists() and not self._state_file.exists():
            raise SetupError(
                f"{self.folder} is there, was not made by this program, and has no usable Python "
                f"{self._supported()}. Rename or remove it, then start again."
            )
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_state("environment", [])
        self._run("The environment could not be made.", Path(sys.executable), "-m", "venv", self.folder)
        self.share_torch()

    def _install_torch(self, *, is_repair: bool) -> None:
        version = self._version("torch")
        if version and not is_repair:
            self.say(f"[3/4] torch {version} is there and is kept")
            return
        self._write_state("torch", [])
        self.say("[3/4] torch for this machine (0.2 GB without, up to 3 GB with a graphics card; this takes a while)")
        backend = f"--torch-backend={self.package_set.torch_backend}"
        repair = ["--reinstall-package", "torch"] if is_repair else []
        install: list[str | Path] = [self.python, "-m", "uv", "pip", "install", "--python", self.python]
        tried = subprocess.run(
            [*install, "--dry-run", TORCH_RANGE, backend],
            env=_quiet_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if tried.returncode == 0:
            self._run("torch could not be installed.", *install, *repair, TORCH_RANGE, backend)
            return
        reason = tried.stderr.strip()
        if not PIPS_TORCH_HAS_CUDA and shutil.which("nvidia-smi"):
            self._write_state("torch" if is_repair else "packages", [])  # one that a person puts there meanwhile is kept
            raise SetupError(self._without_cuda(reason))
        self.say("      torch's own download site did not answer for this machine; taking pip's build")
        if not PIPS_TORCH_HAS_CUDA:
            self.say(f"      It is for the CPU alone, as no driver of an NVIDIA card was found (nvidia-smi). uv says:\n{reason}")
        repair = ["--force-reinstall", "--no-deps"] if is_repair and version else []
        self._run("torch could not be installed.", self.python, "-m", "pip", "install", "--progress-bar=on", *repair, TORCH_PIN)

    def _without_cuda(self, reason: str) -> str:
        return (
            "torch's own download site did not answer for this machine, and pip's build for Windows cannot use its graphics "
            f"card, so it was not taken. uv says:\n{reason}\n"
            "If it is the network (proxy, firewall, no connection): put that right and start the same command again. It goes on "
            "where it stopped. Where only a mirror can be reached, install torch from its folder of builds for your CUDA (such "
            "as cu126), then start again; what is there is kept:\n"
            f'    "{self.python}" -m pip install --no-deps "{TORCH_RANGE}" -i ADDRESS_OF_THAT_FOLDER'
        )

    def _install_locked(self, *, tests: bool, is_repair: bool) -> None:
        locked = self.package_set.locked_file(tests=tests)
        self._write_state("packages", [])
        count = sum(1 for line in locked.read_text(encoding="utf-8").splitlines() if "==" in line)
        self.say(f"[4/4] {count} packages of {locked.parent.name}/{locked.name}; those that are there stay")
        # The file is complete, so nothing may be added to it: some of the packages would bring another torch.
        command: list[str | Path] = [self.python, "-m", "uv", "pip", "install", "--python", self.python]
        command += ["--no-deps", "--requirement", locked]
        self._run("The packages could not be installed.", *command, *(["--reinstall"] if is_repair else []))
        contained = [self.package_set.locked_file(tests=False), locked]
        self._write_state("", sorted({_hash(path) for path in contained}))

    def _version(self, package: str) -> str:
        code = f"import importlib.metadata as m; print(m.version({package!r}))"
        result = subprocess.run([self.python, "-c", code], capture_output=True, encoding="utf-8", check=False)
        return result.stdout.strip() if result.returncode == 0 else ""

    def _supported(self) -> str:
        return ", ".join(f"{major}.{minor}" for major, minor in self.package_set.pythons)

    def _is_usable(self) -> bool:
        """Whether its Python is there and of a version that the set is for; one whose base Python was removed is not."""
        settings = self.folder / "pyvenv.cfg"
        if not self.python.exists() or not settings.is_file():
            return False
        lines = (line.partition("=") for line in settings.read_text(encoding="utf-8").splitlines())
        values = {key.strip(): value.strip() for key, _, value in lines}
        version = values.get("version", values.get("version_info", "0.0")).split(".")
        return Path(values.get("home", "")).is_dir() and (int(version[0]), int(version[1])) in self.package_set.pythons

    def _state(self) -> dict[str, Any]:
        """Returns "doing", the step under way or "", and "locked", the hashes of the requirements that are installed."""
        if not self._state_file.exists():  # an environment that a person made is kept and filled up
            return {"doing": "", "locked": []}
        try:
            state = json.loads(self._state_file.read_text(encoding="utf-8"))
            return {"doing": str(state["doing"]), "locked": list(state["locked"])}
        except (OSError, ValueError, KeyError, TypeError):
            return {"doing": "environment", "locked": []}

    def _write_state(self, doing: str, locked: list[str]) -> None:
        temporary = self._state_file.with_suffix(".tmp")
        temporary.write_text(json.dumps({"doing": doing, "locked": locked}), encoding="utf-8")
        temporary.replace(self._state_file)

    def _run(self, failure: str, *command: str | Path) -> None:
        if subprocess.run(command, env=_quiet_environment(), check=False).returncode:
            raise SetupError(
                f"{failure} The lines above say why. If it is the network (proxy, firewall, no connection) or a full disk: "
                "put that right and start the same command again. It goes on where it stopped."
            )


def run_child(command: Sequence[str | Path], cwd: Path | None = None) -> int:
    """Runs a program with our streams and returns its exit code; Ctrl-C, which it gets as well, is left for it to answer."""
    with subprocess.Popen(command, cwd=cwd) as child:
        while True:
            try:
                code = child.wait()
                break
            except KeyboardInterrupt:
                continue
    if code == WINDOWS_CONTROL_C:
        return 130
    return code if code >= 0 else 128 - code  # ended by a signal: as a shell counts


def _quiet_environment() -> dict[str, str]:
    # A user's own pip settings must not lead the packages out of the environment.
    return {
        **os.environ,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_USER": "0",
        "PIP_REQUIRE_VIRTUALENV": "0",
    }


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
