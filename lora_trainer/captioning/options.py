"""What is asked of a caption run. One declaration and one check, for the command, the job and the page.

Values come as text from a page or a command line, or as lists and tables from a program; both are read here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lora_trainer.captioning.table import CAPTIONERS, RANKERS
from lora_trainer.captioning.weights import HUB_ID, Download, find_folder
from lora_trainer.captioning.wording import MODES, Mode, Wording
from lora_trainer.dataset.bulk import read_list, read_pairs
from lora_trainer.errors import ConfigError, DatasetError, Problem
from lora_trainer.host.base import Host
from lora_trainer.registry import Entry, did_you_mean

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
RANGES = {
    "num_beams": (1, 16),
    "min_tokens": (0, 200),
    "max_tokens": (1, 200),
    "batch_size": (1, 256),
    "terms": (1, 10),
}


@dataclass(frozen=True)
class CaptionOptions:
    """What is asked of a caption run.

    Attributes:
        input_dir: the folder with the pictures.
        captioner: a name in the table.
        model: a folder with the captioner's files, or its id on the hub; "" for the captioner's own.
        mode, trigger, banned, replacements: see `wording.Wording`.
        prompt: words that every caption begins with, such as "a painting of".
        word_lists: lists of terms by what they are about, such as "medium"; the best of each are appended. {} for none.
        terms: how many of each list.
        ranker: a name in the table of rankers: the CLIP that compares terms with pictures.
        ranker_model: a folder with a CLIP, or its id on the hub; "" for the ranker's own.
        num_beams: captions followed at once; 1 is the quickest.
        min_tokens, max_tokens: of a caption, in tokens of the captioner; a word is one or two.
        batch_size: pictures looked at together.
        precision: of the frozen weights; "auto" is a half precision on a graphics card, else fp32.
        device: "auto", "cpu", "cuda" and so on.
        download: whether weights that are not on this computer may be loaded from the hub.
    """

    input_dir: str
    captioner: str
    model: str = ""
    mode: Mode = "missing"
    trigger: str = ""
    banned: tuple[str, ...] = ()
    replacements: Mapping[str, str] = field(default_factory=dict)
    prompt: str = ""
    word_lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    terms: int = 1
    ranker: str = "clip"
    ranker_model: str = ""
    num_beams: int = 3
    min_tokens: int = 0
    max_tokens: int = 50
    batch_size: int = 8
    precision: str = "auto"
    device: str = "auto"
    download: bool = False

    @property
    def entry(self) -> Entry:
        return CAPTIONERS.get(self.captioner)

    @property
    def wording(self) -> Wording:
        return Wording(self.mode, self.trigger, self.banned, self.replacements)

    @property
    def models(self) -> dict[str, tuple[str, int]]:
        """The models that are needed, folders or ids on the hub, and their megabytes or 0, by "captioner" and "ranker"."""
        needed = {"captioner": _model(self.entry, self.model)}
        if self.word_lists:
            needed["ranker"] = _model(RANKERS.get(self.ranker), self.ranker_model)
        return {part: model for part, model in needed.items() if model[0]}


def read_options(values: Mapping[str, Any], *, default_captioner: str = "") -> CaptionOptions:
    """Returns the options.

    Args:
        values: by the names of `CaptionOptions`; what is empty has its default.
        default_captioner: taken where none is named; "" for the first of the table.

    Raises:
        ConfigError: with every problem found.
    """
    problems: list[Problem] = []
    known = {field.name for field in fields(CaptionOptions)}
    read: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            problems.append(Problem(name, f"is not a setting{did_you_mean(name, tuple(sorted(known)))}"))
            continue
        try:
            reader: Callable[[str, Any], Any] = _READERS.get(name, _read_text)
            read[name] = reader(name, value)
        except (ValueError, DatasetError) as error:
            problems.append(Problem(name, str(error)))
    read = {name: value for name, value in read.items() if value is not None}
    read["captioner"] = read.get("captioner") or default_captioner or CAPTIONERS.names()[0]
    for name, choices in _choices().items():
        if (value := read.get(name)) is not None and value not in choices:
            problems.append(Problem(name, f"({value}) must be one of {', '.join(choices)}{did_you_mean(str(value), choices)}"))
    if read.get("min_tokens", 0) > read.get("max_tokens", CaptionOptions.max_tokens):
        problems.append(Problem("min_tokens", f"({read['min_tokens']}) must not be above max_tokens."))
    folder = read.setdefault("input_dir", "")
    if not folder or "\0" in folder or not Path(folder).is_dir():
        problems.append(Problem("input_dir", f"({folder!r}) is not a folder.", hint="Give the folder that holds the pictures."))
    for name in ("model", "ranker_model"):
        if read.get(name) and not Path(read[name]).is_dir() and not HUB_ID.fullmatch(read[name]):
            hint = 'Give a folder that is there, or an id such as "Salesforce/blip-image-captioning-base".'
            problems.append(Problem(name, f"({read[name]}) is neither a folder nor an id on the hub.", hint=hint))
    if problems:
        raise ConfigError(problems)
    return CaptionOptions(**read)


def default_captioner(host: Host) -> str:
    """Returns the captioner of the host's settings page, else the host's own where that is on the disk; "" for neither."""
    return host.options().captioner or ("webui" if host.has_captioner() else "")


def missing_models(options: CaptionOptions, root: Path) -> list[Download]:
    """Returns what is not on this computer and would be loaded from the hub.

    Args:
        options: of the run.
        root: the folder that downloads go to, `Folders.captioners`.
    """
    return [
        Download(model, size_mb, root)
        for model, size_mb in options.models.values()
        if not Path(model).is_dir() and find_folder(model, root) is None
    ]


def check_download(options: CaptionOptions, root: Path) -> None:
    """Does nothing where all is there, or where it was agreed that the rest is loaded.

    Raises:
        ConfigError: something is missing; the message says what, how large it is, and how to put it there by hand.
    """
    problems = [] if options.download else [one for one in missing_models(options, root) if not one.is_agreed()]
    if problems:
        raise ConfigError([Problem("download", one.describe(), hint=one.by_hand()) for one in problems])


def _model(entry: Entry, chosen: str) -> tuple[str, int]:
    own = str(entry.options.get("model", ""))
    if not own:
        return "", 0
    return (chosen, 0) if chosen and chosen != own else (own, int(entry.options.get("size_mb", 0)))


def _choices() -> dict[str, tuple[str, ...]]:
    return {"captioner": CAPTIONERS.names(), "ranker": RANKERS.names(), "mode": MODES, "precision": PRECISIONS}


def _read_text(name: str, value: Any) -> str | None:
    return " ".join(str(value).split()) or None if value is not None else None


def _read_path(name: str, value: Any) -> str | None:
    return str(value).strip() or None if value is not None else None


def _read_number(name: str, value: Any) -> int | None:
    if value is None or value == "":
        return None
    low, high = RANGES[name]
    number = int(value) if isinstance(value, float) and value.is_integer() else value  # pages hand numbers over as floats
    if isinstance(number, bool) or not str(number).strip().isdecimal() or not low <= int(number) <= high:
        raise ValueError(f"({value}) must be a whole number from {low} to {high}.")
    return int(number)


def _read_flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"({value}) must be true or false.")
    return value


def _read_words(name: str, value: Any) -> tuple[str, ...]:
    parts = [value] if isinstance(value, str) else list(value or ())
    return tuple(word for part in parts for word in read_list(str(part)))


def _read_replacements(name: str, value: Any) -> dict[str, str]:
    if isinstance(value, Mapping):
        return {str(word): str(other) for word, other in value.items()}
    return read_pairs(value if isinstance(value, str) else "\n".join(map(str, value or ())))


def _read_word_lists(name: str, value: Any) -> dict[str, tuple[str, ...]]:
    """Returns lists given as a table, or written as `medium: ink wash, oil painting`, one a line."""
    if isinstance(value, Mapping):
        lists = {str(about): _read_words(name, terms) for about, terms in value.items()}
    else:
        lists = {}
        for line in (value if isinstance(value, str) else "\n".join(map(str, value or ()))).splitlines():
            if not line.strip():
                continue
            about, sign, terms = line.replace("：", ":").partition(":")
            if not sign or not about.strip():
                raise ValueError(
                    f"(the line {line.strip()!r}) has no name. Write one list a line: medium: ink wash, oil painting."
                )
            lists[about.strip()] = (*lists.get(about.strip(), ()), *read_list(terms))
    if empty := [about for about, terms in lists.items() if not terms]:
        raise ValueError(f"({', '.join(empty)}) has no terms. Write them behind the colon, with commas between.")
    return {about: tuple(dict.fromkeys(terms)) for about, terms in lists.items()}


_READERS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(RANGES, _read_number),
    **dict.fromkeys(("input_dir", "model", "ranker_model"), _read_path),
    "download": _read_flag,
    "banned": _read_words,
    "replacements": _read_replacements,
    "word_lists": _read_word_lists,
}
