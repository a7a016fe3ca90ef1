"""Six kills at random moments, caching and saving among them; what is left always continues to the same bytes."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lora_trainer.config.parse import dump_config
from tests.training.test_families import article_config

ROOT = Path(__file__).parents[2]
NUM_KILLS = 6


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[int, str]]]:
    """Returns a function that trains by a name's settings, maybe to its death, and returns the exit code and what was said."""
    command = [sys.executable, "-m", "tests.training.kill_child"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, encoding="utf-8", **pipes) as process:
        assert process.stdin is not None and process.stdout is not None

        def run(name: str, kill_at: int = 0) -> tuple[int, str]:
            print(json.dumps([str(tmp_path / name), str(tmp_path / f"{name}.yaml"), kill_at]), file=process.stdin, flush=True)
            code, said = json.loads(process.stdout.readline())
            return code, said

        yield run
        process.stdin.close()


def make_run(folder: Path, name: str) -> Path:
    """Writes the settings of a run, and returns where its LoRA will be."""
    config = article_config(
        folder / "inputs",
        "sd1",
        output_dir=str(folder / name / "runs" / "ink"),
        cache_dir=str(folder / name / "cache"),
        max_train_steps="9",
        save_steps="2",
        lora_dropout="0.2",
        shuffle_tags="false",
        batch_size="2",
        log_with="none",
    )
    dump_config(config, folder / f"{name}.yaml")
    return config.output_dir / "ink.safetensors"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is a signal of Unix; Windows has TerminateProcess")
def test_six_kills_end_with_the_bytes_of_an_undisturbed_run(tmp_path, start):
    whole_path, killed_path = make_run(tmp_path, "whole"), make_run(tmp_path, "killed")
    code, said = start("whole")
    assert code == 0, said
    num_touches = int(said.rsplit("touched ", 1)[1])
    rng, kills = random.Random(20), 0
    while kills < NUM_KILLS:
        # Early in each start, or six kills would not fit: the first ones land in caching, later ones in training and saving.
        code, said = start("killed", kill_at=rng.randint(2, num_touches // 3))
        assert code == -signal.SIGKILL, f"kill {kills} came too late: {said}"
        kills += 1
    code, said = start("killed")
    assert code == 0, said
    one, other = (safetensors.torch.load(path.read_bytes()) for path in (whole_path, killed_path))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    leftovers = [path.name for path in (tmp_path / "killed").rglob("*.tmp")]
    assert len(leftovers) <= NUM_KILLS, f"temporary files pile up: {leftovers}"
