"""From a small history to a model's inputs, every value by hand."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from moon_ops.ctr import dataset
from moon_ops.ctr.dataset import Rows, Tables, encode
from moon_ops.ctr.models import INPUTS
from moon_ops.ctr.vocabulary import Vocabulary, words
from moon_ops.embeddings.table import RepresentationTable
from moon_ops.errors import ContractError, StageError
from moon_ops.lake.tables import SCHEMAS, Lake

MAY = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
DAY, SECOND = dt.timedelta(days=1), dt.timedelta(seconds=1)
QUERIES = [
    {"query_id": 71, "text": "Red dress", "image_id": None},
    {"query_id": 72, "text": None, "image_id": "abc"},
]


def event(kind: str, item: int, user: int | None, second: int, query: int | None = None, session: int | None = None) -> dict[str, Any]:
    when = MAY + second * SECOND
    return {"event": kind, "item_id": item, "user_id": user, "event_timestamp": when, "query_id": query, "session_id": session}


def lake_of(path: Path, *events: dict[str, Any]) -> Lake:
    lake = Lake(str(path / "lake"))
    lake.append("events", pa.Table.from_pylist(list(events), schema=SCHEMAS["events"]))
    lake.append("queries", pa.Table.from_pylist([{"event_timestamp": MAY, **q} for q in QUERIES], schema=SCHEMAS["queries"]))
    return lake


def labels(path: Path, *events: dict[str, Any], end: dt.datetime = MAY + DAY) -> list[tuple[int, int]]:
    """(second, label) of each impression on May 1."""
    rows = dataset.impressions(lake_of(path, *events), MAY, end)
    return [((t - MAY).seconds, label) for t, label in zip(rows["event_timestamp"].to_pylist(), rows["label"].to_pylist(), strict=True)]


def test_impressions_come_in_time_order_with_their_query(tmp_path: Path) -> None:
    lake = lake_of(
        tmp_path,
        event("impression", 2, 5, 30, query=72, session=1),
        event("impression", 1, 5, 10, query=71, session=1),
        event("impression", 3, 6, 20),
        event("impression", 3, None, 20),  # of nobody
        event("cart", 1, 5, 12, query=71, session=1),
    )
    rows = dataset.impressions(lake, MAY, MAY + DAY).to_pylist()
    keys = ("event_timestamp", "user_id", "item_id", "query_id", "session_id", "label", "text", "is_image")
    assert [tuple(row[k] for k in keys) for row in rows] == [
        (MAY + 10 * SECOND, 5, 1, 71, 1, 0, "Red dress", False),
        (MAY + 20 * SECOND, 6, 3, -1, -1, 0, None, False),
        (MAY + 30 * SECOND, 5, 2, 72, 1, 0, None, True),
    ]
    assert set(rows[0]) == set(keys)


@pytest.mark.parametrize(
    ("click", "label"),
    [
        (event("click", 1, 5, 15, query=71, session=1), 1),
        (event("click", 1, 5, 10, query=71, session=1), 1),
        (event("click", 2, 5, 15, query=71, session=1), 0),
        (event("click", 1, 6, 15, query=71, session=1), 0),
        (event("click", 1, 5, 15, query=71, session=2), 0),
        (event("click", 1, 5, 15, query=72, session=1), 0),
        (event("click", 1, 5, 15, session=1), 0),
        (event("purchase", 1, 5, 15, query=71, session=1), 0),
    ],
    ids=["after", "at the same time", "other item", "other user", "other session", "other query", "no query", "no click"],
)
def test_a_click_belongs_to_its_user_item_session_and_query(tmp_path: Path, click: dict[str, Any], label: int) -> None:
    assert labels(tmp_path, event("impression", 1, 5, 10, query=71, session=1), click) == [(10, label)]


def test_a_click_makes_no_later_impression_a_clicked_one(tmp_path: Path) -> None:
    """In a shop without sessions it would label every later impression, whose features show that very click."""
    history = [event("impression", 1, 5, 10), event("click", 1, 5, 11), event("impression", 1, 5, 500), event("impression", 1, 5, 900)]
    assert labels(tmp_path, *history) == [(10, 1), (500, 0), (900, 0)]


def test_a_click_after_the_window_is_not_known_in_it(tmp_path: Path) -> None:
    history = [event("impression", 1, 5, 10, session=1), event("click", 1, 5, 20, session=1)]
    assert labels(tmp_path / "short", *history, end=MAY + 20 * SECOND) == [(10, 0)]
    assert labels(tmp_path / "long", *history, end=MAY + 21 * SECOND) == [(10, 1)]


def test_clicking_twice_does_not_double_the_impression(tmp_path: Path) -> None:
    history = [event("impression", 1, 5, 10, session=1), event("click", 1, 5, 11, session=1), event("click", 1, 5, 12, session=1)]
    assert labels(tmp_path, *history) == [(10, 1)]


def test_windows_are_half_open(tmp_path: Path) -> None:
    history = [event("impression", n, 5, n, session=1) for n in (9, 10, 19, 20)]
    rows = dataset.impressions(lake_of(tmp_path, *history), MAY + 10 * SECOND, MAY + 20 * SECOND)
    assert rows["item_id"].to_pylist() == [10, 19]


def test_no_impressions_are_an_error(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, event("impression", 1, None, 10), event("click", 1, 5, 10))
    with pytest.raises(StageError, match="no impressions of known users between 2026-05-01 and 2026-05-02"):
        dataset.impressions(lake, MAY, MAY + DAY)


JOINED = pa.table(  # as features.historical gives them
    {
        "user_id": [5, 5, 6],
        "item_id": [30, 10, 99],
        "query_id": [71, 72, -1],
        "session_id": [1, 1, 2],
        "label": [1, 0, 0],
        "text": ["Red dress", None, None],
        "is_image": [False, True, False],
        "spu_id": pa.array([3, 1, None], pa.int64()),
        "category": ["mugs", "hats", None],
        "brand": ["Acme", "", None],
        "seller_id": pa.array([8, -1, None], pa.int64()),
        "price": [5.0, 50.0, None],
        "impressions": pa.array([180, 0, None], pa.int64()),
        "clicks": pa.array([20, 0, None], pa.int64()),
        "purchases": pa.array([3, 0, None], pa.int64()),
        "item_ids": pa.array([[10, 99, 30, 20], [20], None], pa.list_(pa.int64())),
        "query_ids": pa.array([[71, -1, 72, 72], [-1], None], pa.list_(pa.int64())),
        "times": pa.array([[1, 2, 3, 4], [1], None], pa.list_(pa.int64())),
    }
)
VOCABULARY = Vocabulary(
    {"item": [10, 20, 30], "user": [5], "spu": [1, 3], "category": ["hats", "mugs"], "brand": ["Acme"], "seller": [7]},
    item_category=[2, 2, 3],
    price_edges=[10.0, 20.0],
)


@pytest.fixture
def tables() -> Tables:
    """Items 10 and 30 have vectors, 20 and 99 have not; so has query 72, but not 71."""
    items = RepresentationTable(np.array([10, 30]), np.array([[1.0, 0.0], [0.0, 1.0]], np.float32), "c-one")
    return Tables(items, RepresentationTable(np.array([72]), np.array([[0.6, 0.8]], np.float32), "c-one"))


@pytest.fixture
def encoded(tables: Tables) -> Rows:
    return encode(JOINED, VOCABULARY, tables, behaviors=3)


def test_ids_are_rows_of_their_tables(encoded: Rows) -> None:
    expected = {
        "item": [4, 2, 1],
        "user": [2, 2, 1],
        "spu": [3, 2, 0],
        "category": [3, 2, 0],
        "brand": [2, 0, 0],
        "seller": [1, 0, 0],
        "price": [2, 4, 0],
    }
    assert {name: encoded.arrays[name].tolist() for name in expected} == expected


def test_behaviours_are_the_last_ones_newest_last_filled_from_the_left(encoded: Rows) -> None:
    assert encoded.arrays["behavior_item"].tolist() == [[1, 4, 3], [0, 0, 3], [0, 0, 0]]
    assert encoded.arrays["behavior_category"].tolist() == [[1, 3, 2], [0, 0, 2], [0, 0, 0]]


def test_vectors_are_row_numbers(encoded: Rows) -> None:
    expected = {
        "target_vector": [1, 0, -1],
        "query_vector": [-1, 0, -1],
        "behavior_vector": [[-1, 1, -1], [-1, -1, -1], [-1, -1, -1]],
        "behavior_query_vector": [[-1, 0, 0], [-1, -1, -1], [-1, -1, -1]],
    }
    assert {name: rows.tolist() for name, rows in encoded.vector_rows.items()} == expected


def test_the_rest_of_the_inputs(encoded: Rows) -> None:
    rate = (20 + 1.6) / 200
    assert encoded.arrays["dense"][0] == pytest.approx([np.log(181) / 5, np.log(rate / 0.08), np.log(4) / 2, 0.0], rel=1e-6)
    assert encoded.arrays["dense"][1:] == pytest.approx(np.array([[0, 0, 0, 1], [0, 0, 0, 0]]), abs=1e-6)
    assert encoded.arrays["words"].tolist() == words(["red dress", None, None]).tolist()
    assert (encoded.labels.tolist(), encoded.user_ids.tolist(), encoded.item_ids.tolist()) == ([1, 0, 0], [5, 5, 6], [30, 10, 99])
    assert len(encoded) == 3


def test_a_longer_memory_than_any_user_has(tables: Tables) -> None:
    found = encode(JOINED, VOCABULARY, tables, behaviors=6).arrays["behavior_item"]
    assert found.tolist() == [[0, 0, 2, 1, 4, 3], [0, 0, 0, 0, 0, 3], [0, 0, 0, 0, 0, 0]]


def test_nobody_has_behaved_yet(tables: Tables) -> None:
    """The first day of a shop: lists are all null or all empty."""
    nothing = pa.array([None, [], None], pa.list_(pa.int64()))
    first_day = JOINED.drop_columns(["item_ids", "query_ids"]).append_column("item_ids", nothing).append_column("query_ids", nothing)
    found = encode(first_day, VOCABULARY, tables, behaviors=2)
    assert found.arrays["behavior_item"].tolist() == [[0, 0]] * 3
    assert found.vector_rows["behavior_vector"].tolist() == [[-1, -1]] * 3


def test_rows_in_several_chunks_are_the_same_rows(tables: Tables, encoded: Rows) -> None:
    pieces = encode(pa.concat_tables([JOINED.slice(0, 1), JOINED.slice(1)]), VOCABULARY, tables, behaviors=3)
    for name, column in encoded.arrays.items():
        assert pieces.arrays[name].tolist() == column.tolist(), name
    tail = encode(JOINED.slice(1), VOCABULARY, tables, behaviors=3)
    assert tail.arrays["behavior_item"].tolist() == [[0, 0, 3], [0, 0, 0]]


def test_columns_are_the_models_inputs_with_gathered_vectors(encoded: Rows, tables: Tables) -> None:
    columns = dataset.columns_of(encoded, tables, np.array([1, 0]))
    assert tuple(columns) == INPUTS
    assert columns["item"].tolist() == [2, 4]
    assert columns["target_vector"].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert columns["query_vector"] == pytest.approx(np.array([[0.6, 0.8], [0.0, 0.0]]))
    assert columns["behavior_vector"].tolist() == [[[0.0, 0.0]] * 3, [[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]]
    assert columns["behavior_query_vector"][1] == pytest.approx(np.array([[0, 0], [0.6, 0.8], [0.6, 0.8]]))


def test_batches_follow_the_order_given(encoded: Rows, tables: Tables) -> None:
    found = list(dataset.batches(encoded, tables, 2, np.array([2, 0, 1])))
    assert [label.tolist() for _, label in found] == [[0.0, 1.0], [0.0]]
    assert [columns[INPUTS.index("item")].tolist() for columns, _ in found] == [[1, 4], [2]]
    assert found[0][0][INPUTS.index("behavior_vector")].shape == (2, 3, 2)
    assert found[0][0][INPUTS.index("dense")].dtype == torch.float32


def test_a_shop_without_queries_has_no_query_vectors(tables: Tables) -> None:
    none = Tables(tables.items, RepresentationTable(np.zeros(0, np.int64), np.zeros((0, 2), np.float32), "c-one"))
    columns = dataset.columns_of(encode(JOINED, VOCABULARY, none, behaviors=3), none, np.arange(3))
    assert columns["query_vector"].tolist() == [[0.0, 0.0]] * 3
    assert columns["behavior_query_vector"].shape == (3, 3, 2)


def test_vectors_of_two_contracts_are_refused(tables: Tables) -> None:
    other = RepresentationTable(tables.queries.ids, tables.queries.vectors, "c-two")
    with pytest.raises(ContractError, match="contract c-one was about to meet contract c-two"):
        Tables(tables.items, other)
