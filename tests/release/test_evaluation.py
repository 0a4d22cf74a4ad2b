"""How good an encoder is: by modality and by prefix, exported and eager alike, and not on photographs that it has seen."""

from __future__ import annotations

import datetime as dt
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from moon_ops.embeddings.runtime import Runtime
from moon_ops.errors import LeakError, StageError
from moon_ops.inputs.contract import Sample, item_sample
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.lake.tables import items_as_of
from moon_ops.registry.encoders import encoder_version
from moon_ops.registry.registry import ENCODER, Registry
from moon_ops.release import evaluation, recall
from moon_ops.release.recall import Prefix
from moon_ops.release.windows import Windows, windows
from moon_ops.settings import Settings
from moon_ops.studies.measure import measure_eager

Shop = Callable[..., Path]
MAY = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
START, END = MAY + dt.timedelta(days=10), MAY + dt.timedelta(days=20)
MODALITIES = (":picture_only", ":text_only")


@pytest.fixture(scope="module")
def times(released: Settings) -> Windows:
    return windows(released.lake, trained_until=encoder_version(released, 1).trained_until)


@pytest.fixture(scope="module")
def measured(released: Settings, times: Windows) -> tuple[dict[str, float], list[Prefix]]:
    return evaluation.evaluate_parts(released, 1, times)


def test_the_parts_stand_beside_the_whole(released: Settings, times: Windows, measured: Any) -> None:
    metrics, _ = measured
    whole = evaluation.evaluate(released, 1, times).metrics
    assert 0 < metrics["within_product/recall@10"] <= 1
    rest = {name: value for name, value in metrics.items() if not name.endswith(MODALITIES) and "within_product" not in name}
    assert rest == whole
    kinds = [name for name in whole if "recall@" in name and ":" not in name]
    assert len(kinds) == 6, "pictures and texts, at 1, 5 and 10"
    assert {name for name in metrics if name.endswith(MODALITIES)} == {f"{name}{suffix}" for name in kinds for suffix in MODALITIES}


def test_a_modality_is_the_catalogue_without_the_other(released: Settings, times: Windows, measured: Any) -> None:
    """Embedded once more by hand: every item of the simulated shop has pictures and a text."""
    runtime = Runtime(Registry(released).fetch(ENCODER, 1), threads=1)
    queries = recall.bought_after(released.lake, times.trained_until, times.end, trained_until=times.trained_until)
    catalogue = items_as_of(released.lake, times.end)
    ids, spus = catalogue["item_id"].to_numpy(), catalogue["spu_id"].to_numpy()
    asked = evaluation._embedded(released, runtime, queries.samples)
    rows = catalogue.to_pylist()
    assert all(row["image_ids"] for row in rows)
    parts = {
        "picture_only": [Sample("", tuple(row["image_ids"])) for row in rows],
        "text_only": [Sample(item_sample(row).text) for row in rows],
    }
    for suffix, samples in parts.items():
        found = recall.evaluate(queries, asked, ids, spus, evaluation._embedded(released, runtime, samples)).metrics
        names = [name for name in found if "recall@" in name and ":" not in name]
        assert {name: measured[0][f"{name}:{suffix}"] for name in names} == {name: found[name] for name in names}


def test_the_whole_vector_is_the_only_prefix_of_a_recipe_without_any(measured: Any) -> None:
    metrics, prefixes = measured
    (whole,) = prefixes
    assert (whole.dim, whole.bytes_per_item) == (64, 256)
    assert (whole.recall_at_1, whole.recall_at_10) == (metrics["image_search/recall@1"], metrics["image_search/recall@10"])
    assert 0 < whole.search_ms < 100


def test_each_prefix_of_the_recipe_has_a_row(copied: Settings, times: Windows, measured: Any) -> None:
    """The recipe stands beside the encoder's graphs; 64 is the whole vector and 128 longer than that."""
    place = Registry(copied).fetch(ENCODER, 1) / "recipe.json"
    about = json.loads(place.read_text())
    place.write_text(json.dumps({**about, "training": {**about["training"], "prefixes": [2, 32, 64, 128]}}))
    _, rows = evaluation.evaluate_parts(copied, 1, times)
    assert [(p.dim, p.bytes_per_item) for p in rows] == [(2, 8), (32, 128), (64, 256)]
    assert replace(rows[-1], search_ms=0.0) == replace(measured[1][0], search_ms=0.0)
    assert rows[0].recall_at_10 < rows[-1].recall_at_10
    about["training"].pop("prefixes")
    place.write_text(json.dumps(about))
    assert [p.dim for p in evaluation.evaluate_parts(copied, 1, times)[1]] == [64], "recipes had no prefixes once"


def test_an_encoder_is_as_good_eager_as_it_is_exported(released: Settings, times: Windows, measured: Any) -> None:
    eager = measure_eager(released.lake, Registry(released).fetch(ENCODER, 1), times)
    assert eager == pytest.approx(measured[0], abs=1e-3)


def test_the_untrained_encoder_is_asked_the_same_and_finds_less(released: Settings, times: Windows, measured: Any) -> None:
    untrained = evaluation.evaluate_untrained(released, "moon-nano", times, seed=0)
    counts = {name: value for name, value in measured[0].items() if "/queries" in name}
    assert {name: value for name, value in untrained.metrics.items() if "/queries" in name} == counts
    assert untrained.metrics["image_search/recall@10"] < measured[0]["image_search/recall@10"]


def test_a_later_start_asks_fewer_and_an_earlier_one_is_refused(released: Settings, times: Windows, measured: Any) -> None:
    later = evaluation.evaluate_parts(released, 1, replace(times, trained_until=times.ctr_until))[0]
    for kind in ("image_search", "text_search"):
        assert 0 < later[f"{kind}/queries"] < measured[0][f"{kind}/queries"]
    with pytest.raises(LeakError, match="the encoder was trained until"):
        evaluation.evaluate_parts(released, 1, replace(times, trained_until=times.trained_until - dt.timedelta(days=1)))


def photograph(seed: int, quality: int = 95) -> bytes:
    """A picture of many things: the same scene for the same seed, as JPEG."""
    picture = Image.new("RGB", (160, 160), "white")
    pen, generator = ImageDraw.Draw(picture), np.random.default_rng(seed)
    for _ in range(12):
        x, y, width, height = (int(v) for v in generator.integers(0, 110, 4))
        pen.ellipse((x, y, x + width + 8, y + height + 8), fill=tuple(int(v) for v in generator.integers(0, 255, 3)))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


def asked_lake(make_shop: Shop, path: Path, *later: dict[str, Any], known: str = "purchase") -> Lake:
    """A lake in which scene 0 was photographed before the window, and ``later`` queries led to purchases in it."""
    pictures = {"item.jpg": photograph(50), "known.jpg": photograph(0), "copy.jpg": photograph(0, 40), "other.jpg": photograph(1)}
    queries = [
        {"query_id": 1, "timestamp": MAY.isoformat(), "image": "known.jpg"},
        {"query_id": 2, "timestamp": MAY.isoformat(), "text": "mug"},
    ]
    events = [{"timestamp": (MAY + dt.timedelta(days=1)).isoformat(), "item_id": 1, "query_id": n, "event": known} for n in (1, 2)]
    when = (START + dt.timedelta(days=1)).isoformat()
    for number, query in enumerate(later, 10):
        queries.append({"query_id": number, "timestamp": when, **query})
        events.append({"timestamp": when, "item_id": 1, "query_id": number, "event": "purchase"})
    items = [{"item_id": 1, "title": "mug", "images": ["item.jpg"], "available_from": MAY.isoformat()}]
    lake = Lake(str(path / "lake"))
    report = ingest(make_shop(items=items, queries=queries, events=events, pictures=pictures), lake, now=END)
    assert report.refused == {}
    return lake


COPY, OTHER, WORDS = {"image": "copy.jpg"}, {"image": "other.jpg"}, {"text": "mug"}


@pytest.mark.parametrize("event", ["click", "cart", "purchase"])
def test_a_recompressed_copy_of_a_photograph_from_before_is_counted_and_left_out(make_shop: Shop, tmp_path: Path, event: str) -> None:
    """The encoder may have learned from any answer to it. The same words asked again are no leak."""
    assert photograph(0, 40) != photograph(0)
    lake = asked_lake(make_shop, tmp_path, COPY, OTHER, WORDS, known=event)
    found = recall.bought_after(lake, START, END, trained_until=START)
    assert (found.leaked, found.query_ids.tolist(), found.is_image.tolist()) == (1, [11, 12], [True, False])
    metrics = recall.evaluate(found, np.ones((2, 1), np.float32), np.array([1]), np.array([1]), np.ones((1, 1), np.float32)).metrics
    assert (metrics["image_search/leaked"], metrics["image_search/queries"], metrics["text_search/queries"]) == (1.0, 1.0, 1.0)


def test_a_photograph_that_was_only_looked_at_has_taught_nothing(make_shop: Shop, tmp_path: Path) -> None:
    lake = asked_lake(make_shop, tmp_path, COPY, known="impression")
    found = recall.bought_after(lake, START, END, trained_until=START)
    assert (found.leaked, found.query_ids.tolist()) == (0, [10])


def test_copies_within_the_window_are_no_leak(make_shop: Shop, tmp_path: Path) -> None:
    lake = asked_lake(make_shop, tmp_path, OTHER, OTHER)
    assert recall.bought_after(lake, START, END, trained_until=START).query_ids.tolist() == [10, 11]


def test_a_window_of_nothing_but_copies_cannot_be_measured(make_shop: Shop, tmp_path: Path) -> None:
    lake = asked_lake(make_shop, tmp_path, COPY, {"image": "known.jpg"})
    with pytest.raises(StageError, match=r"all 2 photographs .* have a twin from before: recall cannot be measured → widen the window"):
        recall.bought_after(lake, START, END, trained_until=START)
