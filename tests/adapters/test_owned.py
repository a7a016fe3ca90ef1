"""A run replaces what it put into a LoRA folder, and nothing that came there since under the same name."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_trainer.adapters.container import model_hash
from lora_trainer.adapters.folder import Card
from lora_trainer.adapters.library import list_trash, rename, restore
from lora_trainer.adapters.owned import IN_DOUBT, is_ours, owned_files, publish_for, read_published, record
from lora_trainer.adapters.repair import repair
from lora_trainer.adapters.shelf import pick
from lora_trainer.errors import AdapterError, LoraInUseError
from lora_trainer.run_folder import RunFolder
from tests.adapters.test_shelf import PNG, make
from tests.test_files import InUse


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "ink")
    folder.path.mkdir(parents=True)
    folder.update_job(name="ink")
    return folder


def test_a_later_file_of_the_run_takes_the_place_of_its_earlier_one(run: RunFolder, tmp_path: Path) -> None:
    loras, card = tmp_path / "Lora", Card(activation_text="guofeng")
    first = publish_for(run, make(run.export_path("ink")), loras, "ink", card=card)
    repair(first)  # other metadata, the same weights
    assert publish_for(run, make(run.export_path("ink"), 0.5), loras, "ink", card=card) == first
    assert model_hash(first) == model_hash(run.export_path("ink")) and list_trash(loras) == []
    assert sorted(read_published(run)) == ["ink.json", "ink.safetensors"]


def test_a_foreign_file_under_a_name_that_was_published_once_stays(run: RunFolder, tmp_path: Path) -> None:
    loras = tmp_path / "Lora"
    publish_for(run, make(run.export_path("ink")), loras, "ink", card=Card())
    foreign = make(loras / "ink.safetensors", 3.0).read_bytes()
    assert owned_files(run, loras) == []
    again = publish_for(run, run.export_path("ink"), loras, "ink", card=Card())
    step = make(run.step_path("ink", 100), 0.5)
    assert pick(step, 0.5, PNG, loras) == again == loras / "ink-2.safetensors"
    assert (loras / "ink.safetensors").read_bytes() == foreign
    assert list(read_published(run))[-1].startswith("ink-2")  # the last written last


def test_where_it_is_in_doubt_the_file_goes_to_the_trash_with_a_copy_of_its_card(run: RunFolder, tmp_path: Path) -> None:
    loras = tmp_path / "Lora"
    before = make(loras / "ink.safetensors", 3.0)
    before.with_suffix(".json").write_text('{"notes": "mine"}', encoding="utf-8")
    content = before.read_bytes()
    run.update_job(published=["ink.safetensors", "ink.json"])  # names alone, as earlier versions kept them
    assert publish_for(run, make(run.export_path("ink")), loras, "ink", card=Card()) == before
    assert '"notes": "mine"' in before.with_suffix(".json").read_text(encoding="utf-8")
    (trashed,) = list_trash(loras)
    before.rename(tmp_path / "elsewhere.safetensors")
    before.with_suffix(".json").unlink()
    assert restore(trashed.id, loras).read_bytes() == content
    assert read_published(run)["ink.safetensors"] != IN_DOUBT


def test_other_files_are_known_by_their_bytes(run: RunFolder, tmp_path: Path) -> None:
    picture = tmp_path / "ink.png"
    picture.write_bytes(PNG)
    assert not is_ours(run, picture)
    record(run, [picture])
    assert is_ours(run, picture)
    picture.write_bytes(PNG + b" by the user")
    assert not is_ours(run, picture)


def test_a_file_that_is_gone_cannot_be_picked(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"ink\.safetensors is not there any more"):
        pick(tmp_path / "ink.safetensors", 0.5, PNG, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_card_and_a_preview_beside_the_run_s_own_file_do_not_take_its_name(run: RunFolder, tmp_path: Path) -> None:
    loras = tmp_path / "Lora"
    final = publish_for(run, make(run.export_path("ink")), loras, "ink", card=Card())
    for step, picture in ((100, PNG), (200, PNG + b" of another")):
        assert pick(make(run.step_path("ink", step), 0.5), 0.5, picture, loras) == final
    assert publish_for(run, make(run.export_path("ink"), 2.0), loras, "ink", card=Card(), preview=PNG) == final
    assert final.with_suffix(".png").read_bytes() == PNG + b" of another"  # the user's choice stays
    assert [path.name for path in loras.glob("*.safetensors")] == ["ink.safetensors"]


def test_a_pick_over_a_file_in_use_says_so_and_changes_nothing(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loras = tmp_path / "Lora"
    final = publish_for(run, make(run.export_path("ink")), loras, "ink", card=Card(preferred_weight=0.7))
    before = {path.name: path.read_bytes() for path in loras.iterdir()}
    with monkeypatch.context() as patch:
        InUse(patch, final, times=99)
        with pytest.raises(LoraInUseError, match=r"ink\.safetensors is in use by a program.*Close the program") as raised:
            pick(make(run.step_path("ink", 100), 0.5), 0.5, PNG, loras)
    assert raised.value.path == final
    assert {path.name: path.read_bytes() for path in loras.iterdir()} == before


def test_what_is_mended_in_place_has_no_namesake_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "ink.safetensors", ss_network_dim="9").rename(tmp_path / "brush.safetensors")
    InUse(monkeypatch, path, times=99)
    for change in (lambda: repair(path), lambda: rename(path, "brush", tmp_path)):
        with pytest.raises(LoraInUseError, match=r"brush\.safetensors is in use by a program"):
            change()
    assert list(tmp_path.iterdir()) == [path]
