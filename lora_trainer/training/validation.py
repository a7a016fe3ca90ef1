"""How a run does on fixed noise: the same pictures, noise and timesteps at every look, so that only the LoRA moves the loss.

Pictures that were held back tell whether what is learned carries over to others, so a saved step can be recommended by them.
The loss of training pictures shows progress only: it goes on falling while a LoRA is over-trained.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lora_trainer.adapters.adapter import Adapter
from lora_trainer.config.schema import TrainConfig
from lora_trainer.dataset.buckets import crop_geometry
from lora_trainer.dataset.losses import PictureLoss, read_losses, write_losses
from lora_trainer.dataset.sampler import item_seed, stable_order
from lora_trainer.events import Emit, fold_steps, read_events
from lora_trainer.host.base import free_memory
from lora_trainer.inference.generate import evaluating
from lora_trainer.models.family import Objective, Tensors, TrainableModel
from lora_trainer.plan import TrainPlan
from lora_trainer.run_folder import RunFolder
from lora_trainer.training.encoding import Encoder
from lora_trainer.training.memory import describe_memory, is_out_of_memory
from lora_trainer.training.mirror import choose_version
from lora_trainer.training.precision import Precision

NUM_LEVELS = 4  # noise levels of a picture, one out of each quarter of the schedule
CURVE_PICTURES = 8  # training pictures that are looked at on the way; all of those watched are at the start and the end
MOST_PICTURES = 64  # training pictures that are watched, unless more are asked for
COST_SHARE = 0.05  # of the training's time that looks on the way may take, and again those at the start and the end
PASSES_PER_ITEM = 3  # forward and backward of one item take as long as about three forwards
GAIN_LOST = 0.1  # of what was gained on held-out pictures: losing more than this share again is called over-training
LEARNED = -0.02  # usual change of a picture's loss; with less, none was learned and none stands out
STANDS_OUT_GAIN, STANDS_OUT_DEVIATIONS = 0.25, 3.0  # share of the usual change, and distance from it


@dataclass(frozen=True)
class WatchedPicture:
    """A picture that is looked at.

    Attributes:
        name: of the picture; with the seed the key of its noise.
        caption: as it is written, or None when `load` gives it encoded.
        load: returns its tensors, without the batch dimension.
    """

    name: str
    caption: str | None
    load: Callable[[], Tensors]


def prepare_pictures(encoder: Encoder, *, trains_text: bool) -> list[WatchedPicture]:
    """Encodes the pictures that will be looked at, where the cache lacks them: those held back, else some training pictures.

    Args:
        encoder: of the run.
        trains_text: captions are encoded at each look, since the text encoders change.
    """
    plan, config, model = encoder.plan, encoder.config, encoder.model
    items, buckets = plan.held_out, plan.held_out_buckets
    if not items:
        limit = _affordable_pictures(plan, config) if config.validation_pictures is None else config.validation_pictures
        chosen = stable_order([item.name for item in plan.scan.items], config.seed, "watched")[:limit]
        largest = len(plan.items) - len(plan.items) // len(plan.resolutions)  # where the largest resolution begins
        items = tuple(plan.scan.items[index] for index in chosen)
        buckets = tuple(plan.buckets[largest + index] for index in chosen)
    if not items:
        return []
    own_encoder = replace(
        encoder,
        plan=replace(plan, items=items, buckets=buckets),
        progress=lambda name: encoder.progress(f"{name} for validation"),
    )
    picture_keys = own_encoder.encode_pictures()
    text_keys = [] if trains_text else own_encoder.encode_texts()

    def load(index: int) -> Tensors:
        item, bucket = items[index], buckets[index]
        tensors = choose_version(encoder.get(picture_keys[index], item.name), mirrored=False)
        if text_keys:
            tensors |= encoder.get(text_keys[index], item.name)
        _, left, top = crop_geometry((item.width, item.height), bucket)
        return tensors | model.size_condition((item.width, item.height), (left, top), (bucket.width, bucket.height))

    return [
        WatchedPicture(item.name, item.caption if trains_text else None, lambda index=index: load(index))  # type: ignore[misc]
        for index, item in enumerate(items)
    ]


def items_per_step(plan: TrainPlan, config: TrainConfig) -> int:
    """Returns how many items a step has at most."""
    num_examples = sum(item.repeats for item in plan.items)
    return min(num_examples, config.batch_size * config.gradient_accumulation_steps)


def _affordable_pictures(plan: TrainPlan, config: TrainConfig) -> int:
    """Returns how many pictures can be looked at at the start and the end, so that both take `COST_SHARE` of the time."""
    forwards = COST_SHARE * PASSES_PER_ITEM * plan.total_steps * items_per_step(plan, config)
    return min(MOST_PICTURES, max(CURVE_PICTURES, int(forwards / (2 * NUM_LEVELS))))


class Validator:
    """Looks at the pictures when something was saved, and keeps what it finds in the run folder.

    It changes nothing that training depends on: no weight, no mode, no random number. A look ends early, without a result, when
    a stop is asked for.

    Args:
        pictures: see `prepare_pictures`.
        are_held_out: whether they are not trained.
        model, adapter, precision, seed: of the run.
        items_per_step: of training, by which looks on the way are spaced.
        folder: of the run.
        is_stopped: whether a stop is asked for.
        emit: takes events.
    """

    def __init__(
        self,
        pictures: Sequence[WatchedPicture],
        *,
        are_held_out: bool,
        model: TrainableModel,
        adapter: Adapter,
        precision: Precision,
        seed: int,
        items_per_step: int,
        folder: RunFolder,
        is_stopped: Callable[[], bool],
        emit: Emit,
    ) -> None:
        self._pictures, self._are_held_out = pictures, are_held_out
        self._model, self._adapter, self._precision, self._seed = model, adapter, precision, seed
        self._folder, self._is_stopped, self._emit = folder, is_stopped, emit
        self._on_the_way = pictures if are_held_out else pictures[:CURVE_PICTURES]
        forwards = NUM_LEVELS * len(self._on_the_way)
        self._least_gap = 1 if are_held_out else math.ceil(forwards / (COST_SHARE * PASSES_PER_ITEM * items_per_step))
        self._at_once = NUM_LEVELS
        self._curve: dict[int, float] = {}
        self._table: dict[str, PictureLoss] = {}

    def begin(self, step: int) -> None:
        """Takes up what earlier starts found, and looks at the base where they did not. `step`: where this start goes on."""
        history = fold_steps(read_events(self._folder.events_path), "validated")
        self._curve = {event.data["step"]: event.data["loss"] for event in history}
        self._table = read_losses(self._folder.losses_path)
        unseen = [picture for picture in self._pictures if picture.name not in self._table]
        if unseen:
            with self._adapter.disabled():
                losses = self._measure(unseen)
            self._table |= {name: PictureLoss(loss, loss) for name, loss in losses.items()}
        if self._is_known() and 0 not in self._curve:
            self._report(0, {picture.name: self._table[picture.name].first for picture in self._pictures})
        if self._are_held_out and step > 0:
            self.look(step)  # the process may have ended between a save and the look at it

    def look(self, step: int, *, is_last: bool = False) -> None:
        """Finds the loss of each picture at a step that was saved.

        Args:
            is_last: all pictures are looked at. On the way, training pictures wait until it is cheap, see `COST_SHARE`.
        """
        is_due = self._are_held_out or is_last or step - max(self._curve, default=0) >= self._least_gap
        if not is_due or not self._is_known() or step in self._curve:
            return
        pictures = self._pictures if is_last else self._on_the_way
        losses = self._measure(pictures)
        if len(losses) == len(pictures):
            self._report(step, losses)

    def conclude(self, file_of: Callable[[int], Path | None]) -> None:
        """Says what the finished run's losses mean: the step to use, or the pictures that were not learned.

        Args:
            file_of: returns the LoRA file of a step, None where none was saved.
        """
        if self._are_held_out:
            files = {step: path for step in self._curve if (path := file_of(step)) is not None}
            found = recommend(self._curve, files)
            if found is not None:
                step, reason = found
                data = {"step": step, "path": str(files[step]), "reason": reason}
                self._folder.update_job(recommended=data)
                self._emit("recommended", **data)
        elif worst := find_unlearned({picture.name: self._table[picture.name].change for picture in self._seen()}):
            listed = ", ".join(f"{name} ({change:+.0%})" for name, change in worst.items())
            self._emit(
                "warning",
                message=f"{len(worst)} of {len(self._pictures)} pictures hardly got better while others were learned: {listed}. "
                f"See whether their captions say what is in them, or leave them out. "
                f"{self._folder.losses_path.name} has all of them.",
            )

    def _is_known(self) -> bool:
        """Whether the base's loss of every picture is known; not so after a stop, or when memory ran out."""
        return bool(self._pictures) and len(self._seen()) == len(self._pictures)

    def _seen(self) -> list[WatchedPicture]:
        return [picture for picture in self._pictures if picture.name in self._table]

    def _report(self, step: int, losses: Mapping[str, float]) -> None:
        for name, loss in losses.items():
            self._table[name].last = loss
        write_losses(self._folder.losses_path, self._table)
        self._curve[step] = statistics.fmean(losses[picture.name] for picture in self._on_the_way)
        base = statistics.fmean(self._table[picture.name].first for picture in self._on_the_way)
        self._emit("validated", step=step, loss=self._curve[step], held_out=self._are_held_out, base_loss=base)

    def _measure(self, pictures: Sequence[WatchedPicture]) -> dict[str, float]:
        """Returns the loss of each picture by name; of fewer or none when a stop is asked for or memory runs out."""
        losses: dict[str, float] = {}
        with torch.no_grad(), evaluating(self._model.parts.values()):
            for done, picture in enumerate(pictures, start=1):
                if self._is_stopped():
                    break
                loss = self._measure_one(picture)
                if loss is None:
                    break
                losses[picture.name] = loss
                self._emit("phase", name="validating", done=done, total=len(pictures))
        return losses

    def _measure_one(self, picture: WatchedPicture) -> float | None:
        """Returns the mean loss over the noise levels, all in one forward while memory allows; None when it never does."""
        example = picture.load()
        draws = [self._draw(picture.name, example, number) for number in range(NUM_LEVELS)]
        while True:
            try:
                losses: list[float] = []
                for start in range(0, NUM_LEVELS, self._at_once):
                    losses += self._forward(picture, example, draws[start : start + self._at_once])
                if all(map(math.isfinite, losses)):
                    return statistics.fmean(losses)
                problem = f"the loss of {picture.name} on fixed noise is not finite"
                break
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            if self._at_once == 1:
                problem = f"out of memory while validating ({describe_memory(self._precision.device)})"
                break
            free_memory()
            self._at_once //= 2
        self._emit("warning", message=f"{problem}; this look is left out, and training goes on.")
        return None

    def _forward(self, picture: WatchedPicture, example: Tensors, draws: list[Tensors]) -> list[float]:
        batch = self._to_device(self._model.collate([example] * len(draws)))
        stacked = self._to_device({name: torch.stack([draw[name] for draw in draws]) for name in draws[0]})
        with self._precision.autocast():
            if picture.caption is not None:
                batch |= self._model.encode_texts([picture.caption] * len(draws))
            # The plain error, so that runs with other weights of the loss can be compared.
            losses: list[float] = self._model.losses(batch, stacked, Objective()).tolist()
        return losses

    def _draw(self, name: str, example: Tensors, number: int) -> Tensors:
        # Where in its quarter a level lies differs from picture to picture, so that together they cover the schedule evenly.
        offset = (item_seed(self._seed, 0, 0, f"level/{name}") >> 10) / 2**53
        generator = torch.Generator().manual_seed(item_seed(self._seed, 0, number, f"validation/{name}"))
        return self._model.make_draws(example, generator, Objective(), level=(number + offset) / NUM_LEVELS)

    def _to_device(self, tensors: Tensors) -> Tensors:
        return {name: tensor.to(self._precision.device) for name, tensor in tensors.items()}


def recommend(curve: Mapping[int, float], files: Mapping[int, Path]) -> tuple[int, str] | None:
    """Returns the saved step with the lowest loss on held-out pictures, and the reason; None when no saved step was looked at.

    Args:
        curve: the loss by step; that at 0 is the untouched base's.
        files: the LoRA file of each saved step.
    """
    saved = sorted(step for step in curve if step > 0 and step in files)
    if not saved or 0 not in curve:
        return None
    best, last = min(saved, key=lambda step: (curve[step], step)), max(curve)
    use, base = f"use {files[best].name}", curve[0]
    gain = f"{1 - curve[best] / base:.1%} below the base's"
    rise = curve[last] - curve[best]
    if curve[best] >= base:
        reason = (
            f"held-out loss never fell below the base's ({base:.4g}): what was learned does not carry over to other pictures. "
            f"Lower learning_rate or lora_rank, or add pictures; until then {use}, where it was lowest"
        )
    elif best == last:
        reason = f"held-out loss fell to the last step, {gain}: {use}; more epochs may bring more"
    elif rise > GAIN_LOST * (base - curve[best]):
        reason = (
            f"held-out loss was lowest at step {best}, {gain}, and rose by {rise / curve[best]:.1%} since: over-training; {use}"
        )
    else:
        reason = f"held-out loss was lowest at step {best}, {gain}, and has hardly changed since: {use}"
    return best, reason


def find_unlearned(changes: Mapping[str, float]) -> dict[str, float]:
    """Returns the pictures whose loss stayed while that of the others fell, the worst first; {} when none stands out.

    Args:
        changes: by picture, the change of its loss: -0.1 for a tenth less.
    """
    if len(changes) < 2:
        return {}
    usual = statistics.median(changes.values())
    spread = 1.4826 * statistics.median(abs(change - usual) for change in changes.values())  # a standard deviation, if normal
    limit = max(STANDS_OUT_GAIN * usual, usual + STANDS_OUT_DEVIATIONS * spread)
    worst = sorted((name for name in changes if changes[name] > limit), key=lambda name: -changes[name])
    is_exception = usual < LEARNED and len(worst) <= max(1, len(changes) // 5)
    return {name: changes[name] for name in worst} if is_exception else {}
