"""Matrices that memory does not hold: what is written is what is read, and memory is a piece's."""

from __future__ import annotations

import errno
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from moon_ops import pieces, ranks
from moon_ops.errors import ServiceError
from moon_ops.files import reserve
from moon_ops.ranks import TIE, first_hits


def test_spans_are_all_rows_in_order() -> None:
    assert [(s.start, s.stop) for s in pieces.spans(7, 3)] == [(0, 3), (3, 6), (6, 7)]
    assert not list(pieces.spans(0, 3))


def test_a_large_matrix_lies_in_a_file_and_keeps_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces.tempfile, "tempdir", str(tmp_path))
    assert not isinstance(pieces.spilled(100, 8), np.memmap)
    monkeypatch.setattr(pieces, "IN_MEMORY", 1000)
    found = pieces.spilled(100, 8)
    assert isinstance(found, np.memmap)
    assert not list(tmp_path.iterdir()), "it has no name, so nobody has to remove it"
    for span in pieces.spans(100, 33):
        found[span] = np.arange(100)[span, None]
        pieces.let_go(found)
    assert found.tolist() == np.repeat(np.arange(100.0)[:, None], 8, 1).tolist()


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later the system would end the process."""
    monkeypatch.setattr(pieces.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(pieces, "IN_MEMORY", 1000)
    monkeypatch.setattr(pieces, "LONG", 1000)

    def full(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, f"No space left on device for {size} bytes")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    says = (
        rf"TMPDIR = {tmp_path}: there is no room for 8 MB .* \(No space left on device for 8000000 bytes\) → make room there, or let TMPDIR"
    )
    for made in (lambda: pieces.spilled(250_000, 32, np.int8), lambda: pieces.column(1_000_000, np.int64)):
        with pytest.raises(ServiceError, match=says):
            made()


def test_a_file_of_columns_has_its_room_on_the_disk(tmp_path: Path) -> None:
    with (tmp_path / "one").open("w+b") as file:
        reserve(file, 1_000_000)
        assert os.fstat(file.fileno()).st_blocks * 512 >= 1_000_000
    with (tmp_path / "none").open("w+b") as file:
        reserve(file, 0)


def test_what_was_written_over_a_private_mapping_is_not_let_go(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4096, 4), np.float32))
    private = np.load(tmp_path / "a.npy", mmap_mode="c")
    private[:] = 1
    pieces.let_go(private[:10])
    assert private.min() == 1


def at_once(queries: np.ndarray, items: np.ndarray, wanted: np.ndarray, spus: np.ndarray) -> list[int]:
    """Ranks from the whole matrix of similarities, as they were counted before."""
    scores, own = queries @ items.T, wanted[:, None] == spus[None, :]
    best = np.where(own, scores, -np.inf).max(axis=1)
    return (1 + (~(scores < best[:, None] - TIE) & ~own).sum(axis=1)).tolist()


@pytest.mark.parametrize("rows", [1, 7, 100, 1000])
def test_ranks_by_pieces_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Some items share a vector, one is no number, some SPUs have several items in different pieces, some have none."""
    generator = np.random.default_rng(rows)
    items = generator.normal(size=(60, 12)).astype(np.float32)[generator.integers(0, 60, 500)]
    items[17] = np.nan
    spus, queries = generator.integers(0, 200, 500), items[generator.integers(0, 500, 300)] + 0.1
    wanted = generator.integers(0, 220, 300)
    expected = at_once(queries, items, wanted, spus)
    monkeypatch.setattr(pieces, "ROWS", rows)
    assert first_hits(queries, items, wanted, spus).tolist() == expected
    assert len(set(expected)) > 50
    assert 501 in expected, "a SPU that is not there"


def test_memory_is_bounded_by_the_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole matrix of 256 queries and 100,000 items is 100 MB."""
    monkeypatch.setattr(pieces, "ROWS", 1000)
    items, queries = np.ones((100_000, 4), np.float32), np.ones((ranks.SCORE_BATCH, 4), np.float32)
    tracemalloc.start()
    first_hits(queries[:, :2], items, np.arange(ranks.SCORE_BATCH), np.arange(100_000), cut=lambda some: some[:, :2])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * 2**20
