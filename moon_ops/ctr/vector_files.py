"""The vectors of all versions in files that several processes of a training map: each would hold its own otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moon_ops import pieces
from moon_ops.ctr.kept import read_arrays, write_arrays
from moon_ops.embeddings.as_of import History, VectorHistory


def write(known: VectorHistory, place: Path) -> None:
    """Write all versions into a directory, in the order of items and times."""
    history = known.history
    matrix = pieces.spilled(len(known.vectors), known.dim, known.vectors.dtype)
    for some in pieces.spans(len(history.times)):
        matrix[some] = known.vectors[some if history.order is None else history.order[some]]
        pieces.let_go(matrix)
    arrays = {"ids": np.repeat(history.ids, np.diff(history.start)), "times": history.times, "vectors": matrix}
    if known.scales is not None:
        arrays["scales"] = known.scales if history.order is None else np.append(known.scales[history.order], known.scales[-1:])
    write_arrays(place, arrays, {"contract_id": known.contract_id, "ttl": history.ttl})


def read(place: Path) -> VectorHistory:
    """What :func:`write` wrote; the vectors are mapped."""
    arrays, about = read_arrays(place)
    history = History(arrays["ids"], arrays["times"], ttl=about["ttl"])
    return VectorHistory(history, arrays["vectors"], about["contract_id"], arrays.get("scales"))
