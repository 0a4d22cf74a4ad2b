"""The first numbers of a vector as a vector of their own (Matryoshka). D dimensions, d of them kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moon_ops.pieces import let_go, spans, spilled


def cut(vectors: NDArray[np.float32], dimensions: int) -> NDArray[np.float32]:
    """The first ``dimensions`` of unit vectors [..., D], made unit length again [..., d]; whole ones to the bit as they are."""
    short = vectors[..., :dimensions]
    return short / np.maximum(np.linalg.norm(short, axis=-1, keepdims=True), 1e-12) if dimensions < vectors.shape[-1] else short


def served(vectors: NDArray[np.float32], dimensions: int) -> NDArray[np.float32]:
    """What an index holds of the vectors [..., D]: all of them for 0, else the first ``dimensions``."""
    if not dimensions or vectors.ndim != 2:
        return cut(vectors, dimensions) if dimensions else vectors
    found = spilled(len(vectors), min(dimensions, vectors.shape[1]))
    for span in spans(len(vectors)):
        found[span] = cut(vectors[span], dimensions)
        let_go(vectors)
        let_go(found)
    return found


def both_served(
    vectors: tuple[NDArray[np.float32], NDArray[np.float32]], dimensions: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The same of the vectors of two encoders, each with its own length."""
    return served(vectors[0], dimensions[0]), served(vectors[1], dimensions[1])
