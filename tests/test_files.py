"""Locks end with their holder, and a file is whole whenever its writer is killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from unittest.mock import Mock

import pytest

from moon_ops.embeddings.generations import fresh_directory, swap
from moon_ops.errors import StageError
from moon_ops.files import TakenError, is_claimed, link, locked, put, remembered, required, write, write_text

HOLD = """
import sys, time
from collections.abc import Callable
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


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What reached the disk, and what got its name, in order: ("synced", place), ("named", place)."""
    order, fsync, replace = list[tuple[str, str]](), os.fsync, os.replace

    def synced(descriptor: int) -> None:
        order.append(("synced", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    def named(source: Path, target: Path) -> None:
        order.append(("named", str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", named)
    return order


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_after(tmp_path: Path, happened: list[tuple[str, str]]) -> None:
    place = tmp_path / "marks.json"
    write_text(place, "new")
    (first, scratch), named, last = happened
    assert first == "synced"
    assert Path(scratch).parent == tmp_path
    assert (named, last) == (("named", str(place)), ("synced", str(tmp_path)))


def test_all_of_a_directory_is_on_the_disk_before_it_has_its_name(tmp_path: Path, happened: list[tuple[str, str]]) -> None:
    fresh, place = tmp_path / "fresh", tmp_path / "place"
    (fresh / "inner").mkdir(parents=True)
    (fresh / "model").write_bytes(b"weights")
    (fresh / "inner" / "about.json").write_text("{}")
    put(fresh, place)
    named = happened.index(("named", str(place)))
    before = {name for kind, name in happened[:named] if kind == "synced"}
    assert before == {str(fresh), str(fresh / "model"), str(fresh / "inner"), str(fresh / "inner" / "about.json")}
    assert happened[named + 1 :] == [("synced", str(tmp_path))]
    assert (place / "inner" / "about.json").read_text() == "{}"


def test_a_generation_is_on_the_disk_before_the_link_names_it(tmp_path: Path, happened: list[tuple[str, str]]) -> None:
    place = tmp_path / "index"
    for content in ("first", "second"):
        happened.clear()
        with fresh_directory(place) as fresh:
            (fresh / "index.json").write_text(content)
            swap(fresh, place)
        assert ("synced", str(fresh / "index.json")) in happened[: happened.index(("named", str(place)))]
        assert happened[-1] == ("synced", str(tmp_path)), "else the link may still name a directory that is gone"
        assert (place / "index.json").read_text() == content


@pytest.mark.parametrize("refusal", [errno.EPERM, errno.EXDEV, errno.ENOTSUP, errno.EMLINK])
def test_where_there_are_no_hard_links_a_file_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"vectors")
    link(source, target)
    assert target.samefile(source)
    with pytest.raises(FileExistsError):
        link(source, target)
    target.unlink()
    monkeypatch.setattr(os, "link", Mock(side_effect=OSError(refusal, os.strerror(refusal))))
    link(source, target)
    assert not target.samefile(source)
    assert target.read_bytes() == b"vectors"
    assert sorted(left.name for left in tmp_path.iterdir()) == ["source", "target"]


@pytest.mark.parametrize("content", [b"", b'{"mark": 3, "wh', b"\0" * 20, b"\xff\xfe", b"null", b"[1]"])
def test_an_empty_or_cut_file_is_known_again_or_an_error_that_says_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    place = tmp_path / "marks.json"
    assert remembered(place, "it is made anew") is None
    assert not caplog.records
    place.write_bytes(content)
    assert remembered(place, "it is made anew") is None
    (said,) = caplog.messages
    assert said.startswith(f"{place} cannot be read (")
    assert said.endswith("): it is made anew")
    with pytest.raises(StageError, match=rf"{place} cannot be read \(.*\) → make it again"):
        required(place, "make it again")
    place.write_text('{"mark": 3}')
    assert remembered(place, "") == required(place, "") == {"mark": 3}
    place.unlink()
    with pytest.raises(StageError, match=rf"{place} is not there → make it again"):
        required(place, "make it again")


def test_what_a_killed_write_of_its_mark_left_claims_no_directory(tmp_path: Path) -> None:
    place = tmp_path / "place"
    assert not is_claimed(place, "README.md")
    place.mkdir()
    assert not is_claimed(place, "README.md")
    with pytest.raises(KeyboardInterrupt):  # in the middle, as a kill finds it: the scratch file is there
        write(place / "README.md", _killed_while_writing(place))
    (place / ".README.md-77-1").write_text("Simulated sh")
    assert not is_claimed(place, "README.md")
    (place / "items.parquet").write_text("precious")
    assert is_claimed(place, "README.md")


def _killed_while_writing(place: Path) -> Callable[[BinaryIO], object]:
    def fill(file: BinaryIO) -> object:
        assert [path.name.startswith(".README.md-") for path in place.iterdir()] == [True], "its name is what is passed over"
        assert not is_claimed(place, "README.md")
        raise KeyboardInterrupt

    return fill
