"""Which weight and which step: a proposal from a grid's pictures and the training set, with the figures that it rests on.

A good LoRA brings the picture to the training set's look and leaves what the prompt asked for. Both are measured on the pictures:
how near their colours and textures come to those of the training set, and how much of the base's composition is left. Where a
picture is one of the training pictures again, the LoRA has learned it by heart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from lora_trainer.errors import DatasetError
from lora_trainer.inference.grid import Grid
from lora_trainer.inference.likeness import PLAIN, Eye, content, distance, similarity, spread
from lora_trainer.inference.rows import Stack

COPIED = 0.85
"""A picture this like a training picture shows the same thing in the same place; different motifs stay near 0."""
COPY_GAIN = 0.2
"""And the LoRA must have brought it there: by so much more like than the base's own picture."""
CLOSE_CALL = 0.02
"""Of scores this near each other the lower weight is proposed."""
Candidate = tuple[Stack, float]


@dataclass(frozen=True)
class TrainingPicture:
    """A picture of the training set, as far as it is compared."""

    path: Path
    style: np.ndarray
    content: np.ndarray


@dataclass(frozen=True)
class Nearest:
    """The training picture that a cell is most like.

    Attributes:
        row, column: the cell.
        path: of the training picture.
        similarity: of the two; 1 for the same picture, about 0 for any two.
        base_similarity: of the base's picture and that training picture.
    """

    row: int
    column: int
    path: Path
    similarity: float
    base_similarity: float

    @property
    def is_copied(self) -> bool:
        """Whether the LoRA draws that training picture again."""
        return self.similarity >= COPIED and self.similarity - self.base_similarity >= COPY_GAIN


@dataclass(frozen=True)
class Figures:
    """What the pictures of one LoRA, or stack, at one weight say; means over its rows.

    Attributes:
        uses: the LoRAs at the weight 1.
        weight: the column's.
        moved: how far the pictures are from the base's, from 0 to 1.
        nearness: the share of the way from the base's look to the training set's: 0 like the base, 1 like the training pictures.
        kept: the share of the base's composition that is left, from 0 to 1.
        nearest: the most similar training picture of all its cells.
        score: the harmonic mean of nearness and kept; half of it where a picture is copied.
    """

    uses: Stack
    weight: float
    moved: float
    nearness: float
    kept: float
    nearest: Nearest
    score: float


@dataclass(frozen=True)
class Advice:
    """A proposal.

    Attributes:
        figures: of every LoRA at every weight, in the grid's order.
        best: what is proposed; None where no weight brings the pictures nearer to the training set.
        bends: by LoRA, the weight from which more of it hardly brings the look nearer; None where the curve does not bend.
        copied: the cells that are training pictures again.
        nearest: for every cell with a LoRA the training picture that it is most like.
        reason: why, in sentences with figures.
    """

    figures: tuple[Figures, ...]
    best: Figures | None
    bends: dict[Stack, float | None]
    copied: tuple[Nearest, ...]
    nearest: tuple[Nearest, ...]
    reason: str


def read_training_pictures(
    paths: Iterable[Path], eye: Eye = PLAIN, on_picture: Callable[[int], None] | None = None
) -> list[TrainingPicture]:
    """Returns what is compared of the training pictures.

    Args:
        eye: that `advise` will use.
        on_picture: called with the number read so far, before every tenth. What it raises ends the reading.

    Raises:
        DatasetError: there is none, or one cannot be read.
    """
    pictures = []
    for number, path in enumerate(paths):
        if on_picture and number % 10 == 0:
            on_picture(number)
        try:
            with Image.open(path) as file:
                picture = ImageOps.exif_transpose(file).convert("RGB")
        except (OSError, ValueError) as error:
            raise DatasetError(f"{path} cannot be read as a picture ({error}). Remove it, or save it anew.") from error
        pictures.append(TrainingPicture(path, eye.look(picture), content(picture)))
    if not pictures:
        raise DatasetError("there is no training picture to compare with. Give the folder that the LoRA was trained on.")
    return pictures


def advise(grid: Grid, training: Sequence[TrainingPicture], eye: Eye = PLAIN) -> Advice:
    """Returns which LoRA at which weight to use, by the cells that are drawn.

    Args:
        grid: rows of one LoRA, or stack, are taken together; more prompts and seeds make the figures steadier.
        training: from `read_training_pictures`; one at least.
        eye: what compares looks and says what is kept; copies are always recognised by light, colours and outlines.
    """
    judge = _Judge(grid, training, eye)
    figures = tuple(judge.measure(uses, column) for uses, column in judge.candidates())
    copied = tuple(near for near in judge.nearest.values() if near.is_copied)
    bends = {uses: find_bend(_curve(figures, uses)) for uses in dict.fromkeys(figure.uses for figure in figures)}
    best = _choose(figures)
    return Advice(
        figures, best, bends, copied, tuple(judge.nearest.values()), _explain(figures, best, bends, copied, eye.measure_of_kept)
    )


def find_bend(curve: Mapping[float, float]) -> float | None:
    """Returns where a rising curve bends: the point farthest above the line from its first to its last point.

    After Satopaa and others, "Finding a kneedle in a haystack" (2011). None where no point is a tenth of the height above.
    """
    points = np.array(sorted(curve.items()))
    if len(points) < 3 or points[-1, 1] - points[0, 1] <= 0:
        return None
    x, y = ((values - values[0]) / (values[-1] - values[0]) for values in points.T)
    above = y - x
    highest = int(np.argmax(above))
    return float(points[highest, 0]) if above[highest] >= 0.1 else None


class _Judge:
    """Compares a grid's pictures with the base's and with the training set's, each picture once."""

    def __init__(self, grid: Grid, training: Sequence[TrainingPicture], eye: Eye) -> None:
        self._grid, self._training, self._eye = grid, training, eye
        self._scale = spread([picture.style for picture in training])
        self._look = np.mean([picture.style for picture in training], axis=0)
        # As far as the mean of so many training pictures usually is from that of all.
        scatter = [self._apart([picture.style]) ** 2 for picture in training]
        self._scatter = float(np.mean(scatter))
        self._contents = {place: content(cell.picture) for place, cell in grid.cells.items()}
        self._styles = {place: eye.look(cell.picture) for place, cell in grid.cells.items()}
        self.nearest = {place: self._find_nearest(*place) for place in grid.cells if place[1]}

    def candidates(self) -> list[tuple[Stack, int]]:
        """Returns every LoRA with every column that is drawn in one of its rows at least."""
        found = {(self._grid.rows[row].uses, column): None for row, column in sorted(self._grid.cells) if column}
        return list(found)

    def measure(self, uses: Stack, column: int) -> Figures:
        rows = [row for row, other in self._grid.cells if other == column and self._grid.rows[row].uses == uses]
        pairs = [(self._grid.cells[row, 0].picture, self._grid.cells[row, column].picture) for row in rows]
        prompts = [self._grid.rows[row].settings.prompt for row in rows]
        shares = [self._eye.kept(base, picture, prompt) for (base, picture), prompt in zip(pairs, prompts, strict=True)]
        share_kept = float(np.mean(shares))
        nearness = self._nearness(rows, column)
        nearest = max((self.nearest[row, column] for row in rows), key=lambda near: near.similarity)
        score = 2 * max(0.0, nearness) * share_kept / (max(0.0, nearness) + share_kept + 1e-9)
        if any(self.nearest[row, column].is_copied for row in rows):
            score /= 2
        return Figures(
            uses=uses,
            weight=self._grid.weights[column],
            moved=float(np.mean([distance(base, picture) for base, picture in pairs])),
            nearness=nearness,
            kept=share_kept,
            nearest=nearest,
            score=score,
        )

    def _nearness(self, rows: Sequence[int], column: int) -> float:
        """Returns the share of the way to the training set's look; that of the pictures together, so that motifs cancel out."""
        start = self._apart([self._styles[row, 0] for row in rows])
        now = self._apart([self._styles[row, column] for row in rows])
        goal = min((self._scatter / len(rows)) ** 0.5, start)
        return float(min(1.0, (start - now) / (start - goal))) if start - goal > 1e-9 else 0.0

    def _apart(self, styles: Sequence[np.ndarray]) -> float:
        return float(np.sqrt(np.mean(((np.mean(styles, axis=0) - self._look) / self._scale) ** 2)))

    def _find_nearest(self, row: int, column: int) -> Nearest:
        own = self._contents[row, column]
        likest = max(self._training, key=lambda picture: similarity(own, picture.content))
        base = similarity(self._contents[row, 0], likest.content)
        return Nearest(row, column, likest.path, similarity(own, likest.content), base)


def _choose(figures: Sequence[Figures]) -> Figures | None:
    """Returns the highest score; of scores that hardly differ that of the lowest weight."""
    highest = max((figure.score for figure in figures), default=0.0)
    close = [figure for figure in figures if figure.score >= highest - CLOSE_CALL]
    return min(close, key=lambda figure: abs(figure.weight)) if highest > 0 else None


def _curve(figures: Sequence[Figures], uses: Stack) -> dict[float, float]:
    return {0.0: 0.0} | {figure.weight: figure.nearness for figure in figures if figure.uses == uses and figure.weight > 0}


def _explain(
    figures: Sequence[Figures],
    best: Figures | None,
    bends: Mapping[Stack, float | None],
    copied: Sequence[Nearest],
    measure_of_kept: str,
) -> str:
    if best is None:
        farthest = max((figure.moved for figure in figures), default=0.0)
        return (
            f"At no weight do the pictures come nearer to the training set's look (they move by up to {farthest:.0%}). "
            "Train longer or with a higher learning_rate, or see what the diagnosis says of the file."
        )
    name = " + ".join(use.path.stem for use in best.uses)
    sentences = [
        f"{name} at weight {best.weight:g}: the pictures go {best.nearness:.0%} of the way to the training set's look and keep "
        f"{best.kept:.0%} of {measure_of_kept}; they move by {best.moved:.0%}."
    ]
    if (bend := bends[best.uses]) is not None:
        sentences.append(f"From weight {bend:g} on the look hardly comes nearer.")
    if copied:
        worst = max(copied, key=lambda near: near.similarity)
        sentences.append(
            f"{len(copied)} of the pictures are training pictures again, most of all {worst.path.name} ({worst.similarity:.0%} "
            f"alike, the base's {worst.base_similarity:.0%}): the LoRA is over-trained. Take an earlier step or a lower weight."
        )
    return " ".join(sentences)
