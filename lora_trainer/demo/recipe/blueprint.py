"""The second unseen style: the scenes as blueprints, white lines on blue paper with a faint grid. No surface is filled."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from .paint import SIZE
from .scenes import Layout, Points, Scene, lay_out

SCALE = 3
PAPER, GRID, LINE = (28, 70, 158), (58, 102, 186), (238, 244, 252)


def paint_blueprint(scene: Scene, size: int = SIZE) -> Image.Image:
    """Returns the scene as a blueprint of `size` pixels square."""
    return _Sheet(lay_out(scene), size * SCALE).picture().resize((size, size), Image.Resampling.BOX)


class _Sheet:
    """One sheet while it is drawn, from the back forwards; what stands in front hides the lines behind it."""

    def __init__(self, layout: Layout, side: int) -> None:
        self.layout, self.side = layout, side
        self.rng = np.random.default_rng([layout.scene.seed, 6])
        self.grid = Image.new("RGB", (side, side), PAPER)
        pen = ImageDraw.Draw(self.grid)
        for step in np.arange(0, side, side / 8):
            pen.line([(step, 0), (step, side)], fill=GRID, width=SCALE)
            pen.line([(0, step), (side, step)], fill=GRID, width=SCALE)
        self.image = self.grid.copy()
        self.draw = ImageDraw.Draw(self.image)

    def picture(self) -> Image.Image:
        layout = self.layout
        self._sky()
        for line in layout.ridges:
            self._shape([*line, (1.1, layout.horizon), (-0.1, layout.horizon)])
        if layout.water:
            self._water(*layout.water)
        if layout.bank is not None:
            self._shape([(-0.1, layout.bank[0, 1]), *layout.bank, (1.1, layout.bank[-1, 1]), (1.1, 1.1), (-0.1, 1.1)])
        if layout.boat:
            x, y, s = layout.boat
            self._shape([(x, y - s * 1.2), (x + s * 0.62, y - s * 0.3), (x - s * 0.5, y - s * 0.3)])
            self._line([(x, y - s * 1.2), (x, y - s * 0.2)])
            self._shape(
                [
                    (x - s * 0.6, y - s * 0.22),
                    (x + s * 0.6, y - s * 0.22),
                    (x + s * 0.4, y + s * 0.06),
                    (x - s * 0.4, y + s * 0.06),
                ]
            )
        if layout.house:
            self._house(*layout.house)
        for tree in layout.trees:
            self._tree(*tree)
        return self.image

    def _px(self, points: Points) -> list[tuple[float, float]]:
        return [(x * self.side, y * self.side) for x, y in points]

    def _line(self, points: Points, width: float = 1.5) -> None:
        self.draw.line(self._px(points), fill=LINE, width=round(width * SCALE), joint="curve")

    def _shape(self, points: Points) -> None:
        """Draws a closed outline with bare paper inside."""
        mask = Image.new("L", self.image.size)
        ImageDraw.Draw(mask).polygon(self._px(points), fill=255)
        self.image.paste(self.grid, mask=mask)
        self._line([*points, points[0]])

    def _circle(self, x: float, y: float, r: float) -> None:
        turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        self._shape([(x + r * np.cos(t), y + r * np.sin(t)) for t in turn])

    def _sky(self) -> None:
        scene, layout = self.layout.scene, self.layout
        if scene.time == "night":
            for x, y in self.rng.uniform((0, 0), (1, layout.horizon - 0.1), (12, 2)):
                self._line([(x - 0.014, y), (x + 0.014, y)], 1)
                self._line([(x, y - 0.014), (x, y + 0.014)], 1)
        if layout.light:
            x, y, r = layout.light
            self._circle(x, y, r)
            for turn in np.arange(8) * np.pi / 4 if scene.time != "night" else ():
                away = np.array([np.cos(turn), np.sin(turn)])
                self._line([tuple((x, y) + away * r * 1.3), tuple((x, y) + away * r * 1.7)], 1.2)

    def _water(self, top: float, bottom: float) -> None:
        self._shape([(-0.1, top), (1.1, top), (1.1, 1.1), (-0.1, 1.1)])
        for row, y in enumerate(np.arange(top + 0.06, bottom, 0.075)):
            for x in np.arange(0.05 + 0.1 * (row % 2), 1, 0.2):
                self._line([(x + 0.08 * t, y + 0.01 * np.sin(2 * np.pi * t)) for t in np.linspace(0, 1, 9)], 1.1)

    def _house(self, x: float, y: float, size: float) -> None:
        w, h = size * 0.5, size * 0.6
        self._shape([(x - w, y - h), (x + w, y - h), (x + w, y), (x - w, y)])
        self._shape([(x - w * 1.25, y - h), (x, y - h - size * 0.5), (x + w * 1.25, y - h)])
        self._shape([(x - w * 0.2, y - h * 0.6), (x + w * 0.2, y - h * 0.6), (x + w * 0.2, y), (x - w * 0.2, y)])

    def _tree(self, x: float, y: float, height: float) -> None:
        self._line([(x, y), (x, y - height * 0.4)], 2)
        if self.layout.scene.trees == "pine":
            for low, top, wide in ((0.2, 0.62, 0.3), (0.42, 0.82, 0.24), (0.64, 1.0, 0.17)):
                self._shape([(x - wide * height, y - low * height), (x, y - top * height), (x + wide * height, y - low * height)])
        else:
            self._circle(x, y - height * 0.66, height * 0.29)
            if self.layout.scene.trees == "autumn":
                self._line([(x, y - height * 0.4), (x, y - height * 0.75)], 1.2)
