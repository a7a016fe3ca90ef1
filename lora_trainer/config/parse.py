"""From YAML, a mapping or `key=value` words to a `TrainConfig`, strictly: every problem at once, nothing corrected in silence.

Values are read by the type of their field, since YAML itself reads `2e-4` as text and `no` as a truth value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lora_trainer.config.kohya import describe_name
from lora_trainer.config.schema import VERSION, FieldInfo, TrainConfig, field_infos, required_names
from lora_trainer.errors import ConfigError, Problem
from lora_trainer.files import write_text
from lora_trainer.registry import did_you_mean

VERSION_KEY = "config_version"
PATH_HINT = "In double quotes YAML reads a backslash as the start of a special character: write paths with / or in single quotes."
TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class _TextLoader(yaml.SafeLoader):
    """Reads every scalar as text and refuses a key that stands twice; types come from the schema."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise ConfigError([Problem(key, "is given twice.", hint="Keep one of the lines.") for key in twice])
        return super().construct_mapping(node, deep)


# Without implicit resolvers every plain scalar is a string; only "null" keeps its meaning.
_TextLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_config(path: Path) -> TrainConfig:
    """Reads a YAML file, UTF-8 with or without a byte-order mark.

    Raises:
        ConfigError: the file cannot be read, or anything in it is wrong; holds every problem.
    """
    return parse_config(read_yaml(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file into text values by key.

    Raises:
        ConfigError: it is missing, not UTF-8, not YAML (with line and column), or not a list of `key: value`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise _file_problem(path, f"cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise _file_problem(path, f"is not UTF-8 text (byte {error.start}).", "Save it as UTF-8.") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Reads YAML text into text values by key; `source` names it in messages. Raises as `read_yaml`."""
    try:
        values = yaml.load(text, _TextLoader)
    except yaml.YAMLError as error:
        hint = PATH_HINT if "escape" in str(getattr(error, "problem", "")) else ""
        raise _file_problem(Path(source), f"is not valid YAML: {_describe_yaml_error(error)}", hint) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise _file_problem(Path(source), "must hold lines of the form key: value.")
    return {str(key): value for key, value in values.items()}


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """Reads `key=value` words, each value written as in YAML.

    Raises:
        ConfigError: a word has no "=".
    """
    problems = [Problem("--set", f"{word!r} has no '='.", hint="Write --set key=value.") for word in words if "=" not in word]
    if problems:
        raise ConfigError(problems)
    pairs = (word.split("=", 1) for word in words)
    return {key.strip(): _read_override(value) for key, value in pairs}


def _read_override(text: str) -> Any:
    """Returns a value of `--set`: lists, mappings and quoted text as in YAML, other text to the letter, "#" and ": " too."""
    if text.lstrip()[:1] in tuple("[{'\"|>&") or text.strip() in ("", "~", "null"):
        return parse_yaml(f"value: {text}", "--set")["value"]
    return text.strip()


def parse_config(values: Mapping[str, Any]) -> TrainConfig:
    """Builds the settings from values by key; text is read by the field's type.

    Raises:
        ConfigError: unknown keys, missing keys, wrong types or ranges; holds every problem.
    """
    infos = field_infos()
    values = dict(values)
    problems = _check_version(values.pop(VERSION_KEY, VERSION))
    parsed: dict[str, Any] = {}
    for key, value in values.items():
        if key not in infos:
            problems.append(Problem(key, f"is not a setting{describe_name(key) or did_you_mean(key, tuple(infos))}"))
            continue
        try:
            parsed[key] = read_value(infos[key], value)
        except ValueError as error:
            problems.append(Problem(key, str(error)))
    for key in required_names():
        if key not in values:
            problems.append(Problem(key, "is missing.", hint=infos[key].help))
    if problems:
        raise ConfigError(problems)
    return TrainConfig(**parsed)


def read_value(info: FieldInfo, value: Any) -> Any:
    """Returns a value read by what is declared of its field.

    Raises:
        ValueError: wrong type, range or choice; the message has the value, the rule and what is usual.
    """
    is_empty = value is None or (isinstance(value, str) and not value.strip())
    if info.optional and (is_empty or str(value).strip().lower() == "none"):
        return None
    if is_empty:
        if info.kind in ("text", "texts"):
            return "" if info.kind == "text" else ()
        raise ValueError(f"is empty; {_rule(info)}.")
    readers = {
        "int": _read_int,
        "float": _read_float,
        "bool": _read_bool,
        "text": _read_text,
        "path": _read_path,
        "choice": _read_choice,
        "names": _read_names,
        "sizes": _read_sizes,
        "weights": _read_weights,
        "texts": _read_texts,
    }
    return readers[info.kind](info, value)


def dump_config(config: TrainConfig, path: Path) -> Path:
    """Writes the settings as YAML, whole or not at all; `load_config` reads the same settings back."""
    return write_text(path, config_to_yaml(config))


def config_to_yaml(config: TrainConfig) -> str:
    """Returns the settings as YAML text in the schema's order."""
    values = {name: _plain(getattr(config, name)) for name in field_infos()}
    return yaml.safe_dump({VERSION_KEY: VERSION, **values}, sort_keys=False, allow_unicode=True, width=10_000)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value


def _check_version(version: Any) -> list[Problem]:
    if str(version) == str(VERSION):
        return []
    return [
        Problem(
            VERSION_KEY, f"({version}) is not {VERSION}.", hint="The file was made by another version of LoRA Trainer; update it."
        )
    ]


def _read_int(info: FieldInfo, value: Any) -> int:
    number = _read_number(info, value)
    if number != int(number):
        raise ValueError(f"({value}) must be a whole number; {_rule(info)}.")
    _check_range(info, number, value)
    return int(number)


def _read_float(info: FieldInfo, value: Any) -> float:
    number = _read_number(info, value)
    _check_range(info, number, value)
    return number


def _read_number(info: FieldInfo, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"({value}) must be a number; {_rule(info)}.")
    return number


def _check_range(info: FieldInfo, number: float, value: Any) -> None:
    too_low = info.minimum is not None and (number <= info.minimum if info.exclusive_minimum else number < info.minimum)
    if too_low or (info.maximum is not None and number > info.maximum):
        raise ValueError(f"({value}) must be {_rule(info)}.")


def _rule(info: FieldInfo) -> str:
    """Says what is allowed and what is usual, to complete "must be ..."."""
    number = {"int": "a whole number", "float": "a number"}.get(info.kind, "")
    low = None if info.minimum is None else f"at least {info.minimum:.10g}"
    if info.exclusive_minimum:
        low = f"above {info.minimum:.10g}"
    high = None if info.maximum is None else f"at most {info.maximum:.10g}"
    allowed = " and ".join(part for part in (low, high) if part) or number or _rule_of_words(info)
    unit = f" {info.unit}" if info.unit and (low or high) else ""
    return f"{allowed}{unit}; {info.usual} is usual" if info.usual else f"{allowed}{unit}"


def _rule_of_words(info: FieldInfo) -> str:
    if info.choices:
        return f"one of {', '.join(info.choices)}"
    rules = {
        "bool": "true or false",
        "path": "a path",
        "names": "a list of names",
        "texts": "a list of texts",
        "weights": "numbers by name",
    }
    return rules.get(info.kind, "text")


def _read_bool(info: FieldInfo, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word not in TRUTH:
        raise ValueError(f"({value}) must be {_rule(info)}.")
    return TRUTH[word]


def _read_text(info: FieldInfo, value: Any) -> str:
    if isinstance(value, (list, dict)):
        raise ValueError(f"({value}) must be text.")
    return str(value).strip()


def _read_path(info: FieldInfo, value: Any) -> Path:
    if isinstance(value, Path):
        return value
    text = _read_text(info, value)
    if any(ord(letter) < 32 for letter in text):  # "C:\\new" in double quotes is C:, a line break, ew
        raise ValueError(f"({text!r}) holds a character that no path has. {PATH_HINT}")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # "~name" of nobody here
        raise ValueError(f"({text}) names the home folder of somebody who is not known here. Write the whole path.") from error


def _read_choice(info: FieldInfo, value: Any) -> str:
    word = _read_text(info, value)
    if word not in info.choices:
        raise ValueError(f"({word}) must be {_rule(info)}{did_you_mean(word, info.choices)}")
    return word


def _read_names(info: FieldInfo, value: Any) -> tuple[str, ...]:
    words = value.split(",") if isinstance(value, str) else value
    if isinstance(words, dict) or not all(isinstance(word, (str, int)) for word in words):
        raise ValueError(f"({value}) must be a list of names, as [q_proj, v_proj].")
    names = tuple(str(word).strip() for word in words if str(word).strip())
    if not names:
        raise ValueError("is an empty list; name at least one.")
    return names


def _read_sizes(info: FieldInfo, value: Any) -> int | tuple[int, ...]:
    """Returns the number, or several in rising order."""
    words = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    if not words:
        raise ValueError(f"is an empty list; {_rule(info)}.")
    sizes = tuple(sorted({_read_int(info, word) for word in words}))
    return sizes[0] if len(sizes) == 1 else sizes


def _read_weights(info: FieldInfo, value: Any) -> dict[str, float] | None:
    """Returns numbers by name, from a mapping, from "one=0.5, two=2" or from a list of such words; None for an empty one."""
    if not isinstance(value, Mapping):
        words = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        pairs = [str(word).rpartition("=") for word in words]
        wrong = [number for name, _, number in pairs if not name.strip()]
        if wrong:
            raise ValueError(f"({wrong[0]}) must be name=number, or a mapping such as {{name: 0.5}}.")
        value = {name: number for name, _, number in pairs}
    weights = {}
    for name, number in value.items():
        try:
            weights[str(name).strip()] = _read_float(info, number)
        except ValueError as error:
            raise ValueError(f"of {name} {error}") from error
    return weights or None


def _read_texts(info: FieldInfo, value: Any) -> tuple[str, ...]:
    lines = value.splitlines() if isinstance(value, str) else value
    if isinstance(lines, dict) or not all(isinstance(line, (str, int, float)) for line in lines):
        raise ValueError(f"({value}) must be a list of texts, each on a line of its own that starts with a hyphen.")
    return tuple(str(line).strip() for line in lines if str(line).strip())


def _file_problem(path: Path, message: str, hint: str = "") -> ConfigError:
    return ConfigError([Problem(str(path), message, hint=hint)])


def _describe_yaml_error(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return str(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {getattr(error, 'problem', None) or error}."
