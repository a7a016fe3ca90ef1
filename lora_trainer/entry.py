"""Which command needs which packages, and who answers it. Standard library only; decides nothing about training."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Sequence

from lora_trainer import __version__
from lora_trainer.bootstrap import (
    HOSTS,
    LINT_MODULES,
    NEWEST,
    ROOT,
    RUNTIME_MODULES,
    TEST_MODULES,
    Environment,
    SetupError,
    choose_set,
    missing_modules,
    own_folder,
    run_child,
    unsupported_python,
)

IN_TWO_PROCESSES = ("-n", "2", "--dist", "loadfile")  # each holds up to 1 GB
HELP = f"""LoRA trainer {__version__}: from a folder of pictures to <lora:name:0.7>

python -m lora_trainer             opens the page: drop pictures, have captions written, train, try
python -m lora_trainer COMMAND

  app                        the page, with options: --port, --data-dir, --listen with --auth, and others
  demo                       see it work: trains a small LoRA on pictures that come along
  train --config FILE.yaml   train, or continue a training that was interrupted
  check --config FILE.yaml   show problems and the plan, train nothing
  caption --input DIR        write first captions for a folder of pictures
  inspect FILE.safetensors   show what is in a LoRA file, and test it
  grid --base B --prompt P   draw with LoRAs at rising weights, and say which weight to take
  merge, resize, split       make new LoRA files from old ones
  list TABLE                 models, adapters, optimizers, schedules, captioners or presets
  control FOLDER REQUEST     stop, pause, continue, save or sample a training that runs elsewhere
  setup                      install what is needed, and show it
  test                       run the project's tests; --host {" or ".join(HOSTS)} with a WebUI's versions

COMMAND --help tells more. The first start installs the packages into .venv, beside the program; nothing else is touched."""


def main(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code: 0 done, 1 failed, 2 bad configuration, 130 stopped by Ctrl-C."""
    make_output_safe()
    try:
        return _answer(list(arguments))
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def _answer(arguments: list[str]) -> int:
    # Without a command it is the page: its options alone are enough, too.
    if not arguments or (arguments[0].startswith("--") and arguments[0] not in ("--help", "--version")):
        arguments = ["app", *arguments]
    command, rest = arguments[0], arguments[1:]
    if command in ("--help", "-h"):
        print(HELP)
        return 0
    if command == "--version":
        print(__version__)
        return 0
    if command == "test" and any(word == "--host" or word.startswith("--host=") for word in rest):
        return _test_host(rest)
    _see_to_packages(arguments)
    if command == "setup":
        return _show_setup()
    if command == "test":
        return _test(rest)
    if command == "app":
        return int(importlib.import_module("lora_trainer.app").main(rest))
    if command == "demo":
        return int(importlib.import_module("lora_trainer.demo").main(rest))
    return int(importlib.import_module("lora_trainer.cli").main(arguments))


def _see_to_packages(arguments: list[str]) -> None:
    """Returns when this Python has the packages that the command needs; else installs them and starts again where they are."""
    tests = arguments[0] == "test"
    if not missing_modules(_needed_modules(tests)):
        return
    package_set = choose_set()
    environment = Environment(own_folder(package_set), package_set)
    if not environment.is_running():
        if not environment.is_ready(tests=tests):
            environment.prepare(tests=tests)
        environment.restart(arguments)
    environment.prepare(tests=tests)
    importlib.invalidate_caches()
    if missing := missing_modules(_needed_modules(tests)):
        raise SetupError(
            f"{', '.join(missing)} cannot be found in {environment.folder} after an installation without errors. "
            "Remove that folder and start again."
        )


def _needed_modules(tests: bool) -> tuple[str, ...]:
    if not tests:
        return RUNTIME_MODULES
    return (*TEST_MODULES, *LINT_MODULES) if _is_newest() else TEST_MODULES


def _is_newest() -> bool:
    return sys.version_info[:2] in NEWEST.pythons


def _test(arguments: list[str]) -> int:
    """Runs pytest with the arguments; without any the checks of the code, then all tests. All run even if one fails."""
    python = sys.executable
    checks = [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",)] if _is_newest() and not arguments else []
    failed = []
    for check in [*checks, ("pytest", *(arguments or IN_TWO_PROCESSES))]:
        print(f"--- {' '.join(check)}", flush=True)
        if code := run_child([python, "-m", *check], cwd=ROOT):
            failed.append((" ".join(check), code))
    for name, code in failed:
        print(f"failed: {name} (exit code {code})", file=sys.stderr)
    return failed[0][1] if failed else 0


def _test_host(arguments: list[str]) -> int:
    """Runs the tests marked "hosts" with the versions of a WebUI, in an environment made for that."""
    position = next(i for i, word in enumerate(arguments) if word == "--host" or word.startswith("--host="))
    if "=" in arguments[position]:
        name, rest = arguments[position].partition("=")[2], arguments[:position] + arguments[position + 1 :]
    else:
        name, rest = " ".join(arguments[position + 1 : position + 2]), arguments[:position] + arguments[position + 2 :]
    if name not in HOSTS:
        raise SetupError(f"--host {name!r} is unknown; allowed: {', '.join(HOSTS)}.")
    package_set = HOSTS[name]
    if sys.version_info[:2] not in package_set.pythons:
        raise unsupported_python(sys.version_info[:2], package_set.pythons)
    environment = Environment(own_folder(package_set), package_set)
    if not environment.is_ready(tests=True):
        environment.prepare(tests=True)
    return run_child([environment.python, "-m", "pytest", "-m", "hosts", *rest], cwd=ROOT)


def _show_setup() -> int:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU (no CUDA or ROCm device is seen)"
    if torch.backends.mps.is_available():
        device = "Apple's GPU (MPS)"
    print(f"Python        {sys.version.split()[0]}, {sys.executable}")
    print(f"torch         {torch.__version__}, computes on {device}")
    for package in ("diffusers", "peft", "transformers", "accelerate", "safetensors", "tensorboard"):
        spec = importlib.util.find_spec(package)
        print(f"{package:<13} {importlib.metadata.version(package) if spec else f'missing: pip install {package}'}")
    print("Ready. Next: python -m lora_trainer demo")
    return 0


def make_output_safe() -> None:
    """Has characters that the console cannot show printed as \\uXXXX: a file's name must never end a training."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # None under pythonw, or replaced by a test
            stream.reconfigure(errors="backslashreplace")
