"""Measures what the grid adds to a picture: the time of a whole grid against a bare loop that draws the same pictures.

    python -m benchmarks.grid [--rounds 5] [--tiny]

Both work on one loaded base and a LoRA file on its attention layers, 6 weights by 4 prompts. The bare loop is what one would
write in an evening: the prompts encoded beforehand, `W + w * change` put into the layers, sampler, denoiser, VAE. CPU time of one
thread, since the machine may be doing other things; the two take turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, ImageChops
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.report import Row, describe_spread, format_section
from benchmarks.workload import FULL, RANK, TINY, Size, count_parameters, load_base, make_config
from lora_trainer.adapters.export import save_lora, webui_tensors
from lora_trainer.adapters.lora import LoraAdapter
from lora_trainer.adapters.tags import LoraUse
from lora_trainer.inference.grid import draw_cells
from lora_trainer.inference.rows import make_rows
from lora_trainer.inference.settings import GenerateSettings
from lora_trainer.inference.table import SAMPLERS
from lora_trainer.models.diffusion import DiffusionModel

WEIGHTS = (0.0, 0.3, 0.5, 0.7, 0.9, 1.0)
PROMPTS = ("a boat on a lake", "a red house", "two trees at sunset", "snowy mountains behind the sea")
MAX_RATIO = 1.05


def write_lora(model: DiffusionModel, folder: Path) -> Path:
    """Writes a LoRA file of random weights on the attention layers of the UNet."""
    targets = {"unet": model.lora_targets("unet", ("attention",))}
    adapter = LoraAdapter.inject(model, targets, rank=RANK, alpha=float(RANK), dropout=0.0, seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in adapter.tensors().items():
        if name.endswith("up"):
            tensor.normal_(0, 0.02, generator=generator)
    path = save_lora(folder / "bench.safetensors", webui_tensors(adapter, model), model.metadata())
    adapter.remove()
    return path


class BareLoop:
    """Draws the same pictures as the grid, with nothing around it."""

    def __init__(self, model: DiffusionModel, lora: Path, settings: GenerateSettings) -> None:
        self._model, self._settings = model, settings
        tensors = load_file(lora)
        self._layers: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        for name in model.lora_targets("unet", ("attention",)):
            key = model.webui_key("unet", name)
            up, down = (tensors[f"{key}.lora_{side}.weight"].float() for side in ("up", "down"))
            weight = model.unet.get_submodule(name).weight
            change = tensors[f"{key}.alpha"].item() / len(down) * (up @ down)
            self._layers.append((weight, weight.detach().clone(), change))

    @torch.no_grad()
    def draw(self) -> list[Image.Image]:
        """Returns the pictures, weight by weight; the base is as it was afterwards."""
        encoded = [self._model.encode_texts([self._settings.negative_prompt, prompt]) for prompt in PROMPTS]
        pictures = []
        for factor in WEIGHTS:
            for weight, original, change in self._layers:
                weight.copy_(original + factor * change)
            pictures += [self._draw_one(conditions) for conditions in encoded]
        for weight, original, _ in self._layers:
            weight.copy_(original)
        return pictures

    def _draw_one(self, conditions: dict[str, Tensor]) -> Image.Image:
        settings = self._settings
        generator = torch.Generator().manual_seed(settings.seed)
        scheduler = SAMPLERS.get(settings.sampler).load()(self._model.schedule)
        scheduler.set_timesteps(settings.steps)
        latents = torch.randn((1, 4, settings.height // 8, settings.width // 8), generator=generator) * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            both = scheduler.scale_model_input(latents, timestep).expand(2, -1, -1, -1)
            told = self._model.unet(both, timestep.expand(2), encoder_hidden_states=conditions["text"]).sample
            negative, positive = told.chunk(2)
            guided = negative + settings.cfg_scale * (positive - negative)
            latents = scheduler.step(guided, timestep, latents, generator=generator).prev_sample
        pixels = self._model.vae.decode(latents / self._model.scale_factor).sample[0]
        values = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
        return Image.fromarray(values.contiguous().numpy())


def measure(folder: Path, size: Size, rounds: int, steps: int) -> tuple[list[float], list[float], float]:
    """Returns the CPU seconds of each round of grid and bare loop, and the largest difference of their pictures, of 255."""
    model = load_base(make_config(folder, size, num_pictures=1, num_steps=1))
    lora = write_lora(model, folder)
    settings = GenerateSettings("", width=size.picture_side, height=size.picture_side, steps=steps)
    rows = make_rows([[LoraUse(lora)]], PROMPTS, settings)
    bare = BareLoop(model, lora, settings)
    drawn: list[list[Image.Image]] = [[], []]

    def draw_grid() -> None:
        cells = draw_cells(model, rows, weights=WEIGHTS).cells
        drawn[0] = [cells[row, column].picture for column in range(len(WEIGHTS)) for row in range(len(PROMPTS))]

    def draw_bare() -> None:
        drawn[1] = bare.draw()

    draw_bare()  # warm
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        turns: list[tuple[Callable[[], None], list[float]]] = [(draw_grid, times[0]), (draw_bare, times[1])]
        for draw, seconds in turns if number % 2 else reversed(turns):
            started = time.process_time()
            draw()
            seconds.append(time.process_time() - started)
    differences = [ImageChops.difference(one, other).getextrema() for one, other in zip(*drawn, strict=True)]
    return *times, float(max(high for channels in differences for _, high in channels))


def report_rows(grid: list[float], bare: list[float], difference: float) -> list[Row]:
    """Returns the figures: seconds a picture, their ratio, and whether the pictures are the same."""
    num_pictures = len(WEIGHTS) * len(PROMPTS)
    ratios = [one / other for one, other in zip(grid, bare, strict=True)]
    return [
        Row("picture, grid", describe_spread([value / num_pictures for value in grid], 4, " s")),
        Row("picture, bare loop", describe_spread([value / num_pictures for value in bare], 4, " s")),
        Row("grid / bare loop", describe_spread(ratios), f"at most {MAX_RATIO}", statistics.median(ratios) <= MAX_RATIO),
        Row("largest difference of their pictures", f"{difference:g} of 255", "at most 2", difference <= 2),
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="grids of each that count")
    parser.add_argument("--steps", type=int, default=4, help="of the sampler")
    parser.add_argument("--tiny", action="store_true", help="a model of no weight, to see that the script works")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    size = TINY if options.tiny else FULL
    with tempfile.TemporaryDirectory() as folder:
        figures = report_rows(*measure(Path(folder), size, options.rounds, options.steps))
    conditions = (
        f"{len(WEIGHTS)} weights by {len(PROMPTS)} prompts, {options.steps} steps of Euler a, UNet of "
        f"{count_parameters(size) / 1e6:.0f} million parameters in SD1's shape, {size.picture_side} px, LoRA of rank {RANK} on "
        f"its attention, fp32, one thread, CPU time, median of {options.rounds} (middle half)."
    )
    print(format_section("Time of a picture in a grid", conditions, figures))


if __name__ == "__main__":
    main()
