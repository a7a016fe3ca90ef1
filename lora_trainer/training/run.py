"""One start of a run: what it means in its run folder, and what is kept of how it ended. The work is in `session`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import TrainControl
from lora_trainer.errors import LoraTrainerError, Problem, TrainingError
from lora_trainer.events import TrainEvent
from lora_trainer.host.base import Lease, OwnDevice
from lora_trainer.plan import TrainPlan, make_plan
from lora_trainer.run_folder import RunFolder, Start, open_run
from lora_trainer.training.disk import StopRequestedError
from lora_trainer.training.event_log import EventLog
from lora_trainer.training.memory import LAST, describe_memory, is_out_of_memory
from lora_trainer.training.precision import choose_device
from lora_trainer.training.session import Session, TrainResult
from lora_trainer.training.state import load_state

Watch = Callable[[TrainEvent], None]

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""Matrix products repeat on NVIDIA's GPUs only with a workspace of fixed size, which this variable asks for."""


def train(
    config: TrainConfig, *, control: TrainControl, watch: Watch, fresh: bool = False, lease: Lease | None = None
) -> TrainResult:
    """Trains by the settings: starts, continues or extends the run in `output_dir`.

    Args:
        config: the settings.
        control: takes requests from this process; those in the run folder reach it too.
        watch: is called with each event, from this thread.
        fresh: moves an old run in `output_dir` aside first.
        lease: the device, borrowed from a host; None where nobody else uses it.

    Raises:
        ConfigError: the settings, pictures or base model cannot be used; nothing was written.
        RunFolderError: the folder is in use or holds another run.
        LoraTrainerError: training could not go on; the run folder holds the last good state.
    """
    plan = make_plan(config)
    choose_device(config.device)  # before anything is written
    folder, start = open_run(config, fresh=fresh, total_steps=lambda: plan.total_steps)
    try:
        if start == "finished":
            job = folder.read_job()
            path = folder.export_path(job["name"])
            if path.exists():
                return TrainResult("finished", int(job["step"]), path, was_done_before=True)
            start = "continue"  # the file was moved away; it is written again from the state
        return _train_in(folder, start, config, plan, control, watch, lease or OwnDevice())
    finally:
        folder.unlock()


def _train_in(
    folder: RunFolder,
    start: Start,
    config: TrainConfig,
    plan: TrainPlan,
    control: TrainControl,
    watch: Watch,
    lease: Lease,
) -> TrainResult:
    saved = load_state(folder.state_dir) if start == "continue" else None
    first_step = saved[0].step if saved else 0
    folder.update_job(status="running", process=os.getpid(), started_at=folder.read_job().get("started_at", time.time()))
    with EventLog(folder, watch, tensorboard=config.log_with == "tensorboard", first_step=first_step) as log:
        session = Session(folder, config, plan, control, log.emit, lease)
        try:
            # A host draws its own pictures in this process.
            is_strict = isinstance(lease, OwnDevice)
            if problem := determinism_problem(config, session.device, is_strict=is_strict):
                log.emit("warning", message=str(problem))
            with deterministic_algorithms(config.deterministic, is_strict=is_strict):
                result = session.run(saved)
            session.disk.run(folder.path, "job.json", lambda: folder.update_job(status=result.status, step=result.step))
        except StopRequestedError:  # while loading or caching, or while the disk was full: the last save counts
            step = int(folder.read_job().get("step", 0))
            log.emit("stopped", step=step)
            result = TrainResult("stopped", step, None)
            with suppress(OSError):  # the disk may still be full; then it counts as interrupted, which continues alike
                folder.update_job(status=result.status)
        except BaseException as error:
            told = _explain(error, session.device)
            message = str(told) if isinstance(told, LoraTrainerError) else f"{type(told).__name__}: {told}"
            log.emit("failed", message=message)
            with suppress(OSError):  # a full disk must not hide the error itself
                folder.update_job(status="failed", error=message)
            if told is not error:
                raise told from error
            raise
        return result


def _explain(error: BaseException, device: torch.device) -> BaseException:
    """Returns the error; for memory that ran out where no better advice is known, while loading say, one that says so."""
    if not is_out_of_memory(error):
        return error
    return TrainingError(f"out of memory ({describe_memory(device)}). {LAST}")


def determinism_problem(config: TrainConfig, device: torch.device, *, is_strict: bool) -> Problem | None:
    """Returns a warning where a deterministic run cannot promise the same bytes."""
    if is_strict or not config.deterministic or device.type == "cpu":
        return None
    message = "holds nearly inside a WebUI: on its graphics card the last digits may differ from run to run."
    return Problem("deterministic", message, "warning", "For the same bytes train from the command line.")


@contextmanager
def deterministic_algorithms(enabled: bool, *, is_strict: bool) -> Iterator[None]:
    """Within it torch uses deterministic kernels; afterwards everything is as it was, since a host shares it.

    Args:
        enabled: whether it does anything.
        is_strict: whether an operation without a deterministic kernel fails, else it only warns. Attention's backward pass is
            deterministic on a GPU when strict alone; but a host's pictures, drawn meanwhile, may need such operations.
    """
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get(WORKSPACE)
    try:
        os.environ.setdefault(WORKSPACE, ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=not is_strict)
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        if workspace is None:
            os.environ.pop(WORKSPACE, None)
