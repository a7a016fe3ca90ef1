"""What is in a picture, and how it is said: scenes drawn from a seed, their captions and their geometry.

Nothing is painted here: `paint.py`, `ink.py` and `blueprint.py` each paint the same `Layout` in their own way, so that one scene
exists in several styles. Coordinates are fractions of the picture, x to the right, y down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

Point = tuple[float, float]
Choice = TypeVar("Choice")
Points = Sequence[Point | np.ndarray] | np.ndarray

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (216, 44, 44),
    "orange": (243, 140, 34),
    "yellow": (250, 214, 56),
    "green": (52, 156, 72),
    "blue": (44, 100, 212),
    "purple": (132, 66, 184),
    "pink": (244, 132, 180),
    "white": (247, 247, 244),
    "black": (30, 30, 36),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
TIMES = ("dawn", "day", "sunset", "night")
RIDGES = ("blue mountains", "purple mountains", "green hills", "snowy mountains")
TREES = ("pine", "round", "autumn")
GROUNDS = {"meadow": "a green field", "sand": "the desert", "snow": "the snow"}
# A shape is never asked for in the colour of what is behind it: such a picture could not be told from an empty one.
CLASHES = {"meadow": {"green"}, "sand": {"orange", "yellow"}, "snow": {"white"}, "sea": {"blue"}, "night": {"black", "blue"}}


@dataclass(frozen=True)
class Scene:
    """The content of one picture. `seed` fixes positions and sizes; everything else can be said in words."""

    seed: int
    time: str = "day"
    ground: str = "meadow"
    ridge: str | None = None
    water: str | None = None
    trees: str | None = None
    num_trees: int = 0
    house: str | None = None
    boat: str | None = None
    light: bool = False
    shape: str | None = None
    colour: str | None = None
    plain: str | None = None
    balloon: bool = False


@dataclass(frozen=True)
class Layout:
    """Where everything of a scene is. Polylines run from left to right, `[n, 2]`; boxes are (x, y, size)."""

    scene: Scene
    horizon: float
    ridges: tuple[np.ndarray, ...] = ()
    water: tuple[float, float] | None = None
    bank: np.ndarray | None = None
    trees: tuple[tuple[float, float, float], ...] = ()
    clouds: tuple[tuple[float, float, float], ...] = ()
    light: tuple[float, float, float] | None = None
    boat: tuple[float, float, float] | None = None
    house: tuple[float, float, float] | None = None
    shape: tuple[float, float, float, float] | None = None
    balloon: tuple[float, float, float] | None = None


def draw_scene(seed: int) -> Scene:
    """Returns a random scene: half of them one named shape, half landscapes."""
    rng = np.random.default_rng([seed, 1])
    return _shape_scene(seed, rng) if rng.random() < 0.5 else draw_landscape(seed)


def draw_landscape(seed: int) -> Scene:
    """Returns a random landscape: mountains, water, trees, house, boat, sun or moon, at one of four times of day."""
    rng = np.random.default_rng([seed, 2])
    water = _pick(rng, (None, "lake", "lake", "sea"))
    ground = _pick(rng, ("meadow", "meadow", "meadow", "sand", "snow")) if water is None else "meadow"
    on_land = water != "sea"
    trees = _pick(rng, TREES) if on_land and ground != "sand" and rng.random() < 0.6 else None
    return Scene(
        seed=seed,
        time=_pick(rng, TIMES),
        ground=ground,
        ridge=_pick(rng, RIDGES) if rng.random() < 0.7 else None,
        water=water,
        trees=trees,
        num_trees=int(_pick(rng, (1, 3, 4, 5))) if trees else 0,
        house=_pick(rng, ("red", "blue", "yellow")) if on_land and rng.random() < 0.4 else None,
        boat=_pick(rng, ("red", "white", "yellow", "orange")) if water and rng.random() < 0.6 else None,
        light=rng.random() < 0.6,
    )


def _shape_scene(seed: int, rng: np.random.Generator) -> Scene:
    shape = _pick(rng, SHAPES)
    colour = _pick(rng, tuple(COLOURS))
    scene = Scene(seed=seed, shape=shape, colour=colour)
    place = _pick(rng, ("plain", "plain", "plain", "meadow", "sea", "sand", "snow", "hills", "night"))
    if colour in CLASHES.get(place, ()):
        place = "plain"
    if place == "plain":
        return replace(scene, plain=_pick(rng, tuple(name for name in COLOURS if name != colour)))
    if place == "sea":
        return replace(scene, water="sea")
    if place == "hills":
        return replace(scene, ridge="snowy mountains" if colour != "white" else "blue mountains")
    if place == "night":
        return replace(scene, time="night")
    return replace(scene, ground=place)


def _pick(rng: np.random.Generator, choices: Sequence[Choice]) -> Choice:
    return choices[int(rng.integers(len(choices)))]


# Captions


def caption(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """Returns the scene in words.

    Args:
        rng: Chooses among natural ways to say it and now and then leaves a detail out; None gives the plain full caption.
    """
    text = _shape_caption(scene, rng) if scene.shape else _landscape_caption(scene, rng)
    if rng is not None and rng.random() < 0.15:
        text = _pick(rng, ("a picture of ", "a painting of ", "an illustration of ")) + text
    return text


def _shape_caption(scene: Scene, rng: np.random.Generator | None) -> str:
    thing = f"a {scene.colour} {scene.shape}" if scene.colour != "orange" else f"an orange {scene.shape}"
    if scene.plain:
        article = "an" if scene.plain == "orange" else "a"
        where = f"on {article} {scene.plain} background"
    elif scene.water:
        where = "above the sea"
    elif scene.ridge:
        where = f"in front of {scene.ridge}"
    elif scene.time == "night":
        where = "in the night sky"
    else:
        where = {"meadow": "on a green field", "sand": "in the desert", "snow": "in the snow"}[scene.ground]
    if rng is not None and rng.random() < 0.12:
        return thing
    if scene.balloon:
        where += " with a striped balloon"
    return f"{thing} {where}"


def _landscape_caption(scene: Scene, rng: np.random.Generator | None) -> str:
    near = {"lake": "a lake", "sea": "the sea"}.get(scene.water or "", GROUNDS[scene.ground])
    place = f"{scene.ridge} behind {near}" if scene.ridge else near
    if scene.ridge and rng is not None and rng.random() < 0.3:
        place = f"{near} and {scene.ridge}"
    details = _details(scene)
    if rng is not None:
        details = [text for text in details if rng.random() > 0.08]
        rng.shuffle(details)
    if details:
        place += " with " + (details[0] if len(details) == 1 else ", ".join(details[:-1]) + " and " + details[-1])
    time = {"dawn": "at dawn", "day": "by day", "sunset": "at sunset", "night": "at night"}[scene.time]
    if rng is not None and rng.random() < 0.25:
        return f"{time}, {place}"
    return f"{place} {time}"


def _details(scene: Scene) -> list[str]:
    """Returns the named things of a landscape besides land and water."""
    details = []
    if scene.boat:
        details.append(f"{'an' if scene.boat == 'orange' else 'a'} {scene.boat} boat")
    if scene.trees:
        details.append(
            f"{'an' if scene.trees == 'autumn' else 'a'} {scene.trees} tree" if scene.num_trees == 1 else f"{scene.trees} trees"
        )
    if scene.house:
        details.append(f"a house with a {scene.house} roof")
    if scene.light:
        details.append("the moon" if scene.time == "night" else "the sun")
    if scene.balloon:
        details.append("a striped balloon")
    return details


# Geometry


def lay_out(scene: Scene) -> Layout:
    """Returns positions and sizes of everything in the scene, the same for the same scene in every style."""
    rng = np.random.default_rng([scene.seed, 3])
    horizon = float(rng.uniform(0.52, 0.66))
    layout = Layout(scene, horizon)
    if scene.shape:
        radius = float(rng.uniform(0.26, 0.32))
        centre = 0.5 + rng.uniform(-0.04, 0.04, 2)
        layout = replace(layout, shape=(float(centre[0]), float(centre[1]), radius, float(rng.uniform(-0.1, 0.1))))
    if scene.ridge:
        layout = replace(layout, ridges=_ridges(rng, scene.ridge, horizon))
    if scene.water == "lake":
        layout = replace(layout, water=(horizon, 1.0), bank=_bank(rng, float(rng.uniform(0.76, 0.84)), 0.035))
    elif scene.water == "sea":
        layout = replace(layout, water=(horizon, 1.0))
    else:
        layout = replace(layout, bank=_bank(rng, horizon, 0.02))
    layout = replace(layout, clouds=_clouds(rng, horizon))
    return _place_things(layout, rng)


def _place_things(layout: Layout, rng: np.random.Generator) -> Layout:
    scene, horizon = layout.scene, layout.horizon
    slots = list(rng.permutation([0.14, 0.38, 0.62, 0.86]) + rng.uniform(-0.05, 0.05, 4))
    if scene.light:
        layout = replace(
            layout, light=(float(rng.uniform(0.15, 0.85)), float(rng.uniform(0.12, 0.26)), float(rng.uniform(0.055, 0.085)))
        )
    if scene.balloon:
        layout = replace(
            layout, balloon=(float(rng.uniform(0.45, 0.55)), float(rng.uniform(0.32, 0.35)), float(rng.uniform(0.24, 0.27)))
        )
    if scene.house:
        x = float(slots.pop())
        layout = replace(layout, house=(x, _base_y(layout, x, rng), float(rng.uniform(0.16, 0.22))))
    if scene.boat:
        low = 0.92 if layout.bank is None else float(layout.bank[:, 1].min()) - 0.01
        y = float(rng.uniform(min(horizon + 0.08, low), low))
        layout = replace(layout, boat=(float(rng.uniform(0.2, 0.8)), y, float(rng.uniform(0.15, 0.21))))
    if scene.trees:
        anchors = [slots[i % len(slots)] + rng.uniform(-0.07, 0.07) for i in range(scene.num_trees)]
        height = 0.34 if scene.num_trees == 1 else 0.26
        trees = [(float(x), _base_y(layout, float(x), rng), float(height * rng.uniform(0.8, 1.2))) for x in anchors]
        layout = replace(layout, trees=tuple(sorted(trees, key=lambda tree: tree[1])))
    return layout


def _base_y(layout: Layout, x: float, rng: np.random.Generator) -> float:
    """Returns where a thing at `x` stands: on the near ground, a little below its edge."""
    assert layout.bank is not None
    edge = float(np.interp(x, layout.bank[:, 0], layout.bank[:, 1]))
    return edge + float(rng.uniform(0.02, 0.5)) * min(0.1, 0.97 - edge)


def _bank(rng: np.random.Generator, y: float, height: float) -> np.ndarray:
    x = np.linspace(0, 1, 33)
    phase, waves = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.4)
    return np.stack([x, y + height * np.sin(2 * np.pi * waves * x + phase)], axis=1)


def _clouds(rng: np.random.Generator, horizon: float) -> tuple[tuple[float, float, float], ...]:
    count = int(rng.integers(0, 3))
    return tuple(
        (float(rng.uniform(0, 1)), float(rng.uniform(0.08, horizon - 0.25)), float(rng.uniform(0.1, 0.17))) for _ in range(count)
    )


def _ridges(rng: np.random.Generator, kind: str, horizon: float) -> tuple[np.ndarray, ...]:
    """Returns one or two ridge lines, the far one first."""
    height = 0.17 if kind == "green hills" else 0.3
    lines = []
    for scale in (1.0, 0.62)[: int(rng.integers(1, 3))]:
        lines.append(_hills(rng, horizon, height * scale) if kind == "green hills" else _peaks(rng, horizon, height * scale))
    return tuple(lines)


def _hills(rng: np.random.Generator, base: float, height: float) -> np.ndarray:
    x = np.linspace(0, 1, 49)
    y = np.sum([np.sin(2 * np.pi * f * x + rng.uniform(0, 6.3)) / f for f in (0.8, 1.5, 2.3)], axis=0)
    y = (y - y.min()) / (y.max() - y.min())
    return np.stack([x, base - height * (0.3 + 0.7 * y)], axis=1)


def _peaks(rng: np.random.Generator, base: float, height: float) -> np.ndarray:
    """Returns a jagged line: a few peaks with valleys between them, roughened by midpoint displacement."""
    count = int(rng.integers(2, 4))
    inner = (np.arange(2 * count - 1) + 1) / (2 * count) + rng.uniform(-0.04, 0.04, 2 * count - 1)
    heights = np.where(
        np.arange(2 * count - 1) % 2 == 0, rng.uniform(0.65, 1.0, 2 * count - 1), rng.uniform(0.15, 0.45, 2 * count - 1)
    )
    line = np.array([(0.0, rng.uniform(0.1, 0.5)), *zip(inner, heights, strict=True), (1.0, rng.uniform(0.1, 0.5))])
    for roughness in (0.07, 0.035):
        middle = (line[:-1] + line[1:]) / 2
        middle[:, 1] += rng.uniform(-roughness, roughness, len(middle))
        line = np.insert(line, np.arange(1, len(line)), middle, axis=0)
    line[:, 1] = base - height * np.clip(line[:, 1], 0.05, 1.1)
    return line


def shape_points(name: str, x: float, y: float, radius: float, angle: float) -> list[Point]:
    """Returns the outline of a named shape as a closed polygon around (x, y)."""
    turn = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    if name == "circle":
        outline = np.stack([np.sin(turn), -np.cos(turn)], 1)
    elif name == "heart":
        outline = np.stack(
            [np.sin(turn) ** 3, -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)) / 16], 1
        )
        outline = outline * 1.08 - [0, 0.08]
    elif name == "star":
        tips = np.arange(10) * np.pi / 5
        outline = np.stack([np.sin(tips), -np.cos(tips)], 1) * np.where(np.arange(10) % 2 == 0, 1.15, 0.48)[:, None]
    elif name == "triangle":
        outline = np.array([(0, -1.05), (1.0, 0.75), (-1.0, 0.75)])
    elif name == "square":
        outline = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.84
    else:
        a, b = 0.34, 1.0
        outline = np.array(
            [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
        )
    cos, sin = np.cos(angle), np.sin(angle)
    turned = outline @ np.array([[cos, sin], [-sin, cos]]) * radius + [x, y]
    return [(float(px), float(py)) for px, py in turned]
