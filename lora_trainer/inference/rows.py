"""The rows and columns of a grid: which LoRAs, prompts and seeds are tried at which weights. Without torch, as `settings`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

from lora_trainer.adapters.names import split_step_name
from lora_trainer.adapters.tags import LoraUse, parse_prompt
from lora_trainer.errors import ConfigError, Problem
from lora_trainer.inference.settings import GenerateSettings

USUAL_WEIGHTS = (0.0, 0.3, 0.5, 0.7, 0.9, 1.0)
MOST_WEIGHT = 10
Stack = tuple[LoraUse, ...]


@dataclass(frozen=True)
class Row:
    """What the cells of a row have in common.

    Attributes:
        label: what tells it from the other rows.
        settings: of its pictures; the prompt is without tags.
        uses: the LoRAs that are tried: a column's weight multiplies theirs.
        companions: those that act at their own weights in every column but the base's.
    """

    label: str
    settings: GenerateSettings
    uses: Stack
    companions: Stack = ()

    def acting(self, weight: float) -> Stack:
        """Returns the LoRAs of a column; none at weight 0, the untouched base."""
        return (*(use.scaled(weight) for use in self.uses), *self.companions) if weight else ()


def make_rows(
    stacks: Sequence[Sequence[LoraUse]],
    prompts: Sequence[str],
    settings: GenerateSettings,
    *,
    seeds: Sequence[int] = (),
    find: Callable[[str], Path] | None = None,
) -> tuple[Row, ...]:
    """Returns a row for every stack of LoRAs with every prompt and every seed.

    The WebUI's tags in a prompt are read and taken out. What they name acts beside the stack, at the tag's own weights; the tag
    of a LoRA that is tried is passed over, because the column's weight stands for its own. Without stacks, what the prompt names
    is tried.

    Args:
        stacks: each one LoRA, or several that act together; saved steps of a run are stacks of one.
        settings: of all pictures, but for the prompt and seed.
        seeds: none for that of the settings.
        find: returns the file of a name, see `library.find_lora`.

    Raises:
        ConfigError: there is no prompt or no LoRA, or a tag cannot be read.
    """
    if not prompts:
        raise ConfigError([Problem("prompts", "is empty.", hint="Give at least one.")])
    rows = []
    for stack in [tuple(stack) for stack in stacks] or [()]:
        for prompt in prompts:
            text, named = parse_prompt(prompt, partial(_find_path, stack=stack, find=find))
            companions = tuple(use for use in named if use.path not in [own.path for own in stack])
            tried, companions = (stack, companions) if stack else (companions, ())
            if not tried:
                raise ConfigError(
                    [Problem("prompts", f"{prompt!r} names no LoRA.", hint="Write <lora:name:1> into it, or give a file.")]
                )
            for seed in seeds or [settings.seed]:
                label = _label(
                    [_name_stack(tried)] if len(stacks) > 1 else [],
                    [text.strip()] if len(prompts) > 1 or (len(stacks) < 2 and len(seeds) < 2) else [],
                    [f"seed {seed}"] if len(seeds) > 1 else [],
                )
                rows.append(Row(label, replace(settings, prompt=text, seed=seed), tried, companions))
    return tuple(rows)


def check_rows(rows: Sequence[Row], weights: Sequence[float]) -> tuple[float, ...]:
    """Returns the weights of the columns: 0, the base alone, then each of the others once, in their order.

    Raises:
        ConfigError: a setting or weight cannot be used; with every problem.
    """
    problems = {str(problem): problem for row in rows for problem in row.settings.problems()}
    for weight in weights:
        if not abs(weight) <= MOST_WEIGHT:
            hint = "0.3 to 1 is usual."
            problems[str(weight)] = Problem("weights", f"({weight}) must be from -{MOST_WEIGHT} to {MOST_WEIGHT}.", hint=hint)
    if problems:
        raise ConfigError(problems.values())
    return (0.0, *(weight for weight in dict.fromkeys(weights) if weight))


def sheet_pairs(rows: Sequence[Row], weights: Sequence[float]) -> dict[str, str]:
    """Returns what a sheet's parameters say beyond those of a picture."""
    return {"Sheet weights": ", ".join(f"{weight:g}" for weight in weights), "Sheet rows": " | ".join(row.label for row in rows)}


def drawing_order(rows: Sequence[Row], num_columns: int) -> Iterator[tuple[list[int], int]]:
    """Yields rows and a column that are drawn with the same LoRAs at the same weights: first the base's column, for all rows."""
    yield list(range(len(rows))), 0
    for _, group in groupby(enumerate(rows), key=lambda item: (item[1].uses, item[1].companions)):
        members = [row for row, _ in group]
        for column in range(1, num_columns):
            yield members, column


def _find_path(name: str, *, stack: Stack, find: Callable[[str], Path] | None) -> Path:
    """Returns the file that a tag names: one that is tried, also by its run's name, or one of the folder."""
    for use in stack:
        if name in (use.path.stem, split_step_name(use.path.stem)[0]):
            return use.path
    if find is None:
        raise ConfigError(
            [Problem("prompts", f"<lora:{name}> is not among the files given.", hint="Give its file, or the LoRA folder.")]
        )
    return find(name)


def _name_stack(stack: Stack) -> str:
    names = []
    for use in stack:
        name, step = split_step_name(use.path.stem)
        names.append(name if step is None else f"{name}, step {step}")
    return " + ".join(names)


def _label(*parts: Sequence[str]) -> str:
    return " · ".join(text for part in parts for text in part if text)
