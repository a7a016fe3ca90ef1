"""Regular expressions of users, tried in a process of its own with a time limit.

Some patterns, such as `(a+)+b`, take longer than anyone lives on a text that does not fit. Python cannot stop a match, which
holds up every other thread, the whole WebUI among them; a process can be ended.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence

from lora_trainer.errors import DatasetError

SECONDS = 5.0  # a sensible pattern needs milliseconds for thousands of captions
_MOST_CHARACTERS = 20_000_000  # of the result: empty matches in long texts must not fill the memory

_CHILD = """
import json, re, sys
pattern, flags, replacement, texts, most = json.load(sys.stdin)
try:
    compiled = re.compile(pattern, flags)
    if replacement is None:
        result = [compiled.search(text) is not None for text in texts]
    else:
        result, total = [], 0
        for text in texts:
            result.append(compiled.sub(replacement, text))
            total += len(result[-1])
            if total > most:
                raise ValueError("the captions would become too long")
    print(json.dumps({"result": result}))
except (re.error, ValueError, LookupError, OverflowError, RecursionError, MemoryError) as error:
    print(json.dumps({"error": str(error) or type(error).__name__}))
"""


def search_all(pattern: str, texts: Sequence[str], *, ignore_case: bool = False) -> list[bool]:
    """Returns of each text whether the pattern is found in it.

    Raises:
        DatasetError: the pattern is wrong, or takes too long.
    """
    return list(map(bool, _run(pattern, None, texts, ignore_case)))


def substitute_all(pattern: str, replacement: str, texts: Sequence[str], *, ignore_case: bool = False) -> list[str]:
    r"""Returns the texts with each match replaced; `\1` or `\g<name>` in the replacement is a group.

    Raises:
        DatasetError: the pattern or the replacement is wrong, or it takes too long.
    """
    return list(map(str, _run(pattern, replacement, texts, ignore_case)))


def _run(pattern: str, replacement: str | None, texts: Sequence[str], ignore_case: bool) -> list[object]:
    flags = re.IGNORECASE if ignore_case else 0
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CHILD],
            input=json.dumps([pattern, int(flags), replacement, list(texts), _MOST_CHARACTERS]).encode("ascii"),
            capture_output=True,
            timeout=SECONDS,
            check=False,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # on Windows, or a console would flash up
        )
    except subprocess.TimeoutExpired as error:
        raise DatasetError(
            f"the pattern {pattern!r} takes more than {SECONDS:.0f} seconds, so nothing was changed. Repeats within repeats, "
            "such as (a+)+, do that; write it without."
        ) from error
    except OSError as error:
        raise DatasetError(f"patterns cannot be tried: Python ({sys.executable}) does not start: {error}.") from error
    try:
        answer = json.loads(done.stdout)
    except ValueError as error:
        last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise DatasetError(f"the pattern {pattern!r} cannot be tried: {last or f'exit code {done.returncode}'}.") from error
    if "error" in answer:
        part = (
            f"the pattern {pattern!r}" if replacement is None else f"the pattern {pattern!r} or its replacement {replacement!r}"
        )
        raise DatasetError(f"{part} is not valid: {answer['error']}. A special sign that is meant as such needs a \\ before it.")
    result: list[object] = answer["result"]
    return result
