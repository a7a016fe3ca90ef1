"""The LoRA folder: a free name, a copy that calls itself by it, card and preview, and nothing of anybody else's touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lora_trainer.adapters.export import save_lora
from lora_trainer.adapters.folder import Card, choose_name, publish
from lora_trainer.adapters.inspect import inspect_file
from lora_trainer.errors import AdapterError
from tests.adapters.files import SD1_METADATA, UNET_MODULE, pair, write

PNG = b"\x89PNG\r\n\x1a\n"
CARD = Card(description="ink, 100 steps", activation_text="guofeng ink", preferred_weight=0.7)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_lora(tmp_path / "run" / "ink.safetensors", pair(UNET_MODULE), SD1_METADATA)


@pytest.fixture
def lora_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "Lora"
    folder.mkdir()
    return folder


def test_free_name_is_taken_as_it_is(tmp_path: Path) -> None:
    assert choose_name(tmp_path / "missing", "ink") == "ink"


@pytest.mark.parametrize(
    "file", ["ink.safetensors", "INK.safetensors", "ink.ckpt", "ink.json", "ink.png", "styles/ink.safetensors", "a/b/ink.pt"]
)
def test_stems_in_use_are_not_taken(lora_dir: Path, file: str) -> None:
    (lora_dir / file).parent.mkdir(parents=True, exist_ok=True)
    (lora_dir / file).write_bytes(b"somebody's")
    assert choose_name(lora_dir, "ink") == "ink-2"


def test_numbers_go_on(lora_dir: Path) -> None:
    for name in ("ink", "ink-2", "ink-3"):
        (lora_dir / f"{name}.safetensors").write_bytes(b"")
    assert choose_name(lora_dir, "ink") == "ink-4"


def test_alias_in_use_is_not_taken(lora_dir: Path) -> None:
    write(lora_dir / "styles" / "painting.safetensors", pair(UNET_MODULE), {"ss_output_name": "Ink"})
    assert choose_name(lora_dir, "ink") == "ink-2"


def test_own_files_do_not_stand_in_the_way(lora_dir: Path) -> None:
    for file in ("ink.safetensors", "ink.json", "ink.png"):
        (lora_dir / file).write_bytes(b"")
    assert choose_name(lora_dir, "ink", {"ink.safetensors", "ink.json", "ink.png"}) == "ink"
    assert choose_name(lora_dir, "ink", {"ink.safetensors"}) == "ink"  # what stands beside it is of the same LoRA
    assert choose_name(lora_dir, "ink", {"ink.json", "ink.png"}) == "ink-2"
    (lora_dir / "ink.safetensors").unlink()
    assert choose_name(lora_dir, "ink", {"ink.safetensors"}) == "ink-2"


def test_copy_has_equal_bytes_with_card_and_preview(source: Path, lora_dir: Path) -> None:
    published = publish(source, lora_dir, "ink", card=CARD, preview=PNG)
    assert published.name == "ink"
    assert (
        sorted(published.files) == sorted(path.name for path in lora_dir.iterdir()) == ["ink.json", "ink.png", "ink.safetensors"]
    )
    assert (lora_dir / "ink.safetensors").read_bytes() == source.read_bytes()
    assert json.loads((lora_dir / "ink.json").read_text(encoding="utf-8")) == {
        "description": "ink, 100 steps",
        "sd version": "SD1",
        "activation text": "guofeng ink",
        "preferred weight": 0.7,
        "negative text": "",
        "notes": "",
    }


def test_name_taken_meanwhile_is_left_alone_and_the_alias_follows(source: Path, lora_dir: Path) -> None:
    theirs = write(lora_dir / "ink.safetensors", pair(UNET_MODULE, rank=8))
    before = theirs.read_bytes()
    published = publish(source, lora_dir, "ink", card=CARD)
    assert published.name == "ink-2"
    assert theirs.read_bytes() == before
    report = inspect_file(lora_dir / "ink-2.safetensors")
    assert (report.alias, report.hash_state) == ("ink-2", "right")
    ours, copied = (safetensors.torch.load(path.read_bytes()) for path in (source, lora_dir / "ink-2.safetensors"))
    assert ours.keys() == copied.keys()
    assert all(torch.equal(ours[key], copied[key]) and ours[key].dtype == copied[key].dtype for key in ours)


def test_own_file_is_replaced_and_what_the_user_set_on_the_card_stays(source: Path, lora_dir: Path) -> None:
    owned = publish(source, lora_dir, "ink", card=CARD).files
    card = json.loads((lora_dir / "ink.json").read_text(encoding="utf-8"))
    card |= {"preferred weight": 0.4, "notes": "", "rating": 5}
    (lora_dir / "ink.json").write_text(json.dumps(card), encoding="utf-8")
    newer = Card(description="ink, 200 steps", notes="newer", preferred_weight=0.9)
    assert publish(source, lora_dir, "ink", card=newer, owned=owned).name == "ink"
    card = json.loads((lora_dir / "ink.json").read_text(encoding="utf-8"))
    assert (card["preferred weight"], card["notes"], card["rating"]) == (0.4, "newer", 5)


def test_run_folder_inside_the_lora_folder_does_not_block_its_own_name(lora_dir: Path) -> None:
    source = save_lora(lora_dir / "ink" / "ink.safetensors", pair(UNET_MODULE), SD1_METADATA)
    assert publish(source, lora_dir, "ink", card=CARD).name == "ink"


def test_preview_that_is_no_png_is_refused_before_anything_is_written(source: Path, lora_dir: Path) -> None:
    with pytest.raises(AdapterError, match="not a PNG"):
        publish(source, lora_dir, "ink", card=CARD, preview=b"\xff\xd8\xff")
    assert not list(lora_dir.iterdir())


def test_damaged_files_of_others_only_count_by_their_stem(lora_dir: Path) -> None:
    (lora_dir / "broken.safetensors").write_bytes(b"\x00" * 40)
    assert choose_name(lora_dir, "ink") == "ink"
    assert choose_name(lora_dir, "broken") == "broken-2"


def test_linked_folders_count_and_loops_end(lora_dir: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "ink.safetensors").write_bytes(b"")
    try:
        (lora_dir / "more").symlink_to(elsewhere, target_is_directory=True)
        (elsewhere / "back").symlink_to(lora_dir, target_is_directory=True)
    except OSError:
        pytest.skip("this system does not let us make links")
    assert choose_name(lora_dir, "ink") == "ink-2"
