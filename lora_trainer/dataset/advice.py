"""What is worth a look in captions: advice beside each, filters, and how often tags and words occur. Nothing is changed here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lora_trainer.dataset.bulk import has_word, read_list, split_tags
from lora_trainer.dataset.patterns import search_all
from lora_trainer.errors import Problem
from lora_trainer.models.tokenizer import CHUNK_TOKENS, MAX_CHUNKS, count_cut_tokens, count_tokens

AdviceKind = Literal["empty", "no trigger", "vague", "too long", "near-identical"]

VAGUE_WORDS = (
    *("beautiful", "artistic", "amazing", "stunning", "gorgeous", "pretty", "nice", "good", "great", "wonderful", "awesome"),
    *("masterpiece", "best quality", "high quality", "highly detailed", "very detailed", "intricate", "professional", "perfect"),
    *("trending on artstation", "award winning", "award-winning", "epic", "cool", "interesting", "some kind of"),
    *("漂亮", "美丽", "好看", "精美", "艺术的", "杰作", "高质量", "最佳质量", "精彩"),
)
"""Words that praise and describe nothing: what a model learns from them is not what is in the picture."""

ALIKE = 0.85  # of the words of two captions, the share that both have
MANY_ALIKE = 3  # so many others make a caption near-identical; 1 in 20 of a large set
ENOUGH_WITH_TRIGGER = 0.5  # of the captions; of several trigger words each may be for some of the pictures
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_BLOCK = 512  # captions compared at once with all others


@dataclass(frozen=True)
class Advice:
    """One thing worth a look.

    Attributes:
        kind: by which captions are filtered.
        message: what was found, and why it matters.
    """

    kind: AdviceKind
    message: str


@dataclass(frozen=True)
class CaptionFilter:
    """Which captions are shown or changed; what is set must all hold. The default shows all.

    Attributes:
        contains: a text, in any case; "" for any.
        pattern: a regular expression, in any case; "" for any.
        tag: a whole tag, in any case; "" for any.
        lacks_word: a word or phrase, such as the trigger word, that must not be there; "" for any.
        is_empty: only pictures without a caption.
        over_tokens: only captions with more tokens of CLIP; None for any.
        advice: only captions with advice of this kind; None for any.
        names: only these pictures, such as those with a problem in the quality report; None for any.
    """

    contains: str = ""
    pattern: str = ""
    tag: str = ""
    lacks_word: str = ""
    is_empty: bool = False
    over_tokens: int | None = None
    advice: AdviceKind | None = None
    names: frozenset[str] | None = None


def choose(captions: Mapping[str, str], wanted: CaptionFilter, advice: Mapping[str, Sequence[Advice]]) -> dict[str, str]:
    """Returns the captions that a filter lets through, in their order.

    Args:
        captions: by picture.
        wanted: the filter.
        advice: as `advise` returns it; asked only where the filter names a kind.

    Raises:
        DatasetError: the pattern is wrong, or takes too long.
    """
    chosen = {name: caption for name, caption in captions.items() if _is_wanted(name, caption, wanted, advice)}
    if wanted.pattern and chosen:
        fits = search_all(wanted.pattern, list(chosen.values()), ignore_case=True)
        chosen = {name: caption for (name, caption), is_fit in zip(chosen.items(), fits, strict=True) if is_fit}
    return chosen


def advise(
    captions: Mapping[str, str], *, trigger: str = "", vague_words: Iterable[str] = VAGUE_WORDS
) -> dict[str, list[Advice]]:
    """Returns what is worth a look, by picture; pictures without advice are not in it.

    Args:
        captions: of all pictures of the set.
        trigger: the trigger word; "" where there is none.
        vague_words: words and phrases that describe nothing.
    """
    vague = [word.casefold() for word in vague_words]
    alike = _count_alike(captions, trigger)
    found = {name: _advise_one(caption, trigger, vague, alike.get(name, 0)) for name, caption in captions.items()}
    return {name: advice for name, advice in found.items() if advice}


class Adviser:
    """`advise` of one set, remembered until its captions or the trigger word are others: turning a page changes neither."""

    def __init__(self) -> None:
        self._last: tuple[dict[str, str], str, dict[str, list[Advice]]] = ({}, "", {})

    def advise(self, captions: Mapping[str, str], *, trigger: str = "") -> dict[str, list[Advice]]:
        """Returns what the function does; not to be changed."""
        known, known_trigger, found = self._last
        if known != captions or known_trigger != trigger:
            found = advise(captions, trigger=trigger)
            self._last = (dict(captions), trigger, found)
        return found


def count_tags(captions: Iterable[str]) -> list[tuple[str, int]]:
    """Returns the tags in lower case, each with the number of captions that have it, the most frequent first."""
    counts = Counter(tag for caption in captions for tag in dict.fromkeys(tag.lower() for tag in split_tags(caption)))
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))


def count_words(captions: Iterable[str]) -> list[tuple[str, int]]:
    """Returns the words in lower case, each with the number of captions that have it, the most frequent first."""
    counts = Counter(word for caption in captions for word in dict.fromkeys(split_words(caption)))
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))


def split_words(caption: str) -> list[str]:
    """Returns the words of a caption in lower case; scripts without spaces come in pieces between punctuation."""
    return _WORD.findall(caption.lower())


def _is_wanted(name: str, caption: str, wanted: CaptionFilter, advice: Mapping[str, Sequence[Advice]]) -> bool:
    if wanted.names is not None and name not in wanted.names:
        return False
    if wanted.is_empty and caption:
        return False
    if wanted.contains and wanted.contains.casefold() not in caption.casefold():
        return False
    if wanted.tag and wanted.tag.strip().casefold() not in (tag.casefold() for tag in split_tags(caption)):
        return False
    if wanted.lacks_word.strip() and has_word(caption, wanted.lacks_word):
        return False
    if wanted.advice and all(one.kind != wanted.advice for one in advice.get(name, ())):
        return False
    return wanted.over_tokens is None or _has_more_tokens(caption, wanted.over_tokens)


def _has_more_tokens(caption: str, limit: int) -> bool:
    # A token is a byte at least, so most captions need not be counted.
    return len(caption.encode("utf-8")) > limit and count_tokens(caption) > limit


def warn_of_trigger(words: str, captions: Sequence[str]) -> list[Problem]:
    """Returns a warning where a trigger word is in no caption, or all together are in few.

    Args:
        words: as `trigger_words`: one or several between commas.
        captions: of the pictures that are trained.
    """
    triggers = read_list(words)
    if not triggers or not captions:
        return []
    hint = "In the part Captions, Change many captions: Trigger word first, once."
    for trigger in triggers:
        if not any(has_word(caption, trigger) for caption in captions):
            message = f"({trigger}) is in none of {len(captions)} captions, so it will do nothing."
            return [Problem("trigger_words", message, "warning", hint)]
    found = sum(any(has_word(caption, trigger) for trigger in triggers) for caption in captions)
    if found >= ENOUGH_WITH_TRIGGER * len(captions):
        return []
    message = f"({', '.join(triggers)}) is in {found} of {len(captions)} captions, so it learns from few pictures."
    return [Problem("trigger_words", message, "warning", hint)]


def _advise_one(caption: str, trigger: str, vague_words: Sequence[str], num_alike: int) -> list[Advice]:
    if not caption:
        return [Advice("empty", "has no caption; training leaves the picture out.")]
    advice = []
    if trigger.strip() and not has_word(caption, trigger):
        advice.append(
            Advice("no trigger", f"lacks the trigger word {trigger.strip()!r}, so the word does not learn from this picture.")
        )
    folded = caption.casefold()
    if vague := [word for word in vague_words if word in folded and has_word(caption, word)]:
        advice.append(
            Advice(
                "vague", f"praises instead of describing: {', '.join(vague)}. Say what is seen: composition, technique, period."
            )
        )
    if _has_more_tokens(caption, CHUNK_TOKENS):
        advice.append(Advice("too long", _describe_length(caption)))
    if num_alike:
        advice.append(Advice("near-identical", f"is nearly the same as {num_alike} others; say what sets this picture apart."))
    return advice


def _describe_length(caption: str) -> str:
    lost = count_cut_tokens(caption)
    rest = f"the last {lost} are cut off" if lost else f"it is cut into chunks, of which {MAX_CHUNKS} are read"
    return (
        f"has {count_tokens(caption)} tokens; one chunk holds {CHUNK_TOKENS}, so {rest}. The important words belong to the front."
    )


def _count_alike(captions: Mapping[str, str], trigger: str) -> dict[str, int]:
    """Returns how many others are near-identical, by picture, where they are many."""
    ignored = set(split_words(trigger))
    words = {name: sorted(set(split_words(caption)) - ignored) for name, caption in captions.items() if caption}
    numbers = {word: number for number, word in enumerate(dict.fromkeys(word for found in words.values() for word in found))}
    has = np.zeros((len(words), len(numbers) + 1), np.float32)
    for row, found in enumerate(words.values()):
        has[row, [numbers[word] for word in found]] = 1.0
        has[row, -1] = not found  # captions of the trigger word alone are alike, too
    lengths = has.sum(axis=1)
    many = max(MANY_ALIKE, len(words) // 20)
    names = list(words)
    alike: dict[str, int] = {}
    for start in range(0, len(names), _BLOCK):
        both = has[start : start + _BLOCK] @ has.T
        either = lengths[start : start + _BLOCK, None] + lengths[None, :] - both
        counts = (both >= ALIKE * either).sum(axis=1) - 1
        alike |= {names[start + row]: int(count) for row, count in enumerate(counts) if count >= many}
    return alike
