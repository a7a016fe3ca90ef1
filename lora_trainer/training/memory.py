"""Out of memory: recognised, explained with numbers, and, when asked for, answered by the next smaller setting.

The ladder: micro-batches halved (accumulation doubled, so a step keeps its pictures, and each its noise), then gradient
checkpointing. Neither changes what is learned beyond rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lora_trainer.config.schema import TrainConfig
from lora_trainer.errors import Problem, TrainingError, says_out_of_memory
from lora_trainer.events import Emit
from lora_trainer.forecast import largest_size, warn_of_card
from lora_trainer.host.base import free_memory
from lora_trainer.models.family import TrainableModel
from lora_trainer.plan import TrainPlan
from lora_trainer.training.feeder import Feeder


@dataclass
class MemoryLadder:
    """What can be made smaller, in order.

    Attributes:
        model, feeder: of the run.
        adapts: whether to take the next rung by itself, or to stop and name it.
        batch_size, accumulation: of the settings, for the messages.
        checkpoints: whether the model checkpoints already.
    """

    model: TrainableModel
    feeder: Feeder
    adapts: bool
    batch_size: int
    accumulation: int
    checkpoints: bool
    device: torch.device
    emit: Emit

    def step_down(self, step: int) -> None:
        """Makes the next step smaller after an allocation failed.

        Raises:
            TrainingError: adapting was not asked for, or nothing is left to make smaller; says numbers and what to set.
        """
        memory = describe_memory(self.device)
        free_memory()
        if not self.adapts:
            raise TrainingError(f"out of memory at step {step + 1} ({memory}). {self._advice()}")
        if self.feeder.split_batches():
            change = f"micro-batches of at most {self.feeder.max_items}, accumulated"
        elif not self.checkpoints:
            self.model.set_gradient_checkpointing(True)
            self.checkpoints = True
            change = "gradient checkpointing"
        else:
            raise TrainingError(
                f"out of memory at step {step + 1} ({memory}), with the smallest batches and gradient checkpointing. {LAST}"
            )
        self.emit(
            "warning", message=f"out of memory at step {step + 1} ({memory}); going on with {change}. The result is the same."
        )

    def _advice(self) -> str:
        adapt = "Or set on_out_of_memory: adapt, which does it by itself and goes on from the last save."
        if self.batch_size > 1:
            smaller, twice = -(-self.batch_size // 2), self.accumulation * 2
            smaller_batch = f"Set batch_size to {smaller} and gradient_accumulation_steps to {twice}"
            return f"{smaller_batch} and start over with --fresh: as good, and slower. {adapt}"
        if not self.checkpoints:
            return f"Set gradient_checkpointing to true: the same result in about a third more time. {adapt}"
        return LAST


LAST = (
    "Lower resolution or lora_rank, set precision to bf16 or fp16 if it is fp32, and close other programs that use the card. "
    "A run with other settings starts over, with --fresh."
)


def forecast_problem(config: TrainConfig, plan: TrainPlan, device: torch.device) -> Problem | None:
    """Returns a warning where a GPU has less memory free than the run is forecast to need; asked before anything is loaded."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + unused
    return warn_of_card(config, plan.detection, largest_size(plan.buckets), free, is_free=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory could not be allocated, on a GPU or in RAM."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, MemoryError | RuntimeError) and says_out_of_memory(error)


def describe_memory(device: torch.device) -> str:
    """Returns the memory in use and in all, such as "11.2 of 12.0 GiB in use"."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
    else:
        import psutil

        memory = psutil.virtual_memory()
        free, total = memory.available, memory.total
    return f"{(total - free) / 2**30:.1f} of {total / 2**30:.1f} GiB in use"


def memory_in_use(device: torch.device) -> int:
    """Returns the peak of the device's allocated memory in bytes; on a CPU the memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import psutil

    return int(psutil.Process().memory_info().rss)
