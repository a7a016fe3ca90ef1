"""Measures what goes on around training: captioning, sampling, saving. How much of each is the model, and what a save costs.

    python -m benchmarks.around [--tiny]

Captioning with the miniature captioner, whose network is so small that what is around it shows at its largest; sampling with a
UNet in SD1's shape. Saving is of a LoRA in the shape of SD1.5 and SDXL with AdamW's state; it counts against the 100 steps
between two saves, at the speed of the fastest published trainers on an RTX 4090. CPU time of one thread, saving by the clock.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.report import Row, format_section
from benchmarks.workload import FULL, RANK, SD1_UNET, SDXL_UNET, TINY, Size, load_base, make_config, write_pictures
from lora_trainer.captioning.captioner import CaptionerSettings
from lora_trainer.captioning.run import caption_folder
from lora_trainer.captioning.table import CAPTIONERS
from lora_trainer.control import TrainControl
from lora_trainer.demo.assets import CAPTIONER
from lora_trainer.inference.generate import GenerateSettings, generate
from lora_trainer.models.layers import unet_layers
from lora_trainer.models.sizes import UNetSizes
from lora_trainer.models.targets import select_layers
from lora_trainer.training.optimizers import build_optimizer
from lora_trainer.training.state import TrainState, save_state

NUM_STEPS_BETWEEN = 100
SECONDS_A_STEP = {"SD1.5": 0.2, "SDXL": 0.67}  # published: 5 and 1.5 steps a second
MAX_SAVING = 0.02
MAX_OUTSIDE = 0.1


class Inside:
    """Adds up the CPU time of functions that it wraps, where they are not within each other."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def watching(self, *functions: tuple[type, str]) -> Iterator[None]:
        """Within it, the methods of classes report here."""
        before = [(owner, name, owner.__dict__.get(name)) for owner, name in functions]
        for owner, name in functions:
            setattr(owner, name, self._timed(getattr(owner, name)))
        try:
            yield
        finally:
            for owner, name, method in before:
                if method is None:
                    delattr(owner, name)
                else:
                    setattr(owner, name, method)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - started

        return timed


def measure_captioning(folder: Path, num_pictures: int) -> tuple[float, float]:
    """Returns pictures a second, and the share of the time that is not the network's."""
    from transformers import BlipForConditionalGeneration

    write_pictures(folder, num_pictures, 512)
    inside = Inside()
    settings = CaptionerSettings(str(CAPTIONER))
    with CAPTIONERS.get("blip").load()(settings) as captioner, inside.watching((BlipForConditionalGeneration, "generate")):
        started = time.process_time()
        caption_folder(captioner, folder, lambda captions: None, kept={}, control=TrainControl(), emit=lambda kind, **data: None)
        seconds = time.process_time() - started
    return num_pictures / seconds, 1 - inside.seconds / seconds


def measure_sampling(folder: Path, size: Size, num_steps: int) -> tuple[float, float]:
    """Returns seconds of a picture, and the share of the time that is neither the denoiser's nor the VAE's."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    model = load_base(make_config(folder, size, num_pictures=1, num_steps=1))
    settings = GenerateSettings("a boat", width=size.picture_side, height=size.picture_side, steps=num_steps)
    inside = Inside()
    generate(model, settings)
    with inside.watching((UNet2DConditionModel, "forward"), (AutoencoderKL, "decode")):
        started = time.process_time()
        generate(model, settings)
        seconds = time.process_time() - started
    return seconds, 1 - inside.seconds / seconds


def measure_saving(folder: Path, sizes: UNetSizes, num_saves: int) -> list[float]:
    """Returns the seconds of saves of a state, by the clock, fsync and reading back included."""
    layers = unet_layers(sizes)
    names = select_layers("unet", {"unet": {name: layer.kind for name, layer in layers.items()}}, ("attention",))
    lora = {}
    for name in names:
        lora[f"unet.{name}.down"] = nn.Parameter(torch.randn(RANK, layers[name].inputs))
        lora[f"unet.{name}.up"] = nn.Parameter(torch.randn(layers[name].outputs, RANK))
    optimizer = build_optimizer("adamw", [{"params": list(lora.values()), "lr": 1e-4}], weight_decay=0.01)
    for parameter in lora.values():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    seconds = []
    for step in range(num_saves):
        started = time.perf_counter()
        save_state(folder, TrainState(step=step), {name: each.detach() for name, each in lora.items()}, optimizer)
        seconds.append(time.perf_counter() - started)
    return seconds


def make_rows(folder: Path, *, is_tiny: bool) -> list[Row]:
    pictures, around = measure_captioning(folder / "pictures", 4 if is_tiny else 48)
    seconds, outside = measure_sampling(folder / "base", TINY if is_tiny else FULL, 2 if is_tiny else 10)
    rows = [
        Row("captioning, miniature captioner", f"{pictures:.1f} pictures a second"),
        Row("captioning, share outside the network", f"{100 * around:.0f} %"),
        Row("sampling a picture", f"{seconds:.2f} s"),
        Row(
            "sampling, share outside denoiser and VAE",
            f"{100 * outside:.1f} %",
            f"at most {100 * MAX_OUTSIDE:.0f} %",
            outside <= MAX_OUTSIDE,
        ),
    ]
    for name, sizes in (("SD1.5", SD1_UNET), ("SDXL", SDXL_UNET)) if not is_tiny else (("SD1.5", TINY.unet),):
        saving = statistics.median(measure_saving(folder / f"state-{name}", sizes, 2 if is_tiny else 5))
        share = saving / (NUM_STEPS_BETWEEN * SECONDS_A_STEP[name])
        value = f"{saving:.2f} s, {100 * share:.1f} % of {NUM_STEPS_BETWEEN} steps of {SECONDS_A_STEP[name]:g} s"
        rows.append(Row(f"saving a state, {name}", value, f"at most {100 * MAX_SAVING:.0f} %", share <= MAX_SAVING))
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="little of each, to see that the script works")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "base").mkdir()
        rows = make_rows(Path(folder), is_tiny=options.tiny)
    size = TINY if options.tiny else FULL
    print(format_section("Around training", f"Pictures of {size.picture_side} px drawn, captioned ones of 512 px.", rows))


if __name__ == "__main__":
    main()
