"""The table of vectors in memory: row numbers, zeros for what is not there, and replacement in one step."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from moon_ops.embeddings.table import RepresentationTable
from moon_ops.errors import ContractError, StageError

IDS = np.array([30, 10, 20])
VECTORS = np.array([[3.0, 3.5], [1.0, 1.5], [2.0, 2.5]], np.float32)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    RepresentationTable.write(tmp_path / "tables" / "items-v1", IDS, VECTORS, "c-one")
    return tmp_path / "tables" / "items-v1"


def test_rows_are_places_in_the_sorted_ids_and_minus_one_for_unknown_items(place: Path) -> None:
    table = RepresentationTable.open(place)
    assert len(table) == 3
    assert table.contract_id == "c-one"
    assert table.ids.tolist() == [10, 20, 30]
    assert table.rows(np.array([30, 10, 5, 15, 99, -1])).tolist() == [2, 0, -1, -1, -1, -1]
    assert table.rows(np.array([[20, 7], [30, 20]])).tolist() == [[1, -1], [2, 1]]


def test_gather_gives_zeros_for_missing_rows(place: Path) -> None:
    table = RepresentationTable.open(place)
    assert table.gather(np.array([[2, -1], [0, 1]])).tolist() == [[[3.0, 3.5], [0.0, 0.0]], [[1.0, 1.5], [2.0, 2.5]]]


def test_gathering_does_not_change_the_table(place: Path) -> None:
    table = RepresentationTable.open(place)
    table.gather(np.array([0, -1, 2]))[:] = 9.0
    assert table.vectors.tolist() == [[1.0, 1.5], [2.0, 2.5], [3.0, 3.5]]
    with pytest.raises(ValueError, match="read-only"):
        table.vectors[0] = 0.0


def test_an_empty_table_knows_nothing_but_its_width(tmp_path: Path) -> None:
    """A shop without queries has one."""
    RepresentationTable.write(tmp_path / "queries", np.zeros(0, np.int64), np.zeros((0, 2), np.float32), "c-one")
    table = RepresentationTable.open(tmp_path / "queries")
    assert len(table) == 0
    rows = table.rows(np.array([[5, -1]]))
    assert rows.tolist() == [[-1, -1]]
    assert table.gather(rows).tolist() == [[[0.0, 0.0], [0.0, 0.0]]]


def test_an_opened_table_keeps_its_values_when_a_new_one_takes_its_place(place: Path) -> None:
    old = RepresentationTable.open(place)
    RepresentationTable.write(place, np.array([10, 40]), np.array([[7.0, 7.0], [8.0, 8.0]], np.float32), "c-two")
    new = RepresentationTable.open(place)
    assert old.gather(old.rows(np.array([10, 40]))).tolist() == [[1.0, 1.5], [0.0, 0.0]]
    assert new.gather(new.rows(np.array([10, 40]))).tolist() == [[7.0, 7.0], [8.0, 8.0]]
    assert (old.contract_id, new.contract_id) == ("c-one", "c-two")
    assert [p.is_symlink() for p in place.parent.iterdir()].count(False) == 1, "the old directory is removed"


def test_a_reader_never_meets_files_of_two_writings(place: Path) -> None:
    """Each writing has as many ids as its number; its vectors and its contract say the same number."""

    def write(number: int) -> None:
        RepresentationTable.write(place, np.arange(number), np.full((number, 1), number, np.float32), str(number))

    def keep_writing() -> None:
        for number in range(2, 120):
            write(number)

    write(1)
    writer = threading.Thread(target=keep_writing)
    writer.start()
    seen = set()
    while writer.is_alive():
        table = RepresentationTable.open(place)
        seen.add((len(table.ids), len(table.vectors), int(table.vectors[-1, 0]), int(table.contract_id)))
    writer.join()
    assert len(seen) > 1
    assert {len(set(numbers)) for numbers in seen} == {1}


@pytest.mark.parametrize(
    ("ids", "vectors"), [([1, 2, 1], np.zeros((3, 2), np.float32)), ([1, 2], np.zeros((3, 2), np.float32))], ids=["twice", "too few"]
)
def test_one_vector_per_item(place: Path, ids: list[int], vectors: NDArray[np.float32]) -> None:
    with pytest.raises(ContractError, match="2 different ids"):
        RepresentationTable.write(place, np.array(ids), vectors, "c-two")
    assert RepresentationTable.open(place).contract_id == "c-one"


def test_no_table_is_an_error_that_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="moon publish"):
        RepresentationTable.open(tmp_path / "items-v9")
