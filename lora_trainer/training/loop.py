"""The training loop: one for every model family, adapter, optimizer and schedule.

A step is: the batches of the step, forward and backward of each, the guard, the optimizer. What differs between runs is in the
objects handed over; what happens at a save is the caller's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from lora_trainer.adapters.adapter import Adapter
from lora_trainer.control import TrainControl
from lora_trainer.errors import TrainingError
from lora_trainer.events import Emit
from lora_trainer.host.base import Lease
from lora_trainer.models.family import Objective, TrainableModel
from lora_trainer.training.feeder import Batch, Feeder
from lora_trainer.training.luggage import Luggage
from lora_trainer.training.memory import MemoryLadder, is_out_of_memory, memory_in_use
from lora_trainer.training.optimizers import effective_rate
from lora_trainer.training.precision import Precision
from lora_trainer.training.schedules import Schedule
from lora_trainer.training.state import TrainState

Outcome = Literal["finished", "stopped"]


@dataclass(frozen=True)
class LoopSettings:
    """Numbers of the loop.

    Attributes:
        total_steps: where it ends.
        save_steps: a save each this many steps; 0 for none but the last.
        max_grad_norm: of clipping; 0 for none.
        schedule: of the learning rate.
        max_skips: skipped steps in a row that end the run.
    """

    total_steps: int
    save_steps: int
    max_grad_norm: float
    schedule: Schedule
    max_skips: int = 5


@dataclass
class StepResult:
    """What a step found: one loss per item in the order of `names`, and the norm of the gradient before clipping."""

    losses: list[float]
    names: list[str]
    grad_norm: float

    @property
    def loss(self) -> float:
        return math.fsum(self.losses) / len(self.losses)

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.grad_norm) and all(map(math.isfinite, self.losses))


class Trainer:
    """The loop with what it works on.

    Args:
        model, adapter, parameters: the base, what is trained in it, and its weights.
        optimizer: holds `parameters`, in groups that carry "base_lr".
        feeder: gives the batches of a step.
        precision, objective, ladder, settings: see their types.
        state: where to begin; kept up to date.
        control, poll: requests from outside; `poll` is called once a step to fetch them.
        lease: the device, which its owner may want between two steps.
        luggage: what then leaves it.
        emit: takes events.
        save: writes state and exports at the current step.
        after_save: judges what was saved when it was due or asked for; not on a stop, a pause or a failure.
        sample: draws samples at the current step, when asked for.
    """

    def __init__(
        self,
        *,
        model: TrainableModel,
        adapter: Adapter,
        parameters: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        feeder: Feeder,
        precision: Precision,
        objective: Objective,
        ladder: MemoryLadder,
        settings: LoopSettings,
        state: TrainState,
        control: TrainControl,
        poll: Callable[[], None],
        lease: Lease,
        luggage: Luggage,
        emit: Emit,
        save: Callable[[], None],
        after_save: Callable[[], None],
        sample: Callable[[], None],
    ) -> None:
        self.model, self.adapter, self.parameters, self.optimizer, self.feeder = model, adapter, parameters, optimizer, feeder
        self.precision, self.objective, self.ladder, self.settings, self.state = precision, objective, ladder, settings, state
        self.control, self.poll, self.emit = control, poll, emit
        self.lease, self.luggage = lease, luggage
        self.save, self.after_save, self.sample = save, after_save, sample
        self.skips_in_a_row = 0
        self.saved_step = state.step

    def run(self) -> Outcome:
        """Trains to the last step, or until a stop is asked for; saves at the end of either, unless asked to discard.

        Raises:
            TrainingError: too many steps in a row were not finite. The weights are those before the first of them.
        """
        while self.state.step < self.settings.total_steps:
            if self._is_stopped():
                return "stopped"
            self._take_step()
            if self.state.step < self.settings.total_steps:  # at the end the caller looks, when the finished file is there
                self._serve()
        self._save_once()
        return "finished"

    def _serve(self) -> None:
        """Saves and samples, where due or asked for. Save first: looking and sampling take time."""
        if self.control.take("save") or self._is_save_due():
            self._save_once()
            self.after_save()
        if self.control.take("sample"):
            self.sample()

    def _take_step(self) -> None:
        started = time.perf_counter()
        step = self.state.step
        factor = self.settings.schedule.factor(step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        result = self._compute_gradients(step)
        # Only the scaled gradient overflowed: the same batch again at half the scale.
        while not result.is_finite and all(map(math.isfinite, result.losses)) and self.precision.shrink():
            result = self._compute_gradients(step)
        if result.is_finite:
            self.optimizer.step()
            self.precision.count_good_step()
            self.skips_in_a_row = 0
        else:
            self._skip(result)
        self.optimizer.zero_grad(set_to_none=True)
        self.state.step += 1
        self._report(result, started)

    def _compute_gradients(self, step: int) -> StepResult:
        """Leaves the clipped gradient of a step's mean loss in the parameters, with smaller batches if memory runs out."""
        while True:
            try:
                return self._accumulate(self.feeder.step_batches(step))
            except TrainingError:  # a batch could not be had; the weights are those of the last step
                self._save_once()
                raise
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the handler, whose traceback keeps the tensors of the failed pass alive.
            self.optimizer.zero_grad(set_to_none=True)
            if self.lease.claim():
                continue
            try:
                self.ladder.step_down(step)
            except TrainingError:
                self._save_once()
                raise

    def _accumulate(self, batches: list[Batch]) -> StepResult:
        """Runs forward and backward of each batch, and clips. Waits for the device once, at its end.

        Gradients are of the weighed losses; the losses returned are without weights, so that runs can be compared.
        """
        self.optimizer.zero_grad(set_to_none=True)
        # The mean is over the items of the step, so a batch that is split or smaller than others counts by its items.
        total_weight = sum(len(batch) for batch in batches)
        seen = []
        for batch in batches:
            self.adapter.seed_dropout(batch.seed)
            with self.precision.autocast():
                texts = {} if batch.captions is None else self.model.encode_texts(batch.captions)
                losses = self.model.losses(batch.tensors | texts, batch.draws, self.objective)
            ((losses * batch.weights).sum() * (self.precision.scale / total_weight)).backward()
            seen.append(losses.detach())
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        self.precision.unscale(gradients)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm or math.inf)
        *values, grad_norm = torch.cat([*seen, norm.float().reshape(1)]).tolist()
        return StepResult(values, [name for batch in batches for name in batch.names], grad_norm)

    def _skip(self, result: StepResult) -> None:
        self.state.num_skipped += 1
        self.skips_in_a_row += 1
        culprits = [name for name, loss in zip(result.names, result.losses, strict=True) if not math.isfinite(loss)]
        what = f"the loss of {', '.join(culprits)}" if culprits else f"the gradient of {', '.join(result.names)}"
        self.emit("warning", message=f"step {self.state.step + 1}: {what} is not finite; the step was skipped.")
        if self.skips_in_a_row >= self.settings.max_skips:
            raise TrainingError(
                f"{self.skips_in_a_row} steps in a row gave non-finite numbers. The run stopped at its last good weights. "
                "Set precision to fp32 (or bf16 on a card that has it), or learning_rate to a third "
                f"({self.optimizer.param_groups[0]['base_lr'] / 3:.1g}), and start over with --fresh; "
                "check the pictures named above."
            )

    def _report(self, result: StepResult, started: float) -> None:
        self.emit(
            "step",
            step=self.state.step,
            epoch=round(self.state.step / self.feeder.steps_per_epoch, 3),
            loss=result.loss if result.is_finite else None,
            learning_rate=effective_rate(self.optimizer),
            grad_norm=result.grad_norm if result.is_finite else None,
            seconds=round(time.perf_counter() - started, 4),
            memory_gib=round(memory_in_use(self.precision.device) / 2**30, 3),
        )

    def _is_stopped(self) -> bool:
        """Lends the device while it is wanted or while the run is paused; returns whether a stop is asked for."""
        self.poll()
        self.lease.show(self.state.step, self.settings.total_steps)
        if self._is_paused():
            self._pause()
        else:
            self._give_way()
        if not self.control.is_requested("stop"):
            return False
        if not self.control.is_requested("discard"):
            self._save_once()
        self.emit("stopped", step=self.saved_step)
        return True

    def _pause(self) -> None:
        self._save_once()
        self.emit("paused", step=self.state.step)
        while self._is_paused():
            if self.control.take("sample"):
                self.sample()
            self._give_way()

    def _give_way(self) -> None:
        try:
            self.lease.give_way(self.luggage.away, self.luggage.back, is_paused=self._is_resting)
        except TrainingError:  # no room to come back; the weights wait in memory
            self._save_once()
            raise

    def _is_paused(self) -> bool:
        return self.control.is_requested("pause") and not self.control.is_requested("stop")

    def _is_resting(self) -> bool:
        """Whether the device is not needed: a sample is drawn even while paused."""
        self.poll()
        return self._is_paused() and not self.control.is_requested("sample")

    def _is_save_due(self) -> bool:
        return self.settings.save_steps > 0 and self.state.step % self.settings.save_steps == 0

    def _save_once(self) -> None:
        if self.saved_step != self.state.step:
            self.save()
            self.saved_step = self.state.step
