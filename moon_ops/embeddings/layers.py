"""What has come since a base was made lies in layers: files that are never changed, so that generations share them.

A layer puts ids, and takes others away; of an id the last layer that names it counts. A publication writes what is new as a layer of its
own, and merges with it those before that are less than twice its size (as a log-structured merge tree does: O'Neil and others 1996, Acta
Informatica 33). So there are few layers, and an id is written as often as the size of its layer has doubled, not once a publication.
M ids in all layers. This file does not know what the ids have.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Layers = Sequence[tuple[Ids, Ids]]  # oldest first: the ids that each puts, and those that it takes away, both ascending
GROWTH = 2  # times the size of what comes after it is a layer that stays as it is


def staying(sizes: Sequence[int], fresh: int) -> int:
    """How many layers of these ``sizes``, oldest first, stay as they are when ``fresh`` ids are new; the rest become one with these."""
    count = len(sizes)
    while count and sizes[count - 1] < GROWTH * max(fresh, 1):  # else updates of nothing would leave empty layers, without end
        count -= 1
        fresh += sizes[count]
    return count


def newest(layers: Layers) -> tuple[Ids, Ids]:
    """Every id that a layer names, ascending [M], and the number of the last one that does [M]; -1 if that one takes it away."""
    named, owner = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for number in reversed(range(len(layers))):
        put, taken = layers[number]
        named += [put, taken]
        owner += [np.full(len(put), number), np.full(len(taken), -1)]
    ids, first = np.unique(np.concatenate(named), return_index=True)  # the first of each: the newest layer's, what it puts before the rest
    return ids, np.concatenate(owner)[first]


def named(layers: Layers, wanted: Ids) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of the ``wanted`` ids some layer names, and which are there after all of them; costs what is wanted, not what there is."""
    known, there = np.zeros(len(wanted), bool), np.zeros(len(wanted), bool)
    for put, taken in layers:
        is_put, is_taken = held(put, wanted), held(taken, wanted)
        known |= is_put | is_taken
        there = is_put | (there & ~is_taken)
    return known, there


def held(ids: Ids, wanted: Ids) -> NDArray[np.bool_]:
    """Which of the ``wanted`` ids are among the ascending ``ids``."""
    if not len(ids):
        return np.zeros(len(wanted), bool)
    found: NDArray[np.bool_] = ids[np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)] == wanted
    return found
