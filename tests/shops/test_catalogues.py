"""One shop in the layouts of four systems: each import gives the same directory, and one of them goes through the whole demo."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layouts
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from moon_ops.cli import demo
from moon_ops.cli.demo import Choices
from moon_ops.cli.main import app
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.registry.registry import CHAMPION, Registry
from moon_ops.settings import Settings
from moon_ops.shops.catalogues import CatalogueReport, import_catalogue

Import = Callable[[str], tuple[CatalogueReport, Path]]
READ = ("title", "category", "brand", "description", "attributes", "image_ids", "price", "status")


@pytest.fixture
def imported(shop: Path, tmp_path: Path) -> Import:
    """The tiny shop in a layout, imported."""

    def run(name: str) -> tuple[CatalogueReport, Path]:
        kind, write = layouts.WRITE[name]
        place = tmp_path / f"export-{name}"
        place.mkdir()
        layouts.log(shop, place)
        write(layouts.goods(shop), place)
        return import_catalogue(kind, place, tmp_path / name), tmp_path / name

    return run


@pytest.mark.parametrize("name", list(layouts.WRITE))
def test_each_layout_gives_the_shop(name: str, shop: Path, imported: Import) -> None:
    """Item by item: ids, products, titles, prices, categories, states, and the pictures' bytes."""
    report, place = imported(name)
    wanted = layouts.goods(shop)
    assert report.rows == report.items + report.merged + report.refused
    assert (report.items, report.refused, report.pictures_missing, report.reasons) == (len(wanted), 0, 0, ())
    assert report.products == len({item["spu_id"] for item in wanted})
    assert set(report.taken_along) == {"events/events.csv", "queries/queries.csv"}
    rows = {row["item_id"]: row for row in pq.read_table(place / "items.parquet").to_pylist()}
    assert list(rows) == [item["item_id"] for item in wanted]
    for item in wanted:
        row = rows[item["item_id"]]
        assert (row["spu_id"], row["brand"], row["status"]) == (item["spu_id"], item["brand"], item["status"])
        assert (row["price"], dict(row["attributes"])) == (item["price"], item["attributes"])
        assert row["images"] == [item["own"], *item["extra"]]
        assert " > ".join(row["category"]) == item["category"]
        assert all((place / picture).read_bytes() == (shop / picture).read_bytes() for picture in row["images"])


def test_all_layouts_are_one_shop_in_the_lake(shop: Path, imported: Import, tmp_path: Path, now: dt.datetime) -> None:
    """With the texts that people see, HTML or not."""
    found = {}
    for name in layouts.WRITE:
        lake = Lake(str(tmp_path / f"lake-{name}"))
        report = ingest(imported(name)[1], lake, now=now)
        assert (report.items, report.queries, report.refused, report.unread) == (115, 398, {}, {})
        found[name] = {row["source_id"]: {n: row[n] for n in READ} for row in lake.read("items").to_pylist()}
    first = found["shopify"]
    assert all(other == first for other in found.values())
    for item in layouts.goods(shop):
        assert first[item["item_id"]]["description"] == " ".join(item["description"].split())
        assert first[item["item_id"]]["title"] == item["title"]


@pytest.mark.slow
def test_an_export_becomes_a_release(shop: Path, tmp_path: Path, now: dt.datetime) -> None:
    """`moon import`, and `make demo DATA=…` on what it wrote."""
    source, place = tmp_path / "export", tmp_path / "shop"
    source.mkdir()
    layouts.log(shop, source)
    layouts.woocommerce(layouts.goods(shop), source)
    told = CliRunner().invoke(app, ["import", "woocommerce", str(source), str(place), "--json"])
    assert told.exit_code == 0, told.output
    report: dict[str, Any] = json.loads(told.output)
    assert (report["rows"], report["items"], report["merged"], report["refused"]) == (155, 115, 40, 0)
    settings = Settings.from_environment(tmp_path / "home")
    demo.run(settings, Choices(data=place, encoder="moon-nano"), now=now)
    assert Registry(settings).alias(CHAMPION) == 1
