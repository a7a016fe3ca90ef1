"""Loads a model's files from the hub into a folder of ours. What is there already stays, a file that broke off goes on.

Written on the standard library: the hub's own package, of which hosts have versions from two years, tells no bytes in the older
ones, cannot be stopped in the middle of a file, and begins a broken file anew where it takes another way than plain HTTP.
Addresses as in the hub's documentation: `/api/models/ID/revision/main?blobs=true`, `/ID/resolve/COMMIT/FILE`.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_trainer import __version__
from lora_trainer.captioning.weights import HUB_ID, PLAN_NAME, WEIGHTS, describe_mb, endpoint, is_offline
from lora_trainer.errors import ModelError
from lora_trainer.files import replace_file, write_text

CONNECT_SECONDS = 10.0  # without an answer for so long there is no network, or none that reaches the hub
READ_SECONDS = 30.0  # without a byte for so long the connection is dead
MOST_TRIES = 4  # of a file, without a byte gained between them
WAIT_SECONDS = 1.0  # before the second try; twice as long before each one after it
SPARE_MB = 100
_BLOCK = 1 << 18
_SHARD = re.compile(r"(model|pytorch_model)-\d{5}-of-\d{5}\.(safetensors|bin)")

Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class HubFile:
    """A file on the hub.

    Attributes:
        name: without a folder.
        size: in bytes; None where the hub does not say.
        sha256: of its content, "" where the hub does not say.
    """

    name: str
    size: int | None
    sha256: str


class _BrokenOffError(Exception):
    """The connection ended before the file did."""


def download_model(model: str, target: Path, *, tell: Tell, is_stopped: Callable[[], bool]) -> bool:
    """Loads a model into a folder.

    Args:
        model: its id on the hub.
        target: the folder; what an earlier download left in it is gone on with.
        tell: is called with bytes done and bytes in all, for every block.
        is_stopped: asked for every block.

    Returns:
        False when it was stopped; what came so far stays.

    Raises:
        ModelError: there is no network, or no such model; the connection broke off again and again; the disk is full.
    """
    if is_offline():
        raise ModelError(
            f"{model} is not on this computer, and HF_HUB_OFFLINE forbids to load it. Unset that, or {_put_into(target, model)}"
        )
    commit, files = list_files(model, target)
    total = sum(file.size or 0 for file in files)
    try:
        target.mkdir(parents=True, exist_ok=True)
        write_text(target / PLAN_NAME, json.dumps({file.name: file.size for file in files}))
        _check_room(target, files, total)
        done = 0
        for file in files:
            begun = done

            def tell_file(have: int, begun: int = begun) -> None:
                tell(begun + have, max(total, begun + have))

            if not _load(
                f"{endpoint()}/{model}/resolve/{commit}/{urllib.parse.quote(file.name)}", file, target, tell_file, is_stopped
            ):
                return False
            done += (target / file.name).stat().st_size
        (target / PLAN_NAME).unlink()
    except _BrokenOffError as error:
        raise ModelError(
            f"The download of {model} broke off: {error} Check the network; what is there stays, and the same again goes on."
        ) from error
    except OSError as error:
        raise ModelError(f"{target} cannot be written: {error.strerror or error}.") from error
    return True


def list_files(model: str, target: Path) -> tuple[str, list[HubFile]]:
    """Returns the commit of a model's main branch, and the files that are needed to use it.

    Raises:
        ModelError: the hub does not answer, or knows no such model.
    """
    assert HUB_ID.fullmatch(model), model
    address = f"{endpoint()}/api/models/{model}/revision/main?blobs=true"
    try:
        with _open(address, CONNECT_SECONDS) as response:
            answer = json.loads(response.read())
        commit = str(answer["sha"])
        found = [_hub_file(entry) for entry in answer["siblings"]]
    except urllib.error.HTTPError as error:
        raise ModelError(_explain(model, target, error.code)) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise ModelError(
            f"{endpoint()} does not answer ({reason}), so {model} cannot be loaded. Check the network, or set HF_ENDPOINT to "
            f"another address of the hub and start again; or {_put_into(target, model)}"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{address} does not answer as the hub does. Check HF_ENDPOINT.") from error
    chosen = choose_files(found)
    if not any(file.name.endswith((".safetensors", ".bin")) for file in chosen):
        raise ModelError(f"{model} holds no weights named {' or '.join(WEIGHTS)}. Choose another model.")
    return commit, chosen


def choose_files(files: list[HubFile]) -> list[HubFile]:
    """Returns those files that transformers reads: settings, vocabularies, and the weights in one format of two."""
    texts = [file for file in files if file.name.endswith((".json", ".txt", ".model")) and not file.name.startswith(".")]
    texts = [file for file in texts if not file.name.endswith(".index.json") and "/" not in file.name and "\\" not in file.name]
    for whole in WEIGHTS:
        found = [file for file in files if file.name == whole]
        if not found:
            suffix = Path(whole).suffix
            found = [file for file in files if _SHARD.fullmatch(file.name) and file.name.endswith(suffix)]
            found += [file for file in files if found and file.name == f"{whole}.index.json"]
        if found:
            return [*texts, *found]
    return texts


def _hub_file(entry: dict[str, Any]) -> HubFile:
    lfs = entry.get("lfs") or {}
    size = lfs.get("size", entry.get("size"))
    return HubFile(str(entry["rfilename"]), None if size is None else int(size), str(lfs.get("sha256") or ""))


def _load(address: str, file: HubFile, target: Path, tell: Callable[[int], None], is_stopped: Callable[[], bool]) -> bool:
    """Loads one file, with as many tries as gain something; False when it was stopped."""
    path = target / file.name
    if path.is_file() and (file.size is None or path.stat().st_size == file.size):
        tell(path.stat().st_size)
        return True
    part = target / f".{file.name}.{file.sha256[:12] or 'new'}.part"
    tries = 0
    while True:
        before = _size(part)
        try:
            if not _read_on(address, file, part, tell, is_stopped):
                return False
            break
        except (_BrokenOffError, urllib.error.HTTPError) as error:
            tries = 1 if _size(part) > before else tries + 1
            if tries >= MOST_TRIES or (isinstance(error, urllib.error.HTTPError) and error.code < 500):
                here, whole = describe_mb(_size(part) / 1e6), describe_mb((file.size or 0) / 1e6)
                raise _BrokenOffError(f"{error}; {here} of {whole} of {file.name} are there.") from error
        if is_stopped():
            return False
        time.sleep(WAIT_SECONDS * 2 ** (tries - 1))
    _check_content(file, part)
    replace_file(part, path)
    return True


def _read_on(address: str, file: HubFile, part: Path, tell: Callable[[int], None], is_stopped: Callable[[], bool]) -> bool:
    """Appends to a part what it lacks; False when it was stopped."""
    have = _size(part)
    if file.size is not None and have > file.size:
        part.unlink()
        have = 0
    if have and have == file.size:
        return True
    with _network():
        answer = _open(address, READ_SECONDS, {"Range": f"bytes={have}-"} if have else {})
    with answer as response:
        is_continued = response.status == http.client.PARTIAL_CONTENT
        have = have if is_continued else 0
        length = response.headers.get("Content-Length")
        expected = file.size if file.size is not None else have + int(length) if length else None
        if not is_continued:
            part.unlink(missing_ok=True)
        with open(part, "ab") as out:
            tell(have)
            while block := _receive(response):
                out.write(block)
                have += len(block)
                tell(have)
                if is_stopped():
                    return False
    if expected is not None and have < expected:
        raise _BrokenOffError("the connection was closed")
    return True


def _check_content(file: HubFile, part: Path) -> None:
    if file.size is not None and _size(part) != file.size:
        part.unlink()
        raise _BrokenOffError(f"{file.name} came with another size than the hub says.")
    if not file.sha256:
        return
    digest = hashlib.sha256()
    with open(part, "rb") as data:
        while block := data.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != file.sha256:
        part.unlink()
        raise _BrokenOffError(f"{file.name} came damaged, and was thrown away.")


def _check_room(target: Path, files: list[HubFile], total: int) -> None:
    here = sum(path.stat().st_size for path in target.iterdir() if path.is_file())
    needed, free = (total - here) / 1e6 + SPARE_MB, shutil.disk_usage(target).free / 1e6
    if free < needed:
        raise ModelError(f"The disk of {target} has {describe_mb(free)} free; {describe_mb(needed)} are needed. Free some space.")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


@contextmanager
def _network() -> Iterator[None]:
    """Tells what fails on the network, of whatever kind, from what fails on the disk; an answer with an error stays as it is."""
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOffError(str(getattr(error, "reason", None) or error)) from error


def _receive(response: Any) -> bytes:
    with _network():
        return bytes(response.read(_BLOCK))


def _open(address: str, seconds: float, headers: dict[str, str] | None = None) -> Any:
    request = urllib.request.Request(address, headers={"User-Agent": f"lora-trainer/{__version__}", **(headers or {})})
    _add_token(request)
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=_certificates()), _Redirects)
    return opener.open(request, timeout=seconds)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Goes where the hub leads, with the token where that is the hub still."""

    def redirect_request(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        request = super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)
        if request is not None:
            _add_token(request)
        return request

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302  # Python 3.10 does not know it


def _add_token(request: urllib.request.Request) -> None:
    """Adds HF_TOKEN for the hub, as a header that the next redirect drops."""
    if (token := os.environ.get("HF_TOKEN")) and is_of_hub(request.full_url):
        request.add_unredirected_header("Authorization", f"Bearer {token}")


def is_of_hub(address: str) -> bool:
    """Whether an address may be given the token: it is on the hub's own host or one below it, and is not signed already."""
    own, other = urllib.parse.urlsplit(endpoint()), urllib.parse.urlsplit(address)
    if (other.scheme, _port(other)) != (own.scheme, _port(own)) or not own.hostname or not other.hostname:
        return False
    is_signed = any(name.lower().endswith("signature") for name in urllib.parse.parse_qs(other.query))
    return not is_signed and (other.hostname == own.hostname or other.hostname.endswith(f".{own.hostname}"))


def _port(address: urllib.parse.SplitResult) -> int | None:
    return address.port or {"http": 80, "https": 443}.get(address.scheme)


def _certificates() -> ssl.SSLContext:
    """Returns the system's certificates with those of the package certifi, which Python on a Mac needs."""
    context = ssl.create_default_context()
    try:
        import certifi

        context.load_verify_locations(certifi.where())
    except (ImportError, OSError):
        pass
    return context


def _explain(model: str, target: Path, code: int) -> str:
    if code in (401, 403, 404):
        return (
            f"{endpoint()} has no model {model}, or does not show it without a login (answer {code}). Check the name; for one "
            "that needs a login set HF_TOKEN."
        )
    return f"{endpoint()} cannot give {model} now (answer {code}). Try again later, or {_put_into(target, model)}"


def _put_into(target: Path, model: str) -> str:
    return f"put the files of {endpoint()}/{model}/tree/main into {target} by hand."
