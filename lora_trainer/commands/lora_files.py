"""The commands that make new LoRA files from old ones: merge, resize, split."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer.cli import DONE
from lora_trainer.errors import ConfigError, Problem

if TYPE_CHECKING:
    from lora_trainer.adapters.edit import Edited
    from lora_trainer.adapters.tags import LoraUse

PRECISIONS = ("fp16", "bf16", "fp32")
AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def register(add: AddCommand) -> None:
    """Adds the commands to the parser."""
    command = add("merge", _merge, "Make one LoRA file that does what several do together.")
    _add_loras(command)
    command.add_argument(
        "--weights", nargs="+", default=[], metavar="W", help="one for each file; TE:UNET for two apart; 1 where left out"
    )
    command.add_argument("--rank", type=int, help="the highest rank of the result (default: the sum, which loses nothing)")
    _add_output(command)
    command = add("resize", _resize, "Make a LoRA file of a lower rank, as near to it as that rank allows.")
    command.add_argument("file", type=Path, metavar="FILE.safetensors")
    command.add_argument("--rank", type=int, required=True)
    _add_output(command)
    command = add("split", _split, "Make two files of one: the UNet's layers, and the text encoders'.")
    command.add_argument("file", type=Path, metavar="FILE.safetensors")


def parse_weight(path: Path, text: str) -> LoraUse:
    """Returns a file with its weight, "0.7", or with the text encoder's and the UNet's, "0.5:0.8".

    Raises:
        ConfigError: it is neither.
    """
    from lora_trainer.adapters.tags import LoraUse

    try:
        first, *rest = [float(part) for part in text.split(":")]
    except ValueError:
        first, rest = float("nan"), []
    values = [first, *rest]
    if len(values) > 2 or not all(abs(value) < float("inf") for value in values):
        hint = "Give 0.7, or 0.5:0.8 for the text encoder's and the UNet's."
        raise ConfigError([Problem("--weights", f"{text!r} is no weight.", hint=hint)])
    return LoraUse(path, values[-1], first if rest else None)


def _add_loras(command: argparse.ArgumentParser) -> None:
    command.add_argument("--lora", nargs="+", type=Path, required=True, metavar="FILE", help="the files")


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--output", type=Path, required=True, metavar="FILE.safetensors", help="where; its name is that in the tag"
    )
    command.add_argument("--precision", choices=PRECISIONS, help="of the numbers in the file (default: as they are)")


def _merge(options: argparse.Namespace) -> int:
    from lora_trainer.adapters.edit import merge

    uses = _pair_weights(options.lora, options.weights)
    edited = merge(uses, options.output, rank=options.rank, precision=options.precision)
    print(f"Merged {' '.join(use.tag for use in uses)}")
    return _report(edited)


def _pair_weights(paths: Sequence[Path], weights: Sequence[str]) -> list[LoraUse]:
    if len(weights) > len(paths):
        raise ConfigError([Problem("--weights", f"gives {len(weights)} for {len(paths)} files.", hint="Give one for each file.")])
    return [parse_weight(path, weight) for path, weight in zip_longest(paths, weights, fillvalue="1")]  # type: ignore[arg-type]


def _resize(options: argparse.Namespace) -> int:
    from lora_trainer.adapters.edit import resize

    return _report(resize(options.file, options.output, options.rank, precision=options.precision))


def _split(options: argparse.Namespace) -> int:
    from lora_trainer.adapters.edit import split

    source: Path = options.file
    paths = split(source, source.with_name(f"{source.stem}_unet.safetensors"), source.with_name(f"{source.stem}_te.safetensors"))
    print("\n".join(f"Done: {path}" for path in paths))
    return DONE


def _report(edited: Edited) -> int:
    for note in edited.notes:
        print(f"note: {note}")
    loss = f", {edited.error:.2%} of the change is lost" if edited.error else ", nothing is lost"
    print(f"Done: {edited.path} (rank {edited.rank}{loss})")
    return DONE
