"""Row numbers: 0 for nothing, 1 for everything that training did not know, and the known values in order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from moon_ops.ctr.vocabulary import FEWEST_WORD_ROWS, MOST_WORD_ROWS, WORDS, Vocabulary, statistics, words
from moon_ops.embeddings.as_of import Joined
from moon_ops.errors import ContractError

COLUMNS = {
    "query_id": pa.chunked_array([[5, 5, 5, 6, 6, 7, -1, -1]]),
    "session_id": pa.chunked_array([[1, 1, 2, 3, 3, 4, 5, 6]]),
    "item_id": pa.chunked_array([[30, 10, 10], [30, 20, None, 40, 40]]),
    "user_id": pa.chunked_array([[7, 7, 7, 7, 7, 8, 9, 9]]),
    "spu_id": pa.chunked_array([[3, 1, 1, 3, 2, 2, 4, 4]]),
    "category": pa.chunked_array([["mugs", "hats", "hats", "mugs", "", "", None, None]]),
    "brand": pa.chunked_array([["Acme", "", "", "Acme", "Zoe", "Bo", "Bo", None]]),
    "seller_id": pa.chunked_array([[-1, -1, 5, 5, 6, None, None, None]]),
    "price": pa.chunked_array([[10.0, 20.0, 20.0, None, 30.0, 40.0, 50.0, 0.0]]),
    "label": pa.chunked_array([[1, 0, 0, 0, 0, 0, 1, 0]]),
    "text": pa.chunked_array([["Red dress", "red hat", None, "", None, None, None, "hat"]], pa.string()),
}
ROWS = 2048  # of words


Wide = Callable[[pa.Table], Joined]


@pytest.fixture
def vocabulary(wide: Wide) -> Vocabulary:
    return Vocabulary.fit(wide(pa.table(COLUMNS)))


def test_known_values_are_those_seen_twice_in_order_and_queries_in_two_sessions(vocabulary: Vocabulary) -> None:
    assert {name: some.tolist() for name, some in vocabulary.values.items()} == {
        "item": [10, 30, 40],
        "user": [7, 9],
        "query": [5],
        "spu": [1, 2, 3, 4],
        "category": ["hats", "mugs"],
        "brand": ["Acme", "Bo"],
        "seller": [5],
    }


def test_nothing_is_0_and_the_unknown_is_1(vocabulary: Vocabulary) -> None:
    assert vocabulary.encode("item", np.array([[10, 30, 40], [20, 99, -1]])).tolist() == [[2, 3, 4], [1, 1, 0]]
    assert vocabulary.encode("category", np.array(["mugs", "hats", "shoes", "", None], object)).tolist() == [3, 2, 1, 0, 0]
    assert vocabulary.encode("seller", np.array([5, 6, -1])).tolist() == [2, 1, 0]


def test_every_row_number_fits_its_table(vocabulary: Vocabulary) -> None:
    sizes = vocabulary.sizes()
    assert sizes == {"item": 5, "user": 4, "query": 3, "spu": 6, "category": 4, "brand": 4, "seller": 3, "price": 12}
    prices = vocabulary.price(np.array([0.01, 1e9]))
    assert prices.min() >= 2
    assert prices.max() < sizes["price"]


def test_an_items_category_is_known_from_training(vocabulary: Vocabulary) -> None:
    """Rows 2, 3, 4 are items 10 (hats), 30 (mugs) and 40 (which had none)."""
    assert vocabulary.category_of(np.array([[0, 1], [2, 3], [4, 4]])).tolist() == [[0, 1], [2, 3], [0, 0]]


def test_prices_fall_into_buckets_of_equal_share(wide: Wide) -> None:
    prices = np.arange(1.0, 97.0)
    many = {name: pa.chunked_array(column.chunks * 12) for name, column in COLUMNS.items()}
    buckets = Vocabulary.fit(wide(pa.table({**many, "price": prices}))).price(prices)
    assert np.abs(np.bincount(buckets)[2:] - 9.6).max() < 1
    assert (np.diff(buckets) >= 0).all()


def test_a_missing_price_is_nothing(vocabulary: Vocabulary) -> None:
    assert vocabulary.price(np.array([0.0, -3.0, np.nan, np.inf])).tolist() == [0, 0, 0, 0]


def test_one_price_for_all_and_no_price_at_all(wide: Wide) -> None:
    same = Vocabulary.fit(wide(pa.table({**COLUMNS, "price": [5.0] * 8})))
    assert same.price(np.array([4.0, 5.0, 6.0])).tolist() == [2, 3, 3]
    none = Vocabulary.fit(wide(pa.table({**COLUMNS, "price": pa.nulls(8, pa.float64())})))
    assert none.price(np.array([4.0, 0.0])).tolist() == [2, 0]


def test_what_is_saved_is_what_is_loaded(vocabulary: Vocabulary, tmp_path: Path) -> None:
    vocabulary.save(tmp_path)
    assert Vocabulary.load(tmp_path) == vocabulary


def test_ids_are_arrays_and_the_file_is_that_of_before(vocabulary: Vocabulary, tmp_path: Path) -> None:
    """Releases of before are read, and those of before can read what is written now."""
    ids = {name for name, some in vocabulary.values.items() if isinstance(some, np.ndarray) and some.dtype == np.int64}
    assert ids == {"item", "user", "query", "spu", "seller"}
    assert all(isinstance(vocabulary.values[name], pa.StringArray) for name in ("category", "brand"))
    assert vocabulary.item_category.nbytes == 4 * 3
    vocabulary.save(tmp_path)
    written = (tmp_path / "vocabulary.json").read_text()
    content = json.loads(written)
    assert list(content) == ["values", "item_category", "price_edges", "own", "scales", "prior", "word_rows", "bigrams"]
    assert content["values"]["item"] == [10, 30, 40]
    assert content["values"]["category"] == ["hats", "mugs"]
    assert content["item_category"] == [2, 3, 0]
    assert written == json.dumps(content) + "\n"
    assert Vocabulary(**content) == vocabulary
    assert Vocabulary(**{**content, "item_category": [2, 3, 1]}) != vocabulary


def test_a_table_that_knows_nothing_knows_no_value() -> None:
    bare = Vocabulary({"item": [], "brand": []}, [], [])
    assert bare.encode("item", np.array([[3, -1]])).tolist() == [[1, 0]]
    assert bare.encode("brand", pa.chunked_array([["Acme", ""]])).tolist() == [1, 0]
    assert bare.category_of(np.array([0, 1])).tolist() == [0, 1]


def test_large_ids_and_odd_texts_are_in_order(wide: Wide) -> None:
    """Keys of texts have 63 bits; texts are ordered by code points, those beyond 16 bits, too."""
    ids, brands = [2**62 + 1, 2**62, 5, 2**62 + 1, 2**62, 5, 7, 7], ["é", "\U0001f600", "z", "\uffee", "é", "\U0001f600", "z", "\uffee"]
    found = Vocabulary.fit(wide(pa.table({**COLUMNS, "item_id": ids, "brand": brands})))
    assert found.values["item"].tolist() == [5, 7, 2**62, 2**62 + 1]
    assert found.values["brand"].tolist() == ["z", "é", "\uffee", "\U0001f600"]
    assert found.encode("item", np.array([2**62 + 1, 2**62 + 2, 5])).tolist() == [5, 1, 2]


def test_a_directory_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"holds no vocabulary\.json"):
        Vocabulary.load(tmp_path)


@pytest.mark.parametrize("bigrams", [False, True])
def test_words_are_the_same_for_ever(bigrams: bool) -> None:
    """A trained model reads these rows: they must not depend on the process, the order or the other texts."""
    red, dress = 1957, 1580
    assert words(["Red dress", None, "", "dress, red!"], ROWS, bigrams=bigrams).tolist() == [
        [red, dress, 0, 0, 0, 0],
        [0] * WORDS,
        [0] * WORDS,
        [dress, red, 0, 0, 0, 0],
    ]


def test_words_beyond_the_most_are_dropped_and_none_has_the_row_of_nothing() -> None:
    found = words([" ".join(f"word{n}" for n in range(100 * k, 100 * k + WORDS + 1)) for k in range(300)], ROWS, bigrams=True)
    assert found.shape == (300, WORDS)
    assert found.max() < ROWS
    assert (found > 0).all()
    assert words(["a b c d e f g"], ROWS, bigrams=True).tolist() == words(["a b c d e f"], ROWS, bigrams=True).tolist()
    assert words(["лампа"], ROWS, bigrams=True)[0, 0] > 0


def test_a_query_without_spaces_is_no_single_word(vocabulary: Vocabulary, tmp_path: Path) -> None:
    """Each Chinese or Japanese query was a word of its own: two that shared all but one character had nothing in common."""
    dress, red_dress, mixed = words(["连衣裙", "红色连衣裙", "iPhone手机壳 M_1"], ROWS, bigrams=True).tolist()
    alone = words(["连衣", "衣裙", "红色", "色连", "iphone", "手机", "机壳", "m_1", "猫"], ROWS, bigrams=True)[:, 0].tolist()
    assert dress == [*alone[:2], 0, 0, 0, 0]
    assert red_dress == [alone[2], alone[3], *alone[:2], 0, 0]
    assert mixed == [*alone[4:8], 0, 0]
    assert alone[8] > 0
    assert vocabulary.bigrams
    vocabulary.save(tmp_path)
    content = json.loads((tmp_path / "vocabulary.json").read_text())
    del content["bigrams"]  # a model of before
    (tmp_path / "vocabulary.json").write_text(json.dumps(content))
    assert not Vocabulary.load(tmp_path).bigrams
    assert np.count_nonzero(words(["红色连衣裙"], ROWS, bigrams=False)) == 1


def test_dense_by_hand() -> None:
    found = statistics(np.array([0.0, 180.0]), np.array([0.0, 34.4]), np.array([0.0, 3.0]), prior=0.08)
    assert found[0] == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)
    assert found[1] == pytest.approx([np.log(181) / 5, np.log(0.18 / 0.08), np.log(4) / 2], rel=1e-6)
    assert found.dtype == np.float32


def test_an_items_click_rate_is_told_in_proportion_to_the_shops() -> None:
    """A shop of 2 % clicks: an item without impressions is as good as the mean one, one with as many clicks as ever better by its rate."""
    found = statistics(np.array([0.0, 180.0]), np.array([0.0, 3.6]), np.zeros(2), prior=0.02)
    assert found[:, 1] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert statistics(np.array([180.0]), np.array([7.6]), np.zeros(1), prior=0.02)[0, 1] == pytest.approx(np.log(2.0), rel=1e-6)


def test_the_prior_and_the_rows_of_words_are_those_of_the_rows_trained_on(vocabulary: Vocabulary, wide: Wide, tmp_path: Path) -> None:
    assert vocabulary.prior == 0.25
    assert vocabulary.word_rows == FEWEST_WORD_ROWS
    texts = [f"word{n} other{n} {'x' * (n % 7 + 1)}" for n in range(8)]
    many = {name: pa.chunked_array(column.chunks * 50) for name, column in COLUMNS.items()}
    many["text"] = pa.chunked_array([[f"{text} {n}" for n in range(50) for text in texts]])
    large = Vocabulary.fit(wide(pa.table(many)))
    assert large.word_rows == 1024  # 16 + 7 + 50 words, eight rows each, and up to a power of two
    rows = large.words(["word1 49"])
    assert 0 < rows[0, :2].min() <= rows.max() < 1024
    assert MOST_WORD_ROWS == 1 << 20


def test_a_vocabulary_of_before_has_what_was_constant_then(vocabulary: Vocabulary, tmp_path: Path) -> None:
    vocabulary.save(tmp_path)
    content = json.loads((tmp_path / "vocabulary.json").read_text())
    del content["prior"], content["word_rows"]
    (tmp_path / "vocabulary.json").write_text(json.dumps(content))
    old = Vocabulary.load(tmp_path)
    assert (old.prior, old.word_rows) == (0.08, 2048)
    assert old.words(["Red dress"]).tolist() == words(["Red dress"], ROWS, bigrams=True).tolist()


def test_one_class_has_a_rate_whose_logarithm_ends(wide: Wide) -> None:
    never = Vocabulary.fit(wide(pa.table({**COLUMNS, "label": [0] * 8})))
    assert np.isfinite(statistics(np.zeros(1), np.zeros(1), np.zeros(1), prior=never.prior)).all()
