"""Draws samples while a run trains: each prompt without and with the LoRA, from the same noise, side by side in one PNG.

Samples are extra. Whatever goes wrong with one is a warning, and training goes on with the bytes that it would have had without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from lora_trainer.adapters.adapter import Adapter
from lora_trainer.adapters.tags import LoraUse
from lora_trainer.events import Emit
from lora_trainer.host.base import free_memory
from lora_trainer.inference.generate import generate
from lora_trainer.inference.infotext import describe, save_png
from lora_trainer.inference.settings import GenerateSettings
from lora_trainer.models.diffusion import DiffusionModel
from lora_trainer.models.family import TrainableModel
from lora_trainer.run_folder import RunFolder
from lora_trainer.training.memory import describe_memory, is_out_of_memory

GAP = 8  # pixels between the two pictures


class _StoppedError(Exception):
    """A stop was asked for while drawing."""


class Sampler:
    """Writes `samples/step-00000100-1.png` and so on into the run folder.

    Args:
        prompts: one picture each; none for no samples.
        settings: of all of them, but for the prompt.
        model, adapter: in training.
        folder: of the run.
        lora_file: returns the file that was saved at a step, if there is one; the picture's parameters name it.
        is_stopped: whether a stop is asked for, which ends the drawing.
        building: held while drawing, which moves parts of the model; see `host.base.Lease`.
        emit: takes events.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        settings: GenerateSettings,
        *,
        model: TrainableModel,
        adapter: Adapter,
        folder: RunFolder,
        lora_file: Callable[[int], Path | None],
        is_stopped: Callable[[], bool],
        building: Callable[[], AbstractContextManager[None]],
        emit: Emit,
    ) -> None:
        self._prompts, self._settings = prompts, settings
        self._model, self._adapter, self._folder, self._lora_file = model, adapter, folder, lora_file
        self._is_stopped, self._building, self._emit = is_stopped, building, emit
        self._without: dict[str, Image.Image] = {}  # the base does not change, so its pictures are drawn once
        self._drawn_step: int | None = None

    def draw(self, step: int) -> None:
        """Draws every prompt at a step. A failure is told of and ends the drawing."""
        if step == self._drawn_step:
            return
        for number, prompt in enumerate(self._prompts, start=1):
            # Beyond the handler's end, since a traceback keeps the tensors of the failed pass alive.
            failure = self._try_prompt(step, number, prompt)
            if failure is not None:
                free_memory()
                if failure:
                    self._emit("warning", message=f"training goes on; the samples of step {step} could not be drawn: {failure}")
                return
        self._drawn_step = step

    def draw_now(self, step: int) -> None:
        """Draws because somebody asked for it."""
        if not self._prompts:
            self._emit("warning", message="no sample was drawn: sample_prompts is empty. Name one text or more there.")
        self.draw(step)

    @property
    def _device(self) -> torch.device:
        return next(next(iter(self._model.parts.values())).parameters()).device

    def _try_prompt(self, step: int, number: int, prompt: str) -> str | None:
        """Returns None when it was drawn, else why not; "" for a stop."""
        devices = [self._device] if self._device.type == "cuda" else []
        try:
            with self._building(), torch.random.fork_rng(devices=devices):
                path = self._draw_prompt(step, number, prompt)
        except _StoppedError:
            return ""
        except Exception as error:  # anything at all: a run of hours must not end for a picture
            if is_out_of_memory(error):
                return f"out of memory ({describe_memory(self._device)}). A lower resolution or fewer programs on the card help."
            return f"{type(error).__name__}: {error}"
        self._emit("sampled", step=step, path=str(path))
        return None

    def _draw_prompt(self, step: int, number: int, prompt: str) -> Path:
        if not isinstance(self._model, DiffusionModel):
            raise TypeError(f"the family {self._model.family} draws no pictures; leave sample_prompts empty.")
        settings = replace(self._settings, prompt=prompt)
        if prompt not in self._without:
            self._without[prompt] = self._generate(self._model, settings, is_base=True)
        pair = _side_by_side(self._without[prompt], self._generate(self._model, settings, is_base=False))
        file = self._lora_file(step)
        uses = [LoraUse(file)] if file is not None else []
        parameters = describe(self._model, settings, uses, {"Training step": str(step), "Left": "without LoRA"})
        self._emit("phase", name="drawing samples", done=number, total=len(self._prompts))
        return save_png(self._folder.samples_dir / f"step-{step:08d}-{number}.png", pair, parameters)

    def _generate(self, model: DiffusionModel, settings: GenerateSettings, *, is_base: bool) -> Image.Image:
        with self._adapter.disabled() if is_base else nullcontext():
            return generate(model, settings, on_step=self._stop_if_asked)

    def _stop_if_asked(self, done: int, total: int) -> None:
        if self._is_stopped():
            raise _StoppedError


def _side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    both = Image.new("RGB", (left.width + GAP + right.width, max(left.height, right.height)), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width + GAP, 0))
    return both
