"""How far a service's vectors lie behind the lake, as Prometheus is told."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest

from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.publication import publication
from moon_ops.release import stages
from moon_ops.serving.behind import Behind
from moon_ops.serving.follower import Follower
from moon_ops.settings import Settings

LATER = dt.datetime(2026, 6, 2, 3, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)


def told(behind: Behind) -> dict[str, float]:
    return {family.name: family.samples[0].value for family in behind.collect()}


def test_what_waits_is_told_with_its_time_until_it_is_published(copied: Settings, make_shop: Callable[..., Path]) -> None:
    follower = Follower(copied)
    behind = Behind(copied, follower)
    behind.look(LATER)
    assert told(behind) == {}, "nothing is served yet"
    follower.follow()
    behind.look(LATER)
    waiting = ("moon_items_without_vector", "moon_items_unpublished", "moon_vector_lag_seconds")
    assert told(behind) == {**dict.fromkeys(waiting, 0.0), "moon_catalogue_coverage": 1.0, "moon_index_age_seconds": 27 * 3600.0}
    ingest(make_shop(items=[{"item_id": 900_001 + n, "title": f"red lamp {n}"} for n in range(5)]), copied.lake, now=LATER)
    behind.look(LATER + HOUR)
    found = told(behind)
    assert [found[name] for name in waiting] == [5.0, 0.0, 3600.0]
    assert found["moon_catalogue_coverage"] == pytest.approx(115 / 120)
    stages.embed(copied, 1, now=LATER + HOUR)
    behind.look(LATER + 2 * HOUR)
    found = told(behind)
    assert [found[name] for name in waiting] == [0.0, 5.0, 7200.0], "embedded, and not to be found yet"
    publication.publish(copied, 1, now=LATER + 2 * HOUR)
    behind.look(LATER + 2 * HOUR)
    assert [told(behind)[name] for name in waiting] == [0.0, 0.0, 0.0]


def test_without_the_lake_nothing_is_told(copied: Settings, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    follower = Follower(copied)
    follower.follow()
    behind = Behind(copied, follower)
    behind.look(LATER)
    assert told(behind)
    behind.settings = copied.replace(lake=Lake(str(tmp_path / "away")))
    for _ in range(2):
        behind.look(LATER)
    assert told(behind) == {}
    assert len([record for record in caplog.records if "could not be found out" in record.message]) == 1, "told once"
