"""Training pixels: decoded once, taken in any order, in one view or two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from moon_ops.encoder.pixels import PixelStore
from moon_ops.errors import StageError
from moon_ops.inputs import images
from moon_ops.inputs.regions import DETECTORS
from moon_ops.lake.tables import image_bytes


def test_store_holds_the_pixels_of_each_picture(lake: Any, tmp_path: Path) -> None:
    names = lake.read("images", ["image_id"])["image_id"].to_pylist()[:5]
    store = PixelStore.fill(lake, names, 32, tmp_path / "pixels.u8")
    wanted = [names[3], names[0], names[3]]
    found = store.take(wanted)
    content = dict(image_bytes(lake, names))
    expected = [torch.from_numpy(images.pixels(images.decode(content[n]), 32)) for n in wanted]
    assert torch.equal(found, torch.stack(expected))


def test_with_a_detector_each_picture_is_taken_in_two_views(lake: Any, tmp_path: Path) -> None:
    names = lake.read("images", ["image_id"])["image_id"].to_pylist()[:5]
    store = PixelStore.fill(lake, names, 32, tmp_path / "pixels.u8", detector="saliency")
    assert store.array.shape == (5, 2, 3, 32, 32)
    content = {name: images.decode(found) for name, found in image_bytes(lake, names)}
    expected = []
    for name in (names[3], names[0], names[3]):
        crop = content[name].crop(DETECTORS["saliency"].box(content[name]))
        expected += [torch.from_numpy(images.pixels(picture, 32)) for picture in (content[name], crop)]
    found = store.take([names[3], names[0], names[3]])
    assert torch.equal(found, torch.stack(expected))
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("detector", ["", "saliency"])
def test_no_pictures_are_no_pixels(lake: Any, tmp_path: Path, detector: str) -> None:
    assert PixelStore.fill(lake, [], 32, tmp_path / "pixels.u8", detector=detector).take([]).shape == (0, 3, 32, 32)


def test_a_picture_that_the_lake_does_not_have_is_an_error(lake: Any, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no picture ffff"):
        PixelStore.fill(lake, ["ffff"], 32, tmp_path / "pixels.u8")
