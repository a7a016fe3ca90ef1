from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lora_trainer.dataset.scan import scan_dataset
from lora_trainer.dataset.weights import scan_regularisation, weigh_folders
from lora_trainer.errors import DatasetError

pytestmark = pytest.mark.hosts
Write = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, write: Write) -> Path:
    for name in ("top.png", "10_ink/a.png", "10_ink/3_night/b.png", "水墨/c.png"):
        write(f"data/{name}")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"10_ink": 0.5}, {"top.png": 1, "10_ink/a.png": 0.5, "10_ink/3_night/b.png": 0.5, "水墨/c.png": 1}),
        ({"ink": 0.5, "night": 2}, {"top.png": 1, "10_ink/a.png": 0.5, "10_ink/3_night/b.png": 2, "水墨/c.png": 1}),
        ({"10_ink\\3_night": 3}, {"top.png": 1, "10_ink/a.png": 1, "10_ink/3_night/b.png": 3, "水墨/c.png": 1}),
        ({".": 0.1, "水墨/": 4}, {"top.png": 0.1, "10_ink/a.png": 0.1, "10_ink/3_night/b.png": 0.1, "水墨/c.png": 4}),
    ],
)
def test_the_nearest_named_folder_counts(folder: Path, weights: dict[str, float], expected: dict[str, float]) -> None:
    items = weigh_folders(scan_dataset(folder).items, weights)
    assert {item.name: item.weight for item in items} == expected


def test_an_unknown_folder_is_an_error_with_the_known_ones(folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"folder 'nihgt'; did you mean 'night'\? Known: .*10_ink"):
        weigh_folders(scan_dataset(folder).items, {"ink": 1, "nihgt": 0.5})


def test_regularisation_pictures_have_their_weight_and_their_folders_name(folder: Path, write: Write, tmp_path: Path) -> None:
    write("people/5_person/a.png", caption="a person")
    write("people/broken.png").write_bytes(b"no picture")
    scan = scan_regularisation(tmp_path / "people", 0.3)
    assert [(item.name, item.weight, item.repeats) for item in scan.items] == [("people/5_person/a.png", 0.3, 5)]
    assert [problem.field for problem in scan.problems] == ["people/broken.png"]


def test_pictures_that_are_transparent_all_over_are_left_out_only_as_masks(tmp_path: Path, write: Write) -> None:
    seen, unseen = Image.new("RGBA", (64, 64), (9, 9, 9, 0)), Image.new("RGBA", (64, 64), (9, 9, 9, 0))
    seen.putpixel((0, 0), (9, 9, 9, 1))
    write("seen.png", seen)
    write("unseen.png", unseen)
    assert len(scan_dataset(tmp_path).items) == 2
    scan = scan_dataset(tmp_path, alpha_mask=True)
    assert [item.name for item in scan.items] == ["seen.png"]
    assert scan.left_out["invisible"] == 1
    (problem,) = scan.problems
    assert problem.field == "unseen.png" and "transparent all over" in problem.message
