"""The lake's disk is not mounted: nobody begins a second lake in its place, and everybody says what is wrong."""

from __future__ import annotations

import datetime as dt
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from moon_ops import tasks
from moon_ops.cli.main import main
from moon_ops.embeddings import vector_tables
from moon_ops.errors import ServiceError, StageError
from moon_ops.lake.lake import Lake
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


def test_a_bucket_without_the_lake_is_no_new_lake(
    away: Settings, shop: Path, now: dt.datetime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong name of the bucket, or one that was emptied: what would be published from there is a shop of one item."""
    elsewhere = away.replace(lake=Lake(f"file://{tmp_path}/bucket"))
    assert SAID in status(elsewhere)["lake_away"]
    monkeypatch.setenv("MOON_LAKE", f"file://{tmp_path}/bucket")
    monkeypatch.setenv("MOON_INBOX", str(shop))
    with pytest.raises(ServiceError, match=SAID):
        tasks.ingest_inbox(now.isoformat())
    assert not (tmp_path / "bucket").exists()


@pytest.mark.slow
def test_status_tells_the_champion_while_the_store_hangs(copied: Settings) -> None:
    """It waited for three minutes, and then told of the store alone."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)  # connections are made, and nobody answers
        store = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}
        told = {"MOON_HOME": str(copied.home), "MOON_LAKE": "s3://moon/lake", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        words = [sys.executable, "-m", "moon_ops.cli", "status"]
        done = subprocess.run(words, env={**os.environ, **store, **told}, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert "champion    release 1: moon-encoder 1" in done.stdout, done.stderr
    assert "DEGRADED    the lake at s3://moon/lake cannot be read" in done.stdout
    assert "catalogue   " not in done.stdout
