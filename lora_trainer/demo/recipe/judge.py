"""Says which shape in which colour a picture shows: a small convolutional classifier trained on drawn scenes.

It judges what the base draws. Its training pictures are blurred and grained a little, so that it looks at shapes and not at the
difference between drawn and generated edges.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import nn

from .paint import paint
from .scenes import COLOURS, SHAPES, Scene, draw_scene, shape_points
from .train_vae import to_tensor

SIDE = 64
NAMED_COLOURS = tuple(COLOURS)


def build_features() -> nn.Module:
    """Returns an untrained network that makes 1536 numbers of a picture `[B, 3, 64, 64]`."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise((3, 32, 48, 64, 96)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten())


class Judge(nn.Module):
    """Tells the shape and its colour from a picture of 64 pixels: two answers from one small network."""

    def __init__(self) -> None:
        super().__init__()
        self.features = build_features()
        self.shape = nn.Linear(96 * 16, len(SHAPES))
        self.colour = nn.Linear(96 * 16, len(COLOURS))

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the scores of all shapes `[B, 6]` and colours `[B, 9]` for pictures `[B, 3, 64, 64]` in -1 to 1."""
        features = self.features(pictures)
        return self.shape(features), self.colour(features)

    def look(self, pictures: list[Image.Image]) -> list[tuple[str, str]]:
        """Returns (shape, colour) of each picture."""
        batch = torch.stack([to_tensor(picture.resize((SIDE, SIDE), Image.Resampling.BOX)) for picture in pictures])
        with torch.no_grad():
            shapes, colours = self.eval()(batch)
        return [(SHAPES[s], NAMED_COLOURS[c]) for s, c in zip(shapes.argmax(1), colours.argmax(1), strict=True)]


def shape_scenes(first_seed: int, count: int) -> list[Scene]:
    """Returns the first scenes from a seed on that show a named shape."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        if (scene := draw_scene(first_seed)).shape:
            scenes.append(scene)
        first_seed += 1
    return scenes


def train_judge(num_scenes: int = 4000, epochs: int = 6) -> Judge:
    """Returns a judge trained on drawn scenes, the same one every time; about a minute on one core."""
    torch.manual_seed(0)
    scenes = shape_scenes(30_000_000, num_scenes)
    pictures = torch.stack([to_tensor(paint(scene, SIDE)) for scene in scenes])
    shapes = torch.tensor([SHAPES.index(scene.shape or "") for scene in scenes])
    colours = torch.tensor([NAMED_COLOURS.index(scene.colour or "") for scene in scenes])
    judge = Judge().train()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * (num_scenes // 50))
    for _ in range(epochs):
        for rows in torch.randperm(num_scenes).view(-1, 50):
            x = pictures[rows]
            if torch.rand(()) < 0.5:
                x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
            guessed_shapes, guessed_colours = judge(x + 0.05 * torch.rand(()) * torch.randn_like(x))
            loss = F.cross_entropy(guessed_shapes, shapes[rows]) + F.cross_entropy(guessed_colours, colours[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return judge.eval()


def dominant_colour(picture: Image.Image, ground: str) -> str:
    """Returns the named colour of most pixels that are not of the ground's, each pixel going to the nearest name.

    An independent check of the judge, for pictures of a shape on one plain colour.
    """
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float64).reshape(-1, 1, 3)
    nearest = np.argmin(np.square(pixels - np.array(list(COLOURS.values()))).sum(2), axis=1)
    counts = np.bincount(nearest, minlength=len(COLOURS))
    counts[NAMED_COLOURS.index(ground)] = 0
    return NAMED_COLOURS[int(counts.argmax())]


def outline_shape(picture: Image.Image, colour: str, ground: str) -> str:
    """Returns the named shape that overlaps most with the pixels nearer to one colour than to the ground's.

    Each outline is laid over the pixels' centre at their size. An independent check of the judge, for pictures as above.
    """
    pixels = np.asarray(picture.convert("RGB").resize((SIDE, SIDE)), dtype=np.float64)
    far = [np.square(pixels - np.array(COLOURS[name])).sum(2) for name in (colour, ground)]
    seen = far[0] < far[1]
    if not seen.any():
        return "nothing"
    centre = [float(places.mean()) for places in np.nonzero(seen)[::-1]]

    def overlap(shape: str) -> float:
        points = np.array(shape_points(shape, 0, 0, 1, 0))
        area, middle = _measure(points)
        picture = Image.new("1", (SIDE, SIDE))
        laid = (points - middle) * np.sqrt(seen.sum() / area) + centre
        ImageDraw.Draw(picture).polygon([(float(x), float(y)) for x, y in laid], fill=1)
        outline = np.asarray(picture)
        return float((outline & seen).sum() / (outline | seen).sum())

    return max(SHAPES, key=overlap)


def _measure(points: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns area and centre of mass of a polygon `[n, 2]`, by the shoelace formula."""
    following = np.roll(points, -1, axis=0)
    cross = points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]
    return abs(float(cross.sum())) / 2, (points + following).T @ cross / (3 * cross.sum())
