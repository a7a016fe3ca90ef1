"""Installs what the WebUI lacks of our packages, and nothing else; the WebUI runs this at every start, in a process of its own.

No package that is there is changed: all installed distributions are constraints of the installation. That the packages work
together is tried once after a change of versions, which takes seconds, and that they do is kept in `.installed.json`; that they
do not is tried again at each start, as another package may be to blame. Standard library only, and slow modules are imported
where they are needed: with that file it must end at once.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from pathlib import Path

STAMP = Path(__file__).resolve().parent / ".installed.json"
# The newest that work with the oldest WebUI (transformers 4.30, torch 2.1); the newer WebUIs bring their own.
PINS = {"diffusers": "0.31.0", "peft": "0.13.2"}
# A change of one of these may break another.
WATCHED = ("torch", "transformers", "accelerate", "huggingface-hub", "safetensors", "diffusers", "peft")
# A plain import of diffusers passes even where its parts cannot work.
TRIAL = "from diffusers import StableDiffusionPipeline; import peft"
WAYS_OUT = "The WebUI itself is not affected, and its other packages were left as they are."


def main() -> None:
    """Makes the packages ready, and says on one or two lines what was done or what is missing."""
    if _is_skipped():
        return
    versions = read_versions()
    if _read_stamp() == _stamp_of(versions):
        return
    problem = ""
    if missing := [name for name in PINS if versions[name] is None]:
        problem = install(missing)
        versions = read_versions()  # not pip's verdict: it complains of others' packages, too
    if all(versions[name] for name in PINS):
        problem = try_packages(versions)
        if not problem:
            STAMP.write_text(json.dumps(_stamp_of(versions), indent=2), encoding="utf-8")
    if problem:
        print(problem)


def read_versions() -> dict[str, str | None]:
    """Returns the installed versions of what we depend on, None for what is missing. A tenth of a second."""
    versions: dict[str, str | None] = {}
    for name in WATCHED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def install(names: list[str]) -> str:
    """Installs packages in the versions of `PINS`. Returns "" or what went wrong."""
    import subprocess
    import tempfile

    wanted = [f"{name}=={PINS[name]}" for name in names]
    print(f"LoRA Trainer: installing {' and '.join(wanted)}; no other package is changed", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder, "constraints.txt")
        constraints.write_text("\n".join(list_constraints()), encoding="utf-8")
        command = [*_installer(), "--constraint", str(constraints), *wanted]
        if index := os.environ.get("INDEX_URL"):  # the WebUI's own variable
            command += ["--index-url", index]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **_as_utf8())
    if result.returncode == 0:
        return ""
    last_lines = "\n".join(result.stdout.strip().splitlines()[-5:])
    return (
        f"LoRA Trainer cannot be used yet: {' and '.join(wanted)} could not be installed. {WAYS_OUT}\n{last_lines}\n"
        "It is tried again at the next start. On a machine without a network, download them on another with\n"
        f"    python -m pip download --no-deps --dest wheels {' '.join(wanted)}\n"
        "copy the folder wheels here, and install them with\n"
        f'    "{sys.executable}" -m pip install --no-deps --no-index --find-links wheels {" ".join(wanted)}'
    )


def list_constraints() -> list[str]:
    """Returns `name==version` of every installed distribution, the first of a name as Python finds it."""
    import re

    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name, version = distribution.metadata["Name"], distribution.version
        # What an interrupted uninstallation left behind has no proper name, and a version from before PEP 440 stops pip.
        if name and version and re.fullmatch(r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?", name) and re.match(r"v?\d+(\.\d+)*", version):
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), f"{name}=={version}")
    return sorted(found.values())


def try_packages(versions: dict[str, str | None]) -> str:
    """Imports what training needs, in a process of its own. Returns "" or what went wrong."""
    import subprocess

    result = subprocess.run([sys.executable, "-c", TRIAL], capture_output=True, **_as_utf8())
    if result.returncode == 0:
        return ""
    reason = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
    listed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return (
        f"LoRA Trainer cannot be used: the installed packages do not work together ({reason}). {WAYS_OUT}\n"
        f"Installed: {listed}. With a WebUI's own versions, diffusers {PINS['diffusers']} and peft {PINS['peft']} work; "
        "another extension may have changed one of them."
    )


def _installer() -> list[str]:
    """Returns the command that installs into the running Python: pip, or uv where the environment was made without pip."""
    import importlib.util
    import shutil

    uv = shutil.which("uv")
    if importlib.util.find_spec("pip") is None and uv:
        return [uv, "pip", "install", "--python", sys.executable]
    return [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--retries", "1", "--prefer-binary"]


def _as_utf8() -> dict:
    """Returns what has a Python print UTF-8, and what it prints read so; by itself it takes the system's, such as cp936."""
    return {"env": {**os.environ, "PYTHONIOENCODING": "utf-8"}, "encoding": "utf-8", "errors": "replace"}


def _is_skipped() -> bool:
    import shlex

    return "--skip-install" in (*sys.argv, *shlex.split(os.environ.get("COMMANDLINE_ARGS", "")))


def _stamp_of(versions: dict[str, str | None]) -> dict:
    return {"python": sys.prefix, "versions": versions}


def _read_stamp() -> object:
    try:
        return json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # as the WebUI reads it
    try:
        main()
    except Exception as error:  # whatever happens, the WebUI must start
        print(f"LoRA Trainer: its packages could not be looked after: {type(error).__name__}: {error}. {WAYS_OUT}")
