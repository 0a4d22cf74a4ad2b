"""Pages: items with the very same vector, as listings of one product by many sellers have, come once, whatever is asked before."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from moon_ops.embeddings import index, index_kinds
from moon_ops.embeddings.among import Among
from moon_ops.embeddings.index import ItemIndex

ITEMS, SAME, DIM, CONTRACT = 2000, 300, 16, "c-pages"
Floats = NDArray[np.float32]


@pytest.fixture(params=["flat", "lists", "product codes"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ItemIndex:
    """2,000 items, 300 of which have one vector; some of these have come since the base."""
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(ITEMS, DIM)).astype(np.float32)
    vectors[rng.choice(ITEMS, SAME, replace=False)] = vectors[7]
    vectors[7] = vectors[rng.integers(ITEMS)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    monkeypatch.setattr(index_kinds, "EXACT_UP_TO", {"flat": 5000}.get(request.param, 100))
    memory = 100_000 if request.param == "product codes" else None
    ids = rng.permutation(10 * ITEMS)[:ITEMS].astype(np.int64)
    index.build(tmp_path / "it", ids[50:], vectors[50:], CONTRACT, memory=memory)
    index.update(tmp_path / "it", ids[:50], vectors[:50], np.zeros(0, np.int64), CONTRACT)
    made = ItemIndex.open(tmp_path / "it")
    assert (made.base.by is not None) == (request.param == "product codes")
    return made


def twins(opened: ItemIndex) -> Floats:
    """The vector that most items have [1, D]."""
    vectors = np.concatenate([opened.base.vectors, opened.searcher.delta.vectors])
    different, counts = np.unique(vectors, axis=0, return_counts=True)
    assert counts.max() >= SAME - 1
    found: Floats = different[counts.argmax()][None]
    return found


@pytest.mark.parametrize("filtered", [False, True])
def test_what_is_asked_first_is_where_a_longer_answer_begins(opened: ItemIndex, filtered: bool) -> None:
    query, some = twins(opened), opened.items()[::2] if filtered else opened.items()
    search = Among(opened, some).search if filtered else opened.search
    longest = search(query, 100, CONTRACT)[0][0].tolist()
    assert len(set(longest)) == 100
    for k in (1, 7, 10, 24, 48, 99):
        assert search(query, k, CONTRACT)[0][0].tolist() == longest[:k], k


def test_one_query_with_many_equal_items_leaves_the_others_as_cheap_as_they_are(opened: ItemIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = np.random.default_rng(5).normal(size=(64, DIM)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    queries[40] = twins(opened)[0]
    alone = [opened.search(query[None], 10, CONTRACT)[0][0].tolist() for query in queries]
    ranked, best = list[tuple[int, ...]](), index_kinds.best
    monkeypatch.setattr(index_kinds, "best", lambda rows, cosines, k: ranked.append(rows.shape) or best(rows, cosines, k))
    assert opened.search(queries, 10, CONTRACT)[0].tolist() == alone
    usual = 10 * opened.header.refine if opened.header.kind != "flat" else 2 * (10 + index_kinds.TIES)  # of base and delta
    assert all(queries == 1 for queries, candidates in ranked if candidates > usual), "the one with equal items is asked again by itself"


@pytest.mark.parametrize("count", [20, 2 * index_kinds.WIDE])
def test_what_is_not_a_number_is_ranked_last(count: int) -> None:
    cosines = np.linspace(0, 1, count, dtype=np.float32)[None]
    cosines[0, ::2] = np.nan
    rows = np.arange(count)[None]
    assert index_kinds.best(rows, cosines, 3)[0].tolist() == [[count - 1, count - 3, count - 5]]
    assert index_kinds.best(rows, np.full_like(cosines, np.nan), 3)[0].shape == (1, 3)


def test_equal_vectors_have_equal_cosines_wherever_they_stand() -> None:
    rng, dim = np.random.default_rng(8), 64
    vector, query = rng.normal(size=(2, 1, dim)).astype(np.float32)
    held = SimpleNamespace(base=SimpleNamespace(vectors=vector), delta=index_kinds.nothing(dim))
    for many in range(1, 100):
        cosines = index_kinds.Lists._cosines(held, query, np.zeros((1, many), np.int64))  # type: ignore[arg-type]
        assert len(np.unique(cosines)) == 1, many
