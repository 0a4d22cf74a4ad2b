"""From which cosine on an item is relevant, and which prefixes a release vouches for: measured on what was bought, kept in its manifest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moon_ops.registry.encoders import encoder_version
from moon_ops.registry.registry import Registry, manifest_of
from moon_ops.release import evaluation, recall, relevance
from moon_ops.release.comparison import Measured
from moon_ops.release.manifest import searches_of
from moon_ops.release.recall import Prefix
from moon_ops.release.windows import windows
from moon_ops.settings import Settings


class Asked:
    """Queries of which the first half showed a picture, each with the item of its own number bought."""

    def __init__(self, count: int) -> None:
        self.item_ids = np.arange(count) * 10
        self.is_image = np.arange(count) < count // 2


def unit(vectors: Any) -> Any:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_the_threshold_keeps_what_was_bought_and_says_how_many_others_reach_it() -> None:
    draw = np.random.default_rng(1)
    asked, items = Asked(200), unit(draw.normal(size=(200, 16)))
    vectors = unit(items + 0.8 * draw.normal(size=items.shape) / 4)
    found = relevance.thresholds(asked, vectors, asked.item_ids, items)
    for kind, rows in (("image", slice(0, 100)), ("text", slice(100, 200))):
        cosines = (vectors[rows] * items[rows]).sum(axis=1)
        one = found[kind]
        assert one.queries == 100
        assert one.kept == (cosines >= one.cosine).mean() >= 0.95
        assert (cosines >= np.nextafter(np.float32(one.cosine), np.float32(2))).mean() <= one.kept, "no higher threshold keeps as many"
        assert one.others == pytest.approx((vectors[rows] @ items.T >= one.cosine).mean())
        assert one.others < 0.1


def test_few_queries_and_items_without_a_vector_make_no_threshold() -> None:
    asked, items = Asked(60), unit(np.random.default_rng(1).normal(size=(60, 8)))
    assert set(relevance.thresholds(Asked(30), items[:30], Asked(30).item_ids, items[:30])) == set(), "15 of each kind"
    unread = items.copy()
    unread[:20] = 0
    assert set(relevance.thresholds(asked, unread, asked.item_ids, items)) == {"text"}
    assert relevance.thresholds(asked, items, asked.item_ids + 1, items) == {}
    assert relevance.thresholds(asked, items, np.zeros(0, np.int64), items[:0]) == {}


def test_a_prefix_is_certified_if_it_keeps_nine_tenths_of_the_recall() -> None:
    found = [Prefix(dim, 0.5, value, 4 * dim, 1.0) for dim, value in ((8, 0.5), (16, 0.73), (32, 0.71), (64, 0.8))]
    assert recall.certified(found) == [16, 64]
    assert recall.certified([]) == []


def test_a_release_keeps_both_in_its_manifest(released: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = manifest_of(Registry(released), 1)
    searches, metrics = manifest["searches"], manifest["metrics"]
    (whole,) = searches["prefixes"]
    assert (whole["dim"], whole["certified"], whole["recall_at_10"]) == (64, True, metrics["image_search/recall@10"])
    assert searches["relevance"] == {}, "the tiny shop has 16 queries by picture and 11 by text"
    monkeypatch.setattr(relevance, "FEWEST", 10)
    times = windows(released.lake, trained_until=encoder_version(released, 1).trained_until)
    measured = searches_of(Measured({}, evaluation.evaluate(released, 1, times)))["relevance"]
    assert {kind: one["queries"] for kind, one in measured.items()} == {"image": 16, "text": 11}
    assert all(0.9 <= one["kept"] <= 1 and -1 <= one["cosine"] <= 1 for one in measured.values())
