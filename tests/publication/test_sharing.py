"""Several machines: each has a home of its own, the lake is where all can reach it, and who publishes is seen by all."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from moon_ops.embeddings.index import ItemIndex
from moon_ops.errors import ServiceError
from moon_ops.files import TakenError, locked
from moon_ops.lake import objects
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.publication import erasure, maintenance, places, publication, sharing
from moon_ops.registry.registry import CHAMPION, Registry
from moon_ops.release import promotion, served, stages
from moon_ops.release.promotion import Wish
from moon_ops.serving.champion import Champion
from moon_ops.serving.follower import Follower
from moon_ops.settings import Settings

HOUR = dt.timedelta(hours=1)


@pytest.fixture
def machines(copied: Settings, tmp_path: Path, now: dt.datetime) -> tuple[Settings, Settings]:
    """Two machines over one lake and one registry; the first has published encoder 1, the second has an empty home."""
    shared = tmp_path / "shared"
    shutil.move(copied.home / "lake", shared)
    first = copied.replace(lake=Lake(f"file://{shared}"))
    features = f"sqlite:///{first.home / 'feature_store' / 'registry.db'}"
    second = first.replace(home=tmp_path / "second", feast_registry=features)
    second.home.mkdir()
    (second.home / "mlartifacts").symlink_to(first.home / "mlartifacts")  # a registry's server has them for all
    publication.publish(first, 1, now=now)
    return first, second


def searched(settings: Settings, item: int) -> int:
    """The item whose vector is nearest to that of ``item``: itself, if it is in table and index."""
    opened = ItemIndex.open(places.index_place(settings, 1))
    table = places.table(settings, "items", 1)
    vector = table.gather(table.rows(np.array([item])))
    return int(opened.search(vector, 1, opened.header.contract_id)[0][0, 0])


def refresh(settings: Settings, now: dt.datetime) -> None:
    stages.embed(settings, 1, now=now)
    publication.publish(settings, 1, now=now, behaviour=False)


def add(settings: Settings, make_shop: Any, item: int, now: dt.datetime) -> None:
    ingest(
        make_shop(f"new-{item}", items=[{"item_id": item, "title": f"umbrella {item}", "category": "umbrellas"}]), settings.lake, now=now
    )


def same(first: Settings, second: Settings) -> bool:
    """Whether both homes hold the same files of encoder 1."""
    return all(
        path.read_bytes() == (places.index_place(second, 1) / path.name).read_bytes() for path in places.index_place(first, 1).iterdir()
    ) and all(
        path.read_bytes() == (places.table_place(second, kind, 1) / path.name).read_bytes()
        for kind in ("items", "queries")
        for path in places.table_place(first, kind, 1).iterdir()
    )


def test_an_empty_home_serves_what_another_machine_has_published(machines: tuple[Settings, Settings]) -> None:
    first, second = machines
    choice = served.choose(second, Registry(second))
    champion = Champion(second, choice.parts)
    assert (champion.version, same(first, second)) == (1, True)
    assert champion.search(champion.embed("red lamp", None), 5) == Champion(first, choice.parts).search(champion.embed("red lamp", None), 5)


def test_machines_publish_in_turn_and_each_sees_the_other(machines: tuple[Settings, Settings], make_shop: Any, now: dt.datetime) -> None:
    first, second = machines
    for hour, (who, other) in enumerate([(second, first), (first, second), (second, first)], 1):
        add(who, make_shop, 9000 + hour, now + hour * HOUR)
        refresh(who, now + hour * HOUR)
        assert sharing.fetch(other, 1)
        assert same(first, second)
        assert searched(other, 9000 + hour) == 9000 + hour
        assert not sharing.fetch(other, 1)
    assert [searched(first, item) for item in (9001, 9002, 9003)] == [9001, 9002, 9003]


def test_only_what_has_changed_is_sent_and_fetched(
    machines: tuple[Settings, Settings], make_shop: Any, now: dt.datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = machines
    sharing.fetch(second, 1)
    put, got = [], []
    real = objects.put, objects.get
    monkeypatch.setattr(objects, "put", lambda lake, key, path: put.append(path.name) or real[0](lake, key, path))
    monkeypatch.setattr(objects, "get", lambda lake, key, path, sha: got.append(path.name) or real[1](lake, key, path, sha))
    add(first, make_shop, 9001, now + HOUR)
    refresh(first, now + HOUR)
    sharing.fetch(second, 1)
    assert sorted(put) == sorted(got)
    assert {"delta.npz", "vectors.f32"} <= set(put)
    assert "index.faiss" not in put, "the base is as it was"
    before = len(put)
    refresh(first, now + 2 * HOUR)
    refresh(first, now + 3 * HOUR)
    assert put[before:] == [], "nothing new"


def test_a_machine_that_was_overtaken_says_so_and_takes_the_other_ones(
    machines: tuple[Settings, Settings], make_shop: Any, now: dt.datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a server of locks nobody waits: both build on the same publication, and the first row of a number counts."""
    first, second = machines
    sharing.fetch(second, 1)
    add(first, make_shop, 9001, now + HOUR)
    stages.embed(first, 1, now=now + HOUR)
    with monkeypatch.context() as patched:
        patched.setattr(sharing, "fetch_in_turn", lambda settings, encoder: False)
        publication.publish(first, 1, now=now + HOUR, behaviour=False)
        with pytest.raises(ServiceError, match="another machine has published encoder 1 meanwhile"):
            publication.publish(second, 1, now=now + HOUR, behaviour=False)
    assert sharing.fetch(second, 1)
    assert same(first, second)
    assert not sharing.fetch(first, 1)


def test_killed_before_it_was_shared_it_is_shared_by_the_next(
    machines: tuple[Settings, Settings], make_shop: Any, now: dt.datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = machines
    add(first, make_shop, 9001, now + HOUR)
    with monkeypatch.context() as patched:
        patched.setattr(sharing, "share", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            refresh(first, now + HOUR)
    assert not sharing.is_current(first, 1, now + HOUR)
    refresh(first, now + HOUR)
    assert sharing.is_current(first, 1, now + HOUR)
    assert sharing.fetch(second, 1)
    assert searched(second, 9001) == 9001


def test_a_cut_file_is_fetched_again(machines: tuple[Settings, Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = machines
    real = objects.get
    calls = []

    def killed(lake: Lake, key: str, path: Path, sha256: str) -> None:
        calls.append(key)
        if len(calls) == 4:
            raise KeyboardInterrupt
        real(lake, key, path, sha256)

    with monkeypatch.context() as patched:
        patched.setattr(objects, "get", killed)
        with pytest.raises(KeyboardInterrupt):
            sharing.fetch(second, 1)
    assert sharing.fetch(second, 1)
    assert same(first, second)


def test_a_service_shows_what_another_machine_publishes(machines: tuple[Settings, Settings], make_shop: Any, now: dt.datetime) -> None:
    first, second = machines
    follower = Follower(second)
    follower.follow()
    assert follower.current is not None
    add(first, make_shop, 9001, now + HOUR)
    refresh(first, now + HOUR)
    follower.refresh()
    assert follower.current.index.holds(9001)


def test_a_service_goes_on_while_the_lake_is_away(machines: tuple[Settings, Settings]) -> None:
    first, second = machines
    follower = Follower(second)
    follower.follow()
    shared = Path(first.lake.uri.removeprefix("file://"))
    shared.rename(shared.with_name("away"))
    shared.write_text("no directory")
    follower.refresh()
    assert follower.current is not None
    assert "lake" in follower.state().why
    shared.unlink()
    shared.with_name("away").rename(shared)
    until = time.monotonic() + 60
    while follower.state().why and time.monotonic() < until:  # a store that took long to fail is asked some seconds later
        time.sleep(0.2)
        follower.refresh()
    assert follower.state().why == ""


def test_what_was_erased_leaves_all_machines(machines: tuple[Settings, Settings], make_shop: Any, now: dt.datetime) -> None:
    first, second = machines
    add(first, make_shop, 9001, now + HOUR)
    refresh(first, now + HOUR)
    sharing.fetch(second, 1)
    assert searched(second, 9001) == 9001
    before = set(objects.keys(first.lake, sharing.OBJECTS))
    receipt = erasure.erase(first, 9001, now=now + 2 * HOUR)
    assert receipt.places["publications"] > 0
    left = set(objects.keys(first.lake, sharing.OBJECTS))
    newest = sharing.latest(first.lake, 1)
    assert newest is not None
    assert left == {file.key for file in newest.files.values()}
    assert before - left
    assert sharing.fetch(second, 1)
    assert same(first, second)
    assert not ItemIndex.open(places.index_place(second, 1)).holds(9001)


def test_an_erasure_removes_no_file_of_a_publication_that_is_being_shared(
    machines: tuple[Settings, Settings], make_shop: Any, now: dt.datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are in the store before its row names them: who removes what no row names has the turn."""
    first, _ = machines
    add(first, make_shop, 9001, now + HOUR)
    refresh(first, now + HOUR)
    real, seen = sharing.tidy, []

    def tidy(*given: Any) -> int:
        with pytest.raises(TakenError), locked(first.home / "tables" / "sharing.lock", patience=0):
            pass
        seen.append(given)
        return real(*given)

    monkeypatch.setattr(sharing, "tidy", tidy)
    erasure.erase(first, 9001, now=now + 2 * HOUR)
    maintenance.maintain(first, keep=HOUR, now=now + 3 * HOUR)
    assert len(seen) == 2


def test_maintenance_keeps_what_is_served(machines: tuple[Settings, Settings], make_shop: Any, now: dt.datetime) -> None:
    first, second = machines
    sharing.fetch(second, 1)
    for hour in (1, 2, 3):
        add(first, make_shop, 9000 + hour, now + hour * HOUR)
        refresh(first, now + hour * HOUR)
    maintenance.maintain(first, keep=dt.timedelta(0), now=now + 4 * HOUR, fragments=1)
    assert first.lake.count(sharing.TABLE) <= 2
    assert sharing.fetch(second, 1)
    assert same(first, second)
    assert publication.publish(second, 1, now=now + 5 * HOUR).items == len(ItemIndex.open(places.index_place(first, 1)).items())


def test_a_release_is_promoted_on_a_machine_that_did_not_make_it(machines: tuple[Settings, Settings], make_release: Any) -> None:
    _, second = machines
    version = make_release()
    promotion.promote(second, version, Wish("somebody", "2026-06-02T00:00:00+00:00"))
    assert Registry(second).alias(CHAMPION) == version


def test_a_lake_in_a_directory_shares_nothing(copied: Settings, now: dt.datetime) -> None:
    publication.publish(copied, 1, now=now)
    assert not copied.lake.exists(sharing.TABLE)
    assert not sharing.fetch(copied, 1)
    assert sharing.is_current(copied, 1, now)


def test_of_one_number_the_first_row_counts(machines: tuple[Settings, Settings], now: dt.datetime) -> None:
    first, _ = machines
    mine = sharing.latest(first.lake, 1)
    assert mine is not None
    row = first.lake.read(sharing.TABLE).to_pylist()[-1]
    other = {
        **row,
        "by": "another machine",
        "content": row["content"].replace('"files": {', '"files": {"index/v1/x": {"key": "k", "sha256": "s", "here": []}, '),
    }
    first.lake.append(sharing.TABLE, pa.Table.from_pylist([other], schema=sharing.SCHEMA))
    found = sharing.latest(first.lake, 1)
    assert found is not None
    assert "index/v1/x" not in found.files


@pytest.mark.parametrize("command", ["status", "promote 1", "verify"])
def test_a_command_on_a_machine_with_an_empty_home_brings_the_publication(machines: tuple[Settings, Settings], command: str) -> None:
    """Bringing it imported Feast, and so pandas, which commands in a hurry do without: they ended with a traceback."""
    _, second = machines
    told = {"MOON_HOME": str(second.home), "MOON_LAKE": second.lake.uri, "MOON_FEAST_REGISTRY": second.feast_registry.get_secret_value()}
    told |= {"MOON_TRACKING_URI": second.tracking_uri.get_secret_value()}
    words = [sys.executable, "-m", "moon_ops.cli", *command.split()]
    done = subprocess.run(words, env={**os.environ, **told}, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
