"""From a small history to a model's inputs, every value by hand."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from moon_ops.ctr import dataset
from moon_ops.ctr.dataset import Rows, encode
from moon_ops.ctr.impressions import impressions
from moon_ops.ctr.models import BASE, IDS
from moon_ops.ctr.vectors import Tables
from moon_ops.ctr.vocabulary import Vocabulary, words
from moon_ops.embeddings.as_of import Joined
from moon_ops.embeddings.table import RepresentationTable
from moon_ops.errors import ContractError, StageError
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS, STAMP

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
    rows = impressions(lake_of(path, *events), MAY, end)
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
    rows = impressions(lake, MAY, MAY + DAY).to_pylist()
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


def test_a_click_belongs_to_the_last_impression_before_it(tmp_path: Path) -> None:
    history = [event("impression", 1, 5, second) for second in (10, 20, 30)] + [event("click", 1, 5, 25)]
    assert labels(tmp_path, *history) == [(10, 0), (20, 1), (30, 0)]


def test_rows_of_one_moment_stand_in_one_order(tmp_path: Path) -> None:
    """Days for times, and no sessions: what decides must be in the rows, not in the threads that read them."""
    drawn = np.random.default_rng(0).integers(0, 50, (3000, 2)).tolist()
    lake = lake_of(tmp_path, *(event("impression", item, user, 0) for item, user in drawn))
    first, second = (impressions(lake, MAY, MAY + DAY) for _ in range(2))
    assert first.equals(second)
    assert first.select(["item_id", "user_id"]).to_pylist() == [{"item_id": i, "user_id": u} for i, u in sorted(map(tuple, drawn))]


def test_a_click_after_the_window_is_not_known_in_it(tmp_path: Path) -> None:
    history = [event("impression", 1, 5, 10, session=1), event("click", 1, 5, 20, session=1)]
    assert labels(tmp_path / "short", *history, end=MAY + 20 * SECOND) == [(10, 0)]
    assert labels(tmp_path / "long", *history, end=MAY + 21 * SECOND) == [(10, 1)]


def test_clicking_twice_does_not_double_the_impression(tmp_path: Path) -> None:
    history = [event("impression", 1, 5, 10, session=1), event("click", 1, 5, 11, session=1), event("click", 1, 5, 12, session=1)]
    assert labels(tmp_path, *history) == [(10, 1)]


def test_windows_are_half_open(tmp_path: Path) -> None:
    history = [event("impression", n, 5, n, session=1) for n in (9, 10, 19, 20)]
    rows = impressions(lake_of(tmp_path, *history), MAY + 10 * SECOND, MAY + 20 * SECOND)
    assert rows["item_id"].to_pylist() == [10, 19]


def test_no_impressions_are_an_error(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, event("impression", 1, None, 10), event("click", 1, 5, 10))
    with pytest.raises(StageError, match="no impressions of known users between 2026-05-01 and 2026-05-02"):
        impressions(lake, MAY, MAY + DAY)


TIMES = [MAY + 9 * DAY, MAY + 9 * DAY, MAY + 9 * DAY]
JOINED = pa.table(
    {
        "user_id": [5, 5, 6],
        "item_id": [30, 10, 99],
        "query_id": [71, 72, -1],
        "session_id": [1, 1, 2],
        "event_timestamp": pa.array(TIMES, STAMP),
        "label": [1, 0, 0],
        "text": pa.array(["Red dress", None, None], pa.string()),
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
    }
)
VOCABULARY = Vocabulary(
    {"item": [10, 20, 30], "user": [5], "query": [72], "spu": [1, 3], "category": ["hats", "mugs"], "brand": ["Acme"], "seller": [7]},
    item_category=[2, 2, 3],
    price_edges=[10.0, 20.0],
)
EVERYTHING = (*BASE, "behavior_query", "target_vector", "query_vector", "behavior_vector", "behavior_query_vector")
Wide = Callable[[pa.Table], Joined]


@pytest.fixture
def tables() -> Tables:
    """Items 10 and 30 have vectors, 20 and 99 have not; so has query 72, but not 71."""
    items = RepresentationTable(np.array([10, 30]), np.array([[1.0, 0.0], [0.0, 1.0]], np.float32), "c-one")
    return Tables(items, RepresentationTable(np.array([72]), np.array([[0.6, 0.8]], np.float32), "c-one"))


@pytest.fixture
def encoded(wide: Wide, tables: Tables) -> Rows:
    return encode(wide(JOINED), VOCABULARY, tables, behaviors=3)


def inputs(rows: Rows, *chosen: int) -> dict[str, Any]:
    return rows.columns(np.array(chosen or range(len(rows))), EVERYTHING)


def test_ids_are_rows_of_their_tables(encoded: Rows) -> None:
    expected = {
        "item": [4, 2, 1],
        "user": [2, 2, 1],
        "query": [1, 2, 0],
        "spu": [3, 2, 0],
        "category": [3, 2, 0],
        "brand": [2, 0, 0],
        "seller": [1, 0, 0],
        "price": [2, 4, 0],
    }
    found = inputs(encoded)["ids"]
    assert {name: found[:, place].tolist() for place, name in enumerate(IDS)} == expected


def test_behaviours_are_the_last_ones_newest_last_filled_from_the_left(encoded: Rows) -> None:
    found = inputs(encoded)
    assert found["behavior_item"].tolist() == [[1, 4, 3], [0, 0, 3], [0, 0, 0]]
    assert found["behavior_category"].tolist() == [[1, 3, 2], [0, 0, 2], [0, 0, 0]]
    assert found["behavior_query"].tolist() == [[0, 2, 2], [0, 0, 0], [0, 0, 0]]


def test_vectors_are_gathered_for_the_rows_of_a_batch(encoded: Rows) -> None:
    found = inputs(encoded, 1, 0)
    assert found["target_vector"].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert found["query_vector"] == pytest.approx(np.array([[0.6, 0.8], [0.0, 0.0]]))
    assert found["behavior_vector"].tolist() == [[[0.0, 0.0]] * 3, [[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]]
    assert found["behavior_query_vector"][1] == pytest.approx(np.array([[0, 0], [0.6, 0.8], [0.6, 0.8]]))
    nothing = inputs(encoded, 2)
    assert all((nothing[name] == 0).all() for name in EVERYTHING if name.endswith("_vector"))


def test_the_rest_of_the_inputs(encoded: Rows) -> None:
    rate, found = (20 + 1.6) / 200, inputs(encoded)
    assert found["dense"][0] == pytest.approx([np.log(181) / 5, np.log(rate / 0.08), np.log(4) / 2, 0.0], rel=1e-6)
    assert found["dense"][1:] == pytest.approx(np.array([[0, 0, 0, 1], [0, 0, 0, 0]]), abs=1e-6)
    assert found["words"].tolist() == words(["red dress", None, None], 2048, bigrams=True).tolist()
    assert (encoded.labels.tolist(), encoded.user_ids.tolist(), encoded.item_ids.tolist()) == ([1, 0, 0], [5, 5, 6], [30, 10, 99])
    assert len(encoded) == 3


def test_a_longer_memory_than_any_user_has(wide: Wide, tables: Tables) -> None:
    found = inputs(encode(wide(JOINED), VOCABULARY, tables, behaviors=6))["behavior_item"]
    assert found.tolist() == [[0, 0, 2, 1, 4, 3], [0, 0, 0, 0, 0, 3], [0, 0, 0, 0, 0, 0]]


def test_of_long_sequences_the_most_similar_are_read_in_their_order(wide: Wide, tables: Tables) -> None:
    """Row 0 asks for item 30, whose own vector is among its behaviours; row 1 for item 10, and has one behaviour without a vector."""
    rows = encode(wide(JOINED), VOCABULARY, tables, behaviors=4, top_k=1)
    assert inputs(rows)["behavior_item"].tolist() == [[4], [3], [0]]
    two = encode(wide(JOINED), VOCABULARY, tables, behaviors=4, top_k=3)
    assert inputs(two, 1)["behavior_item"].tolist() == [[0, 0, 3]], "what is there comes last, as without a choice"


def test_the_chosen_of_a_thousand_are_those_that_sorting_would_choose(wide: Wide) -> None:
    drawn = np.random.default_rng(0)
    vectors = drawn.normal(size=(500, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    items = RepresentationTable(np.arange(500), vectors, "c-one")
    many = Tables(items, RepresentationTable(np.arange(1), vectors[:1], "c-one"))
    history = drawn.permutation(500).tolist()
    table = JOINED.slice(0, 1)
    for name, value in (("item_ids", history), ("query_ids", [-1] * 500)):
        table = table.set_column(table.column_names.index(name), name, pa.array([value], pa.list_(pa.int64())))
    vocabulary = replace(VOCABULARY, values={**VOCABULARY.values, "item": list(range(500))}, item_category=[2] * 500)
    found = encode(wide(table), vocabulary, many, behaviors=1000, top_k=50).columns(np.array([0]), EVERYTHING)["behavior_item"][0] - 2
    best = set(np.argsort(-(vectors @ vectors[30]))[:50].tolist())
    assert found.tolist() == [item for item in history if item in best]


def test_nobody_has_behaved_yet(wide: Wide, tables: Tables) -> None:
    """The first day of a shop: lists are all null or all empty."""
    nothing = pa.array([None, [], None], pa.list_(pa.int64()))
    first_day = JOINED.drop_columns(["item_ids", "query_ids"]).append_column("item_ids", nothing).append_column("query_ids", nothing)
    found = inputs(encode(wide(first_day), VOCABULARY, tables, behaviors=2))
    assert found["behavior_item"].tolist() == [[0, 0]] * 3
    assert (found["behavior_vector"] == 0).all()


def test_rows_in_several_chunks_are_the_same_rows(wide: Wide, tables: Tables, encoded: Rows) -> None:
    pieces = encode(wide(pa.concat_tables([JOINED.slice(0, 1), JOINED.slice(1)])), VOCABULARY, tables, behaviors=3)
    for name, column in inputs(encoded).items():
        assert inputs(pieces)[name].tolist() == column.tolist(), name
    tail = encode(wide(JOINED.slice(1)), VOCABULARY, tables, behaviors=3)
    assert inputs(tail)["behavior_item"].tolist() == [[0, 0, 3], [0, 0, 0]]


def test_batches_follow_the_order_given(encoded: Rows) -> None:
    names = ("ids", "behavior_vector", "dense")
    found = list(dataset.batches(encoded, names, 2, np.array([2, 0, 1])))
    assert [label.tolist() for _, label in found] == [[0.0, 1.0], [0.0]]
    assert [columns[0][:, 0].tolist() for columns, _ in found] == [[1, 4], [2]]
    assert found[0][0][1].shape == (2, 3, 2)
    assert found[0][0][2].dtype == torch.float32


def test_a_shop_without_queries_has_no_query_vectors(wide: Wide, tables: Tables) -> None:
    none = Tables(tables.items, RepresentationTable(np.zeros(0, np.int64), np.zeros((0, 2), np.float32), "c-one"))
    found = inputs(encode(wide(JOINED), VOCABULARY, none, behaviors=3))
    assert found["query_vector"].tolist() == [[0.0, 0.0]] * 3
    assert found["behavior_query_vector"].shape == (3, 3, 2)


def test_vectors_of_two_contracts_are_refused(tables: Tables) -> None:
    assert isinstance(tables.queries, RepresentationTable)
    other = RepresentationTable(tables.queries.ids, tables.queries.vectors, "c-two")
    with pytest.raises(ContractError, match="contract c-one was about to meet contract c-two"):
        Tables(tables.items, other)
