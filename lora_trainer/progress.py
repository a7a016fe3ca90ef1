"""Shows a training's events in the terminal: one bar for each phase, the warnings between, and the validation's curve."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tqdm import tqdm

from lora_trainer.events import TrainEvent

QUIET_SECONDS = 10.0  # between lines when the output is no terminal but a file
MOST_ROWS, BAR_WIDTH = 15, 40


class ProgressView:
    """A context manager; give its `show` to the training as `watch`."""

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None
        self._name = ""
        self._total_steps = 0
        self._average: float | None = None

    def __enter__(self) -> ProgressView:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def show(self, event: TrainEvent) -> None:
        """Draws one event."""
        draw = getattr(self, f"_show_{event.kind}", None)
        if draw is not None:
            draw(event.data)

    def _show_phase(self, data: dict[str, int | str]) -> None:
        self._advance(str(data["name"]), int(data["done"]), int(data["total"]))

    def _show_started(self, data: dict[str, int]) -> None:
        self._total_steps = data["total_steps"]

    def _show_resumed(self, data: dict[str, int]) -> None:
        self._write(f"Continuing from step {data['step']}.")

    def _show_step(self, data: dict[str, float]) -> None:
        if data["loss"] is not None:
            self._average = data["loss"] if self._average is None else 0.95 * self._average + 0.05 * data["loss"]
        bar = self._advance("training", int(data["step"]), self._total_steps)
        loss = "-" if self._average is None else f"{self._average:.4f}"
        bar.set_postfix_str(f"loss {loss}, epoch {data['epoch']:.1f}, {data['memory_gib']:.1f} GiB", refresh=False)

    def _show_notice(self, data: dict[str, str]) -> None:
        self._write(data["message"])

    def _show_warning(self, data: dict[str, str]) -> None:
        self._write(f"warning: {data['message']}")

    def _show_exported(self, data: dict[str, str]) -> None:
        self._write(f"Saved {data['path']}")

    def _show_validated(self, data: dict[str, float]) -> None:
        who = "held-out" if data["held_out"] else "training"
        change = "" if data["step"] == 0 else f" ({_against_base(data)} against the base)"
        self._write(f"Step {data['step']}: loss {data['loss']:.4f} on {who} pictures with fixed noise{change}")

    def _show_sampled(self, data: dict[str, str]) -> None:
        self._write(f"Drew {data['path']}")

    def _show_paused(self, data: dict[str, int]) -> None:
        self._write(f"Paused at step {data['step']}, and saved.")

    def _advance(self, name: str, done: int, total: int) -> tqdm[None]:
        if self._bar is None or self._name != name:
            self._close()
            is_terminal = sys.stderr.isatty()
            self._name = name
            # tqdm falls back to ASCII by itself where the terminal cannot show its blocks.
            self._bar = tqdm(total=total, initial=max(0, done - 1), desc=name, mininterval=0.2 if is_terminal else QUIET_SECONDS)
        self._bar.update(done - self._bar.n)
        if done == total:
            self._bar.refresh()
        return self._bar

    def _write(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def draw_curve(history: Sequence[TrainEvent]) -> str:
    """Returns the losses of "validated" events as a bar chart in ASCII of about `MOST_ROWS` rows at most, the lowest marked."""
    losses = [event.data["loss"] for event in history]
    low, high = min(losses), max(losses)
    lowest = losses.index(low)
    spread = [round(row * (len(history) - 1) / (MOST_ROWS - 1)) for row in range(MOST_ROWS)]
    shown = range(len(history)) if len(history) <= MOST_ROWS else sorted({*spread, lowest})
    lines = []
    for index in shown:
        data = history[index].data
        bar = "#" * (1 + round((BAR_WIDTH - 1) * (losses[index] - low) / (high - low))) if high > low else ""
        mark = " <- lowest" if index == lowest else ""
        lines.append(f"  step {data['step']:>6}  {losses[index]:.4f}  {_against_base(data):>7}  {bar}{mark}")
    return "\n".join(lines)


def _against_base(data: dict[str, float]) -> str:
    return f"{data['loss'] / data['base_loss'] - 1:+.1%}"
