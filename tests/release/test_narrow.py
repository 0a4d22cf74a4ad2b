"""Releases whose searches compare the first numbers of each vector: their index, their gate, and the way to them and back."""

from __future__ import annotations

import datetime as dt
import json
import logging
from typing import Any

import numpy as np
import pytest

from moon_ops.embeddings import vector_tables
from moon_ops.embeddings.cards import Wanted
from moon_ops.embeddings.index import ItemIndex
from moon_ops.embeddings.prefixes import cut
from moon_ops.errors import SettingsError, StageError
from moon_ops.publication import marks, narrow, places, publication
from moon_ops.publication.erasure import erase
from moon_ops.registry.encoders import encoder_version
from moon_ops.registry.registry import ENCODER, Registry, manifest_of
from moon_ops.release import recall
from moon_ops.release.diff import diff, lines
from moon_ops.release.evaluation import evaluate
from moon_ops.release.examination import examine
from moon_ops.release.gates import RECALL
from moon_ops.release.manifest import release
from moon_ops.release.promotion import promote, rollback
from moon_ops.release.status import lines as status_lines
from moon_ops.release.status import status
from moon_ops.release.windows import Windows, windows
from moon_ops.serving.champion import Champion
from moon_ops.serving.follower import Follower
from moon_ops.settings import Settings
from tests.publication.refreshing import change, refresh
from tests.release.by_hand import WISH

P, D = 16, 64


@pytest.fixture
def trained(copied: Settings) -> Settings:
    """The home as if its encoder had been trained with prefixes, and the setting that asks for the shorter one."""
    place = Registry(copied).fetch(ENCODER, 1) / "recipe.json"
    content = json.loads(place.read_text())
    content["training"]["prefixes"] = [P, 32]
    place.unlink()
    place.write_text(json.dumps(content))
    return copied.replace(dimensions=P)


def times_of(settings: Settings) -> Windows:
    return windows(settings.lake, trained_until=encoder_version(settings, 1).trained_until)


def obvious(vectors: Any, dimensions: int) -> Any:
    return vectors[:, :dimensions] / np.linalg.norm(vectors[:, :dimensions], axis=1, keepdims=True)


def test_a_length_that_the_encoder_was_not_trained_for_is_refused(
    copied: Settings, now: dt.datetime, caplog: pytest.LogCaptureFixture
) -> None:
    """The night goes on with whole vectors; a release says what is wrong."""
    settings = copied.replace(dimensions=24)
    said = r"MOON_DIMENSIONS = 24: encoder 1 was not trained for vectors of that length \(training.prefixes: none\).* → set MOON_DIMENSIONS"
    with pytest.raises(SettingsError, match=said):
        release(settings, 1, 1, times_of(settings), now=now)
    narrow._tell.cache_clear()
    with caplog.at_level(logging.WARNING):
        publication.publish(settings, 1, now=now, behaviour=False)
        publication.publish(settings, 1, now=now, behaviour=False)
    assert caplog.text.count("MOON_DIMENSIONS = 24") == 1
    assert places.narrow_lengths(settings, 1) == []


def test_of_all_numbers_nothing_changes(copied: Settings, now: dt.datetime) -> None:
    before = Champion(copied, _parts(copied))
    settings = copied.replace(dimensions=D)
    publication.publish(settings, 1, now=now, behaviour=False, full=True)
    assert places.narrow_lengths(settings, 1) == []
    made = release(settings, 1, 1, times_of(settings), now=now)
    index = manifest_of(Registry(settings), made.version)["index"]
    assert "dimensions" not in index
    after = Champion(settings, _parts(settings, made.version))
    vector = before.embed("red mug", None)
    assert after.search(vector, 20) == before.search(vector, 20)
    assert cut(vector, D).tobytes() == vector.tobytes()


def _parts(settings: Settings, release: int = 1) -> Any:
    from moon_ops.release import served

    return served.parts_of(settings, Registry(settings), release)


def test_a_release_of_fewer_numbers_is_measured_served_and_left_again(trained: Settings, now: dt.datetime) -> None:
    """Both releases have one encoder: their indexes lie beside each other, and each service opens the one that its release names."""
    with pytest.raises(StageError, match="there is no index at"):
        release(trained, 1, 1, times_of(trained), now=now)
    before = places.index_place(trained, 1).resolve()
    publication.publish(trained, 1, now=now, behaviour=False)
    assert places.index_place(trained, 1).resolve() == before, "the index of whole vectors stays as it is"
    ids, vectors = vector_tables.vectors_as_of(trained.lake, 1, now)
    opened = ItemIndex.open(places.index_place(trained, 1, P))
    assert (opened.header.dim, opened.header.items) == (P, len(ids))
    order = np.argsort(opened.items_of(np.arange(len(ids))))
    np.testing.assert_allclose(opened.base.vectors[order], obvious(vectors, P), atol=1e-6)

    made = release(trained, 1, 1, times_of(trained), now=now)
    registry = Registry(trained)
    manifest = manifest_of(registry, made.version)
    assert (manifest["index"]["place"], manifest["index"]["dimensions"]) == (f"index/v1.first{P}", P)
    whole = evaluate(trained, 1, times_of(trained))
    prefix = next(one for one in whole.prefixes if one.dim == P)
    assert made.metrics[RECALL] == prefix.recall_at_10
    assert made.champion_metrics is not None
    assert made.champion_metrics[RECALL] == whole.metrics[RECALL], "the champion is measured as it is served"
    sizes = [figures["serving/index_bytes"] for figures in (made.metrics, made.champion_metrics)]
    assert sizes[1] - sizes[0] == pytest.approx(4 * len(ids) * (D - P), rel=0.01)
    assert manifest["diff"]["figures"]["answers/overlap@10"] < 1, "one encoder, and other answers"
    assert "the first 16 numbers" in "\n".join(lines(diff(1, manifest_of(registry, 1), made.version, manifest)))

    follower = Follower(trained)
    follower.follow()
    wide = follower.champion()
    vector = wide.embed("red mug", None)
    first = wide.search(vector, 10)
    promote(trained, made.version, WISH, force=True)
    follower.follow()
    short = follower.champion()
    assert (short.version, short.index.header.dim, wide.index.header.dim) == (made.version, P, D)
    nearest = np.argsort(-(obvious(vectors, P) @ obvious(vector[None], P)[0]), kind="stable")[:10]
    assert {hit.item_id for hit in short.search(vector, 10)} == set(ids[nearest].tolist())
    assert [hit.item_id for hit in short.search(vector, 10, Wanted())] == [hit.item_id for hit in short.search(vector, 10)]
    found = status(trained, now=now)
    assert found["champion"]["dimensions"] == P
    assert any(f"searches the first {P} numbers" in line for line in status_lines(found))
    assert not [finding for finding in examine(trained, now=now) if "index" in finding.problem]
    assert wide.search(vector, 10) == first, "who still holds the old one searches whole vectors"

    rollback(trained, WISH)
    follower.follow()
    assert (follower.champion().version, follower.champion().search(vector, 10)) == (1, first)


def test_new_items_and_erased_ones_reach_both_indexes_whatever_the_setting_is(trained: Settings, now: dt.datetime) -> None:
    publication.publish(trained, 1, now=now, behaviour=False)
    later = trained.replace(dimensions=0)
    assert narrow.kept(later, 1) == [P]
    item = int(vector_tables.vectors_as_of(trained.lake, 1, now)[0][0])
    after = now + dt.timedelta(days=1)
    change(later, [item], after, title="a quite different thing")
    refresh(later, after)
    ids, vectors = vector_tables.vectors_as_of(trained.lake, 1, after)
    opened = ItemIndex.open(places.index_place(later, 1, P))
    assert opened.header.delta_items == 1
    found, cosines = opened.search(obvious(vectors, P)[ids == item].astype(np.float32), 1, opened.header.contract_id)
    assert (int(found[0, 0]), float(cosines[0, 0])) == (item, pytest.approx(1.0, abs=1e-5))
    assert marks.is_current(later, 1, after)
    receipt = erase(later, item, now=after + dt.timedelta(hours=1))
    assert receipt.places["index/v1"] == receipt.places[f"index/v1.first{P}"] == 1
    for dimensions in (0, P):
        assert not ItemIndex.open(places.index_place(later, 1, dimensions)).holds(item)


def test_a_damaged_index_of_fewer_numbers_is_made_anew(trained: Settings, now: dt.datetime) -> None:
    publication.publish(trained, 1, now=now, behaviour=False)
    place = places.index_place(trained, 1, P)
    (place / "index.json").write_text("{")
    publication.publish(trained, 1, now=now, behaviour=False)
    assert ItemIndex.open(place).header.dim == P


def test_the_recall_of_prefixes_is_told_of_whole_vectors_all_the_same(trained: Settings) -> None:
    found = evaluate(trained, 1, times_of(trained), P)
    assert [one.dim for one in found.prefixes] == [P, 32, D]
    assert found.metrics[RECALL] == found.prefixes[0].recall_at_10
    assert recall.certified(found.prefixes)[-1] == D
