"""Tasks beside search: products are held out whole, labels are told by what is near, intervals are over products, and chance is beside."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from moon_ops.cli.main import app
from moon_ops.errors import StageError
from moon_ops.lake.ingest import ingest
from moon_ops.metric_names import CHANCE, stored, task
from moon_ops.registry.registry import Registry
from moon_ops.release import stages
from moon_ops.release.item_tasks import blind_recall, classification, held_out, interval, labels_of, lacking, neighbours, probe, retrieval
from moon_ops.settings import Settings

SPUS = np.repeat(np.arange(100), 3)


def clouds(noise: float) -> tuple[np.ndarray, list[str | None]]:
    """300 unit vectors around one centre a class, three items a product."""
    rng = np.random.default_rng(0)
    kinds = (SPUS % 3).tolist()
    vectors = np.eye(8, dtype=np.float32)[kinds] + noise * rng.standard_normal((300, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), ["abc"[k] for k in kinds]


def test_products_are_held_out_whole() -> None:
    judged = held_out(SPUS)
    assert 0.1 < judged.mean() < 0.3
    assert (judged.reshape(100, 3).all(axis=1) == judged.reshape(100, 3).any(axis=1)).all()


def test_labels_that_vectors_tell_are_told_and_noise_is_not() -> None:
    vectors, labels = clouds(0.05)
    found = classification("category", vectors, labels, SPUS)
    assert found["tasks/category/accuracy_neighbours"] == found["tasks/category/accuracy_probe"] == 1
    shuffled = [labels[n] for n in np.random.default_rng(1).permutation(100).repeat(3) * 3]
    blind = classification("category", vectors, shuffled, SPUS)
    for way in ("neighbours", "probe"):
        assert blind[f"tasks/category/accuracy_{way}"] < 0.6
    assert 1 / 3 <= blind["tasks/category/accuracy_chance"] < 0.6


def test_few_or_one_class_is_no_task() -> None:
    vectors, labels = clouds(0.05)
    assert classification("brand", vectors, ["a"] * 300, SPUS) == {}
    assert classification("brand", vectors, [None] * 300, SPUS) == {}
    rare = ["rare" if n < 3 else label for n, label in enumerate(labels)]
    assert classification("brand", vectors, rare, SPUS)["tasks/brand/classes"] == 3


def test_a_probe_reads_a_line_that_neighbours_miss() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((600, 40)).astype(np.float32)
    labels = (vectors[:, 0] > 0).astype(np.int64)
    right = [(way(vectors[:400], labels[:400], vectors[400:]) == labels[400:]).mean() for way in (probe, neighbours)]
    assert right[0] > 0.9 > right[1]


def test_an_interval_is_wider_where_products_agree() -> None:
    right = np.random.default_rng(0).integers(2, size=100).astype(float)
    alone, together = interval(right.repeat(3), np.arange(300)), interval(right.repeat(3), SPUS)
    assert together[1] - together[0] > 1.4 * (alone[1] - alone[0])
    assert together[0] < right.mean() < together[1]


def test_all_four_directions() -> None:
    vectors = np.eye(20, dtype=np.float32)
    found = retrieval(vectors, vectors, vectors[::-1].copy(), np.arange(20))
    assert found["tasks/text_to_image/recall@1"] == found["tasks/image_to_text/recall@1"] == 1
    assert found["tasks/text_to_item/recall@1"] == found["tasks/image_to_item/recall@1"] == 0
    assert retrieval(vectors[:0], vectors[:0], vectors[:0], np.arange(0)) == {}


def test_labels_are_leaves_brands_and_common_attributes() -> None:
    rows = [{"category": ["A", "B"], "brand": "x", "attributes": [("main colour", "red")]}, {"category": None, "brand": None}]
    assert labels_of(rows) == {"category": ["B", None], "brand": ["x", None], "attribute_main_colour": ["red", None]}
    rows += [{"attributes": [("size", "L")]}] * 2
    assert "attribute_main_colour" not in labels_of(rows)
    assert "attribute_颜色" in labels_of([{"attributes": [("颜色", "红")]}]), "a name of another script is its own"
    assert labels_of(rows)["attribute_size"] == [None, None, "L", "L"]


def test_why_there_is_no_task() -> None:
    assert lacking([None] * 300, SPUS) == "no item has one: it takes two that 10 items have each"
    assert lacking(["a"] * 295 + ["b"] * 5, SPUS) == "1 of 2 different ones: it takes two that 10 items have each"
    few = np.repeat(np.flatnonzero(held_out(np.arange(100)))[:4], 5)
    assert lacking(["a", "b"] * 10, few) == "4 of 4 products are held out to judge: it takes 5"
    apart = ["a" if judged else "b" for judged in held_out(SPUS)]
    assert lacking(apart, SPUS) == "the products that are not held out have no two different ones"
    assert lacking(clouds(0)[1], SPUS) == ""


@pytest.mark.parametrize("k", [1, 2, 4])
def test_chance_is_what_drawing_finds(k: int) -> None:
    spus = np.array([1, 1, 2, 3, 3, 3])
    drawn = list(combinations(range(6), k))
    found = np.mean([[any(spus[i] == spu for i in some) for some in drawn] for spu in spus])
    assert blind_recall(spus, k) == pytest.approx(found)
    assert blind_recall(spus, 10) == 1


def asked(settings: Settings) -> Any:
    return CliRunner().invoke(app, ["evaluate", "--encoder", "1", "--tasks", "--json", "--home", str(settings.home)])


def test_the_command_tells_and_logs_the_same(copied: Settings) -> None:
    done = asked(copied)
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert "category" not in told.pop("left_out")
    client = Registry(copied).client
    (run,) = client.search_runs([Registry(copied).experiment_id], "attributes.run_name = 'tasks of encoder 1'")
    assert (run.info.status, run.data.params["encoder"]) == ("FINISHED", "1")
    assert run.data.metrics == pytest.approx({stored(name): value for name, value in told.items()})
    for name, figure in (
        ("category_by_titles", "accuracy_probe"),
        ("category_by_pictures", "accuracy_neighbours"),
        ("text_to_image", "recall@10"),
    ):
        low, mean, high = (told[task(name, figure, end)] for end in ("_low", "", "_high"))
        assert low <= mean <= high <= 1
        assert 0 < told[task(name, figure.split("_")[0], CHANCE)] < 1
    title = task("category_by_titles", "accuracy_probe")
    assert told[title] > told[task("category_by_titles", "accuracy", CHANCE)], "a title says what the thing is"


def only(settings: Settings, shop: Path, now: dt.datetime) -> Settings:
    """The home with another shop in its lake, embedded by its encoder."""
    rmtree(settings.home / "lake")
    assert not ingest(shop, settings.lake, now=now).refused
    stages.embed(settings, 1, now=now)
    return settings


def bare(make_shop: Callable[..., Path], pictures: int) -> Path:
    """Twelve items of a title alone, the first few with a picture."""
    items = [{"item_id": n, "title": f"thing {n}", "available_from": "2026-01-01"} for n in range(12)]
    items = [item | ({"images": [f"{n}.png"]} if n < pictures else {}) for n, item in enumerate(items)]
    events = [{"timestamp": f"2026-0{month}-01", "item_id": 1, "event": "click"} for month in (1, 2, 3)]
    return make_shop(items=items, events=events, pictures={f"{n}.png": f"rgb({n * 20}, 0, 0)" for n in range(pictures)})


def test_a_shop_without_categories_and_attributes_says_so(copied: Settings, make_shop: Callable[..., Path], now: dt.datetime) -> None:
    told = json.loads(asked(only(copied, bare(make_shop, 12), now)).output)
    why = "no item has one: it takes two that 10 items have each"
    assert told.pop("left_out") == {"category": why, "brand": why, "attributes": "none is told of half of the items"}
    assert {name.split("/")[1] for name in told} == {"text_to_image", "image_to_text", "text_to_item", "image_to_item"}
    assert told[task("text_to_image", "recall@1", CHANCE)] == pytest.approx(1 / 12)


def test_a_shop_with_one_picture_is_refused_and_leaves_no_run(copied: Settings, make_shop: Callable[..., Path], now: dt.datetime) -> None:
    done = asked(only(copied, bare(make_shop, 1), now))
    assert isinstance(done.exception, StageError)
    assert "1 of 12 items with a vector have a picture and a text" in str(done.exception)
    registry = Registry(copied)
    assert not registry.client.search_runs([registry.experiment_id], "attributes.run_name = 'tasks of encoder 1'")
