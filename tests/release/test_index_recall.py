"""What an approximate index misses: counted against a scan, with an interval that holds, and in the evidence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from moon_ops.embeddings import index, index_kinds, index_shards
from moon_ops.embeddings.index import ItemIndex
from moon_ops.embeddings.index_shards import ItemShards
from moon_ops.release import index_recall

ITEMS = 3000


def clusters(rows: int, seed: int) -> NDArray[np.float32]:
    """Unit vectors [N, 16] around 40 centres that are the same for every seed."""
    centres = np.random.default_rng(99).normal(size=(40, 16))
    rng = np.random.default_rng(seed)
    drawn = (centres[rng.integers(40, size=rows)] + 0.4 * rng.normal(size=(rows, 16))).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ItemIndex:
    """Lists of 3,000 items, of which some are changed and some are gone."""
    monkeypatch.setattr(index_kinds, "EXACT_UP_TO", 500)
    index.build(tmp_path / "v1", np.arange(ITEMS), clusters(ITEMS, 0), "c-one")
    index.update(tmp_path / "v1", np.arange(50), clusters(50, 3), np.arange(50, 90), "c-one")
    return ItemIndex.open(tmp_path / "v1")


@pytest.mark.parametrize(("k", "probes"), [(1, 1), (10, 40)])
def test_recall_is_what_numpy_counts(opened: ItemIndex, k: int, probes: int) -> None:
    asked = clusters(300, 1)
    opened.searcher.probes = probes
    items = np.concatenate([clusters(50, 3), clusters(ITEMS, 0)[90:]])
    ids = np.concatenate([np.arange(50), np.arange(90, ITEMS)])
    wanted = ids[np.argsort(-(asked @ items.T), axis=1)[:, :k]]
    found = opened.search(asked, k, "c-one")[0]
    share = np.mean([len(set(w) & set(f)) / k for w, f in zip(wanted.tolist(), found.tolist(), strict=True)])
    figures = index_recall.measured([opened], asked, k)
    name = f"index/recall@{k}"
    assert figures[name] == pytest.approx(share)
    assert (share < 0.95) == (k == 1), "one list is too few"
    assert figures[f"{name}_low"] < share <= figures[f"{name}_high"]
    assert figures["index/queries"] == 300


def test_shards_are_measured_as_the_one_that_they_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each looks into one of its lists: what the best shard misses is missed by all of them together."""
    monkeypatch.setattr(index_kinds, "EXACT_UP_TO", 500)
    items, asked = clusters(ITEMS, 0), clusters(300, 1)
    index_shards.build(tmp_path / "v1", np.arange(ITEMS), items, "c-one", shards=3)
    whole = ItemShards.open(tmp_path / "v1")
    for shard in whole.shards.values():
        shard.searcher.probes = 1
    wanted, found = np.argmax(asked @ items.T, axis=1), whole.search(asked, 1, "c-one")[0][:, 0]
    share = float((wanted == found).mean())
    assert 0.5 < share < 0.95
    assert index_recall.measured(whole.shards.values(), asked, 1)["index/recall@1"] == pytest.approx(share)


def test_fewer_items_than_are_asked_for_are_no_loss(tmp_path: Path) -> None:
    index.build(tmp_path / "v1", np.arange(4), np.eye(4, dtype=np.float32), "c-one")
    figures = index_recall.measured([ItemIndex.open(tmp_path / "v1")], np.eye(4, dtype=np.float32)[:2])
    assert figures["index/recall@10"] == 1.0


@pytest.mark.parametrize(
    ("share", "count", "low", "high"), [(1.0, 1000, 0.99617, 1.0), (0.5, 10, 0.23659, 0.76341), (0.0, 5, 0.0, 0.43448)]
)
def test_the_interval_is_wilsons(share: float, count: int, low: float, high: float) -> None:
    """Of ten with five found Wilson's interval is [.237, .763]; of a thousand without a miss it does not say 1."""
    assert index_recall.interval(share, count) == pytest.approx((low, high), abs=2e-5)


def test_the_interval_holds_the_truth_in_95_of_100_draws() -> None:
    """Shares in tenths, as recall@10 has them, of a known mean."""
    rng = np.random.default_rng(0)
    draws = rng.binomial(10, 0.97, size=(400, 300)).mean(1) / 10
    held = [low <= 0.97 <= high for low, high in (index_recall.interval(float(mean), 300) for mean in draws)]
    assert np.mean(held) >= 0.95


def test_the_note_says_the_figures() -> None:
    figures = {"index/recall@10": 0.9962, "index/recall@10_low": 0.991, "index/recall@10_high": 0.9984, "index/queries": 1000.0}
    assert index_recall.note({}) == ""
    assert index_recall.note(figures) == (
        "the index finds 0.9962 [0.9910, 0.9984] of the ten nearest that an exact scan finds (1,000 queries)"
    )
