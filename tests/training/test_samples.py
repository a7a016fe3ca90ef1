"""Samples: what is drawn, what stands in the file, and that none of it reaches the LoRA's bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lora_trainer.config.parse import parse_overrides
from lora_trainer.control import TrainControl
from lora_trainer.inference.loras import lora_hash
from lora_trainer.models.diffusion import DiffusionModel
from lora_trainer.run_folder import RunFolder
from lora_trainer.training.run import train
from lora_trainer.training.samples import GAP
from tests.training.test_families import article_config
from tests.training.test_run import assert_same_file, run

PROMPTS = ["a boat, ink wash", "山水, a mountain"]
QUICK = {"sample_prompts": PROMPTS, "sample_steps": "2", "max_train_steps": "4", "save_steps": "2"}


def sampled(events):
    return [event.data["path"] for event in events if event.kind == "sampled"]


def warnings_of(events):
    return [event.data["message"] for event in events if event.kind == "warning"]


def halves(path):
    pixels = np.asarray(Image.open(path).convert("RGB"))
    side = pixels.shape[0]
    return pixels[:, :side], pixels[:, side + GAP :]


def test_each_save_draws_every_prompt_without_and_with_the_lora(tmp_path):
    config = article_config(tmp_path, "sd1", learning_rate="3e-1", **QUICK)
    result, events = run(config)
    folder = RunFolder(result.path.parent)
    names = [f"step-{step:08d}-{number}.png" for step in (2, 4) for number in (1, 2)]
    assert sampled(events) == [str(folder.samples_dir / name) for name in names]
    first, second = (halves(folder.samples_dir / name) for name in names[::2])
    assert first[0].shape == first[1].shape == (64, 64, 3)
    assert np.array_equal(first[0], second[0])  # the base, from the same noise
    assert not np.array_equal(first[0], first[1]) and not np.array_equal(first[1], second[1])
    kinds = [event.kind for event in events]
    assert kinds.index("exported") < kinds.index("sampled")


@pytest.mark.hosts
def test_the_parameters_stand_in_the_file_as_the_webui_writes_them(tmp_path):
    result, events = run(article_config(tmp_path, "sd1", sample_cfg_scale="5.5", seed="11", **QUICK))
    folder = RunFolder(result.path.parent)
    for path, prompt, file in zip(
        sampled(events), PROMPTS * 2, [folder.step_path("ink", 2)] * 2 + [result.path] * 2, strict=True
    ):
        lines = Image.open(path).text["parameters"].splitlines()
        assert lines[0] == f"{prompt} <lora:{file.stem}:1>"
        assert lines[1].startswith("Steps: 2, Sampler: Euler a, ")
        assert "CFG scale: 5.5, Seed: 11, Size: 64x64" in lines[1]
        assert f'Lora hashes: "{file.stem}: {lora_hash(file)}"' in lines[1]


TRAINED_TEXT = {"text_encoder_lr": "1e-3", "shuffle_tags": "true"}


@pytest.mark.parametrize(("family", "changes"), [("sd1", {}), ("sd2", {}), ("sdxl", TRAINED_TEXT)])
def test_a_run_with_samples_ends_with_the_same_bytes_as_one_without(tmp_path, family, changes):
    changes = {**changes, "lora_dropout": "0.3"}
    without, _ = run(article_config(tmp_path / "a", family, **{**QUICK, "sample_prompts": []}, **changes))
    with_samples, events = run(article_config(tmp_path / "b", family, **QUICK, **changes))
    assert len(sampled(events)) == 4
    assert_same_file(without.path, with_samples.path)


def test_a_sample_that_fails_is_a_warning_and_leaves_everything_as_it_was(tmp_path, monkeypatch):
    changes = {"lora_dropout": "0.3", **QUICK, "save_steps": "1"}
    without, _ = run(article_config(tmp_path / "a", "sd1", **{**changes, "sample_prompts": []}))
    failures = {
        "out of memory (": torch.cuda.OutOfMemoryError("CUDA out of memory"),
        "RuntimeError: something else": RuntimeError("something else"),
        "No space left on device": OSError(28, "No space left on device"),
        "AssertionError": AssertionError(),
    }
    errors = iter(failures.values())

    def fail(self, latents):
        torch.randn(7)  # a failing part may have drawn from the generators of everyone
        raise next(errors)

    monkeypatch.setattr(DiffusionModel, "decode_latents", fail)
    result, events = run(article_config(tmp_path / "b", "sd1", **changes))
    assert result.status == "finished" and sampled(events) == []
    told = [message for message in warnings_of(events) if "samples of step" in message]
    assert len(told) == 4 and all(message.startswith("training goes on;") for message in told)
    assert all(words in message for words, message in zip(failures, told, strict=True))
    assert_same_file(without.path, result.path)


def test_a_family_that_draws_nothing_says_so(toy_config):
    result, events = run(toy_config(sample_prompts=["a boat"]))
    assert result.status == "finished"
    assert any("the family toy draws no pictures" in message for message in warnings_of(events))


def test_samples_can_be_asked_for_at_any_step_and_in_a_pause(tmp_path):
    config = article_config(tmp_path, "sd1", **{**QUICK, "save_steps": "0"})
    control, folder, seen = TrainControl(), RunFolder(config.output_dir), []

    def watch(event):
        seen.append(event)
        if event.kind == "step" and event.data["step"] == 1:
            folder.post_command("sample")
        if event.kind == "step" and event.data["step"] == 3:
            folder.post_command("pause")
        if event.kind == "paused":
            folder.post_command("sample")
        if event.kind == "sampled" and event.data["step"] == 3:
            folder.post_command("continue")

    train(config, control=control, watch=watch)
    steps = [event.data["step"] for event in seen if event.kind == "sampled"]
    assert steps[:2] == [2, 2] and steps[-2:] == [4, 4] and steps.count(3) == 2
    parameters = Image.open(folder.samples_dir / "step-00000002-1.png").text["parameters"]
    assert "<lora:" not in parameters and "Training step: 2" in parameters  # no file of that step to name


def test_asking_without_prompts_says_what_to_set(toy_config):
    control = TrainControl()
    control.request("sample")
    _, events = run(toy_config(), control=control)
    assert [message for message in warnings_of(events) if "sample_prompts is empty" in message]


def test_a_stop_ends_the_drawing_and_the_run_goes_on_later(tmp_path):
    config = article_config(tmp_path, "sd1", **QUICK)
    control = TrainControl()

    def watch(event):
        if event.kind == "phase" and event.data["name"] == "drawing samples":
            control.request("stop")

    result = train(config, control=control, watch=watch)
    assert (result.status, result.step) == ("stopped", 2)
    assert [path.name for path in RunFolder(config.output_dir).samples_dir.iterdir()] == ["step-00000002-1.png"]
    again, events = run(config)
    assert again.status == "finished" and not [message for message in warnings_of(events) if "sample" in message]


def test_prompts_keep_their_commas_and_are_a_list_or_lines(toy_config):
    assert toy_config(sample_prompts=["a, b", "c"]).sample_prompts == ("a, b", "c")
    assert toy_config(sample_prompts="a, b\n\n c \n").sample_prompts == ("a, b", "c")
    assert toy_config(**parse_overrides(["sample_prompts=['a, b', c]"])).sample_prompts == ("a, b", "c")
    assert toy_config(sample_prompts="").sample_prompts == toy_config(sample_prompts=[]).sample_prompts == ()
