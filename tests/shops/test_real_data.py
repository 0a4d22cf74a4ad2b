"""Importers of real pictures: the Grocery Store Dataset and MovieLens 100K, in the layouts in which they are published."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from moon_ops.errors import InputError
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.shops.imports import import_clicks

NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
Publish = Callable[[str, Path], Path]


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(out / f"{name}.parquet").to_pylist()


def test_the_splits_of_the_groceries_become_times(tmp_path: Path, published: Publish) -> None:
    report = import_clicks("grocery", published("grocery", tmp_path / "source"), tmp_path / "shop")
    assert (report.users, report.items, report.queries, report.purchases, report.pictures, report.left_out) == (0, 3, 20, 20, 23, 1)
    asked = {row["query_id"]: row for row in rows(report.out, "queries")}
    bought = {row["query_id"]: row for row in rows(report.out, "events")}
    starts = [dt.datetime(2019, month, 1, tzinfo=dt.UTC) for month in (1, 3, 4, 5)]
    for query, row in asked.items():
        split = ("train", "val", "test").index(row["image"].split("/")[2])
        assert starts[split] <= row["timestamp"] < bought[query]["timestamp"] < starts[split + 1]
        assert (report.out / row["image"]).is_file()
    assert Counter(row["image"].split("/")[2] for row in asked.values()) == {"train": 12, "val": 3, "test": 5}
    assert Counter(row["item_id"] for row in bought.values()) == {1000: 6, 1001: 7, 1002: 7}
    trained = [bought[row["query_id"]]["item_id"] for row in rows(report.out, "queries") if "/train/" in row["image"]]
    assert trained != sorted(trained), "products are mixed within a split"


def test_products_have_their_texts_though_two_paths_are_misspelt(tmp_path: Path, published: Publish) -> None:
    source = published("grocery", tmp_path / "source")
    report = import_clicks("grocery", source / "dataset", tmp_path / "shop")
    assert [(r["item_id"], r["title"], r["category"], r["description"]) for r in rows(report.out, "items")] == [
        (1000, "Pink Lady", "Fruit > Apple", "About Pink-Lady."),
        (1001, "Anjou", "Fruit > Pear", "About Anjou."),
        (1002, "Bravo Orange Juice", "Packages > Juice", "About Bravo-Orange-Juice."),
    ]
    taken = ingest(report.out, Lake(str(tmp_path / "lake")), now=NOW)
    assert (taken.refused, taken.unread, taken.items, taken.images, taken.queries, taken.events) == ({}, {}, 3, 2, 20, 20)


def test_the_groceries_again_are_the_same(tmp_path: Path, published: Publish) -> None:
    source = published("grocery", tmp_path / "source")
    outs = [import_clicks("grocery", source, tmp_path / name).out for name in ("one", "one", "two")]
    for path in outs[0].glob("*.parquet"):
        assert pq.read_table(path).equals(pq.read_table(outs[2] / path.name)), path.name


GROCERY_FAULTS: list[tuple[Callable[[Path], Any], str]] = [
    (lambda p: (p / "val.txt").unlink(), r"holds no val\.txt, or dataset/val\.txt"),
    (lambda p: (p / "classes.csv").write_text("Class Name (str)\n"), r"no column 'Class ID \(int\)'"),
    (lambda p: (p / "test.txt").write_text("test/a.jpg\n"), r"test\.txt, line 1: 'test/a\.jpg' is no path and class ID"),
    (lambda p: (p / "test.txt").write_text("/etc/passwd, 1, 1\n"), "is no path and class ID"),
    (lambda p: (p / "test.txt").write_text("../x.jpg, 1, 1\n"), "is no path and class ID"),
    (lambda p: (p / "test.txt").write_text("test/a.jpg, one, 1\n"), "the class ID of test/a.jpg is 'one'"),
]


@pytest.mark.parametrize(("fault", "said"), GROCERY_FAULTS)
def test_a_fault_of_the_groceries_is_named(tmp_path: Path, published: Publish, fault: Callable[[Path], Any], said: str) -> None:
    source = published("grocery", tmp_path / "source")
    fault(source / "dataset")
    with pytest.raises(InputError, match=rf"(?s){said}.*nothing was imported"):
        import_clicks("grocery", source / "dataset", tmp_path / "shop")
    assert not (tmp_path / "shop").exists()


def test_a_shop_is_not_imported_as_groceries(tmp_path: Path, published: Publish) -> None:
    report = import_clicks("grocery", published("grocery", tmp_path / "source"), tmp_path / "shop")
    with pytest.raises(InputError, match="ingest layout already; nothing was imported → moon ingest"):
        import_clicks("grocery", report.out, tmp_path / "other")
    with pytest.raises(InputError, match="--users means nothing for grocery"):
        import_clicks("grocery", tmp_path / "source", tmp_path / "other", users=2)


def test_ratings_are_clicks_and_liking_is_a_purchase(tmp_path: Path, published: Publish) -> None:
    report = import_clicks("movielens", published("movielens", tmp_path / "source"), tmp_path / "shop")
    assert (report.users, report.items, report.clicks, report.purchases, report.left_out, report.pictures) == (3, 4, 5, 2, 2, 1)
    events = [(r["user_id"], r["item_id"], r["event"], r["rating"]) for r in rows(report.out, "events")]
    assert events[:3] == [(7, 1, "click", 5), (7, 1, "purchase", 5), (7, 2, "click", 3)]
    films = {r["item_id"]: r for r in rows(report.out, "items")}
    assert [(n, r["title"], r["category"], r["description"], dict(r["attributes"] or [])) for n, r in films.items()] == [
        (1, "Toy Story (1995)", "Animation", "Toys, alive.", {"genres": "Animation Comedy", "released": "1995"}),
        (2, "Café (1994)", "Action", None, {"genres": "Action Comedy"}),
        (3, "Unknown", None, None, {}),
        (4, "Quiet (1950)", "Film-Noir", None, {"genres": "Action Film-Noir", "released": "1950"}),
    ]
    assert rows(report.out, "users")[0] == {"user_id": 7, "age": 24, "gender": "M", "occupation": "technician"}
    assert [row["user_id"] for row in rows(report.out, "users")] == [7, 8, 9]
    taken = ingest(report.out, Lake(str(tmp_path / "lake")), now=NOW)
    assert (taken.refused, taken.items, taken.images, taken.users, taken.events) == ({}, 4, 1, 3, 7)


def test_movielens_needs_neither_posters_nor_plots_nor_people(tmp_path: Path, published: Publish) -> None:
    source = published("movielens", tmp_path / "source")
    (source / "ml-100k" / "u.user").unlink()
    report = import_clicks("movielens", source / "ml-100k", tmp_path / "shop", users=1)
    assert (report.users, report.pictures) == (1, 0)
    assert not (report.out / "users.parquet").exists()


MOVIE_FAULTS: list[tuple[Callable[[Path], Any], str]] = [
    (lambda p: (p / "ml-100k" / "u.genre").unlink(), "holds no u.genre, or ml-100k/u.genre"),
    (lambda p: (p / "ml-100k" / "u.item").write_text("1|Toy Story\n"), "u.item, line 1: '1.Toy Story' is no line of u.item"),
    (lambda p: (p / "ml-100k" / "u.data").write_text("7\ttwo\t3\t4\n"), "u.data cannot be read"),
    (lambda p: (p / "plots.csv").write_text("id,plot\n"), "no column 'movie_id'"),
    (lambda p: (p / "plots.csv").write_bytes(b"movie_id,plot\n1,Caf\xe9\n"), "plots.csv cannot be read"),
]


@pytest.mark.parametrize(("fault", "said"), MOVIE_FAULTS)
def test_a_fault_of_movielens_is_named(tmp_path: Path, published: Publish, fault: Callable[[Path], Any], said: str) -> None:
    source = published("movielens", tmp_path / "source")
    fault(source)
    with pytest.raises(InputError, match=rf"(?s){said}.*nothing was imported"):
        import_clicks("movielens", source, tmp_path / "shop")
    assert not (tmp_path / "shop").exists()
