"""Writers of a replaced directory: one at a time, none of their work lost, and what a killed one left is removed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from moon_ops.embeddings.generations import fresh_directory, held, swap


def append(place: Path, line: str) -> None:
    """Read, add a line, replace: a writer that ran at the same time would be lost."""
    with held(place) as at, fresh_directory(place) as fresh:
        before = (at / "lines").read_text() if at else ""
        (fresh / "lines").write_text(f"{before}{line}\n")
        swap(fresh, place)


def test_writers_take_turns_and_lose_nothing(tmp_path: Path) -> None:
    place = tmp_path / "v1"
    append(place, "0")
    writers = [threading.Thread(target=append, args=(place, str(n))) for n in range(1, 20)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted((place / "lines").read_text().split(), key=int) == [str(n) for n in range(20)]
    assert len(list(tmp_path.iterdir())) == 3, "the link, its lock, and what it points to"


def test_a_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    place = tmp_path / "v1"
    append(place, "0")
    with pytest.raises(FileNotFoundError, match="nothing"), held(place), fresh_directory(place) as fresh:
        (fresh / "nothing").read_text()
    assert (place / "lines").read_text() == "0\n"
    assert len(list(tmp_path.iterdir())) == 3


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    place, other = tmp_path / "v1", tmp_path / ".v2-abcdefgh"
    for left in (tmp_path / ".v1-abcdefgh", other):
        left.mkdir()
        (left / "lines").write_text("half")
    with fresh_directory(place) as living:
        (living / "lines").write_text("1")
        append(place, "0")
        assert living.is_dir()
        assert not (tmp_path / ".v1-abcdefgh").exists()
    assert other.is_dir(), "another index's"
