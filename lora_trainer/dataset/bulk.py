"""Changes of many captions at once, and what each would do, before anything is done.

An edit is a function from captions to captions; the functions here make them. A tag is what stands between commas, as in
training. A caption that an edit has nothing to do with comes out as it was written, to the letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lora_trainer.dataset.patterns import substitute_all
from lora_trainer.dataset.tables import clean_caption
from lora_trainer.errors import DatasetError

Edit = Callable[[Sequence[str]], list[str]]
Case = Literal["lower", "upper", "title", "sentence"]

# Of scripts with spaces between words: Latin, Greek, Cyrillic, Hebrew, Arabic. "水" is a word in "水墨", "ink" is none in "pink".
_LETTERS = "a-zA-Z0-9_\u00c0-\u024f\u0370-\u03ff\u0400-\u04ff\u0590-\u06ff"


@dataclass(frozen=True)
class Preview:
    """What an edit would do.

    Attributes:
        changes: before and after of each caption that would become another one, by picture.
        num_captions: how many were looked at.
    """

    changes: dict[str, tuple[str, str]]
    num_captions: int

    @property
    def seen(self) -> dict[str, str]:
        """For `CaptionStore.save_all`: what the captions were."""
        return {name: before for name, (before, _) in self.changes.items()}

    @property
    def wanted(self) -> dict[str, str]:
        """For `CaptionStore.save_all`: what they are to become."""
        return {name: after for name, (_, after) in self.changes.items()}


def preview(captions: Mapping[str, str], *edits: Edit) -> Preview:
    """Returns what edits would do, one after the other. To do it: `store.save_all(preview.wanted, preview.seen, title=...)`.

    Args:
        captions: those that are to be changed, by picture; see `caption_filter` for choosing them.
        edits: made by the functions of this module.

    Raises:
        DatasetError: an edit cannot be done, such as a wrong pattern.
    """
    texts = list(captions.values())
    for edit in edits:
        texts = edit(texts)
    changes = {
        name: (before, clean_caption(after))
        for (name, before), after in zip(captions.items(), texts, strict=True)
        if clean_caption(after) != before
    }
    return Preview(changes, len(captions))


def replace_text(find: str, replacement: str, *, ignore_case: bool = False, whole_words: bool = False) -> Edit:
    """Replaces a text, letter for letter.

    Args:
        find: what is looked for.
        replacement: what comes in its place.
        ignore_case: "Ink" is found by "ink", too.
        whole_words: "ink" is not found in "pink". Scripts without spaces between words have no whole words.
    """
    _need(find, "find")
    compiled = re.compile(_whole(find) if whole_words else re.escape(find), re.IGNORECASE if ignore_case else 0)
    return _each(lambda caption: compiled.sub(lambda _: replacement, caption))


def replace_pattern(pattern: str, replacement: str, *, ignore_case: bool = False) -> Edit:
    """Replaces what a regular expression finds; see `patterns.substitute_all`."""
    _need(pattern, "find")
    return lambda captions: substitute_all(pattern, replacement, captions, ignore_case=ignore_case)


def replace_words(replacements: Mapping[str, str]) -> Edit:
    """Replaces words or phrases by others, in any case, all in one pass: "a" to "b" and "b" to "a" exchanges them."""
    for phrase in replacements:
        _need(phrase, "word to replace")
    if not replacements:
        return _each(lambda caption: caption)
    by_phrase = {phrase.casefold(): text for phrase, text in replacements.items()}
    longest_first = sorted(replacements, key=len, reverse=True)
    compiled = re.compile("|".join(map(_whole, longest_first)), re.IGNORECASE)
    return _each(lambda caption: compiled.sub(lambda match: by_phrase.get(match[0].casefold(), match[0]), caption))


def remove_words(words: Iterable[str]) -> Edit:
    """Removes words or phrases, in any case, with the comma or space that then stands for nothing."""
    phrases = sorted({word.strip() for word in words if word.strip()}, key=len, reverse=True)
    if not phrases:
        return _each(lambda caption: caption)
    compiled = re.compile("|".join(map(_whole, phrases)), re.IGNORECASE)
    return _each(lambda caption: _tidy(compiled.sub("\0", caption)) if compiled.search(caption) else caption)


def add_prefix(text: str) -> Edit:
    """Puts a text before each caption, to the letter; a caption that begins with it already stays."""
    _need(text, "prefix")
    return _each(lambda caption: caption if caption.startswith(text.lstrip()) else text + caption)


def add_suffix(text: str) -> Edit:
    """Puts a text after each caption, to the letter; a caption that ends with it already stays."""
    _need(text, "suffix")
    return _each(lambda caption: caption if caption.endswith(text.rstrip()) else caption + text)


def add_tags(tags: Iterable[str], *, at_start: bool = False) -> Edit:
    """Adds those of the tags that a caption lacks."""
    wanted = split_tags(",".join(tags))
    _need(",".join(wanted), "tags")

    def edit(caption: str) -> str:
        present = {tag.casefold() for tag in split_tags(caption)}
        missing = [tag for tag in dict.fromkeys(wanted) if tag.casefold() not in present]
        if not missing:
            return caption
        parts = [*missing, caption] if at_start else [caption.rstrip(" ,"), *missing]
        return ", ".join(part for part in parts if part)

    return _each(edit)


def remove_tags(tags: Iterable[str]) -> Edit:
    """Removes tags, in any case."""
    unwanted = {tag.casefold() for tag in split_tags(",".join(tags))}
    return _by_tags(lambda tags: [tag for tag in tags if tag.casefold() not in unwanted])


def sort_tags(*, keep_first: int = 0) -> Edit:
    """Puts tags in the order of the alphabet; the first so many stay where they are."""
    return _by_tags(lambda tags: [*tags[:keep_first], *sorted(tags[keep_first:], key=lambda tag: (tag.casefold(), tag))])


def dedupe_tags() -> Edit:
    """Removes tags that stand there a second time, in any case."""

    def edit(tags: list[str]) -> list[str]:
        first: dict[str, str] = {}
        for tag in tags:
            first.setdefault(tag.casefold(), tag)
        return list(first.values())

    return _by_tags(edit)


def change_case(case: Case) -> Edit:
    """Writes captions in lower or upper case, each word with a capital ("title"), or only the first ("sentence")."""
    functions: dict[str, Callable[[str], str]] = {
        "lower": str.lower,
        "upper": str.upper,
        "title": lambda caption: re.sub(r"\w[\w'’]*", lambda match: match[0][:1].upper() + match[0][1:].lower(), caption),
        "sentence": lambda caption: caption[:1].upper() + caption[1:].lower(),
    }
    if case not in functions:
        raise DatasetError(f"case ({case!r}) is unknown; allowed: {', '.join(functions)}.")
    return _each(functions[case])


def put_trigger_first(trigger: str) -> Edit:
    """Puts the trigger word first, as a tag, and takes away the tags further behind that are nothing but it."""
    word = trigger.strip().strip(",").strip()
    _need(word, "trigger word")
    starts = re.compile(rf"{re.escape(word)}(?!\w)", re.IGNORECASE)

    def edit(caption: str) -> str:
        tags = split_tags(caption)
        is_first = bool(tags) and starts.match(tags[0]) is not None
        head, behind = (tags[:1], tags[1:]) if is_first else ([word], tags)
        others = [tag for tag in behind if tag.casefold() != word.casefold()]
        if len(others) < len(behind):
            return ", ".join(head + others)
        return caption if is_first else f"{word}, {caption}" if caption else word

    return _each(edit)


def read_list(text: str) -> list[str]:
    """Returns words and phrases that a user wrote with commas or line breaks between; Chinese commas are commas, too."""
    return [word.strip() for line in text.splitlines() for word in re.split("[,，、]", line) if word.strip()]


def read_pairs(text: str) -> dict[str, str]:
    """Returns replacements that a user wrote as `word = other`, one a line.

    Raises:
        DatasetError: a line has no "=".
    """
    pairs = {}
    for line in text.splitlines():
        if line.strip():
            word, sign, other = line.replace("＝", "=").partition("=")
            if not sign or not word.strip():
                raise DatasetError(f"the line {line.strip()!r} has no “=”. Write one replacement a line: watercolor = ink wash.")
            pairs[word.strip()] = other.strip()
    return pairs


def split_tags(caption: str) -> list[str]:
    """Returns the tags of a caption."""
    return [tag.strip() for tag in caption.split(",") if tag.strip()]


def has_word(caption: str, word: str) -> bool:
    """Whether a word or phrase is in a caption, in any case and not as a part of another word."""
    return re.search(_whole(word.strip()), caption, re.IGNORECASE) is not None


def _each(edit: Callable[[str], str]) -> Edit:
    return lambda captions: list(map(edit, captions))


def _by_tags(edit: Callable[[list[str]], list[str]]) -> Edit:
    def edit_one(caption: str) -> str:
        tags = split_tags(caption)
        edited = edit(tags)
        return caption if edited == tags else ", ".join(edited)

    return _each(edit_one)


def _whole(phrase: str) -> str:
    """Returns a pattern of the phrase that is no part of a longer word; only letters of alphabets make words longer."""
    before = f"(?<![{_LETTERS}])" if re.match(r"\w", phrase) else ""
    after = f"(?![{_LETTERS}])" if re.search(r"\w\Z", phrase) else ""
    return f"{before}{re.escape(phrase)}{after}"


def _tidy(caption: str) -> str:
    """Closes the gaps that `remove_words` marked with NUL."""
    tags: list[str] = []
    for tag in caption.split(","):
        if "\0" in tag:
            words = re.sub(r" *(?:\0 *)+", lambda gap: " " if " " in gap[0] else "", tag).strip(" ")
            if not words:
                continue
            tag = f" {words}" if tags else words
        tags.append(tag)
    return ",".join(tags).strip(" ,")


def _need(text: str, what: str) -> None:
    if not text:
        raise DatasetError(f"{what} is empty. Write what is meant.")
