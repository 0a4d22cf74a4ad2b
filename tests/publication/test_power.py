"""After a power failure a file may be empty or cut, and some file systems have no hard links: nobody gets less, and nobody a traceback."""

from __future__ import annotations

import datetime as dt
import errno
import json
import os
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from moon_ops.cli.demo import Choices, run
from moon_ops.embeddings import index, table
from moon_ops.embeddings.table import RepresentationTable
from moon_ops.encoder.checkpoints import Checkpoints, State
from moon_ops.errors import StageError
from moon_ops.lake.tables import items_as_of
from moon_ops.publication import erasure, maintenance, marks, places, publication
from moon_ops.registry.registry import Registry
from moon_ops.release import expected_gain, freshness, served
from moon_ops.settings import Settings
from tests.publication.refreshing import agree, change, refresh

HOUR = dt.timedelta(hours=1)
CUT = ["", '{"items": 4, "ev', "\0\0\0\0"]


@pytest.mark.parametrize("content", CUT)
def test_a_publication_mark_that_was_cut_counts_as_absent(
    current: Settings,
    now: dt.datetime,
    content: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = places.published_place(current, 1)
    whole = json.loads(place.read_text())
    place.write_text(content)
    assert not marks.is_current(current, 1, now)
    assert "published-v1.json cannot be read" in caplog.text
    maintenance.maintain(current, keep=HOUR, now=now + HOUR, fragments=0)
    change(current, items_as_of(current.lake, now, ["item_id"])["item_id"].to_pylist()[:2], now + HOUR, title="Another")
    refresh(current, now + HOUR)
    agree(current, now + HOUR)
    assert json.loads(place.read_text()).keys() == whole.keys()
    publication.publish(current, 1, now=now + HOUR)
    assert marks.is_current(current, 1, now + HOUR)


@pytest.mark.parametrize("content", CUT)
def test_notes_of_the_home_that_were_cut_are_made_anew(copied: Settings, now: dt.datetime, content: str) -> None:
    home = copied.home
    (home / "exchange_rate.json").write_text(content)
    assert expected_gain.in_auc(copied, {expected_gain.RECALL: 0.5}, {expected_gain.RECALL: 0.4}) == {}
    with pytest.raises(StageError, match=r"never measured → run `moon exchange-rate`"):
        expected_gain.worth(copied, 0.1)
    places.handed(copied, "index-v1").write_text(content)
    assert freshness.of(copied, 1, now).index_age is None
    assert not freshness.of(copied, 1, now).unknown
    parts = served.choose(copied, Registry(copied)).parts
    (home / "served.json").write_text(content)
    served.remember(copied, parts, now.isoformat())
    assert served.since(copied) == (parts.release, now.isoformat())


def test_an_erasure_whose_note_was_cut_is_completed(copied: Settings, now: dt.datetime) -> None:
    item = items_as_of(copied.lake, now, ["item_id"])["item_id"].to_pylist()[0]
    (copied.home / "receipts").mkdir()
    (copied.home / "receipts" / f"{item}.begun.json").write_text("")
    (receipt,) = erasure.finish(copied, now=now)
    assert (receipt.kind, receipt.shop_id) == ("item", item)
    assert receipt.places["lake/items"] > 0
    assert not erasure.unfinished(copied)


def test_whose_shop_a_home_holds_is_not_guessed(copied: Settings, now: dt.datetime) -> None:
    (copied.home / "demo.json").write_text("")
    with pytest.raises(StageError, match=r"demo.json cannot be read .* → remove it if .*shop-tiny is the shop that was ingested here"):
        run(copied, Choices(size="tiny"), now=now)


@pytest.mark.parametrize("name", ["newest", "state.json", "model.safetensors", "stage.safetensors"])
def test_a_training_whose_checkpoint_was_cut_begins_anew(tmp_path: Path, name: str) -> None:
    import torch

    kept = Checkpoints(tmp_path)
    kept.save(State("stage1", 3, [0.5]), torch.nn.Linear(2, 2), [])
    assert (found := kept.read()) is not None
    assert found.step == 3
    place = tmp_path / name if name == "newest" else tmp_path / "stage1-3" / name
    place.write_bytes(place.read_bytes()[: len(place.read_bytes()) // 2] if name.endswith("safetensors") else b"")
    assert kept.read() is None


@pytest.mark.parametrize("refusal", [errno.EPERM, errno.EXDEV, errno.ENOTSUP])
def test_without_hard_links_readers_get_the_same_and_the_base_is_kept(
    current: Settings,
    now: dt.datetime,
    refusal: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ids = items_as_of(current.lake, now, ["item_id"])["item_id"].to_pylist()
    before = index.IndexHeader.read(places.index_place(current, 1))
    monkeypatch.setattr(os, "link", Mock(side_effect=OSError(refusal, os.strerror(refusal))))
    monkeypatch.setattr(table, "SMALL", 0)
    change(current, ids[:2], now + HOUR, title="one green umbrella")
    refresh(current, now + HOUR)
    assert "cannot be read" not in caplog.text
    after = index.IndexHeader.read(places.index_place(current, 1))
    assert (after.base_items, after.delta_items, after.tombstones) == (before.base_items, 2, 2)
    assert after.files["index.faiss"] == before.files["index.faiss"]
    assert len(RepresentationTable.open(places.table_place(current, "items", 1)).newer_ids) == 2
    agree(current, now + HOUR)
    base = places.index_place(current, 1).resolve() / "ids.npy"
    assert np.load(base).size == before.base_items
    shutil.rmtree(current.home / "index")
    assert publication.publish(current, 1, now=now + HOUR).items == len(ids)


@pytest.mark.parametrize("place", ["index", "table"])
def test_a_full_disk_is_not_taken_for_a_damaged_file(
    current: Settings,
    now: dt.datetime,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    change(current, items_as_of(current.lake, now, ["item_id"])["item_id"].to_pylist()[:2], now + HOUR, title="Another")
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    with monkeypatch.context() as patch:
        patch.setattr(*((index, "_seal") if place == "index" else (table, "_finish")), full)
        with pytest.raises(OSError, match="No space left"):
            refresh(current, now + HOUR)
    assert full.call_count == 1
    assert "made anew" not in caplog.text
    refresh(current, now + HOUR)
    agree(current, now + HOUR)
