"""Tasks beside search: products are held out whole, labels are told by what is near, and intervals are over products."""

from __future__ import annotations

import numpy as np

from moon_ops.release.item_tasks import classification, held_out, interval, labels_of, neighbours, probe, retrieval

SPUS = np.repeat(np.arange(100), 3)


def clouds(noise: float) -> tuple[np.ndarray, list[str | None]]:
    """300 unit vectors around one centre a class, three items a product."""
    rng = np.random.default_rng(0)
    kinds = (SPUS % 3).tolist()
    vectors = np.eye(8, dtype=np.float32)[kinds] + noise * rng.standard_normal((300, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), ["abc"[k] for k in kinds]


def test_products_are_held_out_whole() -> None:
    judged = held_out(SPUS)
    assert 0.1 < judged.mean() < 0.3
    assert (judged.reshape(100, 3).all(axis=1) == judged.reshape(100, 3).any(axis=1)).all()


def test_labels_that_vectors_tell_are_told_and_noise_is_not() -> None:
    vectors, labels = clouds(0.05)
    found = classification("category", vectors, labels, SPUS)
    assert found["tasks/category/accuracy_neighbours"] == found["tasks/category/accuracy_probe"] == 1
    shuffled = [labels[n] for n in np.random.default_rng(1).permutation(100).repeat(3) * 3]
    blind = classification("category", vectors, shuffled, SPUS)
    for way in ("neighbours", "probe"):
        assert blind[f"tasks/category/accuracy_{way}"] < 0.6
    assert blind["tasks/category/accuracy_majority"] < 0.6


def test_few_or_one_class_is_no_task() -> None:
    vectors, labels = clouds(0.05)
    assert classification("brand", vectors, ["a"] * 300, SPUS) == {}
    assert classification("brand", vectors, [None] * 300, SPUS) == {}
    rare = ["rare" if n < 3 else label for n, label in enumerate(labels)]
    assert classification("brand", vectors, rare, SPUS)["tasks/brand/classes"] == 3


def test_a_probe_reads_a_line_that_neighbours_miss() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((600, 40)).astype(np.float32)
    labels = (vectors[:, 0] > 0).astype(np.int64)
    right = [(way(vectors[:400], labels[:400], vectors[400:]) == labels[400:]).mean() for way in (probe, neighbours)]
    assert right[0] > 0.9 > right[1]


def test_an_interval_is_wider_where_products_agree() -> None:
    right = np.random.default_rng(0).integers(2, size=100).astype(float)
    alone, together = interval(right.repeat(3), np.arange(300)), interval(right.repeat(3), SPUS)
    assert together[1] - together[0] > 1.4 * (alone[1] - alone[0])
    assert together[0] < right.mean() < together[1]


def test_all_four_directions() -> None:
    vectors = np.eye(20, dtype=np.float32)
    found = retrieval(vectors, vectors, vectors[::-1].copy(), np.arange(20))
    assert found["tasks/text_to_image/recall@1"] == found["tasks/image_to_text/recall@1"] == 1
    assert found["tasks/text_to_item/recall@1"] == found["tasks/image_to_item/recall@1"] == 0
    assert retrieval(vectors[:0], vectors[:0], vectors[:0], np.arange(0)) == {}


def test_labels_are_leaves_brands_and_common_attributes() -> None:
    rows = [{"category": ["A", "B"], "brand": "x", "attributes": [("main colour", "red")]}, {"category": None, "brand": None}]
    assert labels_of(rows) == {"category": ["B", None], "brand": ["x", None], "attribute_main_colour": ["red", None]}
    rows += [{"attributes": [("size", "L")]}] * 2
    assert "attribute_main_colour" not in labels_of(rows)
    assert labels_of(rows)["attribute_size"] == [None, None, "L", "L"]
