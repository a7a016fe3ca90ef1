"""New LoRA files as jobs: made in the LoRA folder, told to the host, never over what is there."""

from __future__ import annotations

import pytest

from lora_trainer.adapters.container import read_header
from lora_trainer.errors import AdapterError, ConfigError
from tests.adapters.test_shelf import make
from tests.jobs.conftest import wait_status


@pytest.fixture
def loras(host):
    folder = host.folders().lora_dir
    make(folder / "ink.safetensors")
    make(folder / "seal.safetensors", 0.5)
    return folder


def finish(queue, **settings):
    view = wait_status(queue, queue.submit("lora_files", settings, title="files"), "finished", "failed")
    assert view.status == "finished", queue.log_tail(view.id)
    return view


def test_each_tool_makes_its_file(host, queue, loras):
    assert finish(queue, tool="resize", lora="ink", name="ink_2", rank=2).result == loras / "ink_2.safetensors"
    assert read_header(loras / "ink_2.safetensors").metadata["ss_network_dim"] == "2"
    finish(queue, tool="merge", stack="<lora:ink:0.5> <lora:seal:1>", name="both")
    assert "merged from <lora:ink:0.5> <lora:seal:1>" in read_header(loras / "both.safetensors").metadata["ss_training_comment"]
    view = finish(queue, tool="convert", lora="ink", name="ink_full", precision="fp32")
    assert "ink_full.safetensors is in fp32" in queue.log_tail(view.id)
    assert host.history == [f"new file {name}.safetensors" for name in ("ink_2", "both", "ink_full")]


def test_what_cannot_be_done_is_said_by_the_job(queue, loras):
    id = queue.submit("lora_files", {"tool": "split", "lora": "ink", "name": "parts"}, title="files")
    assert "has no text encoder layers" in wait_status(queue, id, "failed").error


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"tool": "shrink"}, "'shrink'"),
        ({"tool": "resize", "lora": "ink"}, "rank: is empty"),
        ({"tool": "resize", "lora": "ink", "rank": 0.5}, r"rank: \(0.5\)"),
        ({"tool": "convert", "lora": "ink", "precision": "fp4"}, "'fp4'"),
        ({"tool": "convert", "lora": "ink"}, "precision: is empty"),
        ({"tool": "merge", "stack": "a boat"}, "stack: names no LoRA"),
        ({"tool": "split"}, "lora: is empty"),
        ({"tool": "split", "lora": "ink", "name": "seal"}, r"\(seal\) is taken.*seal-2 is free"),
        ({"tool": "split", "lora": "ink", "name": "a:b"}, "a:b"),
        ({"tool": "split", "lora": "ink", "ranks": 3}, "ranks"),
    ],
)
def test_wrong_settings_are_refused_at_once(queue, loras, settings, reason):
    given = {"name": "new", **settings}
    if given["name"] == "seal":
        given["tool"], given["rank"] = "resize", 2
    with pytest.raises(ConfigError, match=reason):
        queue.submit("lora_files", given, title="wrong")


def test_a_source_that_is_not_there_is_named(queue, loras):
    with pytest.raises(AdapterError, match="'inc'"):
        queue.submit("lora_files", {"tool": "split", "lora": "inc", "name": "new"}, title="wrong")
