"""What is due: what an encoder reads and has no vector of, found among what was written since, and which vector is valid when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow as pa
import pytest
from four_items import DAY, ITEMS, MAY, PICTURES, Shop, due_titles, embed, filled

from moon_ops.embeddings import produce, vector_tables
from moon_ops.embeddings.due import due
from moon_ops.embeddings.produce import EmbedReport
from moon_ops.embeddings.runtime import Runtime
from moon_ops.errors import StageError
from moon_ops.inputs.contract import Sample
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS


@pytest.fixture
def lake(make_shop: Shop, tmp_path: Path) -> Lake:
    return filled(make_shop, tmp_path / "lake")


@pytest.fixture
def changed(make_shop: Shop, lake: Lake) -> Callable[..., None]:
    """Bring item 1 again on May 3, with some columns changed."""

    def bring(**columns: Any) -> None:
        ingest(make_shop("again", items=[{**ITEMS[0], **columns}], pictures=PICTURES), lake, now=MAY + 2 * DAY)

    return bring


@pytest.mark.parametrize(
    ("change", "titles"),
    [
        ({"title": "Scarlet dress"}, ["Scarlet dress"]),
        ({"images": "dots.png|red.png"}, ["Red dress"]),
        ({"price": 15.0}, []),
        ({"status": "deleted"}, []),
        ({}, []),
    ],
    ids=["title", "order of pictures", "price", "deleted", "nothing"],
)
def test_a_change_is_due_if_an_encoder_reads_it(
    lake: Lake, runtime: Runtime, changed: Callable[..., None], change: dict[str, Any], titles: list[str]
) -> None:
    embed(lake, runtime)
    changed(**change)
    work = due(lake, 1)
    assert due_titles(lake) == titles
    assert work.rows["event_timestamp"].to_pylist() == [MAY + 2 * DAY] * len(titles)
    assert embed(lake, runtime).embedded == len(titles)
    assert due(lake, 1).rows.num_rows == 0


def version(day: int, content: str, status: str = "active", learned: int | None = None) -> dict[str, Any]:
    """A version of item 1, valid from a day in May and learned on a day in May."""
    times = {"event_timestamp": MAY + day * DAY, "created": MAY + (day if learned is None else learned) * DAY}
    return {"item_id": 1, "spu_id": 1, "title": content, "content_hash": content, "status": status, **times}


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ([version(0, "a"), version(1, "a"), version(2, "b")], [(0, "a"), (2, "b")]),
        ([version(0, "a"), version(1, "b"), version(2, "a")], [(0, "a"), (1, "b"), (2, "a")]),
        ([version(0, "a", "deleted"), version(1, "a")], [(1, "a")]),
        ([version(0, "a"), version(1, "b", "deleted"), version(2, "b")], [(0, "a"), (2, "b")]),
        ([version(0, "a"), version(1, "a", "deleted"), version(2, "a")], [(0, "a")]),
        ([version(9, "a", learned=0), version(9, "b", learned=1)], [(9, "b")]),
        ([version(9, "a", learned=0), version(9, "a", "deleted", learned=1)], []),
    ],
    ids=["same again", "back to the old", "came deleted", "changed while deleted", "deleted and back", "corrected", "withdrawn"],
)
def test_the_versions_that_are_due(tmp_path: Path, versions: list[dict[str, Any]], expected: list[tuple[int, str]]) -> None:
    lake = Lake(str(tmp_path / "lake"))
    lake.append("items", pa.Table.from_pylist(versions, schema=SCHEMAS["items"]))
    work = due(lake, 1).rows.to_pylist()
    assert [((row["event_timestamp"] - MAY).days, row["content_hash"]) for row in work] == expected


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (["red", "blue", "red"], "red"),
        (["red", "blue", "red", "blue"], "blue"),
        (["red", "blue", "blue"], "blue"),
    ],
)
@pytest.mark.parametrize("killed", [False, True])
def test_of_an_item_to_come_the_last_correction_counts(
    tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, steps: list[str], expected: str, killed: bool
) -> None:
    """Each content is embedded before the next one comes; a run that is killed before it ends leaves the rest to the next one."""
    lake = Lake(str(tmp_path / "lake"))
    for day, content in enumerate(steps):
        lake.append("items", pa.Table.from_pylist([version(20, content, learned=day)], schema=SCHEMAS["items"]))
        if killed and day == len(steps) - 1:
            with monkeypatch.context() as patched:
                patched.setattr(produce, "_require_complete", Mock(side_effect=KeyboardInterrupt))
                with pytest.raises(KeyboardInterrupt):
                    produce.embed(lake, runtime, 1, now=MAY + day * DAY, workers=1)
        produce.embed(lake, runtime, 1, now=MAY + day * DAY, workers=1)
    ids, vectors = vector_tables.vectors_as_of(lake, 1, MAY + 20 * DAY)
    assert (ids.tolist(), lake.read("embeddings/v1")["content_hash"].to_pylist()) == ([1], [expected])
    assert vectors[0] == pytest.approx(runtime.embed([Sample(expected, ())], {})[0], abs=1e-5)
    assert produce.plan(lake, 1).items == 0


def test_a_run_looks_only_at_what_was_written_since_the_last(lake: Lake, runtime: Runtime, changed: Callable[..., None]) -> None:
    assert embed(lake, runtime).looked_at == 4
    assert embed(lake, runtime).looked_at == 0
    changed(title="Scarlet dress")
    report = embed(lake, runtime)
    assert (report.looked_at, report.embedded) == (2, 1), "both versions of item 1, and none of the other items"
    changed(title="Scarlet dress", price=1.0)
    assert (embed(lake, runtime).embedded, embed(lake, runtime).looked_at) == (0, 0)


def test_a_run_that_was_killed_looks_again(lake: Lake, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after its last commit and before it noted how far it had come."""
    with monkeypatch.context() as patch:
        patch.setattr(produce, "_remember", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            embed(lake, runtime)
    assert embed(lake, runtime) == EmbedReport("embeddings/v1", runtime.contract_id, embedded=0, total=4, looked_at=4)


def test_a_plan_counts_and_changes_nothing(lake: Lake, runtime: Runtime, changed: Callable[..., None]) -> None:
    first = produce.plan(lake, 1)
    assert (first.items, first.queries, first.seconds) == (4, 3, None)
    assert not lake.exists("embeddings/v1")
    embed(lake, runtime)
    produce.embed_queries(lake, runtime, 1, now=MAY)
    changed(title="Scarlet dress")
    before = lake.open("embeddings/v1").version
    second = produce.plan(lake, 1)
    assert (second.items, second.queries, second.seconds > 0) == (1, 0, True)
    assert lake.open("embeddings/v1").version == before


def test_an_empty_lake_has_nothing_to_embed(tmp_path: Path, runtime: Runtime) -> None:
    empty = Lake(str(tmp_path / "empty"))
    with pytest.raises(StageError, match="moon ingest"):
        due(empty, 1)
    with pytest.raises(StageError, match=r"moon embed --encoder 1.* is its disk mounted\?"):
        vector_tables.contract_of(empty, 1)


def test_vectors_as_of_a_time(lake: Lake, runtime: Runtime, changed: Callable[..., None]) -> None:
    changed(title="Green umbrella")
    embed(lake, runtime)
    old, new = (vector_tables.vectors_as_of(lake, 1, MAY + days * DAY) for days in (1, 2))
    rows = lake.read("embeddings/v1").to_pylist()
    expected = {(row["item_id"], row["event_timestamp"]): row["embedding"] for row in rows}
    assert old[0].tolist() == new[0].tolist() == [1, 2, 3, 4]
    assert old[1].tolist() == [expected[i, MAY] for i in (1, 2, 3, 4)]
    assert new[1].tolist() == [expected[1, MAY + 2 * DAY], *(expected[i, MAY] for i in (2, 3, 4))]
    ids, vectors = vector_tables.vectors_as_of(lake, 1, MAY - DAY)
    assert (ids.shape, vectors.shape) == ((0,), (0, runtime.dim))


def test_a_deleted_item_has_no_vector_from_then_on(lake: Lake, runtime: Runtime, changed: Callable[..., None]) -> None:
    embed(lake, runtime)
    changed(status="deleted")
    assert vector_tables.vectors_as_of(lake, 1, MAY + DAY)[0].tolist() == [1, 2, 3, 4]
    assert vector_tables.vectors_as_of(lake, 1, MAY + 2 * DAY)[0].tolist() == [2, 3, 4]
