"""The first unseen style: the scenes as monochrome ink wash, in the spirit of shuimo.

One ink in many tones on paper: washes that fade into mist, dry brush that lets the paper through, dabs for leaves, white
space for water and sky. The picture is kept as ink density until the end and then laid over paper.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .paint import SIZE
from .scenes import Layout, Points, Scene, lay_out

SCALE = 3
PAPER, INK = np.array([243.0, 241.0, 236.0]), np.array([26.0, 26.0, 29.0])
SKY_TONES = {"dawn": 0.05, "day": 0.0, "sunset": 0.2, "night": 0.5}
RIDGE_TONES = {"blue mountains": 0.75, "purple mountains": 0.9, "green hills": 0.55, "snowy mountains": 0.4}


def paint_ink(scene: Scene, size: int = SIZE) -> Image.Image:
    """Returns the scene as an ink wash of `size` pixels square."""
    return _Sheet(lay_out(scene), size * SCALE).picture().resize((size, size), Image.Resampling.BOX)


class _Sheet:
    """One sheet of paper and the ink on it, 0 for none to 1 for black."""

    def __init__(self, layout: Layout, side: int) -> None:
        self.layout, self.side = layout, side
        self.rng = np.random.default_rng([layout.scene.seed, 5])
        self.density = np.zeros((side, side))
        self.x = np.linspace(0, 1, side)[None, :]
        self.y = np.linspace(0, 1, side)[:, None]

    def picture(self) -> Image.Image:
        self._sky()
        for index, line in enumerate(self.layout.ridges):
            self._ridge(line, far=index == 0 and len(self.layout.ridges) == 2)
        if self.layout.water:
            self._water(*self.layout.water)
        if self.layout.bank is not None:
            self._bank(self.layout.bank)
        if self.layout.boat:
            self._boat(*self.layout.boat)
        if self.layout.house:
            self._house(*self.layout.house)
        for tree in self.layout.trees:
            self._tree(*tree)
        grain = self._noise(self.side // 3, self.side // 3)
        density = np.clip(self.density * (0.84 + 0.3 * grain), 0, 0.96)[..., None]
        paper = PAPER - 7 * self._noise(self.side // 2, self.side // 5)[..., None] - 4 * self._noise(5, 5)[..., None]
        return Image.fromarray(np.uint8(np.clip(paper * (1 - density) + INK * density, 0, 255)))

    def _noise(self, columns: int, rows: int) -> np.ndarray:
        """Returns smooth noise in 0 to 1, `[side, side]`, with about so many bumps across and down."""
        small = Image.fromarray(np.uint8(self.rng.integers(0, 256, (max(2, rows), max(2, columns)))))
        return np.asarray(small.resize((self.side, self.side), Image.Resampling.BICUBIC), dtype=np.float64) / 255

    def _add(self, tone: np.ndarray) -> None:
        """Lays ink over ink: two washes of tone t give 1 - (1 - t) ** 2."""
        self.density = 1 - (1 - self.density) * (1 - np.clip(tone, 0, 1))

    def _lift(self, mask: np.ndarray) -> None:
        """Takes ink away where something light stands in front of a wash."""
        self.density = self.density * (1 - mask)

    def _polygon(self, points: Points, blur: float = 0.003) -> np.ndarray:
        mask = Image.new("L", (self.side, self.side))
        ImageDraw.Draw(mask).polygon([(x * self.side, y * self.side) for x, y in points], fill=255)
        return self._soften(mask, blur)

    def _stroke(self, points: Points, width: float, blur: float = 0.002) -> np.ndarray:
        """Returns a brush stroke through the points that swells in its middle and ends thin."""
        path = np.asarray(points, dtype=float)
        length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(path, axis=0).T))])
        along = np.linspace(0, 1, 70)
        x, y = (np.interp(along * length[-1], length, path[:, i]) for i in (0, 1))
        radii = width / 2 * (0.35 + 0.65 * np.sin(np.pi * np.clip(along * 0.9 + 0.08, 0, 1))) * self.rng.uniform(0.85, 1.15, 70)
        mask = Image.new("L", (self.side, self.side))
        draw = ImageDraw.Draw(mask)
        for px, py, r in zip(x * self.side, y * self.side, radii * self.side, strict=True):
            draw.ellipse((px - r, py - r, px + r, py + r), fill=255)
        return self._soften(mask, blur)

    def _soften(self, mask: Image.Image, blur: float) -> np.ndarray:
        return np.asarray(mask.filter(ImageFilter.GaussianBlur(blur * self.side)), dtype=np.float64) / 255

    def _dry(self, columns: int, rows: int, gaps: float) -> np.ndarray:
        """Returns where a dry brush leaves ink: streaks with about a share `gaps` of bare paper."""
        return np.clip((self._noise(columns, rows) - gaps * 0.6) * 5, 0, 1)

    def _sky(self) -> None:
        layout, tone = self.layout, SKY_TONES[self.layout.scene.time]
        fade = np.clip(1 - self.y / layout.horizon, 0, 1) ** 0.8
        self._add(tone * fade * (0.55 + 0.8 * self._noise(4, 5)))
        for x, y, size in layout.clouds:
            away = ((self.x - x) / size) ** 2 + ((self.y - y) / (0.35 * size)) ** 2
            self._lift(0.6 * np.exp(-away * 1.5))
        if layout.light:
            x, y, r = layout.light
            distance = np.hypot(self.x - x, self.y - y)
            halo = np.exp(-np.clip(distance - r, 0, None) / (1.1 * r)) * (0.6 + 0.5 * self._noise(6, 6))
            disc = np.clip((r - distance) / 0.008, 0, 1)
            self._add((0.34 if tone < 0.3 else 0.2) * halo)
            self._lift(0.97 * disc)

    def _ridge(self, line: np.ndarray, far: bool) -> None:
        """Paints a ridge: darkest at its edge, streaked downwards, lost in mist at its foot."""
        scene = self.layout.scene
        tone = RIDGE_TONES[scene.ridge or "blue mountains"] * (0.5 if far else 1.0)
        rough = 0.012 * (self._noise(60, 2)[:1] - 0.5) + 0.006 * (self._noise(150, 2)[:1] - 0.5)
        edge = np.interp(self.x, line[:, 0], line[:, 1]) + rough
        below = self.y - edge
        inside = np.clip(below / 0.006, 0, 1)
        reach = np.clip(below / np.maximum(self.layout.horizon - edge, 0.02), 0, 1.2)
        self._lift(inside * np.clip(1.15 - reach, 0, 1))
        wash = np.exp(-reach * 1.5) * np.clip(1.05 - reach, 0, 1)
        slanted = np.roll(self._noise(46, 9), int(self.rng.integers(self.side)), axis=1)
        streaks = np.clip((slanted - 0.42) * 4, 0, 1) * np.clip(reach * 6, 0, 1) * np.exp(-reach * 3.2)
        amount = tone * (0.75 * wash * (0.55 + 0.7 * self._noise(7, 7)) + (0.0 if far else 0.6) * streaks)
        self._add(inside * amount)
        if not far:
            brush = self._stroke(np.stack([self.x[0], edge[0] + 0.004], 1)[:: self.side // 60], 0.02)
            self._add(min(1.0, tone * 1.35) * brush * self._dry(90, 40, 0.45))

    def _water(self, top: float, bottom: float) -> None:
        self._lift(np.clip((self.y - top) / 0.01, 0, 1) * np.ones_like(self.density))
        night = 0.22 if self.layout.scene.time == "night" else 0.07
        self._add(night * np.clip((self.y - top) / 0.02, 0, 1) * self._noise(3, 14))
        for _ in range(9):
            y, x = self.rng.uniform(top + 0.015, bottom), self.rng.uniform(0.0, 1.0)
            half = self.rng.uniform(0.06, 0.2)
            wave = [(x + half * t, y + 0.004 * np.sin(5 * t + x * 9)) for t in np.linspace(-1, 1, 9)]
            self._add(self.rng.uniform(0.25, 0.5) * self._stroke(wave, 0.009) * self._dry(26, 70, 0.65))

    def _bank(self, bank: np.ndarray) -> None:
        snow = self.layout.scene.ground == "snow"
        edge = np.interp(self.x, bank[:, 0], bank[:, 1]) + 0.008 * (self._noise(50, 2)[:1] - 0.5)
        below = self.y - edge
        inside = np.clip(below / 0.006, 0, 1)
        self._lift(inside)
        wash = (0.1 if snow else 0.42) * np.exp(-np.clip(below, 0, None) / 0.09) * (0.4 + 0.9 * self._noise(9, 14))
        self._add(inside * wash)
        self._add(
            (0.4 if snow else 0.75)
            * self._stroke(np.stack([self.x[0], edge[0]], 1)[:: self.side // 40], 0.016)
            * self._dry(60, 40, 0.5)
        )
        for _ in range(4 if snow else 14):
            x, drop = self.rng.uniform(0, 1), self.rng.uniform(0.0, 0.14)
            y = float(np.interp(x, bank[:, 0], bank[:, 1])) + drop
            self._add(self.rng.uniform(0.35, 0.8) * self._stroke([(x - 0.012, y), (x + 0.012, y - 0.003)], 0.014))

    def _boat(self, x: float, y: float, size: float) -> None:
        hull = [
            (x - size * 0.62, y - size * 0.2),
            (x - size * 0.2, y - size * 0.02),
            (x + size * 0.3, y - size * 0.03),
            (x + size * 0.62, y - size * 0.22),
        ]
        sail = [(x, y - size * 1.2), (x + size * 0.6, y - size * 0.32), (x - size * 0.45, y - size * 0.3)]
        mask = self._polygon(sail)
        self._lift(mask)
        self._add(0.16 * mask * self._noise(20, 10))
        for first, second in zip(sail, [*sail[1:], sail[0]], strict=True):
            self._add(0.7 * self._stroke([first, second], 0.011))
        self._add(0.6 * self._stroke([(x, y - size * 1.25), (x, y - size * 0.15)], 0.012))
        self._add(0.92 * self._stroke(hull, size * 0.2))
        self._add(0.3 * self._stroke([(x - size * 0.5, y + 0.025), (x + size * 0.5, y + 0.028)], 0.014) * self._dry(30, 60, 0.5))

    def _house(self, x: float, y: float, size: float) -> None:
        w, h = size * 0.5, size * 0.6
        wall = [(x - w, y - h), (x + w, y - h), (x + w, y), (x - w, y)]
        self._lift(self._polygon(wall))
        for first, second in ((wall[0], wall[3]), (wall[1], wall[2]), (wall[3], wall[2])):
            self._add(0.65 * self._stroke([first, second], 0.011))
        roof = self._polygon([(x - w * 1.35, y - h * 0.95), (x, y - h - size * 0.52), (x + w * 1.35, y - h * 0.95)], 0.004)
        self._lift(roof)
        self._add(0.85 * roof * (0.7 + 0.4 * self._noise(40, 12)))
        self._add(
            0.8 * self._polygon([(x - w * 0.2, y - h * 0.55), (x + w * 0.2, y - h * 0.55), (x + w * 0.2, y), (x - w * 0.2, y)])
        )

    def _tree(self, x: float, y: float, height: float) -> None:
        kind = self.layout.scene.trees
        lean = self.rng.uniform(-0.05, 0.05) * height
        width = height * (0.1 if kind == "pine" else 0.07)
        self._add(
            0.85
            * self._stroke(
                [(x, y), (x + lean * 0.4, y - height * 0.45), (x + lean, y - height * (0.9 if kind == "pine" else 0.7))], width
            )
            * self._dry(40, 60, 0.25)
        )
        if kind == "pine":
            for level in np.linspace(0.24, 0.97, 6):
                half = (0.3 - 0.23 * level) * height * self.rng.uniform(0.9, 1.15)
                middle = x + lean * level
                for side in (-1, 1):
                    tip = (middle + side * half, y - level * height + 0.05 * height)
                    self._add(
                        self.rng.uniform(0.7, 0.95)
                        * self._stroke([(middle, y - level * height - 0.02 * height), tip], height * 0.1)
                    )
            return
        count, tone = (40, 0.3) if kind == "round" else (26, 0.2)
        for _ in range(count):
            angle, r = self.rng.uniform(0, 2 * np.pi), np.sqrt(self.rng.uniform(0, 1))
            px, py = x + lean + 0.36 * height * r * np.cos(angle), y - 0.68 * height + 0.27 * height * r * np.sin(angle)
            dab = self._stroke([(px - 0.06 * height, py), (px + 0.06 * height, py + 0.01)], height * self.rng.uniform(0.09, 0.17))
            self._add(self.rng.uniform(0.3, 1.7) * tone * dab)
        if kind == "autumn":
            for reach in (-0.22, 0.2):
                self._add(
                    0.7
                    * self._stroke([(x + lean * 0.4, y - height * 0.4), (x + reach * height, y - height * 0.75)], height * 0.05)
                )
