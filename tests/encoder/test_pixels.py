"""Training pixels: decoded by the batch that needs them, kept within a limit, taken in any order, in one view or two."""

from __future__ import annotations

import datetime as dt
import os
import shutil
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest
import torch

from moon_ops.encoder import encoded
from moon_ops.encoder import pixels as module
from moon_ops.encoder.encoded import Pictures
from moon_ops.encoder.loader import batches
from moon_ops.encoder.pixels import PixelStore
from moon_ops.errors import StageError
from moon_ops.inputs import images
from moon_ops.inputs.regions import DETECTORS
from moon_ops.lake.lake import Lake
from moon_ops.lake.tables import image_bytes

PICTURE = 3 * 32 * 32  # bytes


@pytest.fixture
def names(lake: Any) -> list[str]:
    found: list[str] = lake.read("images", ["image_id"])["image_id"].to_pylist()[:5]
    return found


@pytest.fixture
def expected(lake: Any, names: list[str]) -> torch.Tensor:
    content = dict(image_bytes(lake, names))
    return torch.stack([torch.from_numpy(images.pixels(images.decode(content[n]), 32)) for n in names])


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The pictures that were decoded, in order."""
    seen: list[bytes] = []

    def decode(content: bytes) -> Any:
        seen.append(content)
        return images.decode(content)

    monkeypatch.setattr(module, "decode", decode)
    return seen


@pytest.fixture
def own_lake(lake: Any, tmp_path: Path) -> Lake:
    shutil.copytree(f"{lake.uri}/images.lance", tmp_path / "lake" / "images.lance")
    return Lake(str(tmp_path / "lake"))


def test_store_holds_the_pixels_of_each_picture(lake: Any, names: list[str], expected: torch.Tensor, tmp_path: Path) -> None:
    store = PixelStore.over(lake, names, 32, tmp_path / "pixels.u8")
    for _ in range(2):  # decoded, and kept
        assert torch.equal(store.take([names[3], names[0], names[3]]), expected[[3, 0, 3]])
    assert torch.equal(store.take(names), expected)


def test_with_a_detector_each_picture_is_taken_in_two_views(lake: Any, names: list[str], tmp_path: Path) -> None:
    store = PixelStore.over(lake, names, 32, tmp_path / "pixels.u8", detector="saliency")
    assert store.shape == (2, 3, 32, 32)
    content = {name: images.decode(found) for name, found in image_bytes(lake, names)}
    expected = []
    for name in (names[3], names[0], names[3]):
        crop = content[name].crop(DETECTORS["saliency"].box(content[name]))
        expected += [torch.from_numpy(images.pixels(picture, 32)) for picture in (content[name], crop)]
    for _ in range(2):
        found = store.take([names[3], names[0], names[3]])
        assert torch.equal(found, torch.stack(expected))
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("detector", ["", "saliency"])
def test_no_pictures_are_no_pixels(lake: Any, tmp_path: Path, detector: str) -> None:
    store = PixelStore.over(lake, [], 32, tmp_path / "pixels.u8", detector=detector)
    assert store.take([]).shape == (0, 3, 32, 32)
    store.fill([])
    with pytest.raises(StageError, match="picture ffff is none of this training's"):
        store.take(["ffff"])


def test_a_picture_that_the_lake_does_not_have_is_an_error(lake: Any, names: list[str], tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no picture ffff"):
        PixelStore.over(lake, [names[0], "ffff"], 32, tmp_path / "pixels.u8")


def test_a_picture_is_decoded_once_where_it_has_a_place(
    lake: Any, names: list[str], expected: torch.Tensor, decoded: list[bytes], tmp_path: Path
) -> None:
    store = PixelStore.over(lake, names, 32, tmp_path / "pixels.u8", kept=3 * PICTURE + 1)
    assert (tmp_path / "pixels.u8").stat().st_size == 3 * PICTURE
    for _ in range(3):
        assert torch.equal(store.take([*names, *names]), expected[[*range(5), *range(5)]])
    assert len(decoded) == 3 + 3 * 2, "the last two are decoded each time, once for a batch"


def test_without_room_each_is_decoded_whenever_it_is_needed(
    lake: Any, names: list[str], expected: torch.Tensor, decoded: list[bytes], tmp_path: Path
) -> None:
    store = PixelStore.over(lake, names, 32, tmp_path / "pixels.u8", kept=0)
    for _ in range(2):
        assert torch.equal(store.take(names), expected)
    store.fill(names)
    assert len(decoded) == 10


def test_a_run_that_was_killed_finds_what_it_had_decoded(
    lake: Any, names: list[str], expected: torch.Tensor, decoded: list[bytes], tmp_path: Path
) -> None:
    place = tmp_path / "pixels.u8"
    PixelStore.over(lake, names, 32, place).take(names[:3])
    other = PixelStore.open(lake, place)
    assert torch.equal(other.take(names[:2]), expected[:2])
    again = PixelStore.over(lake, names, 32, place)
    again.fill(names)
    assert len(decoded) == 5, "the two that it had not seen"
    assert torch.equal(other.take(names), expected)
    assert len(decoded) == 5
    PixelStore.over(lake, names[::-1], 32, place).fill(names)
    assert len(decoded) == 10, "of another list nothing is used"
    (tmp_path / "pixels.sums").write_bytes(b"")
    assert torch.equal(PixelStore.over(lake, names[::-1], 32, place).take(names), expected)
    assert len(decoded) == 15


def test_a_picture_that_was_half_written_is_decoded_anew(
    lake: Any, names: list[str], expected: torch.Tensor, decoded: list[bytes], tmp_path: Path
) -> None:
    store = PixelStore.over(lake, names, 32, tmp_path / "pixels.u8")
    store.fill(names)
    with (tmp_path / "pixels.u8").open("r+b") as file:
        file.seek(PICTURE + 100)
        file.write(bytes(500))
    assert torch.equal(store.take(names), expected)
    assert torch.equal(store.take(names), expected)
    assert len(decoded) == 6


def test_a_disk_that_is_full_costs_time_and_no_picture(
    lake: Any, names: list[str], expected: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    store = PixelStore.over(lake, names, 32, tmp_path / "pixels.u8")
    monkeypatch.setattr(module.os, "pwrite", full)
    for _ in range(2):
        assert torch.equal(store.take(names), expected)
    assert [record.message for record in caplog.records] == [
        "decoded pictures are no longer kept ([Errno 28] No space left on device): all others are decoded whenever they are needed"
    ]


def test_workers_ask_for_pictures_and_fill_one_file(
    lake: Any, names: list[str], expected: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = os.getpid()

    def bytes_at(*given: Any) -> Any:
        assert os.getpid() == here, "a worker that touches Lance hangs now and then"
        return known(*given)

    known = encoded.bytes_at
    monkeypatch.setattr(encoded, "bytes_at", bytes_at)
    store = PixelStore.over(lake, names, 32, tmp_path / "pixels.u8")
    assert torch.equal(store.take(names[:1]), expected[:1])  # the process that forks has the lake open, and threads
    made = list(batches(lambda n: (os.getpid(), store.take([names[n % 5], names[(n + 1) % 5]])), range(12), workers=2))
    assert len({pid for pid, _ in made} - {here}) == 2
    for number, (_, found) in enumerate(made):
        assert torch.equal(found, expected[[number % 5, (number + 1) % 5]])
    assert (store.sums > 0).all()


def test_pictures_are_found_where_the_lake_has_moved_them(own_lake: Lake, names: list[str], expected: torch.Tensor, tmp_path: Path) -> None:
    images = own_lake.open("images")
    first = PixelStore.over(own_lake, names, 32, tmp_path / "first.u8", kept=0)
    late = PixelStore.over(own_lake, names, 32, tmp_path / "late.u8", kept=0)
    assert torch.equal(first.take(names), expected)
    moved = images.to_table().take(np.arange(images.count_rows())[::-1])
    lance.write_dataset(moved, own_lake.address("images"), mode="overwrite")
    assert torch.equal(first.take(names), expected), "the version that it has found them in"
    own_lake.open("images").cleanup_old_versions(older_than=dt.timedelta(0), delete_unverified=True)
    assert torch.equal(late.take(names), expected)
    assert torch.equal(late.take(names[:2]), expected[:2])


def test_a_picture_that_was_erased_meanwhile_ends_the_training(own_lake: Lake, names: list[str], tmp_path: Path) -> None:
    store = PixelStore.over(own_lake, names, 32, tmp_path / "pixels.u8")
    own_lake.open("images").delete(f"image_id = '{names[2]}'")
    own_lake.open("images").optimize.compact_files()
    own_lake.open("images").cleanup_old_versions(older_than=dt.timedelta(0), delete_unverified=True)
    with pytest.raises(StageError, match=f"the lake has no picture {names[2]} any more → start the training again"):
        store.take(names)


def test_ids_whose_hashes_begin_alike_are_kept_apart(lake: Any, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def keys(image_ids: Any) -> Any:
        return np.array([[7, known.index(name)] for name in image_ids], np.int64).reshape(-1, 2)

    known = lake.read("images", ["image_id"])["image_id"].to_pylist()
    monkeypatch.setattr(encoded, "keys", keys)
    wanted = [names[4], names[1], names[3]]
    pictures = Pictures.find(lake, wanted)
    columns, there = pictures.columns([*wanted, names[0], known[-1]])
    assert there.tolist() == [True, True, True, False, False]
    assert pictures.table[encoded.PLACE, columns[:3]].tolist() == [0, 1, 2]
    assert pictures.table[encoded.OFFSET, columns[:3]].tolist() == [known.index(name) for name in wanted]
