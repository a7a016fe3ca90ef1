from __future__ import annotations

import os
import sys

import pytest

from lora_trainer import card
from lora_trainer.card import card_bytes, card_name, fails_in_fp16


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce GTX 1630",
        "NVIDIA GeForce GTX 1650 Ti with Max-Q Design",
        "NVIDIA GeForce GTX 1660 SUPER",
        "GeForce GTX 1660 Ti",
        "NVIDIA GeForce MX450",
        "NVIDIA GeForce MX550",
        "NVIDIA T400 4GB",
        "NVIDIA T500",
        "NVIDIA T550 Laptop GPU",
        "NVIDIA T600 Laptop GPU",
        "NVIDIA T1000 8GB",
        "Quadro T1000",
        "Quadro T2000 with Max-Q Design",
        "NVIDIA T1200 Laptop GPU",
    ],
)
def test_cards_that_fail_in_fp16(name):
    assert fails_in_fp16(name)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 2060",
        "NVIDIA GeForce RTX 2080 Ti",
        "NVIDIA GeForce GTX 1080",
        "NVIDIA GeForce GTX 1060 6GB",
        "NVIDIA GeForce GTX 980 Ti",
        "NVIDIA GeForce MX570",
        "Quadro RTX 4000",
        "NVIDIA RTX 4000 SFF Ada Generation",
        "Tesla T4",
        "Tesla K80",
        "AMD Radeon RX 6600",
    ],
)
def test_cards_that_do_not(name):
    assert not fails_in_fp16(name)


@pytest.mark.skipif(os.name == "nt", reason="the program is a shell script here")
def test_nvidias_program_is_asked_once_for_name_and_memory(tmp_path, monkeypatch):
    program, asked = tmp_path / "nvidia-smi", tmp_path / "asked"
    program.write_text(f"#!/bin/sh\necho x >> {asked}\necho 'NVIDIA GeForce GTX 1660 SUPER, 6144'\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    card._ask_nvidia.cache_clear()
    assert (card_name(), card_bytes()) == ("NVIDIA GeForce GTX 1660 SUPER", 6144 * 2**20)
    assert asked.read_text(encoding="utf-8").count("x") == 1
    card._ask_nvidia.cache_clear()
