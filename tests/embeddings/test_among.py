"""A search among the items that a filter leaves finds what a comparison with each of them finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from moon_ops.embeddings import among, index, index_kinds
from moon_ops.embeddings.among import Among
from moon_ops.embeddings.index import ItemIndex
from moon_ops.errors import ContractError

ITEMS, DIM, CONTRACT = 3000, 16, "c-among"
Floats = NDArray[np.float32]


def unit(rng: np.random.Generator, count: int) -> Floats:
    centres = np.random.default_rng(9).normal(size=(40, DIM))
    rows = (centres[rng.integers(0, 40, count)] + 0.4 * rng.normal(size=(count, DIM))).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(params=["flat", "ivf"])
def made(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ItemIndex, dict[int, Floats]]:
    """An index of either kind, of which items are gone, changed and new since its base; and the vectors that it has."""
    if request.param == "ivf":
        monkeypatch.setattr(index_kinds, "EXACT_UP_TO", 100)
        monkeypatch.setattr(among, "EXACT_UP_TO", 100)
    rng = np.random.default_rng(0)
    ids = np.sort(rng.choice(10**6, ITEMS, replace=False)).astype(np.int64) + 2**40
    known = dict(zip(ids.tolist(), unit(rng, ITEMS), strict=True))
    index.build(tmp_path / "index", ids, np.stack(list(known.values())), CONTRACT)
    changed, gone, new = ids[::11], ids[5::13][: len(ids[5::13]) // 2], np.arange(1, 60)
    gone = np.setdiff1d(gone, changed)
    fresh = np.concatenate([new, changed])
    vectors = unit(rng, len(fresh))
    index.update(tmp_path / "index", fresh, vectors, gone, CONTRACT)
    known |= dict(zip(fresh.tolist(), vectors, strict=True))
    for item in gone.tolist():
        del known[item]
    opened = ItemIndex.open(tmp_path / "index")
    assert opened.header.kind == request.param
    return opened, known


def best(known: dict[int, Floats], ids: NDArray[np.int64], query: Floats, k: int) -> list[int]:
    left = [item for item in ids.tolist() if item in known]
    order = np.argsort(-np.stack([known[item] for item in left]) @ query, kind="stable")[:k]
    return [left[n] for n in order]


@pytest.mark.parametrize("share", [0.002, 0.02, 0.5, 1.0])
def test_the_same_as_brute_force(made: tuple[ItemIndex, dict[int, Floats]], share: float) -> None:
    opened, known = made
    rng = np.random.default_rng(int(share * 1000))
    every = np.union1d(np.array(list(known)), np.array([10**13, 10**13 + 1]))  # and items that are in no index
    ids = every[rng.random(len(every)) < share]
    some = Among(opened, ids)
    assert len(some.rows) == len([item for item in ids.tolist() if item in known])
    queries = unit(rng, 50)
    found, cosines = some.search(queries, 10, CONTRACT)
    hits = 0
    for row, cosine, query in zip(found, cosines, queries, strict=True):
        wanted = best(known, ids, query, 10)
        assert set(row[row >= 0].tolist()) <= set(ids.tolist())
        hits += len(set(row.tolist()) & set(wanted))
        assert np.allclose(cosine[row >= 0], [known[item] @ query for item in row[row >= 0].tolist()], atol=1e-5)
        if not some.approximate:
            assert row[: len(wanted)].tolist() == wanted
    total = 50 * min(10, len(some.rows))
    assert hits >= 0.98 * total


def test_fewer_than_k_leave_gaps_at_the_end(made: tuple[ItemIndex, dict[int, Floats]]) -> None:
    opened, known = made
    ids = np.array(sorted(known)[:3])
    found, cosines = Among(opened, ids).search(unit(np.random.default_rng(1), 2), 5, CONTRACT)
    assert [set(row.tolist()) for row in found] == [{*ids.tolist(), -1}] * 2
    assert (found[:, 3:] == -1).all()
    assert np.isneginf(cosines[:, 3:]).all()
    empty, _ = Among(opened, np.zeros(0, np.int64)).search(unit(np.random.default_rng(1), 1), 5, CONTRACT)
    assert empty.tolist() == [[-1] * 5]


def test_queries_of_another_contract_are_refused(made: tuple[ItemIndex, dict[int, Floats]]) -> None:
    opened, known = made
    with pytest.raises(ContractError):
        Among(opened, np.array(sorted(known))).search(unit(np.random.default_rng(1), 1), 5, "c-other")
