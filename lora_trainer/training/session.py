"""The objects of one run, made in order: model, cache, adapter, optimizer, and what is done at a save and at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_trainer.adapters.adapter import Adapter, ModuleName
from lora_trainer.adapters.start import read_start
from lora_trainer.adapters.table import ADAPTERS
from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import TrainControl
from lora_trainer.dataset.cache import TensorStore
from lora_trainer.dataset.table_writing import format_table
from lora_trainer.events import Emit, read_events
from lora_trainer.files import write_bytes
from lora_trainer.host.base import Lease
from lora_trainer.inference.settings import GenerateSettings
from lora_trainer.models.family import ModelSettings, Objective, Tensors, TrainableModel
from lora_trainer.models.table import load_model
from lora_trainer.plan import TrainPlan, replan
from lora_trainer.run_folder import RunFolder
from lora_trainer.training.disk import DiskGuard, StopRequestedError, check_space, disk_needs
from lora_trainer.training.encoding import Encoder
from lora_trainer.training.exporter import Exporter
from lora_trainer.training.feeder import Feeder, FeederSettings
from lora_trainer.training.loop import LoopSettings, Outcome, Trainer
from lora_trainer.training.luggage import Luggage
from lora_trainer.training.memory import MemoryLadder, forecast_problem
from lora_trainer.training.optimizers import averaged_weights, build_optimizer
from lora_trainer.training.precision import Precision, choose_device, choose_precision
from lora_trainer.training.samples import Sampler
from lora_trainer.training.schedules import Schedule
from lora_trainer.training.state import TrainState, save_state
from lora_trainer.training.validation import Validator, WatchedPicture, items_per_step, prepare_pictures


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


class Session:
    """The objects of one start, made in order."""

    def __init__(
        self, folder: RunFolder, config: TrainConfig, plan: TrainPlan, control: TrainControl, emit: Emit, lease: Lease
    ) -> None:
        self.folder, self.config, self.plan, self.control, self.emit, self.lease = folder, config, plan, control, emit, lease
        self.device = choose_device(config.device)
        self.precision = Precision(choose_precision(config.precision, self.device), self.device)
        self.disk = DiskGuard(control, self.poll, emit)
        self.luggage = Luggage((), self.device)
        self.objective = Objective(
            min_snr_gamma=config.min_snr_gamma,
            debiased_estimation=config.debiased_estimation,
            loss_type=config.loss_type,
            huber_delta=config.huber_delta,
            noise_offset=config.noise_offset,
        )

    def run(self, saved: tuple[TrainState, Tensors, dict[str, Any]] | None) -> TrainResult:
        exporter = Exporter(self.config, self.folder, self.emit)
        for problem in self.plan.problems:
            self.emit("notice" if problem.severity == "notice" else "warning", message=str(problem))
        if memory_problem := forecast_problem(self.config, self.plan, self.device):
            self.emit("warning", message=str(memory_problem))
        with self.lease.building():
            model = self._load_model()
        self._compare_pictures(saved)
        targets = self._choose_targets(model)
        check_space(disk_needs(self.config, self.plan, model, targets))
        first_weights = self._read_start(model, targets) if saved is None else {}
        feeder, watched = self._fill_cache(model)
        with self.lease.building():
            adapter = self._inject(model, targets)
            adapter.load_host_tensors(first_weights)
            optimizer = build_optimizer(self.config.optimizer, self._groups(adapter), weight_decay=self.config.weight_decay)
            state = self._restore(saved, adapter, optimizer)
        self.luggage = Luggage(model.modules, self.device, optimizer)
        exporter.prepare(model, adapter, optimizer, plan=self.plan, precision=self.precision)
        running = Running(
            session=self,
            model=model,
            adapter=adapter,
            optimizer=optimizer,
            feeder=feeder,
            state=state,
            exporter=exporter,
            validator=self._make_validator(model, adapter, watched),
            sampler=self._make_sampler(model, adapter, exporter),
        )
        return running.run(is_resumed=saved is not None)

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
                zero_terminal_snr=self.config.zero_terminal_snr,
                denoiser_waits=True,
            )
        )
        self.luggage = Luggage(model.modules, self.device)
        self.plan = replan(self.config, self.plan, model.resolution)
        self.emit("phase", name="loading the base model", done=1, total=1)
        for note in model.notes:
            self.emit("notice", message=note)
        total, num_items = self.plan.total_steps, len(self.plan.items)
        self.emit("started", total_steps=total, num_items=num_items, family=model.family)
        return model

    def _fill_cache(self, model: TrainableModel) -> tuple[Feeder, list[WatchedPicture]]:
        """Encodes what is not cached yet, and lets the encoders go that are not needed any more.

        Returns what is trained, and the pictures of the validation.
        """
        config, items = self.config, self.plan.items
        settings = FeederSettings(
            batch_size=config.batch_size,
            accumulation=config.gradient_accumulation_steps,
            seed=config.seed,
            shuffle_tags=config.shuffle_tags,
            keep_tokens=config.keep_tokens,
            tag_dropout=config.tag_dropout,
            caption_dropout=config.caption_dropout,
            flip=config.flip,
            trains_text=config.text_encoder_lr > 0,
        )
        encoder = Encoder(
            config, self.plan, model, TensorStore(config.cache_folder), self.disk, self.device, self.emit, self._progress
        )
        picture_keys = encoder.encode_pictures()
        needs_texts = not settings.varies_captions and not settings.trains_text
        text_keys = encoder.encode_texts() if needs_texts else []
        watched = prepare_pictures(encoder, trains_text=settings.trains_text)
        with self.lease.building():
            model.release_encoders(keep_text=not needs_texts)
        feeder = Feeder(
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
        return feeder, watched

    def _choose_targets(self, model: TrainableModel) -> dict[str, list[str]]:
        trained = [part for part in model.parts if _rate_of(part, self.config) > 0]
        return {part: model.lora_targets(part, self.config.target_modules) for part in trained}

    def _compare_pictures(self, saved: tuple[TrainState, Tensors, dict[str, Any]] | None) -> None:
        """Tells when a continued run has other pictures or captions than before, and keeps those of now."""
        before, count, key = self.folder.read_job(), len(self.plan.items), self.plan.data_key
        if saved and before.get("data_key") not in (None, key):
            self.emit(
                "warning",
                message=f"the pictures, captions or repeats changed since the run was started ({before['num_items']} items then, "
                f"{count} now). It goes on from step {saved[0].step} with those of now; --fresh starts over.",
            )
        self.folder.update_job(num_items=count, data_key=key)
        own = self.plan.held_out if self.config.validation_dir is None else ()  # else they are named in another folder
        captions = {item.name: item.caption for item in (*self.plan.scan.items, *own)}
        write_bytes(self.folder.captions_path, format_table(captions, ".csv"))

    def _read_start(self, model: TrainableModel, targets: dict[str, list[str]]) -> dict[ModuleName, Tensors]:
        """Returns the weights that the run starts from, {} for new ones; read before the long work of encoding."""
        path = self.config.start_from
        if path is None:
            return {}
        tensors = read_start(path, model, targets, rank=self.config.lora_rank)
        num_new = sum(map(len, targets.values())) - len(tensors)
        others = f"; {num_new} more start anew" if num_new else ""
        self.emit("notice", message=f"{len(tensors)} layers start from {path.name}{others}.")
        return tensors

    def _inject(self, model: TrainableModel, targets: dict[str, list[str]]) -> Adapter:
        config = self.config
        for part in targets:
            model.parts[part].train()  # the adapter's dropout asks for it
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
            if any(event.kind == "step" for event in read_events(self.folder.events_path)):
                self.emit("resumed", step=0)  # ended before its first save: readers forget those steps
            return TrainState(loss_scale=self.precision.scale)
        state, lora, optimizer_state = saved
        adapter.load_tensors(lora)
        optimizer.load_state_dict(optimizer_state)
        self.precision.scale, self.precision.good_steps = state.loss_scale, state.good_steps
        self.emit("resumed", step=state.step)
        return state

    def loop_settings(self) -> LoopSettings:
        config = self.config
        return LoopSettings(
            total_steps=self.plan.total_steps,
            save_steps=config.save_steps,
            max_grad_norm=config.max_grad_norm,
            schedule=Schedule(
                config.lr_scheduler,
                total_steps=self.plan.total_steps,
                warmup_steps=config.lr_warmup_steps,
                restarts=config.lr_restarts,
                min_ratio=config.lr_min_ratio,
            ),
        )

    def make_ladder(self, model: TrainableModel, feeder: Feeder) -> MemoryLadder:
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

    def _make_validator(self, model: TrainableModel, adapter: Adapter, watched: list[WatchedPicture]) -> Validator:
        return Validator(
            watched,
            are_held_out=bool(self.plan.held_out),
            model=model,
            adapter=adapter,
            precision=self.precision,
            seed=self.config.seed,
            items_per_step=items_per_step(self.plan, self.config),
            folder=self.folder,
            is_stopped=self._is_stopped,
            emit=self.emit,
        )

    def _make_sampler(self, model: TrainableModel, adapter: Adapter, exporter: Exporter) -> Sampler:
        side = max(64, self.plan.resolution // 64 * 64)
        settings = GenerateSettings(
            prompt="",
            width=side,
            height=side,
            steps=self.config.sample_steps,
            cfg_scale=self.config.sample_cfg_scale,
            seed=self.config.seed,
        )
        return Sampler(
            self.config.sample_prompts,
            settings,
            model=model,
            adapter=adapter,
            folder=self.folder,
            lora_file=exporter.file_of,
            is_stopped=self._is_stopped,
            building=self.lease.building,
            emit=self.emit,
        )

    def _progress(self, name: str) -> Callable[[int, int], None]:
        def report(done: int, total: int) -> None:
            self.emit("phase", name=name, done=done, total=total)
            self._check_stop()
            self.lease.give_way(self.luggage.away, self.luggage.back, is_paused=lambda: False)

        return report

    def poll(self) -> None:
        self.folder.take_commands(self.control)

    def _is_stopped(self) -> bool:
        self.poll()
        return self.control.is_requested("stop")

    def _check_stop(self) -> None:
        if self._is_stopped():
            raise StopRequestedError


@dataclass
class Running:
    """A run whose parts are all there: trains, and says what happens at a save and at the end."""

    session: Session
    model: TrainableModel
    adapter: Adapter
    optimizer: torch.optim.Optimizer
    feeder: Feeder
    state: TrainState
    exporter: Exporter
    validator: Validator
    sampler: Sampler

    def run(self, *, is_resumed: bool) -> TrainResult:
        """Trains to the end or to a stop."""
        if is_resumed and not self.exporter.has_step(self.state.step):  # killed between the state and the file
            self.exporter.export_step(self.state.step, self._epoch())
        with averaged_weights(self.optimizer):
            self._keep(lambda: self.validator.begin(self.state.step))
        trainer = self._make_trainer()
        outcome = trainer.run()
        path = self._finish() if outcome == "finished" else None
        return TrainResult(outcome, trainer.saved_step, path)

    def _make_trainer(self) -> Trainer:
        session = self.session
        return Trainer(
            model=self.model,
            adapter=self.adapter,
            parameters=[parameter for group in self.optimizer.param_groups for parameter in group["params"]],
            optimizer=self.optimizer,
            feeder=self.feeder,
            precision=session.precision,
            objective=session.objective,
            ladder=session.make_ladder(self.model, self.feeder),
            settings=session.loop_settings(),
            state=self.state,
            control=session.control,
            poll=session.poll,
            lease=session.lease,
            luggage=session.luggage,
            emit=session.emit,
            save=lambda: session.disk.run(session.folder.path, f"the state of step {self.state.step}", self._save),
            after_save=self._look,
            sample=self._sample_now,
        )

    def _save(self) -> None:
        state, precision = self.state, self.session.precision
        state.loss_scale, state.good_steps = precision.scale, precision.good_steps
        save_state(self.session.folder.state_dir, state, self.adapter.tensors(), self.optimizer)
        self.session.folder.update_job(step=state.step)
        self.session.emit("state_saved", step=state.step)
        if state.step < self.session.plan.total_steps:
            self.exporter.export_step(state.step, self._epoch())

    def _look(self, *, is_last: bool = False) -> None:
        with averaged_weights(self.optimizer):
            self._keep(lambda: self.validator.look(self.state.step, is_last=is_last))
            self.sampler.draw(self.state.step)

    def _sample_now(self) -> None:
        with averaged_weights(self.optimizer):
            self.sampler.draw_now(self.state.step)

    def _finish(self) -> Path:
        session, step = self.session, self.state.step
        path = session.disk.run(session.folder.path, "the LoRA file", lambda: self.exporter.export_final(step, self._epoch()))
        self._look(is_last=True)
        self._keep(lambda: self.validator.conclude(self.exporter.file_of))
        lora_dir = session.config.lora_dir
        if lora_dir is not None:
            session.disk.run(lora_dir, "the copy in the LoRA folder", lambda: self.exporter.publish(path, lora_dir, step))
        session.emit("finished", step=step, path=str(path))
        return path

    def _keep(self, write: Callable[[], None]) -> None:
        self.session.disk.run(self.session.folder.path, "the result of the validation", write)

    def _epoch(self) -> int:
        """Returns how many epochs have begun."""
        return self.feeder.epoch_of(max(0, self.state.step - 1)) + 1


def _rate_of(part: str, config: TrainConfig) -> float:
    """Returns the learning rate of a part: that of the text encoders, or that of what they condition."""
    if part.startswith("text_encoder"):
        return config.text_encoder_lr
    return config.learning_rate if config.unet_lr is None else config.unet_lr
