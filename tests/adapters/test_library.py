"""The LoRA folder: names are found as the WebUI finds them, and what belongs to a file goes with it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lora_trainer.adapters import library
from lora_trainer.adapters.container import model_hash, read_header
from lora_trainer.adapters.folder import LORA_SUFFIXES, Card
from lora_trainer.adapters.library import (
    delete_for_good,
    edit_card,
    find_lora,
    list_trash,
    read_card,
    rename,
    restore,
    throw_away,
)
from lora_trainer.errors import AdapterError
from tests.adapters.files import SD1_METADATA, UNET_MODULE, pair, write

pytestmark = pytest.mark.hosts


def put(folder: Path, name: str, alias: str | None = None, *, has_card: bool = True) -> Path:
    """Writes a LoRA with card, preview and description, and returns it."""
    path = write(folder / f"{name}.safetensors", pair(UNET_MODULE), {**SD1_METADATA, "ss_output_name": alias or name})
    if has_card:
        path.with_suffix(".json").write_text('{"description": "d", "sd version": "SD1", "theirs": 1}', encoding="utf-8")
        Image.new("RGB", (8, 8), (200, 0, 0)).save(path.with_suffix(".png"))
        path.with_suffix(".civitai.info").write_text("{}", encoding="utf-8")
    return path


def listed(folder: Path) -> set[str]:
    """Returns what the WebUI lists: every file of these endings, in every folder below, hidden ones included."""
    return {
        Path(root, file).relative_to(folder).as_posix()
        for root, _, files in os.walk(folder, followlinks=True)
        for file in files
        if Path(file).suffix.lower() in LORA_SUFFIXES
    }


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_name_is_the_stem_or_else_the_alias(tmp_path: Path) -> None:
    ink, seal = put(tmp_path, "ink"), put(tmp_path / "more", "seal-v2", alias="seal")
    put(tmp_path, "third", alias="ink")
    assert find_lora(tmp_path, "ink") == ink
    assert find_lora(tmp_path, "seal") == find_lora(tmp_path, "seal-v2") == seal
    with pytest.raises(AdapterError, match=r"no LoRA in .* is called 'imk'; did you mean 'ink'\?"):
        find_lora(tmp_path, "imk")


def test_a_name_of_two_files_is_an_error_that_names_both(tmp_path: Path) -> None:
    put(tmp_path / "a", "ink"), put(tmp_path / "b", "ink")
    with pytest.raises(AdapterError, match=r"<lora:ink> may mean .*a.ink\.safetensors and .*b.ink\.safetensors.*Rename one"):
        find_lora(tmp_path, "ink")


def test_rename_takes_everything_along_and_changes_the_alias(tmp_path: Path) -> None:
    old = put(tmp_path / "styles", "ink")
    weights = model_hash(old)
    new = rename(old, "水墨 v1.5", tmp_path)
    assert files(tmp_path) == {f"styles/水墨 v1.5{suffix}" for suffix in (".safetensors", ".json", ".png", ".civitai.info")}
    metadata = read_header(new).metadata
    assert metadata["ss_output_name"] == metadata["modelspec.title"] == "水墨 v1.5"
    assert metadata["sshs_model_hash"] == weights == model_hash(new)
    assert json.loads(new.with_suffix(".json").read_text(encoding="utf-8"))["theirs"] == 1


def test_rename_leaves_a_file_whose_name_only_begins_alike(tmp_path: Path) -> None:
    put(tmp_path, "ink.v2")
    rename(put(tmp_path, "ink"), "brush", tmp_path)
    assert {"ink.v2.safetensors", "ink.v2.json", "ink.v2.png"} <= files(tmp_path)


def test_rename_to_its_own_name_sets_the_alias_right(tmp_path: Path) -> None:
    path = put(tmp_path, "ink", alias="another")
    assert rename(path, "ink", tmp_path) == path
    assert read_header(path).metadata["ss_output_name"] == "ink"
    assert "ink.png" in files(tmp_path)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("seal", r"'seal' is taken in"),
        ("stamp", r"'stamp' is taken in .*alias inside"),
        ("orphan", r"'orphan' is taken"),
        ("Ink", r"'Ink' differs from 'ink' by capitals only"),
        ("a:b", r"'a:b' cannot be the name: .*contains :.*Use letters"),
        ("none", r"WebUI keeps the name 'none'.*none_style"),
    ],
)
def test_a_name_that_cannot_be_taken_changes_nothing(tmp_path: Path, name: str, match: str) -> None:
    path = put(tmp_path, "ink")
    put(tmp_path / "deep", "seal", alias="stamp")
    (tmp_path / "orphan.json").write_text("{}", encoding="utf-8")
    before = {file: (tmp_path / file).read_bytes() for file in files(tmp_path)}
    with pytest.raises(AdapterError, match=match):
        rename(path, name, tmp_path)
    assert {file: (tmp_path / file).read_bytes() for file in files(tmp_path)} == before


def test_a_rename_that_ends_midway_has_lost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, "ink")
    old = path.read_bytes()

    def fail(source: Path, target: Path) -> None:
        raise AdapterError("the drive went away")

    monkeypatch.setattr(library, "_move", fail)
    with pytest.raises(AdapterError, match="went away"):
        rename(path, "brush", tmp_path)
    assert path.read_bytes() == old
    assert read_header(tmp_path / "brush.safetensors").metadata["ss_output_name"] == "brush"
    assert path.with_suffix(".json").is_file()


def test_a_card_is_edited_and_foreign_keys_stay(tmp_path: Path) -> None:
    path = put(tmp_path, "ink")
    card = read_card(path)
    assert card == Card(description="d")
    edit_card(path, replace(card, preferred_weight=0.7, activation_text="墨"))
    values = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert values == {
        "description": "d",
        "sd version": "SD1",
        "theirs": 1,
        "activation text": "墨",
        "negative text": "",
        "preferred weight": 0.7,
        "notes": "",
    }
    assert read_card(path) == Card(description="d", activation_text="墨", preferred_weight=0.7)


def test_a_file_without_a_card_gets_one(tmp_path: Path) -> None:
    path = put(tmp_path, "ink", has_card=False)
    assert read_card(path) == Card()
    edit_card(path, Card(notes="tried"))
    assert read_card(path) == Card(notes="tried")


@pytest.mark.parametrize(("text", "match"), [("{half", r"ink\.json cannot be read"), ("[1]", r"ink\.json holds list")])
def test_a_damaged_card_is_not_written_over(tmp_path: Path, text: str, match: str) -> None:
    path = put(tmp_path, "ink")
    path.with_suffix(".json").write_text(text, encoding="utf-8")
    with pytest.raises(AdapterError, match=match):
        edit_card(path, Card())
    assert path.with_suffix(".json").read_text(encoding="utf-8") == text


def test_what_is_thrown_away_is_not_listed_and_comes_back_as_it_was(tmp_path: Path) -> None:
    path = put(tmp_path / "styles", "ink")
    put(tmp_path, "seal")
    before = {file: (tmp_path / file).read_bytes() for file in files(tmp_path)}
    identifier = throw_away(path, tmp_path)
    assert listed(tmp_path) == {"seal.safetensors"}
    assert not any(file.startswith("styles/") for file in files(tmp_path))
    (item,) = list_trash(tmp_path)
    assert (item.id, item.path.as_posix()) == (identifier, "styles/ink.safetensors")
    assert restore(identifier, tmp_path) == path
    assert {file: (tmp_path / file).read_bytes() for file in files(tmp_path)} == before
    assert list_trash(tmp_path) == []


def test_two_of_one_name_are_kept_apart_in_the_trash(tmp_path: Path) -> None:
    first = throw_away(put(tmp_path, "ink"), tmp_path)
    second = throw_away(put(tmp_path, "ink", alias="newer"), tmp_path)
    assert {item.id for item in list_trash(tmp_path)} == {first, second}
    restore(second, tmp_path)
    assert read_header(tmp_path / "ink.safetensors").metadata["ss_output_name"] == "newer"
    with pytest.raises(AdapterError, match=r"ink\.safetensors and .*ink\.json.* stands in .*Rename that first"):
        restore(first, tmp_path)
    assert [item.id for item in list_trash(tmp_path)] == [first]


def test_what_is_deleted_for_good_is_gone_and_the_rest_of_the_trash_stays(tmp_path: Path) -> None:
    first = throw_away(put(tmp_path / "styles", "ink"), tmp_path)
    second = throw_away(put(tmp_path, "seal"), tmp_path)
    size = sum(file.stat().st_size for file in (tmp_path / library.TRASH_FOLDER / first).rglob("*") if file.is_file())
    assert {item.id: item.num_bytes for item in list_trash(tmp_path)}[first] == size
    delete_for_good(first, tmp_path)
    assert [item.id for item in list_trash(tmp_path)] == [second]
    assert not (tmp_path / library.TRASH_FOLDER / first).exists()
    for identifier in (first, "", "..", "."):
        with pytest.raises(AdapterError, match=f"{identifier!r} is not in the trash of .*{second}"):
            delete_for_good(identifier, tmp_path)
    restore(second, tmp_path)
    assert listed(tmp_path) == {"seal.safetensors"}


def test_a_deletion_that_ended_midway_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identifier, unlink = throw_away(put(tmp_path, "ink"), tmp_path), Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == library.TRASHED:
            raise PermissionError(13, "in use")
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(AdapterError, match=r"cannot be deleted \(in use\); it stays in the trash\. Close the program"):
            delete_for_good(identifier, tmp_path)
    assert [item.id for item in list_trash(tmp_path)] == [identifier]
    delete_for_good(identifier, tmp_path)
    assert list_trash(tmp_path) == []


def test_throwing_away_that_ended_midway_can_be_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, moved = put(tmp_path, "ink"), library._move
    before = files(tmp_path)

    def move_one(source: Path, target: Path) -> None:
        if source.suffix != ".safetensors":
            raise AdapterError("the power went")
        moved(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(library, "_move", move_one)
        with pytest.raises(AdapterError, match="the power went"):
            throw_away(path, tmp_path)
    assert listed(tmp_path) == set()
    (item,) = list_trash(tmp_path)
    restore(item.id, tmp_path)
    assert files(tmp_path) == before


def test_a_move_to_another_drive_is_a_whole_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, replace_ = put(tmp_path, "ink"), os.replace
    before = path.read_bytes()

    def refuse(source: Path, target: Path) -> None:
        if Path(source).parent != Path(target).parent:
            raise OSError(18, "Invalid cross-device link")
        replace_(source, target)

    monkeypatch.setattr(library.os, "replace", refuse)
    identifier = throw_away(path, tmp_path)
    assert listed(tmp_path) == set()
    assert restore(identifier, tmp_path).read_bytes() == before


def test_only_a_file_of_the_folder_is_thrown_away(tmp_path: Path) -> None:
    outside = put(tmp_path / "outside", "ink")
    with pytest.raises(AdapterError, match=r"ink\.safetensors is not a file in .*Choose one of the list"):
        throw_away(outside, tmp_path / "lora")
    with pytest.raises(AdapterError, match=r"'nothing' is not in the trash of .*\(it is empty\)"):
        restore("nothing", tmp_path / "lora")
    assert outside.is_file()
