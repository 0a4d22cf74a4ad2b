"""The photographer that the augmentation does not know: no range and no operation of one is the other's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from moon_ops.encoder import augment
from moon_ops.errors import InputError
from moon_ops.shops.simulate import simulate
from moon_ops.shops.simulated import camera
from moon_ops.shops.simulated.camera import CAMERA
from moon_ops.shops.simulated.drawing import CANVAS, PICTURE
from moon_ops.shops.simulated.parameters import PHOTOGRAPH


def practised() -> list[dict[str, Any]]:
    """What the augmentation draws for where a thing lies, as it asks for it."""
    asked: list[dict[str, Any]] = []
    drawn = augment._grid

    def noted(pixels: Tensor, generator: torch.Generator, **ranges: Any) -> Tensor:
        asked.append(ranges)
        return drawn(pixels, generator, **ranges)

    pixels, masks = torch.zeros(2, 3, 16, 16), torch.full((2, 1, 16, 16), 255)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "_grid", noted)
        augment.shaken(pixels, torch.Generator())
        augment.studio(pixels, torch.Generator())
        patch.setattr(augment, "_scenery", lambda pictures, _: pictures.float())  # of what lies behind the thing
        augment.photograph(pixels, masks, pixels, torch.Generator())
    return asked


def test_ranges_of_one_kind_do_not_meet() -> None:
    asked = practised()
    assert len(asked) == 3
    assert max(ranges["tilt"] for ranges in asked) < CAMERA.tilt[0]
    assert max(ranges["turn"] for ranges in asked) < CAMERA.roll[0]
    assert max(ranges["shift"] for ranges in asked) < CAMERA.shift[0]
    assert min(ranges["scale"][0] for ranges in asked) > CAMERA.size[1]
    assert PHOTOGRAPH.quality[0] > CAMERA.damage[1]
    assert PHOTOGRAPH.quality[1] < CAMERA.quality[0]


def test_a_thing_lies_where_the_ranges_say() -> None:
    for seed in range(200):
        corners = camera._pose(np.random.default_rng(seed), 1.0) / CANVAS - 0.5
        aside = np.abs(_crossing(corners))  # where the diagonals cross: the middle of the plane
        assert CAMERA.shift[0] - 1e-6 <= aside.max() <= CAMERA.shift[1] + 1e-6
        assert aside.min() == pytest.approx(0, abs=1e-6)


def _crossing(corners: np.ndarray) -> np.ndarray:
    a, b, c, d = corners
    share = np.linalg.solve(np.stack([c - a, b - d], axis=1), b - a)[0]
    return a + share * (c - a)


def card(trouble: str, seed: int) -> np.ndarray:
    """A grey card in the light of a ``trouble``."""
    return camera._light(np.full((PICTURE, PICTURE, 3), 120, np.float32), [trouble], np.random.default_rng(seed))


def practised_card(seed: int) -> np.ndarray:
    lit = augment._light(torch.full((1, 3, PICTURE, PICTURE), 120.0), torch.Generator().manual_seed(seed))
    return lit[0].permute(1, 2, 0).numpy()


def warmth(picture: np.ndarray) -> float:
    """How far red over blue differs between the opposite sides of a picture, the larger of both directions."""
    ratio = picture[:, :, 0].astype(np.float64) / np.maximum(picture[:, :, 2], 1)
    quarter = PICTURE // 4
    sides = [np.median(part) for part in (ratio[:quarter], ratio[-quarter:], ratio[:, :quarter], ratio[:, -quarter:])]
    return float(max(max(a / b, b / a) for a, b in (sides[:2], sides[2:])))


def test_two_lamps_are_no_gain_of_the_whole_picture() -> None:
    assert max(warmth(practised_card(seed)) for seed in range(40)) < 1.1
    assert min(warmth(card("lamps", seed)) for seed in range(40)) > 1.2


def edge(picture: np.ndarray) -> float:
    """The largest step between the means of neighbouring 3 x 3 blocks, as a share of the median."""
    side = PICTURE // 3
    blocks = picture[: side * 3, : side * 3].mean(axis=2).reshape(side, 3, side, 3).mean(axis=(1, 3))
    return float(max(np.abs(np.diff(blocks, axis=0)).max(), np.abs(np.diff(blocks, axis=1)).max()) / np.median(blocks))


def test_a_shadow_has_an_edge() -> None:
    assert max(edge(practised_card(seed)) for seed in range(40)) < 0.2
    assert min(edge(card("shadow", seed)) for seed in range(40)) > 0.25


def test_the_hand_moves_along_one_direction() -> None:
    """A point becomes a line; the augmentation makes it a square."""

    def longest(image: np.ndarray) -> float:
        rows, columns = np.nonzero(image > image.max() / 20)
        spread = np.linalg.eigvalsh(np.cov(np.stack([rows, columns]).astype(float)) + 1e-9 * np.eye(2))
        return float(spread[1] / (spread[0] + 0.05))

    point = np.zeros((PICTURE, PICTURE, 3), np.float32)
    point[48, 48] = 200
    blurred = augment._blurred(torch.from_numpy(point).permute(2, 0, 1)[None])[0, 0].numpy()
    assert longest(blurred) < 2
    moved = [camera._moved(point, np.random.default_rng(seed)) for seed in range(40)]
    assert min(longest(picture[:, :, 0]) for picture in moved) > 2
    assert all(picture.sum() == pytest.approx(point.sum(), rel=1e-5) for picture in moved)


@pytest.fixture
def product() -> Image.Image:
    thing = Image.new("RGBA", (CANVAS, CANVAS), (0, 0, 0, 0))
    thing.paste((210, 30, 40, 255), (40, 40, CANVAS - 40, CANVAS - 40))
    return thing


def test_the_same_generator_takes_the_same_picture_and_the_thing_is_in_it(product: Image.Image) -> None:
    for seed in range(30):
        one, quality = camera.photograph(product, np.random.default_rng(seed))
        again, _ = camera.photograph(product, np.random.default_rng(seed))
        assert one.size == (PICTURE, PICTURE)
        assert one.tobytes() == again.tobytes()
        assert CAMERA.quality[0] <= quality <= CAMERA.quality[1]
        values = np.asarray(one).astype(int)
        red = (values[:, :, 0] > 1.35 * values[:, :, 1]) & (values[:, :, 0] > 1.2 * values[:, :, 2])
        assert red.mean() > 0.03, seed


@pytest.mark.parametrize("page", [camera._screen, camera._paper])
def test_a_page_shows_the_thing_and_its_own_grain(product: Image.Image, page: Callable[..., Image.Image]) -> None:
    made = np.asarray(page(product, np.random.default_rng(0))).astype(float)
    assert made.shape == (CANVAS, CANVAS, 4)
    assert (made[:, :, 3] == 255).all()
    assert made[80:110, 80:110, 1].std() > 2, "a plain colour has dots"


def test_the_shop_differs_in_its_photographs_alone(tmp_path: Path) -> None:
    known = simulate(tmp_path / "known", size="tiny", workers=1)
    unknown = simulate(tmp_path / "unknown", size="tiny", workers=1, photographer="unknown")
    assert (known.pictures, known.queries) == (unknown.pictures, unknown.queries)
    for path in known.out.rglob("*"):
        other = unknown.out / path.relative_to(known.out)
        if path.suffix == ".parquet":
            assert pq.read_table(path).equals(pq.read_table(other))
        if path.suffix == ".jpg":
            assert (path.read_bytes() == other.read_bytes()) == ("items" in path.parts)
    with pytest.raises(InputError, match="photographer 'me' is not known here → choose one of known, unknown"):
        simulate(tmp_path / "other", size="tiny", photographer="me")
    with pytest.raises(InputError, match="holds something else"):
        simulate(unknown.out, size="tiny")
