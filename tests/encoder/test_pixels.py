"""Training pixels and their augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from moon_ops.encoder.pixels import PixelStore, augment
from moon_ops.errors import StageError
from moon_ops.lake import images
from moon_ops.lake.tables import image_bytes


def test_store_holds_the_pixels_of_each_picture(lake: Any, tmp_path: Path) -> None:
    names = lake.read("images", ["image_id"])["image_id"].to_pylist()[:5]
    store = PixelStore.fill(lake, names, 32, tmp_path / "pixels.u8")
    wanted = [names[3], names[0], names[3]]
    found = store.take(wanted)
    content = dict(image_bytes(lake, names))
    expected = [torch.from_numpy(images.pixels(images.decode(content[n]), 32)) for n in wanted]
    assert torch.equal(found, torch.stack(expected))


def test_a_picture_that_the_lake_does_not_have_is_an_error(lake: Any, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no picture ffff"):
        PixelStore.fill(lake, ["ffff"], 32, tmp_path / "pixels.u8")


def test_augment_is_seeded_stays_in_range_and_moves_every_picture() -> None:
    pixels = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    left, right = (augment(pixels, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(left, right)
    assert left.min() >= 0
    assert left.max() <= 255
    assert ((left - pixels.float()).abs().mean(dim=(1, 2, 3)) > 5).all()


def test_augment_keeps_a_plain_picture_plain() -> None:
    """A grey picture has no shape to move: only its light changes, by at most 20 % x 10 % and an offset of 16."""
    grey = torch.full((50, 3, 16, 16), 128, dtype=torch.uint8)
    found = augment(grey, torch.Generator().manual_seed(0))
    assert (found.amax(dim=(2, 3)) - found.amin(dim=(2, 3))).max() < 1e-3
    assert found.min() >= 128 * 0.8 * 0.9 - 16 - 1
    assert found.max() <= 128 * 1.2 * 1.1 + 16 + 1
