"""Pictures as they might have been: same draw, same picture, and no part of a product taken for its backdrop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from moon_ops.encoder.augment import photograph, product_mask, shaken, studio


def drawn(seed: int = 0, count: int = 6) -> Tensor:
    return torch.randint(0, 256, (count, 3, 24, 24), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def photographed(pixels: Tensor, generator: torch.Generator) -> Tensor:
    return photograph(pixels, torch.full((len(pixels), 1, 24, 24), 128, dtype=torch.uint8), drawn(9), generator)


@pytest.mark.parametrize("change", [shaken, studio, photographed])
def test_the_same_draw_makes_the_same_picture_of_the_same_shape_in_range(change: Callable[[Tensor, torch.Generator], Tensor]) -> None:
    pixels = drawn()
    first, again, other = (change(pixels, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == pixels.shape
    assert first.dtype == torch.float32
    assert first.min() >= 0
    assert first.max() <= 255
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, pixels.float())


@pytest.mark.parametrize("change", [shaken, studio])
def test_each_picture_of_a_batch_is_changed_in_its_own_way(change: Callable[[Tensor, torch.Generator], Tensor]) -> None:
    out = change(drawn(count=1).expand(4, -1, -1, -1), torch.Generator().manual_seed(0))
    assert not torch.equal(out[0], out[1])


def shoe() -> np.ndarray:
    """A red shoe on white with a white patch inside it, and a white sole that the red surrounds."""
    picture = np.full((3, 32, 32), 250, np.uint8)
    picture[:, 10:24, 6:26] = np.array([200, 30, 30], np.uint8)[:, None, None]
    picture[:, 20:22, 8:24] = 250  # the sole: the backdrop's colour, not connected to the border
    return picture


def test_the_product_is_what_is_not_connected_to_the_border_and_its_white_sole_stays() -> None:
    mask = product_mask(shoe())
    assert mask.shape == (32, 32)
    assert (mask[12:18, 9:23] == 255).all()
    assert (mask[20:22, 9:23] == 255).all()
    assert (mask[:8] == 0).all()
    assert (mask[:, :4] == 0).all()


def test_a_sole_that_reaches_the_border_s_white_is_backdrop() -> None:
    open_shoe = shoe()
    open_shoe[:, 20:22, 24:26] = 250  # a gap on the right
    assert (product_mask(open_shoe)[20:22, 12:20] < 255).all()


def test_a_busy_picture_an_empty_one_and_one_that_fills_the_frame_are_product_everywhere() -> None:
    busy = drawn(count=1)[0].numpy()
    empty = np.full((3, 32, 32), 250, np.uint8)
    full = np.full((3, 32, 32), 250, np.uint8)
    full[:, 1:31, 1:31] = 40  # 12 % of the picture is left
    full[:, 0, :] = full[:, :, 0] = 40
    for picture in (busy, empty, full):
        assert (product_mask(picture) == 255).all()


def test_a_photograph_shows_scenery_where_the_product_is_not_and_nowhere_else() -> None:
    """A flat product: where its mask is full no scenery shows, so two sceneries differ nowhere; where it is empty they do."""
    pixels = torch.full((8, 3, 24, 24), 100, dtype=torch.uint8)
    dark, bright = torch.zeros_like(pixels), torch.full_like(pixels, 255)

    def seen(share: int) -> list[Tensor]:
        masks = torch.full((8, 1, 24, 24), share, dtype=torch.uint8)
        return [photograph(pixels, masks, scenery, torch.Generator().manual_seed(3)) for scenery in (dark, bright)]

    covered, bare = seen(255), seen(0)
    assert torch.allclose(*covered, atol=0.01)  # the mask is moved by interpolation
    assert (bare[1] - bare[0]).mean() > 50
