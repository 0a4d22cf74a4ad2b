"""The lake's disk is not mounted: nobody begins a second lake in its place, and everybody says what is wrong."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from moon_ops import tasks
from moon_ops.cli.main import main
from moon_ops.embeddings import vector_tables
from moon_ops.errors import ServiceError, StageError
from moon_ops.release.status import lines, status
from moon_ops.settings import Settings

SAID = "holds no items, but this home has published some"


@pytest.fixture
def away(copied: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("MOON_HOME", str(copied.home))
    (copied.home / "lake").rename(copied.home / "lake.off")
    return copied


@pytest.mark.parametrize("command", ["ingest {shop}", "embed --encoder 1", "publish --encoder 1 --full", "maintain", "release --encoder 1"])
def test_a_command_that_would_write_a_second_lake_is_refused(
    away: Settings, shop: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["moon", *command.format(shop=shop).split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert SAID in told
    assert "is its disk mounted?" in told
    assert not (away.home / "lake" / "items.lance").exists()
    assert not (away.home / "lake" / "embeddings").exists()


def test_a_task_is_refused_and_status_says_so(
    away: Settings, shop: Path, now: dt.datetime, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOON_INBOX", str(shop))
    with pytest.raises(ServiceError, match=SAID):
        tasks.ingest_inbox(now.isoformat())
    assert any(line.startswith("DEGRADED") and SAID in line for line in lines(status(away)))
    monkeypatch.setattr("sys.argv", ["moon", "status"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1


def test_a_new_home_begins_a_lake(away: Settings, shop: Path, now: dt.datetime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOON_HOME", str(tmp_path / "new"))
    monkeypatch.setenv("MOON_INBOX", str(shop))
    assert tasks.ingest_inbox(now.isoformat())["changed"] == 115


def test_the_table_that_is_missed_is_not_the_first_thing_to_make(away: Settings) -> None:
    with pytest.raises(StageError, match=r"no items → .* is its disk mounted\?"):
        vector_tables.contract_of(away.lake, 1)
