"""One run, from settings to the LoRA file: loads, caches, trains, saves, exports. It only puts the parts together."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_trainer.adapters.adapter import Adapter
from lora_trainer.adapters.table import ADAPTERS
from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import TrainControl
from lora_trainer.dataset.cache import TensorStore
from lora_trainer.errors import LoraTrainerError
from lora_trainer.events import Emit, TrainEvent
from lora_trainer.models.family import ModelSettings, Objective, Tensors, TrainableModel
from lora_trainer.models.table import load_model
from lora_trainer.plan import TrainPlan, make_plan, replan
from lora_trainer.run_folder import RunFolder, Start, open_run
from lora_trainer.training.disk import DiskGuard, StopRequestedError, check_space, disk_needs
from lora_trainer.training.encoding import Encoder
from lora_trainer.training.event_log import EventLog
from lora_trainer.training.exporter import Exporter
from lora_trainer.training.feeder import Feeder, FeederSettings
from lora_trainer.training.loop import LoopSettings, Outcome, Trainer
from lora_trainer.training.memory import MemoryLadder
from lora_trainer.training.optimizers import build_optimizer
from lora_trainer.training.precision import Precision, choose_device, choose_precision
from lora_trainer.training.state import TrainState, load_state, save_state

Watch = Callable[[TrainEvent], None]


@dataclass(frozen=True)
class TrainResult:
    """How a start ended.

    Attributes:
        status: "finished" or "stopped".
        step: where it stands.
        path: the finished LoRA file; None after a stop.
        was_done_before: the run had been finished by an earlier start, and nothing was done.
    """

    status: Outcome
    step: int
    path: Path | None
    was_done_before: bool = False


def train(config: TrainConfig, *, control: TrainControl, watch: Watch, fresh: bool = False) -> TrainResult:
    """Trains by the settings: starts, continues or extends the run in `output_dir`.

    Args:
        config: the settings.
        control: takes requests from this process; those in the run folder reach it too.
        watch: is called with each event, from this thread.
        fresh: moves an old run in `output_dir` aside first.

    Raises:
        ConfigError: the settings, pictures or base model cannot be used; nothing was written.
        RunFolderError: the folder is in use or holds another run.
        LoraTrainerError: training could not go on; the run folder holds the last good state.
    """
    plan = make_plan(config)
    folder, start = open_run(config, fresh=fresh, total_steps=lambda: plan.total_steps)
    try:
        if start == "finished":
            job = folder.read_job()
            return TrainResult("finished", int(job["step"]), folder.export_path(job["name"]), was_done_before=True)
        return _train_in(folder, start, config, plan, control, watch)
    finally:
        folder.unlock()


def _train_in(
    folder: RunFolder, start: Start, config: TrainConfig, plan: TrainPlan, control: TrainControl, watch: Watch
) -> TrainResult:
    saved = load_state(folder.state_dir) if start == "continue" else None
    first_step = saved[0].step if saved else 0
    folder.update_job(status="running", process=os.getpid(), started_at=folder.read_job().get("started_at", time.time()))
    with EventLog(folder, watch, tensorboard=config.log_with == "tensorboard", first_step=first_step) as log:
        session = _Session(folder, config, plan, control, log.emit)
        try:
            with deterministic_algorithms(config.deterministic):
                result = session.run(saved)
            session.disk.run(folder.path, "job.json", lambda: folder.update_job(status=result.status, step=result.step))
        except StopRequestedError:  # while loading or caching, or while the disk was full: the last save counts
            step = int(folder.read_job().get("step", 0))
            log.emit("stopped", step=step)
            result = TrainResult("stopped", step, None)
            folder.update_job(status=result.status)
        except BaseException as error:
            message = str(error) if isinstance(error, LoraTrainerError) else f"{type(error).__name__}: {error}"
            log.emit("failed", message=message)
            folder.update_job(status="failed", error=message)
            raise
        return result


class _Session:
    """The objects of one start, made in order."""

    def __init__(self, folder: RunFolder, config: TrainConfig, plan: TrainPlan, control: TrainControl, emit: Emit) -> None:
        self.folder, self.config, self.plan, self.control, self.emit = folder, config, plan, control, emit
        self.device = choose_device(config.device)
        self.precision = Precision(choose_precision(config.precision, self.device), self.device)
        self.disk = DiskGuard(control, self._poll, emit)
        self.objective = Objective(min_snr_gamma=config.min_snr_gamma, noise_offset=config.noise_offset)

    def run(self, saved: tuple[TrainState, Tensors, dict[str, Any]] | None) -> TrainResult:
        exporter = Exporter(self.config, self.folder, self.emit)
        for problem in self.plan.problems:
            self.emit("warning", message=str(problem))
        model = self._load_model()
        targets = self._choose_targets(model)
        check_space(disk_needs(self.config, self.plan, model, targets))
        feeder = self._fill_cache(model)
        adapter = self._inject(model, targets)
        optimizer = build_optimizer(self.config.optimizer, self._groups(adapter), weight_decay=self.config.weight_decay)
        state = self._restore(saved, adapter, optimizer)
        exporter.prepare(model, adapter, self.plan, self.precision)
        if saved and not exporter.has_step(state.step):
            exporter.export_step(state.step, self._epoch(feeder, state.step))

        def write_save() -> None:
            state.loss_scale, state.good_steps = self.precision.scale, self.precision.good_steps
            save_state(self.folder.state_dir, state, adapter.tensors(), optimizer)
            self.folder.update_job(step=state.step)
            self.emit("state_saved", step=state.step)
            if state.step < self.plan.total_steps:
                exporter.export_step(state.step, self._epoch(feeder, state.step))

        trainer = Trainer(
            model=model,
            parameters=[parameter for group in optimizer.param_groups for parameter in group["params"]],
            optimizer=optimizer,
            feeder=feeder,
            precision=self.precision,
            objective=self.objective,
            ladder=self._make_ladder(model, feeder),
            settings=self._loop_settings(),
            state=state,
            control=self.control,
            poll=self._poll,
            emit=self.emit,
            save=lambda: self.disk.run(self.folder.path, f"the state of step {state.step}", write_save),
        )
        outcome = trainer.run()
        path = None
        if outcome == "finished":
            epoch = self._epoch(feeder, state.step)
            path = self.disk.run(self.folder.path, "the LoRA file", lambda: exporter.export_final(state.step, epoch))
            self._publish(exporter, path, state.step)
            self.emit("finished", step=state.step, path=str(path))
        return TrainResult(outcome, state.step, path)

    def _load_model(self) -> TrainableModel:
        self._check_stop()
        self.emit("phase", name="loading the base model", done=0, total=1)
        model = load_model(
            ModelSettings(
                base_model=self.config.base_model,
                vae=self.config.vae,
                prediction_type=self.config.prediction_type,
                clip_skip=self.config.clip_skip,
                dtype=self.precision.dtype,
                device=self.device,
                gradient_checkpointing=self.config.gradient_checkpointing,
            )
        )
        self.plan = replan(self.config, self.plan, model.resolution)
        self.emit("phase", name="loading the base model", done=1, total=1)
        for note in model.notes:
            self.emit("notice", message=note)
        total, num_items = self.plan.total_steps, len(self.plan.scan.items)
        self.emit("started", total_steps=total, num_items=num_items, family=model.family)
        return model

    def _fill_cache(self, model: TrainableModel) -> Feeder:
        """Encodes what is not cached yet, and lets the encoders go that are not needed any more."""
        config, items = self.config, self.plan.scan.items
        settings = FeederSettings(
            batch_size=config.batch_size,
            accumulation=config.gradient_accumulation_steps,
            seed=config.seed,
            shuffle_tags=config.shuffle_tags,
            keep_tokens=config.keep_tokens,
            caption_dropout=config.caption_dropout,
            trains_text=config.text_encoder_lr > 0,
        )
        encoder = Encoder(
            config, self.plan, model, TensorStore(config.cache_folder), self.disk, self.device, self.emit, self._progress
        )
        picture_keys = encoder.encode_pictures()
        needs_texts = not settings.varies_captions and not settings.trains_text
        text_keys = encoder.encode_texts() if needs_texts else []
        model.release_encoders(keep_text=not needs_texts)
        return Feeder(
            items,
            self.plan.buckets,
            pictures=lambda index: encoder.get(picture_keys[index], items[index].name),
            texts=lambda index: encoder.get(text_keys[index], items[index].name),
            encode_captions=encoder.encode_now,
            model=model,
            objective=self.objective,
            settings=settings,
            device=self.device,
        )

    def _choose_targets(self, model: TrainableModel) -> dict[str, list[str]]:
        trained = [part for part in model.parts if _rate_of(part, self.config) > 0]
        return {part: model.lora_targets(part, self.config.target_modules) for part in trained}

    def _inject(self, model: TrainableModel, targets: dict[str, list[str]]) -> Adapter:
        config = self.config
        for part in targets:
            model.parts[part].train()  # gradient checkpointing and the adapter's dropout ask for it
        adapter_class = ADAPTERS.get(config.adapter).load()
        adapter: Adapter = adapter_class.inject(
            model, targets, rank=config.lora_rank, alpha=config.alpha, dropout=config.lora_dropout, seed=config.seed
        )
        return adapter

    def _groups(self, adapter: Adapter) -> list[dict[str, Any]]:
        groups = []
        for part, parameters in adapter.parameters_by_part().items():
            rate = _rate_of(part, self.config)
            groups.append({"params": parameters, "lr": rate, "base_lr": rate})
        return groups

    def _restore(
        self, saved: tuple[TrainState, Tensors, dict[str, Any]] | None, adapter: Adapter, optimizer: torch.optim.Optimizer
    ) -> TrainState:
        if saved is None:
            return TrainState(loss_scale=self.precision.scale)
        state, lora, optimizer_state = saved
        adapter.load_tensors(lora)
        optimizer.load_state_dict(optimizer_state)
        self.precision.scale, self.precision.good_steps = state.loss_scale, state.good_steps
        self.emit("resumed", step=state.step)
        return state

    def _loop_settings(self) -> LoopSettings:
        config = self.config
        return LoopSettings(
            total_steps=self.plan.total_steps,
            save_steps=config.save_steps,
            max_grad_norm=config.max_grad_norm,
            schedule=config.lr_scheduler,
            warmup_steps=config.lr_warmup_steps,
            dropout=config.lora_dropout > 0,
        )

    def _publish(self, exporter: Exporter, path: Path, step: int) -> None:
        lora_dir = self.config.lora_dir
        if lora_dir is not None:
            self.disk.run(lora_dir, "the copy in the LoRA folder", lambda: exporter.publish(path, lora_dir, step))

    def _make_ladder(self, model: TrainableModel, feeder: Feeder) -> MemoryLadder:
        return MemoryLadder(
            model=model,
            feeder=feeder,
            adapts=self.config.on_out_of_memory == "adapt",
            batch_size=self.config.batch_size,
            accumulation=self.config.gradient_accumulation_steps,
            checkpoints=self.config.gradient_checkpointing,
            device=self.device,
            emit=self.emit,
        )

    def _progress(self, name: str) -> Callable[[int, int], None]:
        def report(done: int, total: int) -> None:
            self.emit("phase", name=name, done=done, total=total)
            self._check_stop()

        return report

    def _poll(self) -> None:
        self.folder.take_commands(self.control)

    def _check_stop(self) -> None:
        self._poll()
        if self.control.is_requested("stop"):
            raise StopRequestedError

    def _epoch(self, feeder: Feeder, step: int) -> int:
        """Returns how many epochs a step has begun."""
        return feeder.epoch_of(max(0, step - 1)) + 1


def _rate_of(part: str, config: TrainConfig) -> float:
    """Returns the learning rate of a part: that of the text encoders, or that of what they condition."""
    if part.startswith("text_encoder"):
        return config.text_encoder_lr
    return config.learning_rate if config.unet_lr is None else config.unet_lr


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Within it torch uses deterministic kernels alone; afterwards its setting is as it was, since a host shares it."""
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
