"""Publication: readers get what has changed, all of it, once; and a refresh that is killed at any moment is finished by the next."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import multiprocessing
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from moon_ops.embeddings import as_of, features, handover, index, online_store, portions, vector_tables
from moon_ops.embeddings.due import due
from moon_ops.embeddings.index import ItemIndex
from moon_ops.embeddings.table import RepresentationTable
from moon_ops.errors import InputError, StageError
from moon_ops.lake import statistics
from moon_ops.lake.tables import items_as_of
from moon_ops.publication import maintenance, marks, places, publication
from moon_ops.registry.encoders import encoder_version
from moon_ops.release import clicks, stages
from moon_ops.release.windows import windows
from moon_ops.settings import Settings
from tests.publication.refreshing import agree, change, found_by_its_vector, refresh

HOUR = dt.timedelta(hours=1)


DAMAGED = (
    "tables/items-v1/table.json",
    "tables/items-v1/ids.npy",
    "tables/handed/table-items-v1.json",
    "index/v1/index.json",
    "index/v1/delta.npz",
)


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("content", [b"\xff garbage", b"PK\x03\x04 cut", b"", None])
def test_a_damaged_file_is_made_anew(current: Settings, now: dt.datetime, name: str, content: bytes | None) -> None:
    place = current.home / name
    place.unlink()
    if content is not None:
        place.write_bytes(content)
    change(current, items_as_of(current.lake, now, ["item_id"])["item_id"].to_pylist()[:2], now + HOUR, title="Another")
    refresh(current, now + HOUR)
    agree(current, now + HOUR)


def test_full_makes_an_index_of_another_version_anew(current: Settings, now: dt.datetime) -> None:
    header = current.home / "index" / "v1" / "index.json"
    header.write_text(json.dumps(json.loads(header.read_text()) | {"of a later version": 1}))
    with pytest.raises(StageError, match="another version"):
        publication.publish(current, 1, now=now + HOUR)
    publication.publish(current, 1, now=now + HOUR, full=True)
    agree(current, now + HOUR)


def test_many_entities_are_written_in_the_order_in_which_the_store_keeps_them(
    current: Settings, now: dt.datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "MANY", 100)
    (online := current.home / "feature_store" / "online.db").unlink()
    assert publication.publish(current, 1, now=now + HOUR).changed > 100
    agree(current, now + HOUR)
    with contextlib.closing(sqlite3.connect(online)) as tables:
        keys = [key for (key,) in tables.execute("SELECT entity_key FROM moon_item_embedding_v1 ORDER BY rowid")]
    assert len(keys) > 100
    assert keys == sorted(keys)


def test_numbers_are_ordered_as_feast_writes_them_in_keys(current: Settings) -> None:
    ids, config = [1, 256, 2**40 + 3, 255, 2**63 - 1, 7, 65_536, 2**40 + 2], features.open_store(current).config
    entities = [EntityKey(join_keys=["item_id"], entity_values=[Value(int64_val=number)]) for number in ids]
    keys = [serialize_entity_key(e, entity_key_serialization_version=config.entity_key_serialization_version) for e in entities]
    ordered = [ids[n] for n in online_store.order(pa.array(ids))]
    assert ordered == [ids[n] for n in sorted(range(len(ids)), key=lambda n: keys[n])] != sorted(ids)


def test_nothing_new_is_nothing_handed_over(current: Settings, now: dt.datetime) -> None:
    lie = [places.index_place(current, 1).resolve(), places.table_place(current, "items", 1).resolve()]
    assert marks.is_current(current, 1, now)
    assert publication.publish(current, 1, now=now + HOUR).changed == 0
    assert [places.index_place(current, 1).resolve(), places.table_place(current, "items", 1).resolve()] == lie
    agree(current, now)


def test_only_what_changed_is_handed_over(current: Settings, now: dt.datetime) -> None:
    ids = items_as_of(current.lake, now, ["item_id"])["item_id"].to_pylist()
    change(current, ids[:3], now + HOUR, title="one green umbrella")
    change(current, ids[5:6], now + HOUR, status="deleted")
    assert not marks.is_current(current, 1, now + HOUR)
    published = refresh(current, now + 2 * HOUR)
    assert published.changed == 4 + 3, "four profiles and three vectors"
    assert published.items == len(ids) - 1
    assert found_by_its_vector(current, ids[0], now + 2 * HOUR) in ids[:3]
    agree(current, now + 2 * HOUR)


def test_a_version_that_becomes_valid_later_is_handed_over_then(current: Settings, now: dt.datetime) -> None:
    ids = items_as_of(current.lake, now, ["item_id"])["item_id"].to_pylist()
    later = now + 5 * HOUR
    change(current, ids[:1], later, learned=now + HOUR, title="one green umbrella")
    refresh(current, now + HOUR)
    agree(current, now + HOUR)
    assert marks.is_current(current, 1, now + 2 * HOUR)
    assert not marks.is_current(current, 1, later)
    refresh(current, later)
    agree(current, later)


def test_an_earlier_time_takes_no_new_item_away(current: Settings, now: dt.datetime) -> None:
    """The nightly refresh carries the time it was due at; a new item may have been taken in since."""
    ids = items_as_of(current.lake, now, ["item_id"])["item_id"].to_pylist()
    change(current, ids[:1], now + 2 * HOUR, title="one green umbrella")
    refresh(current, now + 2 * HOUR)
    assert refresh(current, now + HOUR).changed == 0
    agree(current, now + 2 * HOUR)


def test_publications_at_the_same_time_lose_nothing(current: Settings, now: dt.datetime) -> None:
    ids = items_as_of(current.lake, now, ["item_id"])["item_id"].to_pylist()
    for hour, item in enumerate(ids[:4], 1):
        change(current, [item], now + hour * HOUR, title=f"umbrella {hour}")
    stages.embed(current, 1, now=now + 4 * HOUR)
    times = [now + hour * HOUR for hour in (4, 1, 3, 2)]
    with ThreadPoolExecutor(len(times)) as pool:
        list(pool.map(lambda when: publication.publish(current, 1, now=when, behaviour=False), times))
    agree(current, now + 4 * HOUR)


def test_another_online_store_is_filled_from_the_beginning(current: Settings, now: dt.datetime) -> None:
    (current.home / "feature_store" / "online.db").unlink()
    assert publication.publish(current, 1, now=now + HOUR).changed > 115
    agree(current, now + HOUR)


def test_a_compaction_loses_nothing_and_repeats_nothing(current: Settings, now: dt.datetime) -> None:
    ids = items_as_of(current.lake, now, ["item_id"])["item_id"].to_pylist()
    for hour, item in enumerate(ids[:4], 1):
        change(current, [item], now + hour * HOUR, title=f"umbrella {hour}")
        refresh(current, now + hour * HOUR)
    before = len(current.lake.open("embeddings/v1").get_fragments())
    done = {kept.table: kept for kept in maintenance.maintain(current, keep=dt.timedelta(days=7), now=now + 9 * HOUR, fragments=1)}
    assert done["embeddings/v1"].fragments == before > done["embeddings/v1"].fragments_after == 1
    assert due(current.lake, 1).looked_at == 0
    assert publication.publish(current, 1, now=now + 6 * HOUR).changed == 0
    change(current, ids[7:8], now + 7 * HOUR, title="the last umbrella")
    assert refresh(current, now + 7 * HOUR).changed == 2
    agree(current, now + 7 * HOUR)


def _refresh_in_pieces(home: Path, now: dt.datetime) -> None:
    """A process of its own, that commits often."""
    portions.SIZE, handover.BATCH = 4, 8
    refresh(Settings.from_environment(home), now)


def _read_for_ever(settings: Settings, stop: threading.Event, faults: list[BaseException]) -> None:
    while not stop.is_set():
        try:
            opened = ItemIndex.open(places.index_place(settings, 1))
            table = RepresentationTable.open(places.table_place(settings, "items", 1))
            ids, vectors = table.all()
            nearest, _ = opened.search(vectors[:2], 3, opened.header.contract_id)
            assert set(nearest.ravel()) - {-1} <= set(ids)
        except BaseException as fault:
            faults.append(fault)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_refresh_killed_twenty_times_ends_with_every_row_once(current: Settings, now: dt.datetime) -> None:
    """Killed at random moments, with new work each time and a reader all the while; then run once more."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["moon_ops.publication.publication", "moon_ops.release.stages", __name__])
    ids = items_as_of(current.lake, now, ["item_id"])["item_id"].to_pylist()
    chance, stop, faults = random.Random(0), threading.Event(), []
    reader = threading.Thread(target=_read_for_ever, args=(current, stop, faults))
    reader.start()
    killed, whole = 0, 6.0
    try:
        for number in range(1, 101):
            when = now + number * HOUR
            change(current, chance.sample(ids, 12), when, title=f"umbrella {number}")
            process, began = context.Process(target=_refresh_in_pieces, args=(current.home, when)), time.monotonic()
            process.start()
            process.join(chance.uniform(0, 0.9 * whole))
            if process.is_alive():
                process.kill()
                killed += 1
            else:
                whole = time.monotonic() - began
            process.join()
            if killed == 20:
                break
    finally:
        stop.set()
        reader.join()
    end = now + 101 * HOUR
    refresh(current, end)
    assert faults == []
    assert killed == 20, "each of them on its way"
    rows = current.lake.read("embeddings/v1", list(vector_tables.KEY)).to_pylist()
    wanted = due(current.lake, 99).rows.to_pylist()
    assert sorted(map(repr, rows)) == sorted(map(repr, wanted)), "every due row is there once"
    assert index.compaction_due(ItemIndex.open(places.index_place(current, 1)).header) is None
    agree(current, end)


def test_another_number_of_clicks_is_shown_to_everybody(current: Settings, now: dt.datetime) -> None:
    """Online and offline, without a click more; and a model that reads more than are shown is refused."""
    fewer = current.replace(behaviors=2)
    assert publication.publish(fewer, 1, now=now).changed > 0
    assert publication.publish(fewer, 1, now=now).changed == 0
    store = features.open_store(fewer)
    user = Counter(fewer.lake.read(statistics.BEHAVIOR, ["user_id"])["user_id"].to_pylist()).most_common(1)[0][0]
    view = store.get_feature_view("user_behavior")
    history, rows = as_of.read(view, ["item_ids"])
    newest = rows["item_ids"][int(history.at(history.codes(np.array([user])), np.array([2**62]))[0])].as_py()
    assert (features.online(store, 1, [1], user)["item_ids"], len(newest)) == ([newest], 2)
    with pytest.raises(InputError, match=r"behaviors = 20, but ctr_v1 shows the last 2 clicks of a user → .*MOON_BEHAVIORS=20"):
        clicks.train_ctr(fewer, 1, "ctr-din", windows(fewer.lake, trained_until=encoder_version(fewer, 1).trained_until), seed=0)


def test_killed_while_another_number_is_handed_over_it_is_not_thought_to_be_the_old_one(
    current: Settings, now: dt.datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer, store = current.replace(behaviors=2), features.open_store(current)
    user = Counter(fewer.lake.read(statistics.BEHAVIOR, ["user_id"])["user_id"].to_pylist()).most_common(1)[0][0]
    before = features.online(store, 1, [1], user)["item_ids"]
    with monkeypatch.context() as patched:
        patched.setattr(publication, "remember", Mock(side_effect=KeyboardInterrupt))
        patched.setattr(publication, "SHARED", ("user_behavior",))
        with pytest.raises(KeyboardInterrupt):
            publication.publish(fewer, 1, now=now)
    assert features.online(store, 1, [1], user)["item_ids"] != before
    assert publication.publish(current, 1, now=now).changed > 0
    assert features.online(store, 1, [1], user)["item_ids"] == before


def test_the_feast_command_line_finds_what_was_published(current: Settings) -> None:
    """The same objects, with length and tags: it has nothing to change."""
    command = [Path(sys.executable).with_name("feast"), "-f", current.home.absolute() / "feature_store" / "feature_store.yaml", "apply"]
    environment = os.environ | {"MOON_HOME": str(current.home)}
    done = subprocess.run(command, cwd=features.REPO, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "No changes to registry" in done.stdout) == (0, True), done.stdout + done.stderr[-1000:]
