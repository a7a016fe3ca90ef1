"""A grid: which pictures it holds, what is done only once for it, and that the base is untouched afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lora_trainer.adapters.edit import merge
from lora_trainer.adapters.tags import LoraUse
from lora_trainer.control import TrainControl
from lora_trainer.errors import AdapterError, ConfigError
from lora_trainer.inference import grid as grid_module
from lora_trainer.inference import loras
from lora_trainer.inference.generate import generate
from lora_trainer.inference.grid import Cell, Grid, draw_cells
from lora_trainer.inference.loras import applied
from lora_trainer.inference.rows import make_rows
from lora_trainer.inference.settings import GenerateSettings
from tests.adapters.files import write
from tests.inference.conftest import MakeLora, assert_same_weights, weights_of

SETTINGS = GenerateSettings("", "blurry", width=64, height=64, steps=2, cfg_scale=5.0, seed=9)
PROMPTS = ("a boat, a lake", "水墨画：红色的房子")


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[tuple[Any, ...]]:
    """Returns a list to which every later call of a function adds its arguments."""
    calls: list[tuple[Any, ...]] = []
    function = getattr(owner, name)

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return function(*args, **options)

    monkeypatch.setattr(owner, name, counted)
    return calls


@pytest.mark.hosts
def test_base_first_and_then_each_weight(sd1: Any, make_lora: MakeLora, tmp_path: Path) -> None:
    path, before, seen = make_lora(sd1), weights_of(sd1), []
    rows = make_rows([[LoraUse(path)]], PROMPTS, SETTINGS)

    def show(grid: Grid, cell: Cell) -> None:
        assert grid.cells[cell.row, cell.column] is cell
        seen.append((cell.row, cell.weight, len(grid.cells), grid.num_cells))

    grid = draw_cells(sd1, rows, weights=(0.7, 1.0, 0.7), on_cell=show)
    assert_same_weights(sd1, before)
    places = [(row, weight) for weight in (0.0, 0.7, 1.0) for row in (0, 1)]
    assert seen == [(*place, number, 6) for number, place in enumerate(places, start=1)]
    assert grid.is_complete and grid.notes == ()
    second = replace(SETTINGS, prompt=PROMPTS[1])
    assert grid.cells[1, 0].picture.tobytes() == generate(sd1, second).tobytes()
    with applied(sd1, [LoraUse(path, 0.7)]):
        assert grid.cells[1, 1].picture.tobytes() == generate(sd1, second).tobytes()
    assert grid.cells[1, 0].parameters.startswith(f"{PROMPTS[1]}\nNegative prompt: blurry\n")
    assert grid.cells[1, 1].parameters.startswith(f"{PROMPTS[1]} <lora:ink:0.7>\n")
    with Image.open(grid.save(tmp_path / "sheet.png")) as saved:
        assert saved.size == grid.draw_sheet().size
        assert saved.info["parameters"] == grid.parameters
    assert grid.parameters.startswith(f"{PROMPTS[0]} <lora:ink:1>\n")
    assert 'Sheet weights: "0, 0.7, 1"' in grid.parameters
    assert PROMPTS[1] in grid.parameters


@pytest.mark.hosts
def test_the_merged_file_draws_what_the_stack_draws(model: Any, make_lora: MakeLora, tmp_path: Path) -> None:
    first, second = make_lora(model, "first", seed=1), make_lora(model, "second", ("attention_ff",), seed=2)
    find = {"first": first, "second": second}.__getitem__
    rows = make_rows([], ["a boat <lora:first:0.7> <lora:second:0.4:0.6>"], SETTINGS, find=find)
    assert rows[0].settings.prompt == "a boat  "
    stack = draw_cells(model, rows, weights=[1.0])
    merged = merge(rows[0].uses, tmp_path / "both.safetensors", precision="fp32")
    alone = draw_cells(model, make_rows([[LoraUse(merged.path)]], ["a boat  "], SETTINGS), weights=[1.0])
    pictures = [np.asarray(grid.cells[0, 1].picture, dtype=float) for grid in (stack, alone)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 2
    base = np.asarray(stack.cells[0, 0].picture, dtype=float)
    assert np.abs(pictures[0] - base).mean() > 3
    assert "<lora:first:0.7> <lora:second:0.4:0.6>" in stack.cells[0, 1].parameters


def test_a_prompt_is_encoded_once_without_text_encoder_loras(
    sd1: Any, make_lora: MakeLora, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_lora(sd1)
    rows = make_rows([[LoraUse(path, 1.0, 0.0)]], PROMPTS, SETTINGS)
    encoded = count_calls(monkeypatch, sd1, "encode_texts")
    read = count_calls(monkeypatch, loras, "read_modules")
    draw_cells(sd1, rows, weights=(0.3, 0.5, 0.7))
    assert [texts for (texts,) in encoded] == [["blurry", prompt] for prompt in PROMPTS]
    assert len(read) == 1


def test_a_prompt_is_encoded_once_for_each_weight_of_the_text_encoder(
    sd1: Any, make_lora: MakeLora, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = make_rows([[LoraUse(make_lora(sd1))]], PROMPTS[:1], SETTINGS, seeds=[1, 2, 3])
    encoded = count_calls(monkeypatch, sd1, "encode_texts")
    draw_cells(sd1, seeds, weights=(0.3, 0.7))
    assert len(encoded) == 3


def test_saved_steps_share_the_base_s_picture(sd1: Any, make_lora: MakeLora, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [make_lora(sd1, f"ink-step{step:08d}", seed=step) for step in (100, 200)]
    rows = make_rows([[LoraUse(file)] for file in files], PROMPTS[:1], SETTINGS)
    assert [row.label for row in rows] == ["ink, step 100", "ink, step 200"]
    drawn = count_calls(monkeypatch, grid_module, "generate")
    grid = draw_cells(sd1, rows, weights=(0.5, 1.0))
    assert len(drawn) == 5
    assert grid.cells[0, 0].picture is grid.cells[1, 0].picture
    assert grid.cells[0, 1].picture.tobytes() != grid.cells[1, 1].picture.tobytes()


def test_rows_are_all_of_stacks_prompts_and_seeds() -> None:
    ink, seal = LoraUse(Path("ink.safetensors")), LoraUse(Path("seal.safetensors"))
    rows = make_rows([[ink], [ink, seal]], ["a", "b"], SETTINGS, seeds=[1, 2])
    assert [row.label for row in rows][:3] == ["ink · a · seed 1", "ink · a · seed 2", "ink · b · seed 1"]
    assert rows[-1].label == "ink + seal · b · seed 2"
    assert [(row.settings.prompt, row.settings.seed) for row in rows[-2:]] == [("b", 1), ("b", 2)]
    assert make_rows([[ink]], ["a boat"], SETTINGS)[0].label == "a boat"
    assert [row.label for row in make_rows([[ink]], ["a"], SETTINGS, seeds=[1, 2])] == ["seed 1", "seed 2"]


def test_a_tag_beside_the_lora_that_is_tried_keeps_its_own_weight() -> None:
    tried = LoraUse(Path("out/ink-step00000100.safetensors"))
    prompt = "a boat <lora:ink:0.9><lora:seal:0.5:0.8>"
    (row,) = make_rows([[tried]], [prompt], SETTINGS, find=lambda name: Path(f"{name}.safetensors"))
    assert row.settings.prompt == "a boat "
    assert row.uses == (tried,)
    assert row.companions == (LoraUse(Path("seal.safetensors"), 0.8, 0.5),)
    assert [use.tag for use in row.acting(0.5)] == ["<lora:ink-step00000100:0.5>", "<lora:seal:0.5:0.8>"]
    assert row.acting(0) == ()


def test_what_is_missing_is_said() -> None:
    ink = LoraUse(Path("ink.safetensors"))
    with pytest.raises(ConfigError, match=r"prompts: is empty\. Give at least one"):
        make_rows([[ink]], [], SETTINGS)
    with pytest.raises(ConfigError, match=r"'a boat' names no LoRA\. Write <lora:name:1>"):
        make_rows([], ["a boat"], SETTINGS)
    with pytest.raises(ConfigError, match=r"<lora:seal> is not among the files given\. Give its file"):
        make_rows([[ink]], ["a <lora:seal:1>"], SETTINGS)


def test_what_cannot_be_used_is_refused_before_anything_is_drawn(
    sd1: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = [LoraUse(tmp_path / "ink.safetensors")]
    drawn = count_calls(monkeypatch, grid_module, "generate")
    with pytest.raises(ConfigError, match=r"width: \(70\) must be a multiple of 8"):
        draw_cells(sd1, make_rows([stack], PROMPTS, replace(SETTINGS, width=70)))
    with pytest.raises(ConfigError, match=r"weights: \(nan\) must be from -10 to 10\. 0\.3 to 1 is usual"):
        draw_cells(sd1, make_rows([stack], PROMPTS, SETTINGS), weights=[float("nan")])
    with pytest.raises(AdapterError, match=r"ink\.safetensors is not a file"):
        draw_cells(sd1, make_rows([stack], PROMPTS, SETTINGS))
    write(stack[0].path, {"base_model.model.to_q.lora_A.weight": torch.ones(2, 2)})
    with pytest.raises(AdapterError, match=r"another form \(PEFT\)"):
        draw_cells(sd1, make_rows([stack], PROMPTS, SETTINGS))
    assert drawn == []


def test_a_stop_keeps_what_is_drawn_and_leaves_the_base_as_it_was(sd1: Any, make_lora: MakeLora, tmp_path: Path) -> None:
    before, control = weights_of(sd1), TrainControl()

    def stop_at_third(grid: Grid, cell: Cell) -> None:
        if len(grid.cells) == 3:
            control.request("stop")

    rows = make_rows([[LoraUse(make_lora(sd1))]], PROMPTS, SETTINGS)
    grid = draw_cells(sd1, rows, weights=(0.5, 1.0), control=control, on_cell=stop_at_third)
    assert_same_weights(sd1, before)
    assert list(grid.cells) == [(0, 0), (1, 0), (0, 1)]
    assert not grid.is_complete
    assert grid.save(tmp_path / "part.png").is_file()


def test_the_base_is_as_it_was_after_an_exception_of_the_caller(sd1: Any, make_lora: MakeLora) -> None:
    before = weights_of(sd1)

    def fail(grid: Grid, cell: Cell) -> None:
        if cell.column:
            raise KeyError(cell.column)

    with pytest.raises(KeyError) as caught:
        draw_cells(sd1, make_rows([[LoraUse(make_lora(sd1))]], PROMPTS, SETTINGS), on_cell=fail)
    assert_same_weights(sd1, before)  # while the traceback still holds every frame
    assert caught.value.args == (1,)
