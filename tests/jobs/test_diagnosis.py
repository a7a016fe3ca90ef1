from __future__ import annotations

import errno
import math
import random

import pytest

from lora_trainer.errors import (
    AdapterError,
    ConfigError,
    DatasetError,
    LoraTrainerError,
    MissingPackageError,
    ModelError,
    Problem,
    RunFolderError,
    TrainingError,
    UnsupportedModelError,
)
from lora_trainer.events import TrainEvent
from lora_trainer.jobs.curve import MOST_BINS, LossCurve
from lora_trainer.jobs.diagnosis import diagnose_error, diagnose_progress
from lora_trainer.jobs.view import Progress

pytestmark = pytest.mark.hosts
DEFAULTS = {"batch_size": 4, "learning_rate": "1e-4", "gradient_accumulation_steps": 2}


def field_of(error: BaseException, **settings) -> str:
    (problem,) = diagnose_error(error, {**DEFAULTS, **settings})
    return problem.field


class TestErrors:
    @pytest.mark.parametrize(
        "message",
        [
            "CUDA out of memory. Tried to allocate 20.00 MiB",
            "out of memory at step 3 (11.9 of 12.0 GiB in use).",
            "[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory",
            "The paging file is too small for this operation to complete. (os error 1455)",
        ],
    )
    @pytest.mark.parametrize("kind", [RuntimeError, TrainingError, OSError])
    def test_out_of_memory(self, kind, message):
        assert field_of(kind(message)) == "batch_size"

    def test_out_of_memory_names_the_next_smaller_setting(self):
        (problem,) = diagnose_error(MemoryError(), DEFAULTS)
        assert problem.hint.startswith("Set batch_size to 2 and gradient_accumulation_steps to 4")
        assert field_of(MemoryError(), batch_size=1, gradient_checkpointing=False) == "gradient_checkpointing"
        assert field_of(MemoryError(), batch_size=1, gradient_checkpointing=True) == "resolution"

    @pytest.mark.parametrize("message", ["5 steps in a row gave non-finite numbers.", "the loss is NaN", "loss is not finite"])
    def test_nan(self, message):
        (problem,) = diagnose_error(TrainingError(message), DEFAULTS)
        assert problem.field == "precision"
        assert "learning_rate to 3e-05" in problem.hint

    @pytest.mark.parametrize("message", ["information is missing", "the nanny left", "banana"])
    def test_words_that_only_look_like_nan(self, message):
        assert field_of(TrainingError(message)) == ""

    def test_all_others_by_their_type(self):
        assert field_of(DatasetError("x holds no pictures")) == "train_data_dir"
        assert field_of(ModelError("not a checkpoint")) == field_of(UnsupportedModelError("flux")) == "base_model"
        assert field_of(AdapterError("another rank")) == "start_from"
        assert field_of(RunFolderError("in use")) == "output_dir"

    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.ENOSPC, "No space left on device"),
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            TrainingError("the disk of /runs has 1.0 GiB free; this run writes 3.0 GiB: ..."),
        ],
    )
    def test_full_disk(self, error):
        assert field_of(error) == "save_steps"

    def test_a_missing_package_comes_with_its_command(self):
        (problem,) = diagnose_error(ModuleNotFoundError("No module named 'prodigyopt'", name="prodigyopt.prodigy"), {})
        assert problem.hint.endswith("-m pip install prodigyopt Then restart.")
        (problem,) = diagnose_error(MissingPackageError("bitsandbytes", "AdamW, 8 bit"), {})
        assert "pip install bitsandbytes" in problem.message

    def test_settings_bring_their_own_problems(self):
        problems = [Problem("seed", "is wrong."), Problem("base_model", "is missing.")]
        assert diagnose_error(ConfigError(problems), DEFAULTS) == problems

    def test_the_cause_counts_where_the_error_says_nothing(self):
        try:
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError as error:
                raise RuntimeError("PytorchStreamWriter failed") from error
        except RuntimeError as error:
            assert field_of(error) == "save_steps"

    def test_a_file_that_may_not_be_read(self):
        (problem,) = diagnose_error(PermissionError(errno.EACCES, "Permission denied", "/base.safetensors"), {})
        assert problem.message == "/base.safetensors: Permission denied."

    def test_what_was_not_foreseen_is_said_as_it_is(self):
        (problem,) = diagnose_error(ZeroDivisionError("division by zero"), {})
        assert problem.message == "ZeroDivisionError: division by zero"
        (problem,) = diagnose_error(LoraTrainerError("our own words."), {})
        assert problem.message == "our own words."

    @pytest.mark.parametrize("settings", [{}, {"batch_size": "many", "learning_rate": None}, {"unet_lr": "x"}])
    def test_odd_settings_do_not_hurt(self, settings):
        for error in (MemoryError(), TrainingError("nan"), OSError(28, "full")):
            assert diagnose_error(error, settings)


def run(losses, *, validations=()) -> Progress:
    progress = Progress()
    for number, loss in enumerate(losses, 1):
        data = {"step": number, "epoch": 1, "loss": loss, "learning_rate": 1e-4, "seconds": 1, "memory_gib": 1}
        progress.apply(TrainEvent("step", data))
    for number, (loss, base_loss) in enumerate(validations):
        data = {"step": 100 * number, "loss": loss, "held_out": True, "base_loss": base_loss}
        progress.apply(TrainEvent("validated", data))
    return progress


def noisy(count: int, level) -> list[float]:
    """Losses as noisy as those of a diffusion model in small batches: a fifth to twice the level."""
    rng = random.Random(3)
    return [level(number / count) * rng.uniform(0.2, 1.8) for number in range(count)]


def fields(progress: Progress, **settings) -> list[str]:
    return [problem.field for problem in diagnose_progress(progress, {**DEFAULTS, **settings})]


FLAT = run(noisy(1_000, lambda part: 0.5), validations=[(0.2, 0.2), (0.2, 0.2), (0.2, 0.2)])


class TestProgress:
    @pytest.mark.parametrize("count", [300, 2_000, 10_000])
    def test_a_loss_that_falls_is_well(self, count):
        assert fields(run(noisy(count, lambda part: 0.7 - 0.35 * part))) == []

    @pytest.mark.parametrize("fall", [0.0, 0.05])
    def test_the_losses_of_single_steps_do_not_say_that_nothing_is_learned(self, fall):
        """A good LoRA lowers a diffusion model's loss by a few per cent, far less than noise levels make it jump."""
        rng = random.Random(1)
        for _ in range(8):
            levels = [sum(0.006 + 0.55 * math.exp(-5 * rng.random()) for _ in range(4)) / 4 for _ in range(1_500)]
            assert fields(run([level * (1 - fall * step / 1_500) for step, level in enumerate(levels)])) == []

    def test_a_flat_validation_asks_for_a_higher_rate_and_a_look_at_the_pictures(self):
        assert fields(FLAT) == ["learning_rate", "train_data_dir"]
        (rate, pictures) = diagnose_progress(FLAT, DEFAULTS)
        assert "up to 0.0005" in rate.hint
        assert "blurred and duplicate pictures" in pictures.hint

    def test_no_rate_above_what_the_optimizer_bears(self):
        assert fields(FLAT, learning_rate="5e-4") == ["train_data_dir"]
        assert fields(FLAT, optimizer="lion", learning_rate="1.5e-4") == ["train_data_dir"]
        assert fields(FLAT, optimizer="prodigy", learning_rate="1") == ["train_data_dir"]
        assert fields(FLAT, unet_lr="2e-4") == ["unet_lr", "train_data_dir"]

    def test_the_validation_is_believed_before_the_noisy_losses(self):
        flat = noisy(1000, lambda part: 0.5)
        assert fields(run(flat, validations=[(0.2, 0.2), (0.19, 0.2), (0.18, 0.2)])) == []
        falling = noisy(1000, lambda part: 0.7 - 0.35 * part)
        assert fields(run(falling, validations=[(0.2, 0.2), (0.2, 0.2), (0.2, 0.2)])) == ["learning_rate", "train_data_dir"]

    @pytest.mark.parametrize("count", [1_000, 10_000])
    def test_a_loss_that_swings_or_rises_asks_for_a_lower_rate(self, count):
        swings = run(noisy(count, lambda part: 0.5 + 0.4 * (-1) ** int(part * 12)))
        rises = run(noisy(count, lambda part: 0.3 + 0.6 * part))
        for progress in (swings, rises):
            (problem,) = diagnose_progress(progress, {**DEFAULTS, "learning_rate": "2e-3"})
            assert problem.field == "learning_rate"
            assert problem.hint.startswith("Lower it to 0.0007")

    def test_too_few_steps_say_nothing(self):
        assert fields(run([0.5] * 150)) == []

    def test_skipped_steps_are_told(self):
        assert fields(run([0.5, None, 0.4])) == ["precision"]


class TestCurve:
    def test_it_stays_small_and_keeps_the_whole(self):
        curve = LossCurve()
        for step in range(12_345):
            curve.add(step, float(step))
        assert MOST_BINS / 2 <= len(curve.bins) <= MOST_BINS
        assert curve.count == 12_345
        assert curve.average(curve.bins)[0] == pytest.approx(12_344 / 2)

    def test_steps_that_did_not_count_are_forgotten(self):
        curve = LossCurve()
        for step in range(40):
            curve.add(step, 1.0)
        curve.forget_after(9)
        assert curve.count == 10
