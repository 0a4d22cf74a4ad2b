"""Image-search recall: which queries are asked, what counts as a hit, and the fast rank against the obvious one."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from moon_ops.errors import LeakError, StageError
from moon_ops.inputs.contract import Sample
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS
from moon_ops.ranks import SCORE_BATCH, first_hits
from moon_ops.release import recall
from moon_ops.release.recall import Queries, bought_after

MAY = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
START, END = MAY + 10 * DAY, MAY + 20 * DAY


def item(item_id: int, spu_id: int, day: float, status: str = "active") -> dict[str, Any]:
    times = {"event_timestamp": MAY + day * DAY, "created": MAY + day * DAY}
    return {"item_id": item_id, "spu_id": spu_id, "title": "mug", "status": status, "content_hash": str(day), **times}


def query(query_id: int, text: str | None = "mug", image_id: str | None = None) -> dict[str, Any]:
    return {"query_id": query_id, "text": text, "image_id": image_id, "event_timestamp": MAY}


def bought(query_id: int | None, item_id: int, day: float, event: str = "purchase") -> dict[str, Any]:
    return {"query_id": query_id, "item_id": item_id, "event": event, "event_timestamp": MAY + day * DAY}


ITEMS = [item(1, 100, 0), item(2, 200, 0), item(3, 300, 9)]


def lake_of(path: Path, events: list[dict[str, Any]], items: list[dict[str, Any]] = ITEMS) -> Lake:
    lake = Lake(str(path / "lake"))
    queries = [query(n) for n in range(1, 9)] + [query(9, None, "abc")]
    for name, rows in (("items", items), ("queries", queries), ("events", events)):
        lake.append(name, pa.Table.from_pylist(rows, schema=SCHEMAS[name]))
    return lake


def asked(lake: Lake) -> dict[int, int]:
    """Query → item bought."""
    found = bought_after(lake, START, END, trained_until=START)
    return dict(zip(found.query_ids.tolist(), found.item_ids.tolist(), strict=True))


def test_queries_of_the_window_with_the_first_item_bought(tmp_path: Path) -> None:
    events = [
        bought(1, 2, 12),
        bought(1, 1, 11),
        bought(2, 1, 9.9),  # before the window
        bought(3, 1, 20),  # at its end
        bought(4, 3, 10),  # at its start
        bought(5, 1, 11, "click"),
        bought(None, 1, 11),
    ]
    assert asked(lake_of(tmp_path, events)) == {4: 3, 1: 1}


def test_a_query_that_was_answered_before_the_window_is_not_asked_again(tmp_path: Path) -> None:
    """The encoder may have been trained on it; what is bought for it later is not the answer to judge by."""
    assert asked(lake_of(tmp_path, [bought(1, 1, 5), bought(1, 2, 12), bought(2, 2, 12)])) == {2: 2}


def test_a_query_that_was_clicked_with_before_the_window_is_not_asked_either(tmp_path: Path) -> None:
    """Stage 2a learns from clicks and carts, of the judged item and of others; a click within the window is no answer given away."""
    before = [bought(1, 1, 9, "click"), bought(2, 2, 9.9, "cart"), bought(9, 3, 9, "click"), bought(6, 1, 9, "impression")]
    within = [bought(3, 1, 10, "click"), *(bought(query, 1, 12) for query in (1, 2, 3, 6, 9))]
    assert asked(lake_of(tmp_path, before + within)) == {3: 1, 6: 1}


def test_what_was_taken_back_by_the_end_of_the_window_is_no_answer(tmp_path: Path) -> None:
    """The next thing bought is; and a query that was answered before the window stays one, since an encoder may have seen it."""
    events = [bought(1, 1, 11), bought(1, 2, 12), bought(2, 2, 12), bought(3, 1, 5), bought(3, 2, 12)]
    undone = [bought(None, 1, 13, "return"), bought(None, 2, 25, "cancel"), bought(None, 1, 6, "return")]
    told = [{**event, "user_id": 7} for event in events + undone]
    assert asked(lake_of(tmp_path, told)) == {1: 2, 2: 2}


def test_items_that_are_gone_are_no_targets(tmp_path: Path) -> None:
    items = [*ITEMS, item(2, 200, 15, "deleted")]
    assert asked(lake_of(tmp_path, [bought(1, 2, 11), bought(1, 1, 12), bought(2, 2, 11)], items)) == {1: 1}


def test_samples_kinds_and_spus(tmp_path: Path) -> None:
    found = bought_after(lake_of(tmp_path, [bought(9, 2, 11), bought(1, 3, 12)]), START, END, trained_until=MAY)
    assert found.samples == [Sample("", ("abc",)), Sample("mug")]
    assert found.is_image.tolist() == [True, False]
    assert found.spu_ids.tolist() == [200, 300]
    assert len(found) == 2


def test_an_item_is_new_for_a_week_after_it_came_not_after_it_changed(tmp_path: Path) -> None:
    """Item 1 came on day 0 and was changed on day 10 and after the purchase; item 3 came on day 9."""
    items = [*ITEMS, item(1, 100, 10), item(1, 100, 18)]
    found = bought_after(lake_of(tmp_path, [bought(1, 1, 11), bought(2, 3, 15.9), bought(3, 3, 16)], items), START, END, trained_until=MAY)
    assert dict(zip(found.query_ids.tolist(), found.is_new.tolist(), strict=True)) == {1: False, 2: True, 3: False}


def test_a_window_that_the_encoder_was_trained_on_is_refused(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, [bought(1, 1, 11)])
    with pytest.raises(LeakError, match="starts at 2026-05-11T00:00Z, but the encoder was trained until 2026-05-12T00:00Z"):
        bought_after(lake, START, END, trained_until=START + DAY)


def test_nothing_bought_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="nothing was bought after a query between 2026-05-11 and 2026-05-21"):
        bought_after(lake_of(tmp_path, [bought(1, 1, 9)]), START, END, trained_until=START)


def unit(rows: int, dim: int, seed: int) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def ranks_by_sorting(
    queries: NDArray[np.float32], items: NDArray[np.float32], wanted: NDArray[np.int64], spus: NDArray[np.int64]
) -> list[int]:
    """Sort the catalogue by cosine, of equal ones the wrong first, and count to the first hit; other SKUs of the SPU are no rivals."""
    ranks = []
    for vector, spu in zip(queries, wanted, strict=True):
        cosines = np.round(items.astype(np.float64) @ vector.astype(np.float64), 6)
        order = sorted(range(len(items)), key=lambda n: (-cosines[n], spus[n] == spu))
        places = [place for place, n in enumerate(order, 1) if spus[n] == spu]
        ranks.append(places[0] if places else len(items) + 1)
    return ranks


@pytest.mark.parametrize("seed", range(4))
def test_ranks_are_those_of_sorting_the_catalogue(seed: int) -> None:
    """300 queries: more than one batch. Some items share a vector, some SPUs have several SKUs, some are not there."""
    generator = np.random.default_rng(seed)
    items = unit(90, 12, seed)[generator.integers(0, 90, 120)]
    spus, lookalikes = generator.integers(0, 50, 120), generator.integers(0, 120, 150)
    queries = np.concatenate([unit(150, 12, seed + 100), items[lookalikes]])
    wanted = np.concatenate([generator.integers(0, 55, 150), spus[lookalikes]])
    assert len(queries) > SCORE_BATCH
    found = first_hits(queries, items, wanted, spus)
    assert found.tolist() == ranks_by_sorting(queries, items, wanted, spus)
    assert 1 in found
    assert 121 in found


@pytest.mark.parametrize("dim", [16, 64, 100])
@pytest.mark.parametrize("count", [7, 115, 1003])
def test_collapsed_vectors_get_the_worst_rank(dim: int, count: int) -> None:
    """All vectors equal: products differ in the last digit by where they lie in the matrix, and must count as ties all the same."""
    point = unit(1, dim, 0)
    found = first_hits(np.tile(point, (300, 1)), np.tile(point, (count, 1)), np.arange(300) % count, np.arange(count))
    assert set(found.tolist()) == {count}


def test_vectors_that_are_no_numbers_get_the_worst_rank() -> None:
    items, wanted = np.eye(4, dtype=np.float32), np.arange(4)
    broken = items.copy()
    broken[2] = np.nan
    assert first_hits(np.full((4, 4), np.nan, np.float32), items, wanted, wanted).tolist() == [4, 4, 4, 4]
    assert first_hits(items, broken, wanted, wanted).tolist() == [2, 2, 4, 2]


def test_another_sku_of_the_product_is_a_hit() -> None:
    """The query lies on item 20, which is another SKU of the product that was bought as item 10."""
    items = np.array([[0, 1], [1, 0], [0.8, 0.6]], np.float32)
    found = first_hits(np.array([[1, 0]], np.float32), items, np.array([7]), np.array([7, 7, 9]))
    assert found.tolist() == [1]


def test_metrics_by_kind_and_for_new_items() -> None:
    """Ranks 1, 6 and 3 of picture queries (the last two for new items), 12 of a text query."""
    items = unit(12, 16, 0)
    scores = np.linspace(0.9, 0.1, 12)
    vectors = np.linalg.lstsq(items.astype(np.float64), scores, rcond=None)[0].astype(np.float32)
    queries = Queries(
        query_ids=np.arange(4),
        samples=[Sample("mug")] * 4,
        item_ids=np.array([0, 5, 2, 11]),
        spu_ids=np.array([0, 5, 2, 11]),
        is_new=np.array([False, True, True, False]),
        is_image=np.array([True, True, True, False]),
    )
    found = recall.evaluate(queries, np.tile(vectors, (4, 1)), np.arange(12), np.arange(12), items)
    assert found.ranks.tolist() == [1, 6, 3, 12]
    third = pytest.approx(1 / 3)
    assert found.metrics == {
        "catalogue_items": 12.0,
        "image_search/leaked": 0.0,
        "image_search/queries": 3.0,
        "image_search/recall@1": third,
        "image_search/recall@5": pytest.approx(2 / 3),
        "image_search/recall@10": 1.0,
        "image_search/queries:new_items": 2.0,
        "image_search/recall@1:new_items": 0.0,
        "image_search/recall@5:new_items": 0.5,
        "image_search/recall@10:new_items": 1.0,
        "text_search/queries": 1.0,
        "text_search/recall@1": 0.0,
        "text_search/recall@5": 0.0,
        "text_search/recall@10": 0.0,
    }


def test_catalogue_spus_follow_the_ids(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, [], [item(5, 50, 0), item(1, 10, 0), item(3, 30, 0), item(3, 31, 15), item(9, 90, 30)])
    assert recall.catalogue_spus(lake, np.array([3, 1, 5]), END).tolist() == [31, 10, 50]
    assert recall.catalogue_spus(lake, np.array([1, 3]), START).tolist() == [10, 30]


def test_a_modality_leaves_the_other_out_where_there_is_one() -> None:
    both, pictures, text = Sample("mug", ("a", "b")), Sample("", ("a",)), Sample("mug")
    assert recall.modalities([both, pictures, text]) == {
        "picture_only": [Sample("", ("a", "b")), pictures, text],
        "text_only": [text, pictures, text],
    }


def made_queries(is_image: list[bool]) -> Queries:
    """Query n bought item n, an SPU of its own."""
    numbers = np.arange(len(is_image))
    return Queries(numbers, [Sample("mug")] * len(is_image), numbers, numbers, np.zeros(len(is_image), bool), np.array(is_image))


def test_prefixes_are_ranked_by_the_cosine_of_what_is_left() -> None:
    """Of two numbers, the first alone puts all items in one place; two of three tell them apart; the text query is not counted."""
    items = np.array([[3, 4, 0], [3, -4, 0], [3, 0, 4]], np.float32) / 5
    asked = np.array([[3, 4, 1], [3, -4, 1], [3, 0, 4]], np.float32) / np.sqrt([[26], [26], [25]]).astype(np.float32)
    found = recall.by_prefix(made_queries([True, True, False]), asked, np.arange(3), items, [2, 1, 3, 7])
    assert [(p.dim, p.bytes_per_item) for p in found] == [(1, 4), (2, 8), (3, 12)]
    assert [p.recall_at_1 for p in found] == [0.0, 1.0, 1.0]
    assert [p.recall_at_10 for p in found] == [1.0, 1.0, 1.0]
    assert all(p.search_ms > 0 for p in found)


def test_prefixes_are_those_of_the_vectors_cut_and_made_unit_again() -> None:
    """Against :func:`first_hits` on vectors that were cut by hand; ten of the 40 queries are texts."""
    items, noise = unit(200, 24, 1), unit(40, 24, 2)
    asked = items[:40] + 0.9 * noise
    is_image = [n % 4 != 0 for n in range(40)]
    found = recall.by_prefix(made_queries(is_image), asked, np.arange(200), items, [6, 12])
    for prefix in found:
        short = [v[:, : prefix.dim] / np.linalg.norm(v[:, : prefix.dim], axis=1, keepdims=True) for v in (asked[is_image], items)]
        ranks = first_hits(short[0], short[1], np.flatnonzero(is_image), np.arange(200))
        assert (prefix.recall_at_1, prefix.recall_at_10) == ((ranks <= 1).mean(), (ranks <= 10).mean())
    assert [p.dim for p in found] == [6, 12, 24]
    assert found[0].recall_at_1 < found[1].recall_at_1 < found[2].recall_at_1 <= 1


def test_where_only_words_were_asked_prefixes_are_measured_on_them() -> None:
    items = np.eye(4, dtype=np.float32)
    (whole,) = recall.by_prefix(made_queries([False] * 4), items[[0, 1, 2, 2]], np.arange(4), items, [])
    assert (whole.dim, whole.recall_at_1, whole.recall_at_10) == (4, 0.75, 1.0)


def test_a_prefix_of_nothing_but_zeros_finds_nothing() -> None:
    items = np.array([[0, 1], [0, -1]], np.float32)
    found = recall.by_prefix(made_queries([True, True]), items, np.arange(2), items, [1])
    assert [(p.dim, p.recall_at_1) for p in found] == [(1, 0.0), (2, 1.0)]
