"""Writes the LoRA files of a run: step files, the final file, its copy with card in the LoRA folder, and their self-test."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from lora_trainer.adapters.adapter import Adapter
from lora_trainer.adapters.export import save_lora, webui_tensors
from lora_trainer.adapters.folder import Card, choose_name
from lora_trainer.adapters.metadata import TrainingFacts, metadata
from lora_trainer.adapters.owned import IN_DOUBT, PUBLISHED, publish_for
from lora_trainer.adapters.self_test import self_test
from lora_trainer.config.schema import TrainConfig
from lora_trainer.dataset.scan import dataset_metadata
from lora_trainer.errors import LoraInUseError
from lora_trainer.events import Emit
from lora_trainer.models.family import TrainableModel
from lora_trainer.plan import TrainPlan
from lora_trainer.run_folder import RunFolder
from lora_trainer.training.optimizers import averaged_weights
from lora_trainer.training.precision import DTYPES, Precision

PREFERRED_WEIGHT = 0.7
REPLACED = (".safetensors", ".json", ".png")  # what one LoRA is in the LoRA folder


class Exporter:
    """Decides the run's name at once, so that it is known before training; `prepare` comes before the first file.

    Args:
        config: of the run.
        folder: of the run; the name is kept in its `job.json`.
        emit: takes events.
    """

    def __init__(self, config: TrainConfig, folder: RunFolder, emit: Emit) -> None:
        self._config, self._folder, self._emit = config, folder, emit
        self.name = folder.read_job().get("name") or self._choose_name()

    def prepare(
        self, model: TrainableModel, adapter: Adapter, optimizer: torch.optim.Optimizer, *, plan: TrainPlan, precision: Precision
    ) -> None:
        """Takes what the files are made from. Kept apart from `__init__` because the name is wanted before all this exists."""
        self._model, self._adapter, self._optimizer, self._total_steps = model, adapter, optimizer, plan.total_steps
        started_at = self._folder.read_job()["started_at"]
        self._facts = _training_facts(self._config, plan, precision, started_at)

    def has_step(self, step: int) -> bool:
        """Whether the file of a saved step is there, or is not wanted at all: at the start, and where the final one follows.

        A finished run that is extended gets one of the step that it had finished at, since its final file will be replaced.
        """
        return step == 0 or step >= self._total_steps or self._folder.step_path(self.name, step).exists()

    def file_of(self, step: int) -> Path | None:
        """Returns the file of a step in the run folder, None where none was saved."""
        path = self._folder.step_path(self.name, step)
        if not path.exists() and step == self._total_steps:
            path = self._folder.export_path(self.name)
        return path if path.exists() else None

    def export_step(self, step: int, epoch: int) -> Path:
        """Writes the file of a step into the run folder."""
        return self._export(self._folder.step_path(self.name, step), step, epoch)

    def export_final(self, step: int, epoch: int) -> Path:
        """Writes the finished file and tests it. Returns where it is."""
        path = self._export(self._folder.export_path(self.name), step, epoch)
        for check in self_test(path, self._model.webui_layers()):
            if not check.passed:
                self._emit("warning", message=f"self-test of {path.name}: {check.name}: {check.detail}")
        return path

    def publish(self, path: Path, lora_dir: Path, step: int) -> None:
        """Copies the finished file with its card into a LoRA folder; where a program holds the run's own, beside it."""
        card = Card(
            description=self._config.comment,
            activation_text=self._config.trigger_words,
            preferred_weight=PREFERRED_WEIGHT,
        )
        try:
            published = publish_for(self._folder, path, lora_dir, self.name, card=card)
        except LoraInUseError as error:
            free = choose_name(lora_dir, self.name)
            published = publish_for(self._folder, path, lora_dir, free, card=card)
            message = f"{error.path} is in use by a program and stays as it was; this run's LoRA is named {free} there."
            self._emit("warning", message=message)
        self._emit("exported", step=step, path=str(published))

    def _export(self, path: Path, step: int, epoch: int) -> Path:
        facts = metadata(
            self._facts,
            self._model.metadata(),
            network_module=self._adapter.network_module,
            step=step,
            epoch=epoch,
            finished_at=time.time(),
        )
        with averaged_weights(self._optimizer):  # written within: on a CPU the tensors are the parameters themselves
            path = save_lora(path, webui_tensors(self._adapter, self._model), facts, DTYPES[self._config.save_precision])
        self._emit("exported", step=step, path=str(path))
        return path

    def _choose_name(self) -> str:
        name = self._config.name
        if self._config.lora_dir is not None:
            owned = [f"{name}{suffix}" for suffix in REPLACED] if self._config.replace_lora else []
            name = choose_name(self._config.lora_dir, name, owned)
            if owned and name == self._config.name:
                self._folder.update_job(**{PUBLISHED: dict.fromkeys(owned, IN_DOUBT)})
            if name != self._config.name:
                message = f"{self._config.lora_dir} holds another {self._config.name}; this run's LoRA is named {name}."
                self._emit("warning", message=message)
        self._folder.update_job(name=name)
        return name


def _training_facts(config: TrainConfig, plan: TrainPlan, precision: Precision, started_at: float) -> TrainingFacts:
    items = plan.scan.items
    data: dict[str, Any] = dataset_metadata(items)
    return TrainingFacts(
        rank=config.lora_rank,
        alpha=config.alpha,
        learning_rate=config.learning_rate,
        optimizer=config.optimizer,
        lr_scheduler=config.lr_scheduler,
        num_train_images=sum(item.repeats for item in items) * len(plan.resolutions),
        num_reg_images=sum(item.repeats for item in plan.reg_items) * len(plan.resolutions),
        num_epochs=round(plan.num_epochs),
        max_train_steps=plan.total_steps,
        batch_size=config.batch_size,
        resolution=(plan.resolution, plan.resolution),
        seed=config.seed,
        started_at=started_at,
        dropout=config.lora_dropout,
        unet_lr=config.unet_lr,
        text_encoder_lr=config.text_encoder_lr,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        gradient_checkpointing=config.gradient_checkpointing,
        lr_warmup_steps=config.lr_warmup_steps,
        max_grad_norm=config.max_grad_norm,
        mixed_precision="no" if precision.dtype == DTYPES["fp32"] else str(precision.dtype).replace("torch.", ""),
        clip_skip=config.clip_skip,
        min_snr_gamma=config.min_snr_gamma,
        noise_offset=config.noise_offset,
        debiased_estimation=config.debiased_estimation,
        zero_terminal_snr=config.zero_terminal_snr,
        loss_type=config.loss_type,
        huber_delta=config.huber_delta if config.loss_type == "huber" else None,
        caption_dropout=config.caption_dropout,
        shuffle_caption=config.shuffle_tags,
        keep_tokens=config.keep_tokens,
        target_modules=config.target_modules,
        buckets={(bucket.width, bucket.height): count for bucket, count in Counter(plan.buckets).items()},
        trigger_phrase=config.trigger_words,
        comment=config.comment,
        dataset_dirs=data["ss_dataset_dirs"],
        tag_frequency=data["ss_tag_frequency"],
    )
