"""The four cleaning steps of stage 2b, on pairs small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from moon_ops.encoder.cleaning import balance, least_similar, mentions_enough, merge_spu
from moon_ops.errors import StageError


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


class Capitals:
    """Takes every distinct word in capitals for an entity."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def count(self, text: str) -> int:
        self.asked.append(text)
        return len({word for word in text.split() if word.isupper()})


def test_of_an_items_queries_the_least_similar_stays() -> None:
    kept = least_similar(ints(0, 1, 2, 3, 4), ints(7, 5, 7, 5, 9), floats(0.2, 0.3, 0.1, 0.4, 0.9))
    assert kept.tolist() == [1, 2, 4]
    assert kept.dtype == np.int64


def test_of_equally_similar_pairs_the_first_stays() -> None:
    assert least_similar(ints(3, 2, 1, 0), ints(8, 8, 8, 1), floats(0.5, 0.25, 0.25, 0.25)).tolist() == [1, 3]
    assert least_similar(np.arange(100), np.zeros(100, np.int64), np.full(100, -0.5, np.float32)).tolist() == [0]


def test_no_pairs_stay_none() -> None:
    assert least_similar(ints(), ints(), floats()).tolist() == []
    assert merge_spu(ints(), ints(4)).tolist() == []
    assert mentions_enough([], [], Capitals()).tolist() == []


def test_a_collapsed_encoder_is_a_clear_error() -> None:
    with pytest.raises(StageError, match="2 of 3 similarities"):
        least_similar(ints(0, 1, 2), ints(0, 0, 0), floats(0.1, np.nan, np.nan))


def test_arrays_of_other_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="2 queries, 1 items and 2 similarities"):
        least_similar(ints(0, 1), ints(0), floats(0.1, 0.2))


def test_skus_of_one_spu_are_one_group() -> None:
    groups = merge_spu(ints(3, 0, 1, 2, 0), ints(70, 50, 70, 60))
    assert groups.tolist() == [1, 2, 0, 2, 2]
    assert least_similar(np.arange(5), groups, floats(0.5, 0.4, 0.9, 0.3, 0.6)).tolist() == [0, 2, 3]


@pytest.mark.parametrize("row", [-1, 2])
def test_an_item_outside_the_catalogue_is_refused(row: int) -> None:
    with pytest.raises(IndexError):
        merge_spu(ints(0, row), ints(5, 6))


def test_both_texts_must_name_enough() -> None:
    queries = ["RED LAMP", "RED lamp", "RED LAMP", "", " ", "", "RED RED"]
    titles = ["BIG RED LAMP", "BIG RED LAMP", "big LAMP", "BIG LAMP", "BIG LAMP", "", "BIG LAMP"]
    kept = mentions_enough(queries, titles, Capitals())
    assert kept.tolist() == [True, False, False, True, True, False, False]
    assert mentions_enough(queries, titles, Capitals(), least=1).tolist() == [True, True, True, True, True, False, True]
    assert mentions_enough(queries, titles, Capitals(), least=3).tolist() == [False] * 7


def test_a_text_is_asked_about_once() -> None:
    recognizer = Capitals()
    mentions_enough(["A", "A", ""], ["B", "B", "A"], recognizer)
    assert sorted(recognizer.asked) == ["A", "B"]


def test_pairs_and_titles_must_match() -> None:
    with pytest.raises(ValueError, match="zip"):
        mentions_enough(["A", "B"], ["C"], Capitals())


def mix(categories: np.ndarray, chosen: np.ndarray) -> dict[int, int]:
    return {int(kind): int(n) for kind, n in zip(*np.unique(categories[chosen], return_counts=True), strict=True)}


def test_the_mix_is_that_of_the_exposed_items() -> None:
    categories = ints(1, 1, 1, 1, 2, 2, 3)
    exposed = ints(1, 2, 2, 2, 4, 4, 4, 4, 4)  # 4 has no pairs, 3 was never exposed: 1 to 3 remain
    chosen = balance(categories, exposed, 8, np.random.default_rng(0))
    assert mix(categories, chosen) == {1: 2, 2: 6}
    assert chosen.tolist() == sorted(chosen.tolist())
    assert chosen[2:].tolist() == [4, 4, 4, 5, 5, 5]
    assert len(set(chosen[:2].tolist())) == 2  # drawn without repeating


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, {}), (1, {2: 1}), (2, {1: 1, 2: 1}), (3, {1: 1, 2: 1, 3: 1}), (4, {1: 1, 2: 2, 3: 1}), (7, {1: 2, 2: 3, 3: 2})],
)
def test_what_cannot_be_shared_goes_to_the_largest_remainders(count: int, expected: dict[int, int]) -> None:
    """Shares 2 : 3 : 2. Of 1 pair: .29, .43, .29. Of 2: .57, .86, .57, a tie for the first. Of 4: 1.14, 1.71, 1.14."""
    categories = np.repeat(ints(1, 2, 3), 5)
    chosen = balance(categories, ints(1, 1, 2, 2, 2, 3, 3), count, np.random.default_rng(3))
    assert len(chosen) == count
    assert mix(categories, chosen) == expected


@pytest.mark.parametrize("count", [3, 5, 12, 13])
def test_every_pair_is_used_once_before_any_is_used_twice(count: int) -> None:
    used = np.bincount(balance(np.zeros(5, np.int64), ints(0), count, np.random.default_rng(1)), minlength=5)
    assert used.sum() == count
    assert used.max() - used.min() <= 1


def test_the_generator_alone_decides() -> None:
    categories = np.arange(1000) % 7
    first, again, other = (balance(categories, categories, 350, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(("categories", "exposed"), [(ints(1, 2), ints(3)), (ints(), ints(3)), (ints(1), ints())])
def test_without_a_common_category_there_is_no_mix(categories: np.ndarray, exposed: np.ndarray) -> None:
    with pytest.raises(StageError, match="there is no mix to follow"):
        balance(categories, exposed, 5, np.random.default_rng(0))
