"""Pictures: what a product's items share, what tells them apart, and what a photograph keeps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from moon_ops.shops.simulate import SIZES
from moon_ops.shops.simulated.catalogue import Catalogue, stock
from moon_ops.shops.simulated.drawing import CORNERS, PICTURE, SILHOUETTES, cutout, homography, studio_picture
from moon_ops.shops.simulated.fabric import MARKS, MOTIFS, PATTERNS, TEXTURES, mark_outlines, pattern_field, texture_field
from moon_ops.shops.simulated.photograph import photograph


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return stock(SIZES["tiny"], seed=0, days=20)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def outline(catalogue: Catalogue, row: int) -> bytes:
    return cutout(catalogue.items[row].look).getchannel("A").tobytes()


def test_items_share_a_silhouette_exactly_when_they_share_a_product(catalogue: Catalogue) -> None:
    rows = range(40)
    outlines = [outline(catalogue, row) for row in rows]
    products = [int(catalogue.spu_id[row]) for row in rows]
    assert len(set(outlines)) == len(set(products)) == len(set(zip(outlines, products, strict=True)))


def test_items_of_a_product_differ_in_colour(catalogue: Catalogue) -> None:
    first, second = (np.asarray(studio_picture(cutout(item.look), 0, rng()), float) for item in catalogue.items[:2])
    assert catalogue.spu_id[0] == catalogue.spu_id[1]
    assert np.abs(first - second).mean() > 5


@pytest.mark.parametrize("category", SILHOUETTES)
@pytest.mark.parametrize("variant", [0, 1, 2])
@pytest.mark.parametrize("proportion", [0.0, 0.5, 1.0])
def test_every_silhouette_fits_the_frame(catalogue: Catalogue, category: str, variant: int, proportion: float) -> None:
    look = replace(catalogue.items[0].look, category=category, variant=variant, shape=(proportion,) * 6)
    covered = np.asarray(cutout(look).getchannel("A")) > 127
    assert 0.06 < covered.mean() < 0.7
    edges = np.concatenate([covered[:, 0], covered[:, -1], covered[0], covered[-1]])
    assert edges.mean() < 0.05


@pytest.mark.parametrize(("facet", "values"), [("pattern", PATTERNS), ("texture", TEXTURES), ("motif", MOTIFS), ("mark", MARKS)])
def test_every_value_of_a_facet_is_visible(catalogue: Catalogue, facet: str, values: tuple[str, ...]) -> None:
    shirt = replace(
        next(item.look for item in catalogue.items if item.look.category == "t-shirt"),
        **{
            "pattern": "plain",
            "texture": "smooth",
            "motif": "none",
            "primary": (60, 110, 190),
            "secondary": (240, 240, 230),
        },
    )
    drawn = [studio_picture(cutout(replace(shirt, **{facet: value})), 0, rng()) for value in values]
    pictures = np.stack([np.asarray(picture, float) for picture in drawn])
    for i, one in enumerate(pictures):
        for other in pictures[i + 1 :]:
            assert np.abs(one - other).max() > 20


def test_a_pattern_is_between_the_two_colours() -> None:
    for pattern in PATTERNS:
        field = pattern_field(pattern, 64, repeats=8, angle=0.3)
        assert (field.shape, field.dtype) == ((64, 64), np.float32)
        assert 0 <= field.min() <= field.max() <= 1
        assert (field.max() > 0.9) == (pattern != "plain")


def test_a_texture_keeps_the_brightness() -> None:
    for texture in TEXTURES:
        assert texture_field(texture, 192).mean() == pytest.approx(1, abs=0.05)


def test_marks_lie_around_the_origin() -> None:
    for mark in MARKS:
        points = np.concatenate(mark_outlines(mark))
        assert 0.8 < np.abs(points).max() < 1.3


def test_homography_carries_corners_to_corners() -> None:
    target = CORNERS + np.array([[3, 5], [-7, 2], [4, -6], [9, 1]])
    a, b, c, d, e, f, g, h = homography(CORNERS, target)
    x, y = target.T
    depth = g * x + h * y + 1
    assert np.stack([(a * x + b * y + c) / depth, (d * x + e * y + f) / depth], axis=1) == pytest.approx(CORNERS, abs=1e-6)


def test_views_of_an_item_differ_and_a_studio_is_white(catalogue: Catalogue) -> None:
    product = cutout(catalogue.items[0].look)
    front, turned, detail = (np.asarray(studio_picture(product, view, rng()), float) for view in range(3))
    assert min(np.abs(front - turned).mean(), np.abs(front - detail).mean()) > 3
    assert front[:4, :4].min() > 235


def test_a_photograph_is_taken_differently_each_time(catalogue: Catalogue) -> None:
    product = cutout(catalogue.items[0].look)
    one, quality = photograph(product, np.random.default_rng(1))
    other, _ = photograph(product, np.random.default_rng(2))
    assert one.size == (PICTURE, PICTURE)
    assert 45 <= quality <= 82
    assert np.abs(np.asarray(one, float) - np.asarray(other, float)).mean() > 15


def test_a_photograph_can_be_matched_to_its_item_but_not_trivially(catalogue: Catalogue) -> None:
    """The crudest matching there is, a few pixels of the middle, must beat chance clearly and fail often."""
    items = catalogue.items[:90]
    products = [cutout(item.look) for item in items]
    studio = np.stack([middle(studio_picture(product, 0, rng())) for product in products])
    taken = np.stack([middle(photograph(product, np.random.default_rng(i))[0]) for i, product in enumerate(products)])
    distance = np.linalg.norm(taken[:, None] - studio, axis=2)  # [photograph, item]
    rank = (distance < np.diag(distance)[:, None]).sum(axis=1)
    assert 0.3 < (rank < 10).mean() < 0.95  # chance: 0.11


def middle(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.crop((24, 24, 72, 72)).resize((4, 4), Image.Resampling.BOX), float).ravel()
