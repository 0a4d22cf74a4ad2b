"""Workers ask the process that forked them: what it yields, what it raises, and who may not ask."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from moon_ops.encoder.answering import Reader
from moon_ops.encoder.loader import batches
from moon_ops.errors import StageError


def read(wanted: int) -> Iterator[tuple[int, int]]:
    """As many answers as are wanted, each with the process that it is of; a fault in the middle of three."""
    for number in range(wanted):
        if wanted == 3 and number == 1:
            raise StageError("no picture 1", action="bring it")
        yield number, os.getpid()


def test_each_worker_hears_what_this_process_reads() -> None:
    reader, here = Reader(read), os.getpid()
    assert list(reader(2)) == [(0, here), (1, here)]

    def make(number: int) -> Any:
        return os.getpid(), [*reader(number), *reader(2)]

    made = list(batches(make, [0, 1, 2, 5, 4, 1], 2))
    assert here not in {pid for pid, _ in made}
    assert [found for _, found in made] == [[[n, here] for n in (*range(count), 0, 1)] for count in (0, 1, 2, 5, 4, 1)]


def test_a_fault_reaches_the_worker_and_the_next_question_is_answered() -> None:
    reader = Reader(read)

    def make(number: int) -> Any:
        try:
            return list(reader(number))
        except StageError as fault:
            return str(fault), [n for n, _ in reader(2)]

    assert list(batches(make, [3], 1)) == [["no picture 1 → bring it", [0, 1]]]
    with pytest.raises(StageError, match="no picture 1"):
        list(batches(lambda n: list(reader(n)), [2, 3], 1))


def test_an_answer_that_is_left_halfway_is_not_taken_for_the_next_one() -> None:
    reader = Reader(read)

    def make(number: int) -> Any:
        first = next(iter(reader(number)))[0]
        return first, [n for n, _ in reader(2)]

    assert list(batches(make, [5, 6], 1)) == [[0, [0, 1]]] * 2


def test_no_thread_is_left_when_the_batches_are_over() -> None:
    before, reader = threading.active_count(), Reader(read)
    for _ in range(3):
        waiting = batches(lambda n: list(reader(n)), range(4), 2)
        next(waiting)
        waiting.close()
    assert not [t for t in threading.enumerate() if "_accept" in t.name]
    assert threading.active_count() <= before + 6, "of connections that are being closed at most"
