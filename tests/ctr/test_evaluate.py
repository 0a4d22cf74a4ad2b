"""Judging click models: no leak, the slices by hand, and an oracle that nothing else reads."""

from __future__ import annotations

import datetime as dt
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import moon_ops
from moon_ops.ctr import evaluate, metrics
from moon_ops.ctr.score import Scorer
from moon_ops.embeddings.as_of import Joined
from moon_ops.errors import LeakError
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS, STAMP
from moon_ops.registry.registry import CTR, Registry
from moon_ops.release import clicks
from moon_ops.release.windows import Windows, windows
from moon_ops.settings import Settings

MAY = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
DAY, MICROSECOND = dt.timedelta(days=1), dt.timedelta(microseconds=1)


def item(item_id: int, since: dt.datetime) -> dict[str, Any]:
    plain = {"spu_id": item_id, "title": "mug", "status": "active", "content_hash": str(since)}
    return {"item_id": item_id, "event_timestamp": since, "created": since, **plain}


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Item 1 came on May 1 and got a new version on May 7; item 2 came on May 5."""
    made = Lake(str(tmp_path / "lake"))
    versions = [item(1, MAY), item(1, MAY + 6 * DAY), item(2, MAY + 4 * DAY)]
    made.append("items", pa.Table.from_pylist(versions, schema=SCHEMAS["items"]))
    return made


def joined(*rows: tuple[int, dt.datetime, int | None, int | None]) -> Joined:
    """(item, time, impressions before, seller)."""
    items, times, impressions, sellers = zip(*rows, strict=True)
    counts = {"impressions": pa.array(impressions, pa.int64()), "seller_id": pa.array(sellers, pa.int64())}
    return Joined(pa.table({"item_id": items, "event_timestamp": pa.array(times, STAMP), **counts}), {}, {})


def test_an_item_is_new_for_a_week_after_its_first_version(lake: Lake) -> None:
    week = MAY + 7 * DAY
    found = evaluate.slices(joined((1, week - MICROSECOND, 0, 1), (1, week, 0, 1), (2, week, 0, 1), (2, week + 4 * DAY, 0, 1)), lake)
    assert found["new_items"].tolist() == [True, False, True, False]


def test_the_long_tail_was_hardly_shown_before(lake: Lake) -> None:
    found = evaluate.slices(joined((1, MAY, 19, 1), (1, MAY, 20, 1), (2, MAY, None, 1)), lake)
    assert found["long_tail"].tolist() == [True, False, True]


def test_small_sellers_have_a_fifth_of_the_impressions_together(lake: Lake) -> None:
    """Of ten rows of known sellers, 30 has one, 20 has two, 10 has seven: 30 alone stays within a fifth. -1 and null are no sellers."""
    sellers = [10, 20, 10, 30, 10, 10, -1, 10, None, 10, 20, 10]
    found = evaluate.slices(joined(*((1, MAY, 0, seller) for seller in sellers)), lake)
    assert found["small_sellers"].tolist() == [seller == 30 for seller in sellers]
    equal = evaluate.slices(joined(*((1, MAY, 0, seller) for seller in (3, 5, 1, 4, 2))), lake)
    assert equal["small_sellers"].tolist() == [False, False, True, False, False], "of equal sellers the first by id"


def test_slices_keep_the_order_of_many_rows(lake: Lake) -> None:
    rows = [(1 + n % 2, MAY + 8 * DAY, n, n) for n in range(5000)]
    found = evaluate.slices(joined(*rows), lake)
    assert found["new_items"].tolist() == [n % 2 == 1 for n in range(5000)]
    assert found["long_tail"].tolist() == [n < 20 for n in range(5000)]
    assert found["small_sellers"].tolist() == [n < 1000 for n in range(5000)]


def test_the_oracle_is_joined_by_session_and_item(tmp_path: Path) -> None:
    path = tmp_path / "a shop's" / "oracle.parquet"
    path.parent.mkdir()
    truth = {"session_id": [1, 1, 2], "item_id": [10, 11, 10], "click_probability": [0.1, 0.2, 0.3], "other": [0.7, 0.8, 0.9]}
    pq.write_table(pa.table(truth), path)
    rows = Joined(pa.table({"session_id": [2, 1, 3, 1], "item_id": [10, 11, 10, 10]}), {}, {})
    found = evaluate.oracle(path, rows)
    assert found[[0, 1, 3]].tolist() == [0.3, 0.2, 0.1]
    assert math.isnan(found[2])
    assert evaluate.oracle(path, rows, "other")[[0, 1, 3]].tolist() == [0.9, 0.8, 0.7]


def test_only_evaluation_knows_of_the_oracle() -> None:
    """It is what training must never see, so no file that trains, encodes or scores as much as mentions it."""
    package = Path(moon_ops.__file__).parent
    trained = ("train", "fit", "dataset", "impressions", "vectors", "behaviors", "models", "vocabulary", "score")
    blind = [package / "ctr" / f"{name}.py" for name in trained]
    blind += sorted((package / "encoder").glob("*.py")) + sorted((package / "embeddings").glob("*.py"))
    blind += [package / "lake" / f"{name}.py" for name in ("statistics", "ingest", "tables", "schemas")]
    blind += [package / "inputs" / "contract.py"]
    assert len(blind) > 20
    assert [path.name for path in blind if "oracle" in path.read_text().lower()] == []
    assert "oracle" in (package / "ctr" / "evaluate.py").read_text()


@pytest.fixture(scope="module")
def judged(released: Settings) -> tuple[Scorer, Windows, Joined]:
    times = windows(released.lake)
    scorer = Scorer(Registry(released).fetch(CTR, 1), threads=1)
    return scorer, times, clicks.impressions(released, 1, times.ctr_until, times.end)


def test_a_window_that_the_model_was_trained_on_is_refused(released: Settings, judged: tuple[Scorer, Windows, Joined]) -> None:
    scorer, times, rows = judged
    with pytest.raises(LeakError, match="but the click model was trained until"):
        evaluate.score(scorer, rows, clicks.vectors_known(released, 1), released.lake, start=times.ctr_until - MICROSECOND)


def test_the_released_model_is_scored_on_all_rows_of_its_window(released: Settings, judged: tuple[Scorer, Windows, Joined]) -> None:
    scorer, times, rows = judged
    scored = evaluate.score(scorer, rows, clicks.vectors_known(released, 1), released.lake, start=times.ctr_until)
    assert len(scored.rows) == len(rows) > 300
    assert ((scored.scores > 0) & (scored.scores < 1)).all()
    assert scored.rows.labels.tolist() == rows.column("label").to_pylist()
    kinds = {"new_items", "long_tail", "small_sellers", "query_picture", "query_text", "query_both"}
    assert {name for name in scored.slices if not name.startswith("category_")} == kinds
    found = rows.column("category").to_pylist()
    assert scored.slices["category_Mugs"].tolist() == [category == "Mugs" for category in found]
    asked = scored.slices["query_picture"].astype(int) + scored.slices["query_text"] + scored.slices["query_both"]
    assert asked.max() == 1
    assert scored.slices["query_picture"].sum() > 0 < scored.slices["query_text"].sum()
    found = scored.metrics()
    assert found["ctr/auc"] > 0.55
    assert scored.metrics("_x")["ctr/auc_x"] == found["ctr/auc"]
    assert found["ctr/logloss"] < math.log(2)


def test_nobody_beats_the_oracle(released: Settings, judged: tuple[Scorer, Windows, Joined]) -> None:
    scorer, times, rows = judged
    truth = evaluate.oracle(released.home / "shop-tiny" / "oracle.parquet", rows)
    assert np.isfinite(truth).all()
    labels = rows.column("label").to_numpy()
    assert truth.mean() == pytest.approx(labels.mean(), abs=0.03)
    scored = evaluate.score(scorer, rows, clicks.vectors_known(released, 1), released.lake, start=times.ctr_until)
    assert metrics.auc(labels, truth) > metrics.auc(labels, scored.scores)
