"""Near-identical pictures and titles: exact values, and the banded search against all pairs."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from moon_ops.encoder.duplicates import from_hex, leaked, picture_twins, similar_text, twins
from moon_ops.inputs.images import inspect

BASE = 0xAAAAAAAAAAAAAAAA  # 32 bits set, as a picture with structure has
OTHER = 0xCCCCCCCCCCCCCCCC  # 32 bits from BASE


def hashes(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def flipped(value: int, *bits: int) -> int:
    for bit in bits:
        value ^= 1 << bit
    return value


def all_pairs(values: np.ndarray, most: int) -> list[int]:
    """Connected groups by comparing everything with everything, named by their smallest row."""
    labels = list(range(len(values)))
    for a in range(len(values)):
        for b in range(a):
            near = int(values[a] ^ values[b]).bit_count() <= most
            if near and min(int(values[a]).bit_count(), int(values[b]).bit_count()) >= 16:
                joined = {labels[a], labels[b]}
                labels = [min(joined) if label in joined else label for label in labels]
    return labels


def crowd(seed: int, size: int = 120) -> np.ndarray:
    """Hashes around a few centres, each with 0 to 12 bits changed, and some plain ones."""
    generator = np.random.default_rng(seed)
    centres = [int(c) for c in generator.integers(0, 2**64, 20, dtype=np.uint64)]
    changed = [flipped(centres[i % 20], *generator.choice(64, generator.integers(0, 13), replace=False).tolist()) for i in range(size)]
    return hashes(*changed, 0, 0, 1, 1 << 63, 1 << 63)


@pytest.mark.parametrize(("bits", "together"), [((), True), ((0, 21, 42, 63), True), ((0, 1, 2, 3), True), ((0, 13, 26, 39, 52), False)])
def test_four_bits_make_twins_and_five_do_not(bits: tuple[int, ...], together: bool) -> None:
    assert picture_twins(hashes(OTHER, BASE, flipped(BASE, *bits))).tolist() == [0, 1, 1 if together else 2]


def test_twins_of_twins_are_together_under_the_smallest_row() -> None:
    near, far = flipped(BASE, 0, 1, 2), flipped(BASE, 0, 1, 2, 30, 31, 32)
    assert picture_twins(hashes(far, OTHER, BASE, near, OTHER)).tolist() == [0, 1, 0, 0, 1]
    assert picture_twins(hashes(far, OTHER, BASE, OTHER)).tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize("most", [0, 1, 3, 4, 6, 8, 11])
@pytest.mark.parametrize("seed", [0, 1])
def test_bands_find_what_all_pairs_find(most: int, seed: int) -> None:
    values = crowd(seed)
    expected = all_pairs(values, most)
    assert picture_twins(values, most).tolist() == expected
    assert most < 3 or len(set(expected)) < len(values)


@pytest.mark.parametrize("most", [0, 4, 8])
def test_leaks_are_what_all_pairs_find(most: int) -> None:
    values = crowd(2)
    train, held = values[:60], values[60:]
    expected = [any(int(h ^ t).bit_count() <= most and min(int(h).bit_count(), int(t).bit_count()) >= 16 for t in train) for h in held]
    assert leaked(train, [""] * len(train), held, [""] * len(held), most).tolist() == expected
    assert most < 4 or 0 < sum(expected) < len(held)


@pytest.mark.parametrize(
    ("a", "b", "similarity"),
    [
        ("red table lamp", "red table lamp", 1.0),
        ("Red table lamp!", "LAMP table, red", 1.0),
        ("café", "cafe", 1.0),
        ("red lamp", "blue lamp", 1 / 3),
        ("a b c d", "a b c d e", 0.8),
        ("red red lamp", "red lamp", 1.0),
        ("red", "lamp", 0.0),
        ("", "lamp", 0.0),
        ("", "", 0.0),
        ("!", "!", 0.0),
    ],
)
def test_text_is_compared_as_a_set_of_words(a: str, b: str, similarity: float) -> None:
    assert similar_text(a, b) == pytest.approx(similarity)
    assert similar_text(b, a) == pytest.approx(similarity)


@pytest.mark.parametrize(
    ("mine", "theirs", "twin"),
    [("a b c d", "a b c d e", True), ("a b c", "a b c d", False), ("", "a", True), ("a", "", True), ("", "", True), ("?", "a", True)],
)
def test_text_counts_where_both_have_it(mine: str, theirs: str, twin: bool) -> None:
    near = flipped(BASE, 5, 50)
    assert leaked(hashes(OTHER, BASE), ["a b c d e", mine], hashes(near), [theirs]).tolist() == [twin]
    assert twins(hashes(OTHER, BASE, near), ["", mine, theirs]).tolist() == [0, 1, 1 if twin else 2]


def test_one_of_many_titles_under_a_placeholder_picture_is_found() -> None:
    titles = ["red lamp", "blue lamp", "green lamp", "red lamp"]
    assert leaked(hashes(BASE, BASE), titles[:2], hashes(*[BASE] * 3), titles[1:]).tolist() == [True, False, True]
    assert twins(hashes(*[BASE] * 4), titles).tolist() == [0, 1, 2, 0]


def test_an_entry_without_text_holds_two_together() -> None:
    assert twins(hashes(BASE, BASE, BASE), ["red", "blue", ""]).tolist() == [0, 0, 0]


def test_a_threshold_of_text_is_obeyed() -> None:
    assert leaked(hashes(BASE), ["a b c"], hashes(BASE), ["a b c d"], least_text=0.75).tolist() == [True]


@pytest.mark.parametrize("value", [0, 1 << 63, 2**15 - 1])
def test_plain_and_missing_pictures_are_nobodys_twins(value: int) -> None:
    assert picture_twins(hashes(value, value)).tolist() == [0, 1]
    assert leaked(hashes(value), ["red lamp"], hashes(value), ["red lamp"]).tolist() == [False]
    assert leaked(hashes(2**16 - 1), [""], hashes(2**16 - 1), [""]).tolist() == [True]


def test_nothing_has_no_twins() -> None:
    assert picture_twins(hashes()).tolist() == []
    assert leaked(hashes(), [], hashes(BASE), [""]).tolist() == [False]
    assert leaked(hashes(BASE), [""], hashes(), []).tolist() == []


@pytest.mark.parametrize("most", [-1, 64])
def test_a_distance_that_cannot_be_looked_up_is_refused(most: int) -> None:
    with pytest.raises(ValueError, match=f"most = {most}"):
        picture_twins(hashes(BASE), most)


def test_the_lakes_hex_digits_are_read() -> None:
    assert from_hex(["8000000000000001", None, "", "ffffffffffffffff"]).tolist() == [2**63 + 1, 0, 0, 2**64 - 1]


def stored(picture: Image.Image, **options: int) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", **options)
    return stream.getvalue()


def phashes(contents: Sequence[bytes]) -> np.ndarray:
    return from_hex([inspect(content).phash for content in contents])


def test_a_picture_and_its_recompressed_copy_are_twins_and_white_ones_are_not() -> None:
    y, x = np.mgrid[0:120, 0:160]
    drawn = [np.sin(x / 17 + y / 29) + np.cos(x * y / 900), np.cos(x / 9) * np.sin(y / 21) + np.sin((x - y) / 33)]
    one, two = (Image.fromarray((127 + 60 * d).clip(0, 255).astype(np.uint8)) for d in drawn)
    white = Image.new("RGB", (50, 50), "white")
    contents = [stored(one, quality=95), stored(two), stored(one.resize((80, 60)), quality=40), stored(white), stored(white, quality=20)]
    assert picture_twins(phashes(contents)).tolist() == [0, 1, 0, 3, 4]
