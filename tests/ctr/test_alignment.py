"""A map between two encoders' spaces: found where there is one, judged on items it was not fitted on, and read like any vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moon_ops.ctr.alignment import Aligned, Alignment, align
from moon_ops.errors import ContractError, StageError


def units(generator: np.random.Generator, *shape: int) -> np.ndarray:
    drawn = generator.normal(size=shape).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)


def test_a_rotation_is_found_from_a_few_items_and_holds_for_others() -> None:
    generator = np.random.default_rng(0)
    turn = np.linalg.qr(generator.normal(size=(32, 32)))[0].astype(np.float32)
    new = units(generator, 60, 32)
    found = align(new, new @ turn, ("c-new", "c-old"))
    assert found.cosine == pytest.approx(1.0, abs=1e-4)
    others = units(generator, 10, 32)
    assert np.allclose(found.apply(others), others @ turn, atol=1e-3)


def test_another_size_is_mapped_too_and_what_is_lost_is_said() -> None:
    generator = np.random.default_rng(1)
    new = units(generator, 4000, 24)
    old = new @ generator.normal(size=(24, 8)).astype(np.float32)
    old /= np.linalg.norm(old, axis=-1, keepdims=True)
    found = align(new, old, ("c-new", "c-old"))
    assert found.matrix.shape == (24, 8)
    assert found.cosine > 0.97
    unrelated = align(new, units(generator, 4000, 8), ("c-new", "c-old"))
    assert abs(unrelated.cosine) < 0.15, "there is nothing to carry over, and the figure says so"


def test_no_vector_stays_no_vector_and_the_contract_is_the_old_one() -> None:
    class Two:
        contract_id, dim = "c-new", 2

        def codes(self, ids: np.ndarray) -> np.ndarray:
            return ids

        def at(self, codes: np.ndarray, times: np.ndarray) -> np.ndarray:
            return codes

        def gather(self, rows: np.ndarray) -> np.ndarray:
            return np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)[rows]

    read = Aligned(Two(), Alignment(np.eye(2, dtype=np.float32), "c-new", "c-old", 1.0))
    assert (read.contract_id, read.dim) == ("c-old", 2)
    assert np.allclose(read.gather(np.array([[0, -1]])), [[[0.6, 0.8], [0.0, 0.0]]])
    with pytest.raises(ContractError, match="vectors and alignment: contract c-new was about to meet contract c-other"):
        Aligned(Two(), Alignment(np.eye(2, dtype=np.float32), "c-other", "c-old", 1.0))


def test_it_is_kept_in_a_file(tmp_path: Path) -> None:
    made = Alignment(np.arange(6, dtype=np.float32).reshape(2, 3), "c-new", "c-old", 0.9)
    read = Alignment.load(made.save(tmp_path))
    assert (read.new, read.old, read.cosine) == ("c-new", "c-old", 0.9)
    assert np.array_equal(read.matrix, made.matrix)
    (tmp_path / "alignment.npz").write_bytes(b"broken")
    with pytest.raises(ContractError, match="is no alignment of two encoders"):
        Alignment.load(tmp_path / "alignment.npz")


def test_too_few_items_are_refused() -> None:
    few = np.eye(4, dtype=np.float32)
    with pytest.raises(StageError, match="4 items have a vector under both encoders"):
        align(few, few, ("c-new", "c-old"))
