"""Publications of an index in several shards: each is made and brought up to date by itself, and every reader sees the same."""

from __future__ import annotations

import datetime as dt
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moon_ops.embeddings import index, index_shards
from moon_ops.embeddings.index import HEADER, IndexHeader
from moon_ops.embeddings.index_shards import ItemShards, shard_of
from moon_ops.errors import ContractError
from moon_ops.lake.lake import Lake
from moon_ops.lake.tables import items_as_of
from moon_ops.publication import erasure, places, publication, sharing
from moon_ops.registry.registry import Registry, manifest_of
from moon_ops.release import coverage, index_recall, verification
from moon_ops.release.serving_cost import _bytes
from moon_ops.settings import Settings
from tests.publication.refreshing import agree, change, found_by_its_vector, refresh

HOUR = dt.timedelta(hours=1)


@pytest.fixture
def dealt(current: Settings, now: dt.datetime) -> Settings:
    """The home, published in four shards by a night."""
    settings = current.replace(index_shards=4)
    found = publication.publish(settings, 1, now=now + HOUR)
    assert found.index.startswith("flat: 4 shards, the largest of ")
    return settings


def place(settings: Settings) -> Path:
    return places.index_place(settings, 1)


def inodes(settings: Settings) -> dict[str, int]:
    at = place(settings).resolve()
    return {path.relative_to(at).as_posix(): path.stat().st_ino for path in at.rglob("*") if path.is_file()}


def test_every_reader_sees_what_one_index_shows(dealt: Settings, now: dt.datetime) -> None:
    assert (place(dealt) / "3" / "index.faiss").is_file()
    assert not (place(dealt) / "index.faiss").exists()
    agree(dealt, now + HOUR)


def test_a_refresh_concerns_the_shards_of_what_has_changed(dealt: Settings, now: dt.datetime) -> None:
    ids = items_as_of(dealt.lake, now, ["item_id"])["item_id"].to_numpy()
    own = shard_of(ids, 4)
    item, gone = int(ids[own == 1][0]), int(ids[own == 3][0])
    before = inodes(dealt)
    change(dealt, [item], now + 2 * HOUR, title="one green umbrella")
    change(dealt, [gone], now + 2 * HOUR, status="deleted")
    refresh(dealt, now + 2 * HOUR)
    after = inodes(dealt)
    assert {name for name in before if after.get(name) != before[name]} == {
        HEADER,
        *(f"{number}/{name}" for number in (1, 3) for name in (HEADER, "delta.npz")),
    }
    agree(dealt, now + 2 * HOUR)
    assert found_by_its_vector(dealt, item, now + 2 * HOUR) == item
    assert not index_shards.holds(place(dealt), gone)
    refresh(dealt, now + 3 * HOUR)
    assert inodes(dealt) == after, "nothing new is nothing written"


def test_a_night_deals_out_anew_and_a_new_item_does_not(dealt: Settings, now: dt.datetime) -> None:
    """A service with another setting than the night's must not build the whole index for an item that it takes in."""
    two, before = dealt.replace(index_shards=2), place(dealt).resolve()
    publication.publish(two, 1, now=now + 2 * HOUR, behaviour=False)
    assert place(dealt).resolve() == before
    publication.publish(two, 1, now=now + 2 * HOUR)
    assert IndexHeader.read(place(dealt)).shards == 2
    agree(two, now + 2 * HOUR)
    publication.publish(dealt.replace(index_shards=1), 1, now=now + 3 * HOUR, full=True)
    assert not (place(dealt) / "0").exists()
    assert "shards" not in (place(dealt) / HEADER).read_text()
    agree(dealt, now + 3 * HOUR)


def test_a_shard_is_compacted_by_itself_within_the_memory_of_a_process(
    dealt: Settings, now: dt.datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = items_as_of(dealt.lake, now, ["item_id"])["item_id"].to_numpy()
    mine, memories = ids[shard_of(ids, 4) == 2], list[int | None]()
    written = index._write_base

    def write(*given: Any) -> IndexHeader:
        memories.append(given[-1])
        return written(*given)

    monkeypatch.setattr(index, "_write_base", write)
    change(dealt, mine[: len(mine) // 8].tolist(), now + 2 * HOUR, title="one green umbrella")
    refresh(dealt.replace(index_gb=0.5), now + 2 * HOUR)
    assert memories == [500_000_000]
    assert IndexHeader.read(place(dealt)).delta_items == 0
    agree(dealt, now + 2 * HOUR)
    memories.clear()
    publication.publish(dealt.replace(index_gb=0.5), 1, now=now + 3 * HOUR, full=True)
    assert memories == [500_000_000] * 4


def test_what_is_damaged_is_made_anew(dealt: Settings, now: dt.datetime) -> None:
    item = int(items_as_of(dealt.lake, now, ["item_id"])["item_id"][0].as_py())
    (place(dealt) / str(shard_of(np.array([item]), 4)[0]) / HEADER).write_text("{")
    change(dealt, [item], now + 2 * HOUR, title="one green umbrella")
    refresh(dealt, now + 2 * HOUR)
    agree(dealt, now + 2 * HOUR)


def test_a_release_is_verified_measured_and_erased_from_over_all_shards(dealt: Settings, now: dt.datetime) -> None:
    registry = Registry(dealt)
    manifest = manifest_of(registry, 1)
    verification.verify(dealt, registry, manifest, forced=True)
    assert coverage.of_catalogue(dealt, 1, now, now=now + HOUR)["catalogue/in_index"] == 1.0
    assert _bytes(place(dealt).resolve(), "**/*") > ItemShards.open(place(dealt)).header.items * 4 * 16
    assert index_recall.figures(dealt, 1) == {}, "all of them are exact"
    erased = int(ItemShards.open(place(dealt)).items()[7])
    assert erasure.erase(dealt, erased, now=now + 2 * HOUR).places["index/v1"] == 1
    assert not index_shards.holds(place(dealt), erased)
    with (place(dealt) / "1" / "ids.npy").open("ab") as stream:
        stream.write(b" ")
    with pytest.raises(ContractError, match=r"1/ids\.npy has sha256"):
        verification.verify(dealt, registry, manifest, forced=True)


def test_another_machine_fetches_the_shards_that_have_changed(
    dealt: Settings, now: dt.datetime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shutil.move(dealt.home / "lake", shared)
    first = dealt.replace(lake=Lake(f"file://{shared}"))
    second = first.replace(home=tmp_path / "second", feast_registry=f"sqlite:///{first.home / 'feature_store' / 'registry.db'}")
    second.home.mkdir()
    publication.publish(first, 1, now=now + 2 * HOUR)
    assert sharing.fetch(second, 1)
    assert index_shards.verified(place(second)) == IndexHeader.read(place(first))
    had = list[str]()
    get = sharing.objects.get

    def fetched(lake: Lake, key: str, to: Path, sha: str) -> None:
        had.append(f"{to.parent.name}/{to.name}")
        get(lake, key, to, sha)

    monkeypatch.setattr(sharing.objects, "get", fetched)
    item = int(ItemShards.open(place(first)).items()[3])
    change(first, [item], now + 3 * HOUR, title="one green umbrella")
    refresh(first, now + 3 * HOUR)
    assert sharing.fetch(second, 1)
    own = int(shard_of(np.array([item]), 4)[0])
    assert {name for name in had if name.partition("/")[0] in "0123"} == {f"{own}/{HEADER}", f"{own}/delta.npz"}
    assert index_shards.verified(place(second)) == IndexHeader.read(place(first))
