"""Where a run's events go: `events.jsonl`, whoever watches, and TensorBoard when asked for and installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lora_trainer.events import EventWriter, TrainEvent
from lora_trainer.run_folder import RunFolder

# Of an event's kind: TensorBoard's group and the fields that are drawn.
SCALARS = {"step": ("train", ("loss", "learning_rate", "grad_norm")), "validated": ("validation", ("loss",))}


class EventLog:
    """Hands each event on. Use it as a context manager; the files are closed at its end.

    Args:
        folder: of the run.
        watch: is called with each event.
        tensorboard: whether scalars go to `logs/` too; without the package nothing is written there.
        first_step: the step that this start goes on from; TensorBoard forgets later ones of an interrupted start.
    """

    def __init__(self, folder: RunFolder, watch: Callable[[TrainEvent], None], *, tensorboard: bool, first_step: int) -> None:
        self._writer = EventWriter(folder.events_path)
        self._watch = watch
        self._board = _open_board(folder, first_step) if tensorboard else None

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self._writer.close()
        if self._board is not None:
            self._board.close()

    def emit(self, kind: str, **data: Any) -> None:
        """Writes an event, then shows it."""
        event = TrainEvent(kind, data)
        self._writer.write(event)
        if self._board is not None and event.kind in SCALARS:
            group, names = SCALARS[event.kind]
            for name in names:
                if event.data[name] is not None:
                    self._board.add_scalar(f"{group}/{name}", event.data[name], event.data["step"])
        self._watch(event)


def _open_board(folder: RunFolder, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:  # the check has said so, with the pip command
        return None
    return SummaryWriter(str(folder.logs_dir), purge_step=first_step + 1)
