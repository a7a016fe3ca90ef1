"""Says what a landscape shows, in whatever style: a small convolutional classifier trained on scenes painted in all of them.

It judges whether a picture drawn with a LoRA still shows what its prompt says. Shapes are judged by `judge.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import nn

from .blueprint import paint_blueprint
from .ink import paint_ink
from .judge import SIDE, build_features
from .paint import paint
from .scenes import Scene, draw_landscape
from .train_vae import to_tensor

THINGS: dict[str, Callable[[Scene], bool]] = {
    "ridge": lambda scene: scene.ridge is not None,
    "water": lambda scene: scene.water is not None,
    "trees": lambda scene: scene.trees is not None,
    "house": lambda scene: scene.house is not None,
    "boat": lambda scene: scene.boat is not None,
    "sun or moon": lambda scene: scene.light,
    "balloon": lambda scene: scene.balloon,
}
FIRST_SEED = 40_000_000
SHARES = {"paint": 5, "grey": 3, "blueprint": 1, "ink": 1}  # of ten; ink takes a tenth of a second to paint


class ContentJudge(nn.Module):
    """Tells for each of `THINGS` whether a picture of 64 pixels shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = build_features()
        self.things = nn.Linear(96 * 16, len(THINGS))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Returns a score for each thing, `[B, 7]`, above 0 where it is there, for pictures `[B, 3, 64, 64]` in -1 to 1."""
        return self.things(self.features(pictures))

    def look(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Returns whether each thing is there, `[B, 7]`."""
        batch = torch.stack([to_tensor(picture.resize((SIDE, SIDE), Image.Resampling.BOX)) for picture in pictures])
        with torch.no_grad():
            return (self.eval()(batch) > 0).numpy()


def things_in(scene: Scene) -> list[bool]:
    """Returns the truth about a scene, in the order of `THINGS`."""
    return [is_there(scene) for is_there in THINGS.values()]


def train_content_judge(num_scenes: int = 3000, epochs: int = 8) -> ContentJudge:
    """Returns a judge trained on drawn scenes, the same one every time; a few minutes on one core."""
    torch.manual_seed(0)
    scenes = [_with_balloon(draw_landscape(FIRST_SEED + index), index) for index in range(num_scenes)]
    pictures = torch.stack([to_tensor(_paint_somehow(scene, index)) for index, scene in enumerate(scenes)])
    truth = torch.tensor([things_in(scene) for scene in scenes]).float()
    judge = ContentJudge().train()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * (num_scenes // 50))
    for _ in range(epochs):
        for rows in torch.randperm(num_scenes).view(-1, 50):
            x = pictures[rows]
            if torch.rand(()) < 0.5:
                x = x.flip(3)
            if torch.rand(()) < 0.5:
                x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
            loss = F.binary_cross_entropy_with_logits(judge(x + 0.05 * torch.rand(()) * torch.randn_like(x)), truth[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return judge.eval()


def _with_balloon(scene: Scene, index: int) -> Scene:
    return replace(scene, balloon=True) if index % 4 == 0 else scene


def _paint_somehow(scene: Scene, index: int) -> Image.Image:
    styles = [style for style, share in SHARES.items() for _ in range(share)]
    style = styles[(index // 4) % len(styles)]
    if style == "ink":
        return paint_ink(scene, SIDE)
    if style == "blueprint":
        return paint_blueprint(scene, SIDE)
    picture = paint(scene, SIDE)
    return ImageOps.grayscale(picture).convert("RGB") if style == "grey" else picture
