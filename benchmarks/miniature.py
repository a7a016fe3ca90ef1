"""Measures the shipped miniature: the base's reconstruction, colours and shapes, and the captioner's words.

    python -m benchmarks.miniature [--pictures 100] [--sheet sheet.png]

It reads the files that ship, by the code that loads any checkpoint, and judges with a classifier that it trains first (a minute).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.report import Row, format_section
from lora_trainer.captioning.blip import load as load_blip
from lora_trainer.captioning.captioner import CaptionerSettings
from lora_trainer.demo.assets import BASE, CAPTIONER, DATA_SETS
from lora_trainer.demo.recipe.judge import Judge, dominant_colour, outline_shape, shape_scenes, train_judge
from lora_trainer.demo.recipe.paint import paint
from lora_trainer.demo.recipe.scenes import caption, draw_scene
from lora_trainer.demo.recipe.train_base import PROMPTS, build_schedule
from lora_trainer.demo.recipe.train_vae import UNSEEN, reconstruction_psnr
from lora_trainer.models.detect import detect
from lora_trainer.models.diffusion import DiffusionModel
from lora_trainer.models.family import ModelSettings
from lora_trainer.models.sd1 import load


def generate(
    model: DiffusionModel, prompts: list[str], seed: int = 0, steps: int = 25, guidance: float = 4.0
) -> list[Image.Image]:
    """Returns one picture per prompt, drawn by DDIM."""
    pictures: list[Image.Image] = []
    noise = torch.Generator().manual_seed(seed)
    for start in range(0, len(prompts), 10):
        schedule = build_schedule()
        schedule.set_timesteps(steps)
        part = prompts[start : start + 10]
        with torch.no_grad():
            batch = model.encode_texts([""] * len(part) + part)
            latents = torch.randn(len(part), 4, 16, 16, generator=noise)
            for timestep in schedule.timesteps:
                predicted = model.denoise(latents.repeat(2, 1, 1, 1), timestep.repeat(2 * len(part)), batch)
                empty, wanted = predicted.chunk(2)
                latents = schedule.step(empty + guidance * (wanted - empty), timestep, latents).prev_sample
            pixels = ((model.decode_latents(latents).clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        pictures += [Image.fromarray(array) for array in pixels]
    return pictures


def measure_vae(model: DiffusionModel) -> list[Row]:
    """Returns the reconstruction of unseen scenes and of the data sets' pictures."""
    psnr = reconstruction_psnr(model.vae, [paint(draw_scene(UNSEEN + i)) for i in range(48)])
    rows = [Row("VAE, 48 unseen scenes", f"{psnr:.2f} dB PSNR", "above 26 dB", psnr > 26)]
    for folder in sorted(DATA_SETS.iterdir()):
        pictures = [Image.open(path) for path in sorted((folder / "held_out").glob("*.png"))]
        rows.append(Row(f"VAE, {folder.name}", f"{reconstruction_psnr(model.vae, pictures):.2f} dB PSNR"))
    return rows


def measure_base(model: DiffusionModel, judge: Judge, count: int) -> tuple[list[Row], list[Image.Image]]:
    """Returns how often the colour and the shape are those of the prompt, and the pictures."""
    scenes = shape_scenes(UNSEEN, count)
    drawn = judge.look([paint(scene) for scene in scenes])
    sure = [answer == (scene.shape, scene.colour) for answer, scene in zip(drawn, scenes, strict=True)]
    pictures = generate(model, [caption(scene) for scene in scenes])
    answers = list(zip(judge.look(pictures), scenes, strict=True))
    colours, shapes = [a[1] == scene.colour for a, scene in answers], [a[0] == scene.shape for a, scene in answers]
    plain = [(picture, scene) for picture, scene in zip(pictures, scenes, strict=True) if scene.plain]
    outlines = [outline_shape(p, scene.colour or "", scene.plain or "") == scene.shape for p, scene in plain]
    dominant = [dominant_colour(picture, scene.plain or "") == scene.colour for picture, scene in plain]
    rows = [
        Row("judge on painted scenes, shape and colour", _percent(sure)),
        Row("base, colour named (by the judge)", _percent(colours), "at least 80 %", np.mean(colours) >= 0.8),
        Row(f"base, colour named is dominant beside the ground's (by pixels, {len(plain)} plain grounds)", _percent(dominant)),
        Row("base, shape named (by the judge)", _percent(shapes), "at least 70 %", np.mean(shapes) >= 0.7),
        Row(f"base, shape named (by its outline, {len(plain)} plain grounds)", _percent(outlines)),
    ]
    return rows, pictures


def _percent(answers: list[bool]) -> str:
    return f"{100 * np.mean(answers):.0f} %"


def measure_captioner(count: int) -> list[Row]:
    """Returns how often the captioner names colour and shape, and how often it says everything right."""
    with load_blip(CaptionerSettings(str(CAPTIONER), num_beams=1)) as captioner:
        shaped = shape_scenes(UNSEEN, count)
        said = captioner.caption([paint(scene) for scene in shaped])
        named = [f"{scene.colour} {scene.shape}" in text for scene, text in zip(shaped, said, strict=True)]
        scenes = [draw_scene(UNSEEN + i) for i in range(count)]
        texts = captioner.caption([paint(scene) for scene in scenes])
    right = [_words(caption(scene)) == _words(text) for scene, text in zip(scenes, texts, strict=True)]
    return [
        Row("captioner, colour and shape", _percent(named), "at least 85 %", np.mean(named) >= 0.85),
        Row("captioner, whole caption of any scene", _percent(right)),
    ]


def _words(text: str) -> list[str]:
    return text.replace(",", "").split()


def write_sheet(pictures: list[Image.Image], path: Path, columns: int = 10) -> None:
    """Writes the pictures as one, row by row."""
    sheet = Image.new("RGB", (128 * columns, 128 * (-(-len(pictures) // columns))))
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (128 * (index % columns), 128 * (index // columns)))
    sheet.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--sheet", type=Path)
    arguments = parser.parse_args()
    model = load(ModelSettings(BASE), detect(BASE))
    rows = [*measure_vae(model), *measure_captioner(arguments.pictures)]
    of_base, pictures = measure_base(model, train_judge(), arguments.pictures)
    if arguments.sheet:
        write_sheet([*generate(model, list(PROMPTS)), *pictures], arguments.sheet)
    print(format_section("Miniature", f"{arguments.pictures} pictures; 25 DDIM steps, guidance 4.", [*rows, *of_base]))


if __name__ == "__main__":
    main()
