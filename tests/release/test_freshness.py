"""How far a release's vectors lie behind is said before it is served again, and mended if that is asked for."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from by_hand import WISH, Make
from typer.testing import CliRunner

from moon_ops.cli.main import app
from moon_ops.errors import StageError
from moon_ops.lake.ingest import ingest
from moon_ops.publication import places, publication
from moon_ops.registry.registry import CHAMPION, Registry
from moon_ops.release import freshness, promotion, stages
from moon_ops.release.freshness import Freshness
from moon_ops.release.status import status
from moon_ops.settings import Settings

LATER = dt.datetime(2026, 6, 2, 3, tzinfo=dt.UTC)  # of WISH: a day and some hours after the demo
HOUR = dt.timedelta(hours=1)
NEW = [{"item_id": 900_001 + number, "title": f"red lamp {number}", "image_paths": []} for number in range(3)]


def test_what_has_come_since_is_counted_until_it_is_embedded_and_published(copied: Settings, make_shop: Callable[..., Path]) -> None:
    before = freshness.of(copied, 1, LATER)
    assert (before.without_vector, before.unpublished, before.index_age) == (0, 0, dt.timedelta(hours=27))
    assert before.warning() == ""
    ingest(make_shop(items=NEW), copied.lake, now=LATER)
    found = freshness.of(copied, 1, LATER)
    assert (found.without_vector, found.unpublished) == (3, 0)
    assert (
        found.told() == "3 items have no vector under encoder 1; 0 more have changed since its last publication; the index is 27 hours old"
    )
    assert "run `moon embed --encoder 1 && moon publish --encoder 1`" in found.warning()
    stages.embed(copied, 1, now=LATER)
    found = freshness.of(copied, 1, LATER)
    assert (found.without_vector, found.unpublished) == (0, 3)
    publication.publish(copied, 1, now=LATER)
    assert freshness.of(copied, 1, LATER + dt.timedelta(minutes=5)) == Freshness(1, 0, 0, dt.timedelta(minutes=5))


def test_one_is_not_told_as_several() -> None:
    told = Freshness(1, 1, 1, dt.timedelta(minutes=1)).told()
    assert told == "1 item has no vector under encoder 1; 1 more has changed since its last publication; the index is 1 minute old"


def test_a_vector_of_what_an_item_said_before_is_none_in_the_status(copied: Settings, make_shop: Callable[..., Path]) -> None:
    def counted() -> tuple[int, int]:
        found = status(copied)
        return found["items"], found["embedded"]

    shop = [{"item_id": 900_001, "title": "red lamp", "price": 3}]
    ingest(make_shop(items=shop), copied.lake, now=LATER)
    stages.embed(copied, 1, now=LATER)
    assert counted() == (116, 116)
    ingest(make_shop(items=[{**shop[0], "price": 4}]), copied.lake, now=LATER + HOUR)
    assert counted() == (116, 116), "a price is nothing that an encoder reads"
    ingest(make_shop(items=[{**shop[0], "title": "blue lamp"}]), copied.lake, now=LATER + 2 * HOUR)
    assert counted() == (116, 115)
    stages.embed(copied, 1, now=LATER + 2 * HOUR)
    assert counted() == (116, 116)
    ingest(make_shop(items=shop), copied.lake, now=LATER + 3 * HOUR)
    assert counted() == (116, 115), "its vector of long ago is not the one that is served"
    ingest(make_shop(items=[{**shop[0], "status": "deleted"}]), copied.lake, now=LATER + 4 * HOUR)
    assert counted() == (115, 115)


def test_a_withdrawn_item_needs_no_vector_and_a_new_price_neither(copied: Settings, make_shop: Callable[..., Path]) -> None:
    ingest(make_shop(items=[NEW[0], {**NEW[1], "status": "deleted"}]), copied.lake, now=LATER)
    assert freshness.of(copied, 1, LATER).without_vector == 1
    stages.refresh(copied, 1, now=LATER)
    ingest(make_shop("dearer", items=[{**NEW[0], "price": 99.0}]), copied.lake, now=LATER + dt.timedelta(hours=1))
    found = freshness.of(copied, 1, LATER + dt.timedelta(hours=1))
    assert (found.without_vector, found.unpublished) == (0, 1)


def test_an_index_that_nobody_has_refreshed_for_days_is_a_warning(copied: Settings) -> None:
    found = freshness.of(copied, 1, LATER + dt.timedelta(days=7))
    assert "the index is 8 days old → run `moon embed" in found.warning()


@pytest.mark.parametrize("away", ["lake", "tables/handed"])
def test_what_cannot_be_found_out_is_said_and_stops_nothing(copied: Settings, away: str) -> None:
    shutil.rmtree(copied.home / away)
    said = freshness.of(copied, 1, LATER).warning()
    assert ("could not be found out: the lake at" if away == "lake" else "the index is of unknown age") in said


def test_a_rollback_says_what_the_release_lacks_and_goes_all_the_same(
    copied: Settings, registry: Registry, make_release: Make, make_shop: Callable[..., Path]
) -> None:
    promotion.promote(copied, make_release(), WISH)
    ingest(make_shop(items=NEW), copied.lake, now=LATER)
    shown = promotion.rollback(copied, WISH, to=1, dry_run=True)
    assert shown.freshness is not None
    assert (shown.freshness.without_vector, shown.move, registry.alias(CHAMPION)) == (3, None, 2)
    moved = promotion.rollback(copied, WISH, to=1)
    assert (moved.freshness, registry.alias(CHAMPION)) == (shown.freshness, 1)


def test_without_an_index_a_release_is_not_gone_back_to(copied: Settings, registry: Registry, make_release: Make) -> None:
    promotion.promote(copied, make_release(), WISH)
    link = places.index_place(copied, 1)
    link.rename(link.with_name("away"))
    with pytest.raises(StageError, match=r"there is no index at .* → run `moon publish` first"):
        promotion.rollback(copied, WISH, to=1)
    assert registry.alias(CHAMPION) == 2


@pytest.mark.parametrize("mend", [False, True])
def test_moon_rollback_tells_figures_and_mends_them_first(
    copied: Settings, registry: Registry, make_release: Make, make_shop: Callable[..., Path], monkeypatch: Any, mend: bool
) -> None:
    promotion.promote(copied, make_release(), WISH)
    ingest(make_shop(items=NEW), copied.lake, now=LATER)
    monkeypatch.setenv("MOON_HOME", str(copied.home))
    monkeypatch.setattr("moon_ops.cli.terminal.now", lambda: LATER)
    monkeypatch.setattr("moon_ops.cli.releases.now", lambda: LATER)
    done = CliRunner().invoke(app, ["rollback", "--to", "1", "--json", *(["--mend"] if mend else [])])
    assert done.exit_code == 0, done.output
    told = json.loads(next(line for line in done.output.splitlines() if line.startswith('{"champion"')))
    assert (told["champion"], told["before"], registry.alias(CHAMPION)) == (1, 2, 1)
    assert told["freshness"].startswith("0 items have" if mend else "3 items have no vector under encoder 1")
    assert ("warning: release 1: 3 items have no vector under encoder 1" in done.output) is not mend
    assert freshness.of(copied, 1, LATER).without_vector == (0 if mend else 3)
