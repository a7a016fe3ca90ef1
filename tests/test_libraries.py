"""Libraries are imported ahead, beside other work and without harm where they are missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lora_trainer import libraries
from lora_trainer.bootstrap import ROOT


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout


@pytest.mark.hosts
def test_libraries_come_while_something_else_is_done() -> None:
    code = """
import sys, threading
from lora_trainer import libraries
libraries.load_ahead()
libraries.load_ahead()
print(sum(thread.name == "lora_trainer libraries" for thread in threading.enumerate()))
import lora_trainer.training.run
libraries.wait_for_libraries()
print(*(name in sys.modules for name in libraries.LIBRARIES))
"""
    assert run(code).split() == ["1", *["True"] * len(libraries.LIBRARIES)]


def test_a_missing_library_harms_nothing() -> None:
    code = """
from lora_trainer import libraries
libraries.LIBRARIES = ("lora_trainer.no_such_module", "colorsys")
libraries.load_ahead()
libraries.wait_for_libraries()
import sys
print("colorsys" in sys.modules)
"""
    assert run(code).split() == ["True"]


def test_nothing_is_waited_for_that_was_not_begun() -> None:
    libraries.wait_for_libraries()
