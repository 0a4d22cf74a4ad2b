"""What stands in the way of a long log, beside its rows: no event is good, a file is not there, the disk for temporary files is full."""

from __future__ import annotations

import datetime as dt
import errno
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moon_ops.errors import InputError, ServiceError
from moon_ops.lake import long_log
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.lake.reading import streams
from moon_ops.lake.spills import Parts, Spool, mapped
from tests.lake.long_shops import MAY, NOW, as_csv, as_json, as_parquet, catalogue, log_of


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_log, "AT_ONCE", 48)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def file(**_: Any) -> Any:
        return Path("/dev/full").open("r+b", buffering=0)

    monkeypatch.setattr(tempfile, "TemporaryFile", file)


def test_of_a_log_without_a_good_event_there_is_a_table(tmp_path: Path) -> None:
    source, lake = catalogue(tmp_path / "shop"), Lake(str(tmp_path / "lake"))
    as_csv(source / "events.csv", [{**row, "event": "dance"} for row in log_of()])
    report = ingest(source, lake, now=NOW)
    assert report.events == 0
    assert report.refused["events.csv event"] > 100
    assert lake.exists("events")


@pytest.mark.parametrize("name", ["events.csv", "events.jsonl", "events.parquet", "events/part-1.csv"])
def test_a_file_that_is_not_there_any_more_is_named(tmp_path: Path, name: str) -> None:
    source = catalogue(tmp_path / "shop")
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=rf"{name} cannot be read .*; nothing was ingested → write the file again"):
        ingest(source, Lake(str(tmp_path / "lake")), now=NOW)


@pytest.mark.parametrize("name", ["events.csv", "events.parquet"])
def test_a_file_that_may_not_be_read_need_not_be_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    source, real = catalogue(tmp_path / "shop"), Path.open
    as_csv(source / name, log_of())

    def closed(place: Path, *how: Any, **more: Any) -> Any:  # root may read everything
        if place.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(place))
        return real(place, *how, **more)

    monkeypatch.setattr(Path, "open", closed)
    with pytest.raises(
        InputError, match=rf"{name} cannot be read .*Permission denied.*nothing was ingested → let whoever runs this read it"
    ):
        ingest(source, Lake(str(tmp_path / "lake")), now=NOW)


@pytest.mark.parametrize(("count", "more"), [(90, {}), (154, {"size": "L"})])
def test_a_file_that_is_written_while_it_is_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, more: dict[str, str]
) -> None:
    source, real, rows = catalogue(tmp_path / "shop"), streams.of, log_of()[:154]
    as_parquet(source / "events" / "a.parquet", rows)

    def of(*told: Any, **more_told: Any) -> Any:
        found = real(*told, **more_told)
        as_parquet(source / "events" / "a.parquet", [{**row, **more} for row in rows[:count]])
        return found

    monkeypatch.setattr(streams, "of", of)
    with pytest.raises(InputError, match=rf"a\.parquet had 154 rows of .* and now has {count} of .* nothing was ingested → wait until"):
        ingest(source, Lake(str(tmp_path / "lake")), now=NOW)
    assert not Lake(str(tmp_path / "lake")).exists("items")


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("write", [as_csv, as_json, as_parquet])
def test_a_full_disk_for_temporary_files_is_named_and_not_the_log(tmp_path: Path, write: Any) -> None:
    source = catalogue(tmp_path / "shop")
    write(source / f"events.{'parquet' if write is as_parquet else 'csv' if write is as_csv else 'jsonl'}", log_of())
    with pytest.raises(ServiceError, match=r"^TMPDIR = \S+ is full: .*nothing is lost → make room there, or set TMPDIR to a directory"):
        ingest(source, Lake(str(tmp_path / "lake")), now=NOW)
    assert not Lake(str(tmp_path / "lake")).exists("items")


@pytest.mark.usefixtures("full_disk")
def test_every_temporary_file_says_so() -> None:
    rows = pa.table({"a": range(9)})
    for writes in (
        lambda: Spool().add(rows),
        lambda: Parts(1).add(rows, rows["a"].to_numpy() * 0),
        lambda: mapped([rows]),
    ):
        with pytest.raises(ServiceError, match="is full"):
            writes()


def test_no_place_for_temporary_files_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(**_: Any) -> Any:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryFile", nowhere)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", "/closed")
    with pytest.raises(ServiceError, match=r"^TMPDIR = /closed cannot be written, .* → set TMPDIR to a directory that can be written"):
        Spool()


@pytest.mark.parametrize("at_once", [48, 10**6])
def test_long_ids_beside_floats_of_another_file_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    source, lake = catalogue(tmp_path / "shop"), Lake(str(tmp_path / "lake"))
    (source / "events").mkdir()
    times = [MAY + dt.timedelta(minutes=n) for n in range(60)]
    rows = {"timestamp": times, "item_id": ["hat"] * 60, "event": ["click"] * 60, "size": range(60)}
    floats = {**rows, "user_id": [None, 7.0] * 30, "size": [0.5] * 60}  # as pandas writes a column with a gap
    pq.write_table(pa.table({**rows, "user_id": [2**60 + n for n in range(60)]}), source / "events" / "a.parquet")
    pq.write_table(pa.table(floats), source / "events" / "b.parquet")
    monkeypatch.setattr(long_log, "AT_ONCE", at_once)
    report = ingest(source, lake, now=NOW)
    users = lake.read("events")["user_id"].to_pylist()
    assert report.events == 120
    assert {*users} == {None, 7, *range(2**60, 2**60 + 60)}
    assert {*lake.read("events")["extra"].to_pylist()} == {'{"size": 0.5}', *(f'{{"size": {n}}}' for n in range(60))}
