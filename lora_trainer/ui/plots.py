"""Pictures of numbers as inline SVG: the curve of a training and the histogram of buckets. Colours come from the style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lora_trainer.ui.markup import escape

WIDTH, HEIGHT = 640, 220
LEFT, RIGHT, TOP, BOTTOM = 58, 64, 12, 26
Points = Sequence[tuple[float, float]]


def training_plot(losses: Points, rates: Points, validations: Points, total_steps: int) -> str:
    """Returns loss and learning rate by step; the loss as it is, faintly, and smoothed.

    Args:
        losses, rates, validations: (step, value) in order of steps.
        total_steps: where the axis ends; 0 for the last step.
    """
    if not losses:
        return ""
    last = max(total_steps, losses[-1][0])
    values = [value for _, value in [*losses, *validations]]
    low, high = _padded(min(values), max(values))
    rate_high = max((rate for _, rate in rates), default=0.0) or 1.0
    parts = [_grid(low, high, last)]
    parts.append(_line(losses, last, low, high, "loss_raw"))
    parts.append(_line(_smoothed(losses), last, low, high, "loss"))
    parts.append(_line(rates, last, 0, rate_high * 1.05, "rate"))
    for step, value in validations:
        x, y = _place(step, value, last, low, high)
        parts.append(f'<circle class="lora_trainer_validation" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>')
    parts.append(f'<text class="lora_trainer_rate_text" x="{WIDTH - RIGHT + 6}" y="{TOP + 10}">{rate_high:.1e}</text>')
    parts.append(f'<text class="lora_trainer_rate_text" x="{WIDTH - RIGHT + 6}" y="{HEIGHT - BOTTOM}">0</text>')
    label = f"Loss {losses[-1][1]:.4f} at step {losses[-1][0]:g} of {last:g}"
    return _svg("".join(parts), label)


def bucket_plot(counts: Mapping[str, int]) -> str:
    """Returns how many pictures each size has, as bars; at most twelve, the rest together."""
    if not counts:
        return ""
    entries = list(counts.items())
    if len(entries) > 12:
        entries = [*entries[:11], (f"+{len(entries) - 11}", sum(number for _, number in entries[11:]))]
    most = max(number for _, number in entries)
    row, top = 22, 4
    height = top * 2 + row * len(entries)
    parts = []
    for index, (name, number) in enumerate(entries):
        y = top + row * index
        length = max(2.0, (WIDTH - 190) * number / most)
        parts.append(f'<text x="104" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect class="lora_trainer_bucket" x="112" y="{y + 4}" width="{length:.1f}" height="14" rx="2"/>')
        parts.append(f'<text x="{118 + length:.1f}" y="{y + 15}">{number}</text>')
    label = ", ".join(f"{name}: {number}" for name, number in entries)
    return _svg("".join(parts), label, height)


def _svg(content: str, label: str, height: int = HEIGHT) -> str:
    return (
        f'<svg class="lora_trainer_plot" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}" '
        f'xmlns="http://www.w3.org/2000/svg">{content}</svg>'
    )


def _grid(low: float, high: float, last: float) -> str:
    parts = []
    for tick in range(5):
        value = low + (high - low) * tick / 4
        _, y = _place(0, value, last, low, high)
        parts.append(f'<line class="lora_trainer_grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for share, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
        x, _ = _place(last * share, low, last, low, high)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{round(last * share)}</text>')
    return "".join(parts)


def _line(points: Points, last: float, low: float, high: float, name: str) -> str:
    if not points:
        return ""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (_place(step, value, last, low, high) for step, value in points))
    if len(points) == 1:
        x, y = _place(*points[0], last, low, high)
        return f'<circle class="lora_trainer_{name}_dot" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'
    return f'<polyline class="lora_trainer_{name}" points="{path}"/>'


def _place(step: float, value: float, last: float, low: float, high: float) -> tuple[float, float]:
    x = LEFT + (WIDTH - LEFT - RIGHT) * (step / last if last else 0)
    return x, TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (high - low))


def _padded(low: float, high: float) -> tuple[float, float]:
    if math.isclose(low, high):
        return low - abs(low) * 0.1 - 1e-6, high + abs(high) * 0.1 + 1e-6
    return max(0.0, low - (high - low) * 0.08), high + (high - low) * 0.08


def _smoothed(points: Points, share: float = 0.1) -> list[tuple[float, float]]:
    """Returns the running mean over a share of the points, so that it is as smooth for a short run as for a long one."""
    keep = 1 - 1 / max(1.0, len(points) * share)
    smoothed: list[tuple[float, float]] = []
    mean = None
    for step, value in points:
        mean = value if mean is None else keep * mean + (1 - keep) * value
        smoothed.append((step, mean))
    return smoothed
