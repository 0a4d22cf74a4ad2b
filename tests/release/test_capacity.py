"""What a shop of a size would take: amounts that follow from shapes, lines through what was measured, and wrong sizes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from moon_ops.cli.main import app
from moon_ops.errors import InputError
from moon_ops.recipes.costs import Cost, Costs
from moon_ops.release.capacity import GIB, Estimate, Means, Prices, Shop, estimates, given

COST = Cost(seconds=(1.0, 10.0, 2.0), memory=(300.0, 100.0, 5.0), disk=(0.0, 10.0, 20.0))
COSTS = Costs("costs", "a core", COST, COST, COST, COST, COST, COST, click_rows=1000.0, redis=1000.0)
SHOP, MEANS = Shop(items=1e7, events=1e8, days=60), Means()


def of(shop: Shop = SHOP, means: Means = MEANS) -> dict[str, Estimate]:
    return {one.part: one for one in estimates(shop, means, COSTS)}


def test_what_was_measured_is_a_line() -> None:
    ingest = of()["ingest"]
    assert ingest.core_hours * 3600 == pytest.approx(1 + 10 * 10 + 2 * 100)
    assert ingest.memory * 1024 == pytest.approx(300 + 100 * 10 + 5 * 100)
    assert ingest.disk * 1024 == pytest.approx(10 * 10 + 20 * 100)


def test_a_night_is_that_of_a_log_of_as_many_days_as_were_measured() -> None:
    """So a log of another length with as many events a day has the same nights."""
    longer = replace(SHOP, events=6e8, days=360)
    assert of(longer)["night"].core_hours == pytest.approx(of()["night"].core_hours)
    assert of(longer)["ingest"].core_hours > of()["ingest"].core_hours


def test_operations_are_two_or_six_a_parameter_and_token() -> None:
    means = replace(MEANS, parameters=1e9, tokens=100.0, gpu_tflops=100.0, utilisation=0.5)
    found = of(means=means)
    hour = 100e12 * 0.5 * 3600
    assert found["embedding"].gpu_hours == pytest.approx(1e7 * 2 * 1e9 * 100 / hour)
    assert found["training"].gpu_hours == pytest.approx(1e8 * SHOP.purchases * 2 * 6 * 1e9 * 100 / hour)


def test_an_index_that_memory_does_not_hold_is_cut_into_shards() -> None:
    small, large = of()["index"], of(replace(SHOP, items=1e9))["index"]
    assert "shards" not in small.note
    assert small.memory <= MEANS.index_gb * 1e9 / GIB
    assert "pq, 16 bytes a code, 12 shards" in large.note
    assert large.memory <= MEANS.index_gb * 1e9 / GIB


def test_a_publication_fills_the_online_store_and_the_table_of_vectors() -> None:
    publish = of()["publish"]
    assert publish.core_hours * 3600 == pytest.approx(1 + 10 * 10 + 2 * 100)
    assert publish.disk == pytest.approx((10 * 10 + 20 * 100) / 1024 + 1e7 * 128 * 4 / GIB)
    assert f"Redis takes {1e7 * (1000 + 128 * 4) / GIB:.3g} GiB" in publish.note


def test_a_day_costs_its_runs_and_its_disk() -> None:
    one = Estimate("part", "measured", core_hours=2.0, gpu_hours=1.0, disk=1e9 / GIB, a_day=0.5)
    assert one.daily(Prices(gpu_hour=3.0, core_hour=0.1, gb_month=30.0)) == pytest.approx(0.5 * (3.0 + 0.2) + 1.0)
    assert one.daily(Prices()) == 0.0


@pytest.mark.parametrize(
    ("shop", "means", "message"),
    [
        ({"items": 0.0}, {}, "items = 0 must be above 0, and at most 1e"),
        ({"events": float("nan")}, {}, "events = nan must be above 0"),
        ({"items": 1e30}, {}, "items = 1e.30 must be"),
        ({}, {"index_gb": 1e-10}, "index_gb = 1e-10 at least 1e-06"),
        ({}, {"dim": 100.7}, "dim = 100.7 must be a whole number"),
        ({}, {"utilisation": 40.0}, "utilisation, new and purchases are shares"),
    ],
)
def test_a_size_that_is_none_is_named(shop: dict[str, float], means: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        of(replace(SHOP, **shop), replace(MEANS, **means))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dim", "'dim' is no name=number"),
        ("dim=many", "'dim=many' is no"),
        ("size=1", "knows no 'size' → name one of dim"),
        ("dim=-1", "'dim=-1' must be from 0"),
        ("dim=nan", "'dim=nan' must be from 0"),
    ],
)
def test_a_word_that_is_no_amount_is_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        given(MEANS, "means", text)


def test_items_and_events_have_options_of_their_own() -> None:
    with pytest.raises(InputError, match="--shop knows no 'items'"):
        given(SHOP, "shop", "items=5")


def test_a_price_is_no_less_than_nothing() -> None:
    with pytest.raises(InputError, match="--prices 'gpu_hour=-5' must be from 0"):
        given(Prices(), "prices", "gpu_hour=-5")


def test_an_index_of_more_shards_than_there_can_be_says_so() -> None:
    assert "beyond the 1,024 that can be: give index_gb more" in of(replace(SHOP, items=1e12))["index"].note
    assert "beyond" not in of(replace(SHOP, items=1e9))["index"].note


def test_the_command_tells_it() -> None:
    shown = CliRunner().invoke(app, ["plan", "--items", "1e8", "--events", "1e11", "--prices", "gpu_hour=2,gb_month=0.02"])
    assert shown.exit_code == 0, shown.output
    assert "shards" in shown.output
    assert "a day costs" in shown.output
    assert "days=365, pictures=2, " in shown.output
    told = CliRunner().invoke(app, ["plan", "--items", "1e8", "--events", "1e11", "--means", "dim=64", "--json"])
    parts = {one["part"]: one for one in json.loads(told.output)["parts"]}
    assert parts["vectors"]["disk"] == pytest.approx(1e8 * 64 * 4 * 3 / GIB)
