"""One seeded generator per thing, so that no thing's draws depend on how many others there are or who draws first."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a generator is for. The numbers are part of the data set: changing one changes every shop."""

    DECK = 1
    SPU = 2
    SKU = 3
    LISTING = 4
    USERS = 5
    DAY = 6
    QUERY_TEXT = 7
    STUDIO = 8
    PHOTOGRAPH = 9
    CAMERA = 10


def generator(seed: int, stream: Stream, *index: int) -> np.random.Generator:
    """The generator of thing ``index`` in ``stream``: the same for equal arguments, independent otherwise."""
    return np.random.default_rng([seed, int(stream), *index])
