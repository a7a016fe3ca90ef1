"""Weights from the hub: what is loaded, what goes on where it broke off, and what is said where nothing comes."""

from __future__ import annotations

import errno
import http.client
import os
import socket
from pathlib import Path

import pytest

from lora_trainer.captioning.download import HubFile, choose_files, download_model, is_of_hub
from lora_trainer.captioning.weights import PLAN_NAME, Download, find_folder, folder_of, is_complete
from lora_trainer.errors import ModelError
from tests.captioning.hub import Hub

pytestmark = pytest.mark.hosts

MODEL, SIZE = "made/up", 256 * 4000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "captioners"


def load(root: Path, model: str = MODEL, stop_at: int | None = None) -> tuple[bool, list[tuple[int, int]]]:
    told: list[tuple[int, int]] = []
    is_whole = download_model(
        model,
        folder_of(model, root),
        tell=lambda done, total: told.append((done, total)),
        is_stopped=lambda: stop_at is not None and told[-1][0] >= stop_at,
    )
    return is_whole, told


def test_the_files_that_are_read_come_and_no_others(hub: Hub, root: Path) -> None:
    is_whole, told = load(root)
    folder = find_folder(MODEL, root)
    assert is_whole and folder == root / "made--up"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "vocab.txt"]
    assert (folder / "model.safetensors").read_bytes() == bytes(range(256)) * 4000
    total = SIZE + 2 + 4
    assert told[-1] == (total, total) and [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: Hub, root: Path) -> None:
    hub.break_after = [300_000, 200_000]
    load(root)
    ranges = [wanted for path, wanted in hub.requests if path.startswith("/moved") and "model.safetensors" in path]
    assert ranges == ["", "bytes=300000-", "bytes=500000-"]
    assert (root / "made--up" / "model.safetensors").read_bytes() == bytes(range(256)) * 4000


def test_without_ranges_a_file_begins_anew(hub: Hub, root: Path) -> None:
    hub.has_ranges, hub.break_after = False, [300_000]
    load(root)
    assert (root / "made--up" / "model.safetensors").read_bytes() == bytes(range(256)) * 4000


def test_a_download_that_was_given_up_goes_on_at_the_next_start(hub: Hub, root: Path) -> None:
    hub.break_after = [400_000, 0, 0, 0, 0]
    with pytest.raises(ModelError, match=r"0 MB of 1 MB of model.safetensors are there.* goes on"):
        load(root)
    folder = root / "made--up"
    assert not is_complete(folder) and find_folder(MODEL, root) is None
    assert Download(MODEL, 1, root).is_agreed()
    hub.break_after, hub.requests = [], []
    assert load(root)[1][0][0] > 0
    assert [wanted for path, wanted in hub.requests if "/moved" in path] == ["bytes=400000-"]
    assert is_complete(folder) and not (folder / PLAN_NAME).exists()


def test_stopped_in_the_middle_of_a_file(hub: Hub, root: Path) -> None:
    is_whole, told = load(root, stop_at=500_000)
    assert not is_whole and told[-1][0] < SIZE
    assert load(root)[0]
    assert hub.requests[-1][1].startswith("bytes=")


def test_a_damaged_file_is_thrown_away_and_told(hub: Hub, root: Path) -> None:
    hub.damage = "model.safetensors"
    with pytest.raises(ModelError, match=r"model.safetensors came damaged"):
        load(root)
    hub.damage = ""
    assert load(root)[0]


def test_no_network_is_told_at_once_with_the_way_by_hand(root: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(ModelError, match=r"does not answer .*HF_ENDPOINT.* into .*made--up by hand"):
            load(root)
    assert not root.exists()


def test_a_server_that_never_answers_is_given_up(root: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    monkeypatch.setattr("lora_trainer.captioning.download.CONNECT_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ModelError, match="does not answer"):
            load(root)


def test_offline_asks_nobody(hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE forbids"):
        load(root)
    assert hub.requests == []


@pytest.mark.parametrize(("answer", "said"), [(None, "has no model no/body"), (503, r"cannot give .* now \(answer 503\)")])
def test_what_the_hub_answers_is_told(hub: Hub, root: Path, answer: int | None, said: str) -> None:
    hub.answer = answer
    with pytest.raises(ModelError, match=said):
        load(root, "no/body")


def test_an_address_that_is_no_hub(hub: Hub, root: Path) -> None:
    hub.answer = 200
    with pytest.raises(ModelError, match="does not answer as the hub does"):
        load(root)


def test_the_token_goes_along_where_the_hub_leads_to_itself(hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    load(root)
    assert any(path.startswith("/moved") for path, _ in hub.requests)
    assert set(hub.tokens) == {"Bearer secret"}


def test_the_token_is_not_for_another_server(hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Hub(hub.root)
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.files_url = other.url
    load(root)
    other.close()
    assert set(hub.tokens) == {"Bearer secret"} and set(other.tokens) == {None}


@pytest.mark.parametrize(
    ("address", "is_own"),
    [
        ("https://hub.example/a/b/resolve/main/x", True),
        ("https://HUB.example:443/x", True),
        ("https://cdn.hub.example/x", True),
        ("http://hub.example/x", False),  # not in the clear
        ("https://hub.example:8443/x", False),
        ("https://hub.example.org/x", False),
        ("https://evilhub.example/x", False),
        ("https://hub.example@evil.org/x", False),
        ("https://cdn.hub.example/x?Expires=1&Signature=ab", False),  # has leave of its own; some stores refuse a second one
        ("https://cdn.hub.example/x?X-Amz-Signature=ab", False),
    ],
)
def test_which_addresses_are_the_hubs_own(address: str, is_own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example/")
    assert is_of_hub(address) is is_own


@pytest.mark.parametrize("code", [errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN])
def test_a_network_that_goes_away_is_no_fault_of_the_disk(
    code: int, hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = http.client.HTTPResponse.read

    def fail(self: http.client.HTTPResponse, amount: int | None = None) -> bytes:
        if amount is None:
            return read(self)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(http.client.HTTPResponse, "read", fail)
    with pytest.raises(ModelError, match=rf"broke off: .*{os.strerror(code)}.*Check the network.* goes on"):
        load(root)


def test_a_folder_that_cannot_be_written_is_told(hub: Hub, root: Path) -> None:
    root.mkdir()
    (root / "made--up").write_text("in the way", encoding="utf-8")
    with pytest.raises(ModelError, match="made--up cannot be written"):
        load(root)


def test_weights_in_parts_come_with_their_index() -> None:
    names = ["config.json", "model.safetensors.index.json", *(f"model-0000{part}-of-00002.safetensors" for part in (1, 2))]
    others = ["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "flax_model.msgpack", "onnx/config.json"]
    files = [HubFile(name, 1, "") for name in (*names, *others)]
    assert sorted(file.name for file in choose_files(files)) == sorted(names)


def test_a_folder_that_lacks_a_part_is_not_whole(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    index = '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"x")
    assert not is_complete(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"x")
    assert is_complete(tmp_path)


def test_what_other_programs_loaded_from_the_hub_is_found(hub: Hub, root: Path, tmp_path: Path) -> None:
    base = tmp_path / "cache" / "models--made--up"
    for commit in ("aaa", "bbb"):
        (base / "snapshots" / commit).mkdir(parents=True)
        (base / "snapshots" / commit / "config.json").write_text("{}", encoding="utf-8")
    assert find_folder(MODEL, root) is None  # no weights
    for commit in ("aaa", "bbb"):
        (base / "snapshots" / commit / "pytorch_model.bin").write_bytes(b"x")
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text("bbb", encoding="utf-8")
    assert find_folder(MODEL, root) == base / "snapshots" / "bbb"


def test_files_put_there_by_hand_end_a_download(hub: Hub, root: Path) -> None:
    load(root, stop_at=1)
    folder = root / "made--up"
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 4000)
    (folder / "vocab.txt").write_text("ink\n", encoding="utf-8")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    assert find_folder(MODEL, root) == folder
