"""The core region: the box that the detector draws, and the views that an encoder reads."""

from __future__ import annotations

import time
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from moon_ops.errors import InputError
from moon_ops.inputs import images, regions
from moon_ops.inputs.regions import DETECTORS, Saliency, golden_views, views

BOX = DETECTORS["saliency"].box


def studio(
    box: tuple[int, int, int, int], size: tuple[int, int] = (200, 200), backdrop: str = "white", colour: str = "navy"
) -> Image.Image:
    picture = Image.new("RGB", size, backdrop)
    ImageDraw.Draw(picture).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=colour)
    return picture


def place(seed: int = 0, size: int = 160) -> NDArray[np.uint8]:
    """A cluttered backdrop of dull blots."""
    blots = np.random.default_rng(seed).integers(40, 140, (10, 10, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(blots).resize((size, size), Image.Resampling.NEAREST)).copy()


def test_a_studio_picture_s_box_is_its_product_and_a_margin() -> None:
    """100 × 60 at (50, 100), and 5 % of each side; one cell of the grid is 3 pixels."""
    assert BOX(studio((50, 100, 150, 160))) == pytest.approx((45, 97, 155, 163), abs=4)


@pytest.mark.parametrize("backdrop", ["white", "black", "lightblue", "gray"])
def test_any_plain_backdrop_will_do(backdrop: str) -> None:
    assert BOX(studio((60, 60, 140, 180), backdrop=backdrop, colour="orange")) == pytest.approx((56, 54, 144, 186), abs=4)


def test_a_box_is_in_the_picture_s_own_pixels() -> None:
    assert BOX(studio((300, 30, 500, 90), size=(600, 120))) == pytest.approx((290, 27, 510, 93), abs=10)


def test_noise_and_specks_of_a_backdrop_are_not_the_product() -> None:
    picture = np.asarray(studio((60, 60, 140, 140))).astype(int)
    picture += np.random.default_rng(0).integers(-12, 13, picture.shape)
    picture[3:5, 3:5] = 0
    assert BOX(Image.fromarray(picture.clip(0, 255).astype(np.uint8))) == pytest.approx((56, 56, 144, 144), abs=4)


def test_a_product_may_touch_one_side() -> None:
    assert BOX(studio((60, 80, 140, 200))) == pytest.approx((56, 74, 144, 200), abs=4)


def test_specks_all_over_a_plain_backdrop_do_not_make_the_whole_picture_its_core() -> None:
    """A floor's joints differ from the floor, but a product stands out more."""
    picture = studio((70, 70, 130, 150), backdrop="gray", colour="orange")
    draw = ImageDraw.Draw(picture)
    for at in range(5, 200, 47):
        draw.line((at, 0, at, 199), fill=(70, 70, 70), width=3)
        draw.line((0, at, 199, at), fill=(70, 70, 70), width=3)
    left, upper, right, lower = BOX(picture)
    assert left <= 75
    assert upper <= 75
    assert right >= 125
    assert lower >= 145
    assert (right - left) * (lower - upper) < 0.5 * 200 * 200


def test_a_small_product_is_shown_with_three_tenths_of_the_side() -> None:
    left, upper, right, lower = BOX(studio((100, 100, 112, 112)))
    assert (right - left, lower - upper) == pytest.approx((60, 60), abs=1)
    assert (left + right) / 2 == pytest.approx(106, abs=3)
    corner = BOX(studio((0, 0, 12, 12)))
    assert corner == pytest.approx((0, 0, 60, 60), abs=1)


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (64, 64), (161, 97)])
@pytest.mark.parametrize("kind", ["plain", "noise"])
def test_where_nothing_stands_out_every_box_is_inside(size: tuple[int, int], kind: str) -> None:
    picture = Image.new("RGB", size, "white")
    if kind == "noise":
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    left, upper, right, lower = BOX(picture)
    assert 0 <= left < right <= size[0]
    assert 0 <= upper < lower <= size[1]
    if kind == "plain":
        assert (left, upper, right, lower) == (0, 0, *size)


@pytest.mark.parametrize("at", [(30, 30), (50, 60), (70, 40)])
def test_in_a_photograph_the_box_holds_what_is_unlike_its_surroundings(at: tuple[int, int]) -> None:
    picture = place()
    x, y = at
    picture[y : y + 60, x : x + 50] = (250, 30, 200)
    left, upper, right, lower = BOX(Image.fromarray(picture))
    wide, high = min(right, x + 50) - max(left, x), min(lower, y + 60) - max(upper, y)
    assert wide * high >= 0.85 * 50 * 60, "most of the product is inside"
    assert (right - left) * (lower - upper) <= 2.5 * 50 * 60, "and not much else"


def test_the_smallest_box_is_that_of_trying_them_all() -> None:
    generator = np.random.default_rng(0)
    for share in (0.3, 0.6, 0.9, 1.0):
        mass = generator.random((6, 6)) * (generator.random((6, 6)) < 0.4)
        y0, y1, x0, x1 = regions._smallest(mass, share)
        enough = [
            (b - a) * (d - c)
            for a, b, c, d in product(range(7), repeat=4)
            if a < b and c < d and mass[a:b, c:d].sum() >= share * mass.sum() - 1e-12
        ]
        assert mass[y0:y1, x0:x1].sum() >= share * mass.sum() - 1e-12
        assert (y1 - y0) * (x1 - x0) == min(enough)


def test_a_detector_is_frozen_and_quick() -> None:
    picture = Image.fromarray(place())
    took = []
    for _ in range(20):
        started = time.perf_counter()
        found = BOX(picture)
        took.append(time.perf_counter() - started)
        assert found == Saliency().box(picture)
    assert min(took) < 2e-3


def test_without_a_detector_there_is_the_whole_picture_alone() -> None:
    picture = studio((50, 100, 150, 160))
    np.testing.assert_array_equal(views(picture, 32, ""), images.pixels(picture, 32)[None])


def test_with_a_detector_the_crop_comes_second() -> None:
    picture = studio((50, 100, 150, 160))
    made = views(picture, 32, "saliency")
    assert made.shape == (2, 3, 32, 32)
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(made[0], images.pixels(picture, 32))
    np.testing.assert_array_equal(made[1], images.pixels(picture.crop(BOX(picture)), 32))
    navy = [(view[0] < 128).mean() for view in made]
    assert navy[0] == pytest.approx(100 * 60 / 200**2, abs=0.03)
    assert navy[1] == pytest.approx(1 / 1.1**2, abs=0.08)


def test_another_detector_is_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    class LeftHalf:
        name = "left"

        def box(self, picture: Image.Image) -> regions.Box:
            return 0, 0, picture.width // 2, picture.height

    monkeypatch.setitem(DETECTORS, "left", LeftHalf())
    picture = studio((0, 0, 100, 200))
    assert (views(picture, 16, "left")[1] == np.array([0, 0, 128])[:, None, None]).all()


def test_a_detector_that_is_not_known_is_refused() -> None:
    with pytest.raises(InputError, match=r"core_region = 'yolo' is no detector \(there are: saliency\)"):
        views(studio((50, 100, 150, 160)), 32, "yolo")


def test_golden_views_are_the_ones_of_every_release() -> None:
    """Another value means other vectors from the same weights: a new contract, not a new number here."""
    assert golden_views(32, "") == images.golden_pixels(32)
    assert golden_views(32, "saliency") == "6cc90b8bd3a2145d0a4d06f5cf9f43dcd28d6719928d97e9d4311d58b79e6f5f"


@pytest.mark.parametrize(("knob", "value"), [("padding", 0.1), ("least", 0.6), ("mass", 0.8), ("backdrop", 150.0), ("plain", 1.1)])
def test_golden_views_tell_when_the_detector_has_changed(monkeypatch: pytest.MonkeyPatch, knob: str, value: float) -> None:
    before = golden_views(32, "saliency")
    monkeypatch.setattr(Saliency, knob, value)
    assert golden_views(32, "saliency") != before
