"""The first numbers of many vectors, cut piece by piece."""

from __future__ import annotations

import numpy as np
import pytest

from moon_ops import pieces
from moon_ops.embeddings.prefixes import cut, served


def test_many_vectors_are_cut_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).normal(size=(100, 16)).astype(np.float32)
    monkeypatch.setattr(pieces, "ROWS", 7)
    monkeypatch.setattr(pieces, "IN_MEMORY", 1000)
    found = served(vectors, 4)
    assert isinstance(found, np.memmap), "400 numbers are more than fit"
    assert found.tolist() == cut(vectors, 4).tolist()
    assert served(vectors, 0) is vectors
    assert served(vectors[0], 4).tolist() == cut(vectors[0], 4).tolist()
