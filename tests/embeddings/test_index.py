"""Nearest items: exact, of one contract, and replaced in one step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from moon_ops.embeddings import index
from moon_ops.embeddings.index import ItemIndex
from moon_ops.errors import ContractError, StageError


def unit(rows: int, dim: int, seed: int) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    index.build(tmp_path / "index" / "v1", np.array([7, 3, 5]), np.eye(3, 4, dtype=np.float32), "c-one")
    return tmp_path / "index" / "v1"


def test_search_is_what_numpy_finds(tmp_path: Path) -> None:
    ids, items, queries = np.arange(500)[::-1] * 11 + 3, unit(500, 16, 0), unit(40, 16, 1)
    header = index.build(tmp_path / "v1", ids, items, "c-one")
    found, cosines = ItemIndex.open(tmp_path / "v1").search(queries, 10, "c-one")
    scores = queries @ items.T
    best = np.argsort(-scores, axis=1)[:, :10]
    assert (header.kind, header.items, header.dim) == ("flat", 500, 16)
    assert found.tolist() == ids[best].tolist()
    assert cosines == pytest.approx(np.take_along_axis(scores, best, 1), abs=1e-6)


def test_fewer_items_than_k_leave_minus_one_at_the_end(place: Path) -> None:
    ids, cosines = ItemIndex.open(place).search(np.array([[0.0, 0.6, 0.8, 0.0]], np.float32), 5, "c-one")
    assert ids.tolist() == [[5, 3, 7, -1, -1]]
    assert cosines[0, :3] == pytest.approx([0.8, 0.6, 0.0])


def test_another_contracts_queries_are_refused(place: Path) -> None:
    with pytest.raises(ContractError, match="contract c-two was about to meet contract c-one"):
        ItemIndex.open(place).search(np.eye(1, 4, dtype=np.float32), 1, "c-two")


def test_a_tampered_index_is_refused(place: Path) -> None:
    with (place / "index.faiss").open("ab") as file:
        file.write(b" ")
    with pytest.raises(ContractError, match=r"index\.faiss has sha256"):
        ItemIndex.open(place)


def test_a_new_index_takes_the_place_of_the_old_one(place: Path) -> None:
    old = ItemIndex.open(place)
    index.build(place, np.array([9]), np.eye(1, 4, dtype=np.float32), "c-two")
    new = ItemIndex.open(place)
    query = np.eye(1, 4, dtype=np.float32)
    assert old.search(query, 1, "c-one")[0].tolist() == [[7]]
    assert new.search(query, 1, "c-two")[0].tolist() == [[9]]
    assert [p.is_symlink() for p in place.parent.iterdir()].count(False) == 1, "the old directory is removed"


def test_a_failed_build_leaves_the_old_index(place: Path) -> None:
    with pytest.raises(StageError, match="no vectors to index"):
        index.build(place, np.zeros(0, np.int64), np.zeros((0, 4), np.float32), "c-two")
    assert ItemIndex.open(place).header.contract_id == "c-one"


def test_no_index_is_an_error_that_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="moon publish"):
        ItemIndex.open(tmp_path / "v9")


def test_a_large_catalogue_gets_a_graph_that_finds_nearly_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "EXACT_UP_TO", 1000)
    items, queries = unit(2000, 16, 0), unit(50, 16, 1)
    header = index.build(tmp_path / "v1", np.arange(2000), items, "c-one")
    found, _ = ItemIndex.open(tmp_path / "v1").search(queries, 10, "c-one")
    exact = np.argsort(-(queries @ items.T), axis=1)[:, :10]
    shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), exact.tolist(), strict=True)])
    assert (header.kind, header.reason) == ("hnsw", "2,000 items are more than 1,000: a graph keeps search below a millisecond")
    assert shared > 0.95
