"""Locks end with their holder, and a file is whole whenever its writer is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from moon_ops.files import TakenError, locked, write, write_text

HOLD = """
import sys, time
from pathlib import Path
from moon_ops.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_held_by_one_and_ends_with_a_killed_process(tmp_path: Path) -> None:
    place = tmp_path / "a.lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(place)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TakenError, match=r"somebody else has held a lock for 0.1 seconds"), locked(place, patience=0.1):
            pass
        holder.send_signal(signal.SIGKILL)
    with locked(place, patience=0):
        assert place.exists()


def test_readers_share_a_lock_and_a_directory_can_be_locked(tmp_path: Path) -> None:
    place = tmp_path / "b.lock"
    with locked(place, shared=True), locked(place, shared=True, patience=0), pytest.raises(TakenError), locked(place, patience=0):
        pass
    with locked(tmp_path), pytest.raises(TakenError), locked(tmp_path, patience=0):
        pass
    with pytest.raises(FileNotFoundError), locked(tmp_path / "gone"):
        pass


def test_who_waits_gets_the_lock(tmp_path: Path) -> None:
    place, order = tmp_path / "c.lock", list[str]()

    def second() -> None:
        with locked(place):
            order.append("second")

    with locked(place):
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.05)
        order.append("first")
    waiting.join(timeout=10)
    assert order == ["first", "second"]


def test_a_failed_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    place = tmp_path / "marks.json"
    write_text(place, "old")

    def half(file: BinaryIO) -> None:
        file.write(b"ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write(place, half)
    assert place.read_text() == "old"
    assert [left.name for left in tmp_path.iterdir()] == ["marks.json"]
    write_text(place, "new", mode=0o600)
    assert (place.read_text(), place.stat().st_mode & 0o777) == ("new", 0o600)
