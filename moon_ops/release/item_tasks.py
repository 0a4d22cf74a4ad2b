"""What an encoder's vectors tell of items beside search: their category, their brand and attributes, and each other's modality.

The kinds of tasks are those of the multimodal benchmark for e-commerce (MBE, arXiv 2508.11999): classification, attribute prediction,
and retrieval between modalities. An item's own text names its category, brand and attributes, so these are told from its picture alone,
or from its title alone. Products are held out, never single items: variants of one product look alike. Everything is told with a 95 %
interval by bootstrap over products, and with what vectors that know nothing reach. N items, D dimensions, C classes.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moon_ops.metric_names import CHANCE, task
from moon_ops.ranks import first_hits

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
NEIGHBOURS = 5
RIDGE = 1e-2  # of the linear probe, on vectors of unit length, times the number of items that it learns from
LEAST = 10  # items of a class, or it is left out: fewer are in no fold
JUDGES = 5  # held-out products, or nothing is said: an interval over fewer means nothing
DRAWS = 1000
HELD_OUT = 5  # one product of so many


def held_out(spus: Ints) -> NDArray[np.bool_]:
    """Which items [N] are judged: those of a fifth of the products, the same ones for every encoder."""
    return np.array([zlib.crc32(str(spu).encode()) % HELD_OUT == 0 for spu in spus.tolist()])


def interval(right: NDArray[np.float64], spus: Ints) -> tuple[float, float]:
    """95 % interval of the mean of ``right`` [N], by drawing products with all their items."""
    products, place = np.unique(spus, return_inverse=True)
    total, count = (np.bincount(place, weights) for weights in (right, np.ones_like(right)))
    drawn = np.random.default_rng(0).integers(len(products), size=(DRAWS, len(products)))
    low, high = np.quantile(total[drawn].sum(axis=1) / count[drawn].sum(axis=1), (0.025, 0.975))
    return float(low), float(high)


def neighbours(known: Floats, labels: Ints, asked: Floats) -> Ints:
    """The class of most of the nearest :data:`NEIGHBOURS` of ``known`` [N, D] by cosine, ties to the nearest, for ``asked`` [Q, D]."""
    nearest = np.argsort(-(asked @ known.T), axis=1, kind="stable")[:, :NEIGHBOURS]
    return np.array([Counter(row).most_common(1)[0][0] for row in labels[nearest].tolist()], np.int64)


def probe(known: Floats, labels: Ints, asked: Floats) -> Ints:
    """The class that a ridge regression on one-hot classes gives most to, in closed form: a linear probe without a dependency."""
    inputs = np.concatenate([known, np.ones((len(known), 1), np.float32)], axis=1).astype(np.float64)
    classes, place = np.unique(labels, return_inverse=True)
    penalty = RIDGE * len(known) / known.shape[1] * np.eye(inputs.shape[1])
    weights = np.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ np.eye(len(classes))[place])
    found: Ints = classes[np.argmax(asked @ weights[:-1] + weights[-1], axis=1)]
    return found


def lacking(labels: Sequence[str | None], spus: Ints) -> str:
    """Why ``labels`` [N] of the products ``spus`` [N] make no task; empty if they make one."""
    common = _common(labels)
    if len(common) < 2:
        have = "no item has one" if not any(labels) else f"{len(common)} of {len({*labels} - {None, ''})} different ones"
        return f"{have}: it takes two that {LEAST} items have each"
    apart = held_out(spus)
    one_of = np.array([label in common for label in labels])
    if (judging := len(np.unique(spus[apart & one_of]))) < JUDGES:
        return f"{judging} of {len(np.unique(spus[one_of]))} products are held out to judge: it takes {JUDGES}"
    learned = {label for label, known in zip(labels, (one_of & ~apart).tolist(), strict=True) if known}
    return "" if len(learned) > 1 else "the products that are not held out have no two different ones"


def _common(labels: Sequence[str | None]) -> set[str]:
    return {label for label, count in Counter(labels).items() if label and count >= LEAST}


def classification(name: str, vectors: Floats, labels: Sequence[str | None], spus: Ints) -> dict[str, float]:
    """Accuracy of both classifiers on held-out products, and the best that saying one class of all would reach; empty where something
    is :func:`lacking`.
    """
    if lacking(labels, spus):
        return {}
    number = {label: n for n, label in enumerate(sorted(_common(labels)))}
    coded = np.array([number.get(label or "", -1) for label in labels])
    judged = held_out(spus) & (coded >= 0)
    known = ~held_out(spus) & (coded >= 0)
    right = {way.__name__: way(vectors[known], coded[known], vectors[judged]) == coded[judged] for way in (neighbours, probe)}
    metrics = {task(name, "classes"): float(len(number)), task(name, "judged"): float(judged.sum())}
    metrics[task(name, "accuracy", CHANCE)] = float(np.bincount(coded[judged]).max() / judged.sum())
    for way, found in right.items():
        metrics |= _with_interval(name, f"accuracy_{way}", found.astype(float), spus[judged])
    return metrics


def retrieval(texts: Floats, pictures: Floats, items: Floats, spus: Ints) -> dict[str, float]:
    """Whether an item's product is first, or among the first ten, when it is asked for by its text or its picture alone: [N, D] each, of
    items that have both. Four directions; the item itself is in the catalogue that is asked.
    """
    metrics: dict[str, float] = {}
    ways = {
        "text_to_image": (texts, pictures),
        "image_to_text": (pictures, texts),
        "text_to_item": (texts, items),
        "image_to_item": (pictures, items),
    }
    for name, (asked, catalogue) in ways.items() if len(spus) else ():
        ranks = first_hits(asked, catalogue, spus, spus)
        for k in (1, 10):
            metrics |= _with_interval(name, f"recall@{k}", (ranks <= k).astype(float), spus)
            metrics[task(name, f"recall@{k}", CHANCE)] = blind_recall(spus, k)
    return metrics


def blind_recall(spus: Ints, k: int) -> float:
    """The share of items [N] of whose product at least one is among ``k`` that are drawn from all N."""
    _, place, size = np.unique(spus, return_inverse=True, return_counts=True)
    others = len(spus) - size[place].astype(np.float64)  # of another product
    missed = np.ones(len(spus))
    for drawn in range(min(k, len(spus))):
        missed *= np.maximum(others - drawn, 0) / (len(spus) - drawn)
    return float(1 - missed.mean())


def labels_of(rows: Sequence[dict[str, Any]]) -> dict[str, list[str | None]]:
    """What is to be told of items [N]: the leaf category, the brand, and each attribute that half of them have."""
    found: dict[str, list[str | None]] = {
        "category": [(row.get("category") or [None])[-1] for row in rows],
        "brand": [row.get("brand") for row in rows],
    }
    said = [dict(row.get("attributes") or []) for row in rows]
    names = Counter(name for one in said for name in one)
    found |= {
        "attribute_" + re.sub(r"\W", "_", name): [one.get(name) for one in said]
        for name, count in sorted(names.items())
        if 2 * count >= len(rows)
    }
    return found


def _with_interval(name: str, figure: str, right: NDArray[np.float64], spus: Ints) -> dict[str, float]:
    low, high = interval(right, spus)
    return {task(name, figure): float(right.mean()), task(name, figure, "_low"): low, task(name, figure, "_high"): high}
