"""The pictures of a set as cards, page by page: thumbnail, caption, size, bucket, and what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lora_trainer.dataset.buckets import Bucket, histogram
from lora_trainer.dataset.overview import Overview, Picture
from lora_trainer.dataset.thumbnails import thumbnails
from lora_trainer.ui import markup
from lora_trainer.ui.markup import escape, facts, word
from lora_trainer.ui.plots import bucket_plot

PAGE_SIZE = 40
SIDE = 224
FILTERS = ("All", "Without caption", "With problems", "Removed")


def choose(overview: Overview, kept: str) -> list[Picture]:
    """Returns the pictures that a filter of `FILTERS` keeps; those of "Removed" are not in an overview of the set."""
    if kept == "Without caption":
        return [picture for picture in overview.pictures if not picture.caption and not picture.error]
    if kept == "With problems":
        return [picture for picture in overview.pictures if picture.error or not picture.is_usable]
    return list(overview.pictures)


def num_pages(pictures: Sequence[Picture]) -> int:
    """Returns how many pages there are, at least 1."""
    return max(1, -(-len(pictures) // PAGE_SIZE))


def draw_gallery(pictures: Sequence[Picture], buckets: dict[str, Bucket], page: int, cache_dir: Path) -> str:
    """Returns one page of cards, with what turns the pages. Cards are buttons that the script selects; `page` counts from 0."""
    shown = pictures[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
    if not shown:
        return markup.box(word("No pictures here."), "empty")
    small = thumbnails([picture.path for picture in shown], cache_dir, SIDE)
    cards = [_card(picture, buckets.get(picture.name), data) for picture, data in zip(shown, small, strict=True)]
    return markup.box("".join(cards), "gallery", role="group") + _pager(page, num_pages(pictures))


def draw_totals(overview: Overview, resolution: int) -> str:
    """Returns the totals of a set and the histogram of its buckets."""
    usable = overview.usable
    unusable = sum(bool(picture.error) for picture in overview.pictures)
    buckets = overview.buckets(resolution)
    counts = histogram(buckets[picture.name] for picture in overview.pictures if picture.name in buckets)
    small = sum(buckets[p.name].width * buckets[p.name].height < 0.8 * resolution**2 for p in usable)
    figures = {
        word("Pictures"): str(len(overview.pictures)),
        word("Ready to train"): str(len(usable)),
        word("Without caption"): str(overview.num_without_caption or ""),
        word("Cannot be used"): str(unusable or ""),
        word("Smaller than the resolution"): str(small or ""),
        word("Training sizes"): str(len(counts)),
    }
    heading = f"<h4>{word('Training sizes at')} {resolution} {word('pixels')}</h4>"
    plot = bucket_plot({f"{bucket.width} × {bucket.height}": number for bucket, number in counts.items()})
    return facts(figures) + (heading + plot if plot else "") + markup.problem_list(overview.problems)


def _pager(page: int, last: int) -> str:
    """Returns the way to the other pages; the script presses the page's own hidden buttons."""
    if last == 1:
        return ""
    back, forward = (" disabled" if is_end else "" for is_end in (page == 0, page == last - 1))
    return markup.box(
        f'<button type="button" data-press="lora_trainer_dataset_back"{back}>◀ {word("Back")}</button>'
        f"<span>{page + 1} / {last}</span>"
        f'<button type="button" data-press="lora_trainer_dataset_forward"{forward}>{word("Next")} ▶</button>',
        "pager",
    )


def _card(picture: Picture, bucket: Bucket | None, data: bytes | None) -> str:
    image = f'<img src="{markup.data_uri(data)}" alt="" loading="lazy">' if data else f"<b>{word('not readable')}</b>"
    size = f"{picture.width} × {picture.height}" if picture.width else ""
    arrow = (
        f" → {bucket.width} × {bucket.height}"
        if bucket and (bucket.width, bucket.height) != (picture.width, picture.height)
        else ""
    )
    caption = f"<q>{escape(picture.caption)}</q>" if picture.caption else f"<em>{word('no caption')}</em>"
    problem = f'<small class="lora_trainer_error">{escape(picture.error)}</small>' if picture.error else ""
    state = "bad" if picture.error else ("silent" if not picture.caption else "good")
    label = f"{picture.name}, {size}. {picture.caption}"
    return (
        f'<button type="button" class="lora_trainer_card is_{state}" data-picture="{escape(picture.name)}" aria-pressed="false" '
        f'aria-label="{escape(label)}" title="{escape(picture.name)}"><span class="lora_trainer_frame">{image}</span>'
        f"<strong>{escape(picture.name)}</strong><small>{size}{arrow}</small>{caption}{problem}</button>"
    )
