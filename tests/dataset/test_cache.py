from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from lora_trainer.dataset.buckets import Bucket, assign_buckets, fit_image
from lora_trainer.dataset.cache import TensorMemory, TensorStore, cache_pictures, cache_texts, picture_key, text_key, to_pixels
from lora_trainer.dataset.images import open_image
from lora_trainer.dataset.scan import Item, scan_dataset
from lora_trainer.errors import DatasetError, TrainingError

pytestmark = pytest.mark.hosts

Write = Callable[..., Path]
TENSORS = {"latents": torch.linspace(-3, 3, 64).reshape(4, 4, 4), "half": torch.ones(2, dtype=torch.bfloat16)}


class Encoder:
    """Averages 8 x 8 pixels and adds the batch's size, which makes what depends on the batch visible."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, pixels: Tensor) -> Mapping[str, Tensor]:
        assert pixels.dtype == torch.float32 and pixels.shape[1] == 3
        self.batches.append(len(pixels))
        return {"latents": torch.nn.functional.avg_pool2d(pixels, 8) + len(pixels)}


@pytest.fixture
def items(tmp_path: Path, write: Write, astronaut: Image.Image, chelsea: Image.Image, coffee: Image.Image) -> tuple[Item, ...]:
    """Seven pictures: five of 128 x 128, two of 192 x 128."""
    for number in range(5):
        write(f"data/square{number}.png", astronaut.rotate(number * 30).resize((128, 128)))
    write("data/wide0.jpg", chelsea.resize((192, 128)))
    write("data/wide1.jpg", coffee.resize((192, 128)))
    return scan_dataset(tmp_path / "data").items


def cache_all(
    items: tuple[Item, ...], folder: Path, encode: Callable[[Tensor], Mapping[str, Tensor]], **options: object
) -> list[str]:
    buckets = assign_buckets([(item.width, item.height) for item in items], 256)
    arguments = {"store": TensorStore(folder), "encoder_key": "vae", "batch_size": 3, **options}
    return cache_pictures(items, buckets, encode, **arguments)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_an_entry_comes_back_as_it_was(tmp_path: Path) -> None:
    store = TensorStore(tmp_path / "cache")
    assert store.get("k") is None and not store.has("k")
    store.put("k", TENSORS)
    again = TensorStore(tmp_path / "cache").get("k")
    assert again is not None and set(again) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert again[name].dtype == tensor.dtype and torch.equal(again[name], tensor)
    again["latents"] += 1  # it may be written to
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["k.cache"]


def test_views_and_transposed_tensors_are_stored_as_they_look(tmp_path: Path) -> None:
    store = TensorStore(tmp_path)
    whole = torch.arange(24.0).reshape(2, 3, 4)
    store.put("k", {"a": whole[1], "b": whole[1].T})
    again = store.get("k")
    assert again is not None
    assert torch.equal(again["a"], whole[1]) and torch.equal(again["b"], whole[1].T)
    assert (tmp_path / "k.cache").stat().st_size < 400


def test_every_bit_flip_and_truncation_is_noticed(tmp_path: Path) -> None:
    store = TensorStore(tmp_path)
    store.put("k", TENSORS)
    path = tmp_path / "k.cache"
    good = path.read_bytes()
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :])
        assert store.get("k") is None and not store.has("k")
    for length in (0, 1, 31, 32, 40, len(good) - 1):
        path.write_bytes(good[:length])
        assert store.get("k") is None
    path.write_bytes(good + b"\0")
    assert store.get("k") is None
    store.put("k", TENSORS)
    assert path.read_bytes() == good


def test_a_write_that_fails_leaves_the_old_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TensorStore(tmp_path)
    store.put("k", TENSORS)
    before = contents(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        store.put("k", {"other": torch.zeros(3)})
    assert contents(tmp_path) == before


def test_what_killed_runs_left_is_removed_and_what_live_ones_write_is_not(tmp_path: Path) -> None:
    TensorStore(tmp_path)
    old, fresh = tmp_path / ".a.1.1.tmp", tmp_path / ".b.1.1.tmp"
    for path in (old, fresh):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    TensorStore(tmp_path)
    assert not old.exists() and fresh.exists()


def test_threads_may_write_one_key_at_once(tmp_path: Path) -> None:
    store = TensorStore(tmp_path)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                store.put("k", TENSORS)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Read only now: while it is read, Windows refuses to replace a file, and this suite refuses likewise.
    assert failures == []
    assert store.has("k") and [path.name for path in tmp_path.iterdir()] == ["k.cache"]


def test_keys_tell_apart_all_that_matters() -> None:
    keys = {
        picture_key("a", Bucket(64, 128), "v"),
        picture_key("b", Bucket(64, 128), "v"),
        picture_key("a", Bucket(128, 64), "v"),
        picture_key("a", Bucket(64, 128), "w"),
        text_key("a", "v"),
        text_key("A", "v"),
        text_key("a ", "v"),
        text_key("a", "w"),
        text_key("", "v"),
    }
    assert len(keys) == 9
    assert text_key("🎨", "v") == text_key("🎨", "v")


def test_pixels_are_from_minus_one_to_one() -> None:
    image = Image.new("RGB", (64, 32), (0, 255, 51))
    pixels = to_pixels([image, image])
    assert pixels.shape == (2, 3, 32, 64) and pixels.dtype == torch.float32
    assert torch.allclose(pixels[0, :, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))


def test_pictures_are_encoded_once_by_bucket_and_found_by_key(tmp_path: Path, items: tuple[Item, ...]) -> None:
    encode, progress = Encoder(), []
    keys = cache_all(items, tmp_path / "cache", encode, on_progress=lambda *at: progress.append(at))
    assert encode.batches == [3, 2, 2]
    assert progress == [(3, 7), (5, 7), (7, 7)]
    store = TensorStore(tmp_path / "cache")
    for item, key in zip(items, keys, strict=True):
        (bucket,) = assign_buckets([(item.width, item.height)], 256)
        alone = Encoder()(to_pixels([fit_image(open_image(item.path), bucket)]))["latents"][0]
        latents = store.get(key)["latents"]
        assert latents.shape == (3, item.height // 8, item.width // 8)
        assert torch.allclose(latents - latents.mean(), alone - alone.mean(), atol=1e-5)
    again = Encoder()
    assert cache_all(items, tmp_path / "cache", again) == keys
    assert again.batches == []


def test_an_edited_picture_is_encoded_anew_even_with_its_old_time(tmp_path: Path, items: tuple[Item, ...]) -> None:
    keys = cache_all(items, tmp_path / "cache", Encoder())
    path = items[1].path
    times = path.stat().st_mtime_ns
    image = open_image(path)
    image.putpixel((5, 5), (1, 2, 3))
    image.save(path)
    os.utime(path, ns=(times, times))
    encode = Encoder()
    changed = cache_all(items, tmp_path / "cache", encode)
    assert [old != new for old, new in zip(keys, changed, strict=True)] == [False, True, False, False, False, False, False]
    assert encode.batches == [3]


def test_a_damaged_entry_is_rebuilt_with_the_same_bytes(tmp_path: Path, items: tuple[Item, ...]) -> None:
    folder = tmp_path / "cache"
    keys = cache_all(items, folder, Encoder())
    before = contents(folder)
    (folder / f"{keys[2]}.cache").write_bytes(before[f"{keys[2]}.cache"][:50])
    encode = Encoder()
    cache_all(items, folder, encode)
    assert contents(folder) == before
    assert encode.batches == [3]


@pytest.mark.parametrize("num_written", range(7))
def test_a_run_stopped_anywhere_continues_to_the_same_bytes(
    tmp_path: Path, items: tuple[Item, ...], monkeypatch: pytest.MonkeyPatch, num_written: int
) -> None:
    """The encoder here depends on the size of its batch, as real ones do in the last bits."""
    cache_all(items, tmp_path / "whole", Encoder())
    written = 0
    put = TensorStore.put

    def put_some(self: TensorStore, key: str, tensors: Mapping[str, Tensor]) -> None:
        nonlocal written
        if written == num_written:
            raise KeyboardInterrupt
        written += 1
        put(self, key, tensors)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TensorStore, "put", put_some)
        cache_all(items, tmp_path / "stopped", Encoder())
    cache_all(items, tmp_path / "stopped", Encoder())
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_equal_pictures_share_an_entry_whichever_run_wrote_it(tmp_path: Path, items: tuple[Item, ...], write: Write) -> None:
    for number in range(6, 9):
        write(f"data/square{number}.png", open_image(items[0].path))
    items = scan_dataset(tmp_path / "data").items
    keys = cache_all(items, tmp_path / "cache", Encoder(), batch_size=2)
    assert len(set(keys)) == len(items) - 3
    assert len(contents(tmp_path / "cache")) == len(set(keys))


def test_a_picture_that_vanished_or_changed_is_named(tmp_path: Path, items: tuple[Item, ...], chelsea: Image.Image) -> None:
    good = items[0].path.read_bytes()
    for change, message in (
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_bytes(good[:800]), "truncated"),
        (lambda path: chelsea.save(path), "128 x 128 pixels when the run began and is 451 x 300 now"),
    ):
        change(items[0].path)
        with pytest.raises(DatasetError, match=message) as caught:
            cache_all(items, tmp_path / "cache", Encoder())
        assert "square0.png" in str(caught.value)
        items[0].path.write_bytes(good)


def test_non_finite_encodings_are_never_kept(tmp_path: Path, items: tuple[Item, ...]) -> None:
    def encode(pixels: Tensor) -> Mapping[str, Tensor]:
        return {"latents": pixels * float("nan")}

    with pytest.raises(TrainingError, match=r"square0\.png"):
        cache_all(items, tmp_path / "cache", encode)
    assert contents(tmp_path / "cache") == {}


def test_an_error_in_the_encoder_ends_the_work_at_once(tmp_path: Path, items: tuple[Item, ...]) -> None:
    def encode(pixels: Tensor) -> Mapping[str, Tensor]:
        raise MemoryError("out of memory")

    num_threads = threading.active_count()
    with pytest.raises(MemoryError):
        cache_all(items, tmp_path / "cache", encode)
    assert threading.active_count() == num_threads
    with pytest.raises(ValueError, match="gave 1 of 'latents' for 3"):
        cache_all(items, tmp_path / "cache", lambda pixels: {"latents": pixels[:1]})


def test_captions_are_encoded_once_each(tmp_path: Path) -> None:
    batches: list[list[str]] = []

    def encode(captions: list[str]) -> Mapping[str, list[Tensor]]:
        batches.append(captions)
        return {"hidden": [torch.full((len(caption), 2), float(len(caption))) for caption in captions]}

    captions = ["a cat", "", "远山 🎨", "a cat", "dog", ""]
    arguments = {"store": TensorStore(tmp_path), "encoder_key": "clip", "batch_size": 3}
    progress: list[tuple[int, int]] = []
    keys = cache_texts(captions, encode, on_progress=lambda *at: progress.append(at), **arguments)
    assert batches == [["a cat", "", "远山 🎨"], ["dog"]]
    assert progress == [(3, 4), (4, 4)]
    assert keys[0] == keys[3] and keys[1] == keys[5] and len(set(keys)) == 4
    entry = TensorStore(tmp_path).get(keys[2])
    assert entry is not None and entry["hidden"].shape == (4, 2)
    assert cache_texts(captions, encode, **arguments) == keys
    assert len(batches) == 2


def test_the_key_holds_the_hash_of_the_bytes_that_were_decoded(tmp_path: Path, items: tuple[Item, ...]) -> None:
    keys = cache_all(items, tmp_path / "cache", Encoder())
    digest = hashlib.sha256(items[0].path.read_bytes()).hexdigest()
    assert keys[0] == picture_key(digest, Bucket(128, 128), "vae")


def test_opacity_comes_as_a_fourth_channel_and_leaves_the_colours_alone(
    tmp_path: Path, write: Write, chelsea: Image.Image
) -> None:
    seen: list[Tensor] = []

    def encode(pixels: Tensor) -> Mapping[str, Tensor]:
        seen.append(pixels)
        return {"pixels": pixels[:, :3]}

    picture = chelsea.resize((128, 128)).convert("RGBA")
    picture.paste((0, 0, 0, 0), (0, 0, 64, 128))
    write("data/half.png", picture)
    write("data/opaque.jpg", chelsea.resize((128, 128)))
    items = scan_dataset(tmp_path / "data").items
    for with_alpha in (False, True):
        cache_all(items, tmp_path / f"cache{with_alpha}", encode, batch_size=1, with_alpha=with_alpha)
    half, opaque = seen[2:]
    assert half.shape == (1, 4, 128, 128)
    assert half[0, 3].unique().tolist() == [0, 1] and half[0, 3].mean() == 0.5 and not half[0, 3, :, :64].any()
    assert (half[0, :3, :, :64] == 1).all()
    assert (opaque[0, 3] == 1).all()
    assert all(torch.equal(plain, masked[:, :3]) for plain, masked in zip(seen[:2], seen[2:], strict=True))


def test_memory_keeps_what_fits_and_reads_the_rest(tmp_path: Path) -> None:
    store = TensorStore(tmp_path)
    for key in "abc":
        store.put(key, {"x": torch.full((4,), float(ord(key)))})
    memory = TensorMemory(store, max_bytes=40)
    assert all(memory.get(key)["x"][0] == ord(key) for key in "abc")
    assert memory.get("missing") is None
    for path in tmp_path.iterdir():
        path.unlink()
    assert [memory.get(key) is not None for key in "abc"] == [True, True, False]
