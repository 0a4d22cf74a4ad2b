"""Shards: what one index answers, ties included, and never half a generation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from moon_ops.embeddings import index, index_kinds, index_shards
from moon_ops.embeddings.index import ItemIndex
from moon_ops.embeddings.index_shards import ItemShards
from moon_ops.errors import ContractError, InputError, StageError

NO_IDS = np.zeros(0, np.int64)


def grid(rows: int, seed: int) -> NDArray[np.float32]:
    """Unit vectors [N, 4] of a few directions whose products are exact in float32: many items tie."""
    return np.random.default_rng(seed).choice([-0.5, 0.5], size=(rows, 4)).astype(np.float32)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """100 items in four shards, and the same items in one index beside."""
    ids = np.arange(100) * 5
    index_shards.build(tmp_path / "many", ids, grid(100, 0), "c-one", shards=4)
    index.build(tmp_path / "one", ids, grid(100, 0), "c-one")
    return tmp_path


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("k", [1, 7, 30, 120])
def test_shards_answer_as_one_index_ties_included(place: Path, threads: int, k: int) -> None:
    queries = grid(12, 1)
    many = ItemShards.open(place / "many", threads).search(queries, k, "c-one")
    one = ItemIndex.open(place / "one").search(queries, k, "c-one")
    assert many[1].tolist() == one[1].tolist()
    sure = one[1] > one[1][:, -1:]  # which of those are left that are as near as the last, an exact scan does not say either
    assert many[0][sure].tolist() == one[0][sure].tolist()
    known = dict(zip(range(0, 500, 5), grid(100, 0), strict=True))
    assert all(
        float(query @ known[i]) == cosine
        for query, *row in zip(queries, *many, strict=True)
        for i, cosine in zip(*row, strict=True)
        if i >= 0
    )
    assert all(len(set(row[row >= 0].tolist())) == min(k, 100) for row in many[0])


def test_an_update_goes_to_the_shards_it_concerns(place: Path) -> None:
    """A new item before all others, one in the middle, one after all others, one changed, one removed."""
    ids = np.array([1, 127, 900, 250])
    before = ItemShards.open(place / "many")
    headers = index_shards.update(place / "many", ids, grid(4, 7), np.array([495]), "c-one")
    assert [(h.delta_items, h.tombstones) for h in headers] == [(1, 0), (1, 0), (1, 1), (1, 1)]
    assert ItemShards.open(place / "many").items().tolist() == sorted({*range(0, 495, 5), 1, 127, 900})
    found = ItemShards.open(place / "many").search(grid(4, 7), 100, "c-one")
    held = dict(zip(range(0, 500, 5), grid(100, 0), strict=True)) | dict(zip(ids.tolist(), grid(4, 7), strict=True))
    for row, query in enumerate(grid(4, 7)):
        assert found[1][row].tolist() == sorted((float(query @ v) for i, v in held.items() if i != 495), reverse=True)[:100]
    headers = index_shards.update(place / "many", np.array([2]), grid(1, 3), NO_IDS, "c-one")
    again = ItemShards.open(place / "many", previous=before)
    assert all(now.base is then.base for now, then in zip(again.shards, before.shards, strict=True))


def test_a_killed_build_leaves_the_old_shards(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = index.build
    made: list[Path] = []

    def die(directory: Path, *given: object, **named: object) -> object:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(directory)
        return built(directory, *given, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as killed:
        killed.setattr(index, "build", die)
        killed.setattr("shutil.rmtree", lambda *_, **__: None)  # who is killed cleans nothing up
        with pytest.raises(KeyboardInterrupt):
            index_shards.build(place / "many", np.arange(60), grid(60, 5), "c-two", shards=3)
    assert ItemShards.open(place / "many").search(grid(1, 1), 1, "c-one")[0].shape == (1, 1)
    index_shards.build(place / "many", np.arange(60), grid(60, 5), "c-two", shards=3)
    assert ItemShards.open(place / "many").items().tolist() == list(range(60))
    assert len([p for p in place.iterdir() if p.name.startswith(".many-")]) == 1, "what the killed one left is removed"


def test_lists_in_shards_find_what_a_scan_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_kinds, "EXACT_UP_TO", 300)
    rng = np.random.default_rng(0)
    drawn = (rng.normal(size=(30, 16))[rng.integers(30, size=2060)] + 0.4 * rng.normal(size=(2060, 16))).astype(np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    items, queries = drawn[:2000], drawn[2000:]
    headers = index_shards.build(tmp_path / "v1", np.arange(2000), items, "c-one", shards=3)
    assert {h.kind for h in headers} == {"ivf"}
    found, cosines = ItemShards.open(tmp_path / "v1", threads=2).search(queries, 10, "c-one")
    wanted = np.argsort(-(queries @ items.T), axis=1)[:, :10]
    assert np.mean([len(set(f) & set(w)) / 10 for f, w in zip(found.tolist(), wanted.tolist(), strict=True)]) > 0.97
    assert (np.diff(cosines, axis=1) <= 0).all()


def test_what_cannot_be_shards_is_refused(place: Path) -> None:
    with pytest.raises(InputError, match="do not ascend"):
        index_shards.build(place / "many", np.array([2, 1]), grid(2, 0), "c-one", shards=2)
    with pytest.raises(InputError, match="3 shards of 2 ids"):
        index_shards.build(place / "many", np.array([1, 2]), grid(2, 0), "c-one", shards=3)
    with pytest.raises(StageError, match="no shards at"):
        ItemShards.open(place / "none")
    with pytest.raises(StageError, match="to update"):
        index_shards.update(place / "none", NO_IDS, grid(0, 0), NO_IDS, "c-one")
    index.build(place / "other", np.arange(3), grid(3, 0), "c-two")
    with pytest.raises(ContractError, match="shards of 2 contracts: c-one, c-two"):
        ItemShards([ItemIndex.open(place / "one"), ItemIndex.open(place / "other")])
