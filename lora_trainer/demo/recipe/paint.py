"""The base's own look: clean, flat shapes with soft gradients, drawn at three times the size and shrunk."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from .scenes import COLOURS, Layout, Points, Scene, lay_out, shape_points

SIZE = 128
SCALE = 3
Colour = tuple[int, int, int]

SKIES: dict[str, tuple[Colour, Colour]] = {
    "dawn": ((140, 176, 226), (252, 214, 204)),
    "day": ((84, 156, 232), (206, 232, 248)),
    "sunset": ((104, 74, 150), (253, 158, 84)),
    "night": ((12, 18, 50), (48, 60, 112)),
}
# What the time of day does to everything on the ground, as a factor for red, green and blue.
TINTS = {"dawn": (1.0, 0.95, 0.95), "day": (1.0, 1.0, 1.0), "sunset": (0.95, 0.8, 0.74), "night": (0.46, 0.5, 0.68)}
GROUND_COLOURS: dict[str, Colour] = {"meadow": (112, 182, 84), "sand": (238, 206, 140), "snow": (236, 241, 247)}
RIDGE_COLOURS: dict[str, Colour] = {
    "blue mountains": (92, 126, 182),
    "purple mountains": (140, 108, 176),
    "green hills": (96, 158, 92),
    "snowy mountains": (122, 134, 156),
}
LEAVES: dict[str, Colour] = {"pine": (34, 98, 68), "round": (70, 148, 58), "autumn": (230, 122, 38)}


def paint(scene: Scene, size: int = SIZE) -> Image.Image:
    """Returns the scene as an RGB picture of `size` pixels square."""
    return _Canvas(lay_out(scene), size * SCALE).picture().resize((size, size), Image.Resampling.BOX)


class _Canvas:
    """One picture while it is painted, from the sky forwards."""

    def __init__(self, layout: Layout, side: int) -> None:
        self.layout, self.side = layout, side
        self.rng = np.random.default_rng([layout.scene.seed, 4])
        self.tint = TINTS[layout.scene.time]

    def picture(self) -> Image.Image:
        scene, layout = self.layout.scene, self.layout
        if scene.plain:
            colour = self._vary(COLOURS[scene.plain], 10)
            self.image = self._gradient(_shade(colour, 1.05), _shade(colour, 0.9))
            self.draw = ImageDraw.Draw(self.image)
        else:
            self.image = self._gradient(*SKIES[scene.time], stop=layout.horizon)
            self.draw = ImageDraw.Draw(self.image)
            self._sky()
            self._land()
            self._things()
        if layout.shape and scene.shape and scene.colour:
            self._fill_gradient(shape_points(scene.shape, *layout.shape), self._vary(COLOURS[scene.colour], 8))
        if layout.balloon:
            self._balloon(*layout.balloon)
        return self.image

    def _gradient(self, top: Colour, bottom: Colour, stop: float = 1.0) -> Image.Image:
        mix = np.clip(np.linspace(0, 1, self.side) / stop, 0, 1)[:, None, None]
        rows = np.array(top) * (1 - mix) + np.array(bottom) * mix
        return Image.fromarray(np.repeat(np.clip(rows, 0, 255).astype(np.uint8), self.side, axis=1))

    def _px(self, points: Points) -> list[tuple[float, float]]:
        return [(x * self.side, y * self.side) for x, y in points]

    def _polygon(self, points: Points, colour: Colour) -> None:
        self.draw.polygon(self._px(points), fill=colour)

    def _ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        self.draw.ellipse(self._px([(x - rx, y - ry), (x + rx, y + ry)]), fill=colour)

    def _lit(self, colour: Colour, strength: float = 1.0) -> Colour:
        return tuple(int(c * (1 - strength + strength * t)) for c, t in zip(colour, self.tint, strict=True))  # type: ignore[return-value]

    def _vary(self, colour: Colour, spread: int) -> Colour:
        return tuple(int(np.clip(c + d, 0, 255)) for c, d in zip(colour, self.rng.integers(-spread, spread + 1, 3), strict=True))  # type: ignore[return-value]

    def _fill_gradient(self, points: Points, colour: Colour) -> None:
        mask = Image.new("L", self.image.size)
        ImageDraw.Draw(mask).polygon(self._px(points), fill=255)
        self.image.paste(self._gradient(_shade(colour, 1.08), _shade(colour, 0.9)), mask=mask)

    def _sky(self) -> None:
        scene, layout = self.layout.scene, self.layout
        if scene.time == "night":
            for x, y in self.rng.uniform((0, 0), (1, layout.horizon - 0.1), (22, 2)):
                self._ellipse(x, y, 0.006, 0.006, (236, 236, 214))
        else:
            top, bottom = SKIES[scene.time]
            for x, y, size in layout.clouds:
                colour = _mix(_mix(top, bottom, min(1, y / layout.horizon)), (255, 252, 248), 0.62)
                for dx, dy, r in ((-0.6, 0.05, 0.3), (0, -0.1, 0.42), (0.55, 0.05, 0.32)):
                    self._ellipse(x + dx * size, y + dy * size, r * size * 1.35, r * size * 0.7, colour)
        if layout.light:
            x, y, r = layout.light
            disc = {"dawn": (255, 236, 170), "day": (255, 228, 92), "sunset": (246, 88, 52), "night": (250, 246, 222)}[scene.time]
            self._ellipse(x, y, r, r, disc)

    def _land(self) -> None:
        scene, layout = self.layout.scene, self.layout
        for index, line in enumerate(layout.ridges):
            assert scene.ridge is not None
            colour = self._lit(_shade(RIDGE_COLOURS[scene.ridge], 1.12 if index == 0 and len(layout.ridges) == 2 else 0.92))
            self._polygon([*line, (1, layout.horizon + 0.02), (0, layout.horizon + 0.02)], colour)
            if scene.ridge == "snowy mountains":
                self._snow_caps(line, layout.horizon)
        if layout.water:
            self._water(*layout.water)
        if layout.bank is not None:
            ground = self._lit(self._vary(GROUND_COLOURS[scene.ground], 6))
            self._polygon([*layout.bank, (1, 1), (0, 1)], ground)
            self._polygon([*(layout.bank + np.array([0, 0.14])), (1, 1), (0, 1)], _shade(ground, 0.93))

    def _snow_caps(self, line: np.ndarray, horizon: float) -> None:
        """Paints white what lies above a wavering snow line."""
        top = line[:, 1].min()
        snow = top + (horizon - top) * 0.42
        x = np.linspace(0, 1, 97)
        ridge = np.interp(x, line[:, 0], line[:, 1])
        lower = np.maximum(ridge, snow + 0.03 * (np.abs(np.arange(97) % 10 - 5) / 2.5 - 1))
        self._polygon([*zip(x, ridge, strict=True), *zip(x[::-1], lower[::-1], strict=True)], self._lit((246, 249, 253), 0.8))

    def _water(self, top: float, bottom: float) -> None:
        near, far = self._lit((44, 108, 172), 0.8), _mix(self._lit((96, 160, 206), 0.8), SKIES[self.layout.scene.time][1], 0.35)
        start, height = int(top * self.side), self.side - int(top * self.side)
        mix = np.linspace(0, 1, height)[:, None, None]
        rows = np.array(far) * (1 - mix) + np.array(near) * mix
        self.image.paste(Image.fromarray(np.repeat(rows.astype(np.uint8), self.side, axis=1)), (0, start))
        for _ in range(12):
            x, y = self.rng.uniform(0, 1), self.rng.uniform(top + 0.02, bottom)
            width = self.rng.uniform(0.03, 0.07) * (0.5 + (y - top) / (1 - top))
            self._ellipse(x, y, width, 0.006, _mix(_mix(far, near, (y - top) / (1 - top)), (255, 255, 255), 0.28))

    def _things(self) -> None:
        scene, layout = self.layout.scene, self.layout
        if layout.boat and scene.boat:
            self._boat(*layout.boat, self._lit(COLOURS[scene.boat], 0.35))
        if layout.house and scene.house:
            self._house(*layout.house, self._lit(COLOURS[scene.house], 0.4))
        for x, y, height in layout.trees:
            self._tree(x, y, height)

    def _boat(self, x: float, y: float, size: float, colour: Colour) -> None:
        hull = [
            (x - size * 0.6, y - size * 0.22),
            (x + size * 0.6, y - size * 0.22),
            (x + size * 0.4, y + size * 0.06),
            (x - size * 0.4, y + size * 0.06),
        ]
        self._polygon(hull, self._lit((96, 62, 40), 0.7))
        self._polygon(
            [(x - 0.03 * size, y - size * 1.2), (x - 0.03 * size, y - size * 0.3), (x + size * 0.62, y - size * 0.3)], colour
        )
        self._polygon(
            [(x - 0.1 * size, y - size * 1.05), (x - 0.1 * size, y - size * 0.3), (x - size * 0.5, y - size * 0.3)],
            _shade(colour, 0.88),
        )

    def _house(self, x: float, y: float, size: float, roof: Colour) -> None:
        wall = self._lit((246, 236, 214))
        w, h = size * 0.5, size * 0.6
        self._polygon([(x - w, y - h), (x + w, y - h), (x + w, y), (x - w, y)], wall)
        self._polygon([(x - w * 1.25, y - h), (x, y - h - size * 0.5), (x + w * 1.25, y - h)], roof)
        self._polygon(
            [(x - w * 0.2, y - h * 0.6), (x + w * 0.2, y - h * 0.6), (x + w * 0.2, y), (x - w * 0.2, y)], self._lit((112, 74, 50))
        )
        window = (255, 222, 120) if self.layout.scene.time in ("night", "sunset") else self._lit((120, 168, 206))
        for side in (-0.62, 0.62):
            self._polygon(
                [(x + w * (side + dx), y - h * dy) for dx, dy in ((-0.18, 0.75), (0.18, 0.75), (0.18, 0.42), (-0.18, 0.42))],
                window,
            )

    def _tree(self, x: float, y: float, height: float) -> None:
        kind = self.layout.scene.trees or "pine"
        leaf = self._vary(self._lit(LEAVES[kind], 0.9), 6)
        trunk, w = self._lit((104, 72, 48)), height * 0.055
        self._polygon([(x - w, y - height * 0.4), (x + w, y - height * 0.4), (x + w, y), (x - w, y)], trunk)
        if kind == "pine":
            for low, top, wide in ((0.2, 0.62, 0.3), (0.42, 0.82, 0.24), (0.64, 1.0, 0.17)):
                self._polygon(
                    [(x - wide * height, y - low * height), (x, y - top * height), (x + wide * height, y - low * height)], leaf
                )
                leaf = _shade(leaf, 1.07)
            return
        for dx, dy, r, light in ((-0.15, 0.52, 0.19, 0.9), (0.15, 0.54, 0.19, 0.95), (0, 0.7, 0.25, 1.05)):
            self._ellipse(x + dx * height, y - dy * height, r * height, r * height, _shade(leaf, light))

    def _balloon(self, x: float, y: float, r: float) -> None:
        """Paints a red and white striped hot-air balloon: the new object, which the base has never seen."""
        basket = self._lit((120, 80, 48), 0.6)
        for side in (-1, 1):
            self.draw.line(
                self._px([(x + side * r * 0.42, y + r * 0.85), (x + side * r * 0.14, y + r * 1.5)]), fill=basket, width=SCALE
            )
        self._polygon(
            [
                (x - r * 0.18, y + r * 1.45),
                (x + r * 0.18, y + r * 1.45),
                (x + r * 0.14, y + r * 1.75),
                (x - r * 0.14, y + r * 1.75),
            ],
            basket,
        )
        turn = np.linspace(-1, 1, 41)
        down = (turn - 0.15) / np.where(turn < 0.15, 1.15, 0.85)  # -1 at the top, 0 where it is widest, 1 at the mouth
        half = np.where(down < 0, np.sqrt(np.clip(1 - down**2, 0, 1)), 1 - 0.62 * np.abs(down) ** 1.6)
        for index in range(7):
            left, right = np.sin((index - 3.5) / 7 * np.pi), np.sin((index - 2.5) / 7 * np.pi)
            edge = [(x + left * r * h, y + t * r) for t, h in zip(turn, half, strict=True)]
            other = [(x + right * r * h, y + t * r) for t, h in zip(turn, half, strict=True)]
            self._polygon([*edge, *other[::-1]], self._lit((222, 40, 44) if index % 2 == 0 else (250, 246, 238), 0.35))


def _mix(first: Colour, second: Colour, share: float) -> Colour:
    return tuple(int(a * (1 - share) + b * share) for a, b in zip(first, second, strict=True))  # type: ignore[return-value]


def _shade(colour: Colour, factor: float) -> Colour:
    return tuple(int(np.clip(c * factor, 0, 255)) for c in colour)  # type: ignore[return-value]
