"""What `moon describe` counts, and which recipe it names."""

from __future__ import annotations

import datetime as dt
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from moon_ops.cli.main import app
from moon_ops.errors import InputError
from moon_ops.lake.description import describe, describe_directory, fitting
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake

NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)


@pytest.fixture
def small(tmp_path: Path) -> Lake:
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "items.csv").write_text("item_id,title,category,description\n1,A,X > Y,one two three four\n2,B,X,\n3,C,,\n")
    (shop / "queries.csv").write_text(
        "query_id,timestamp,text\n" + "".join(f"{n},2026-01-0{n},{t}\n" for n, t in ((1, "Lamp"), (2, "lamp "), (3, "chair")))
    )
    (shop / "events.csv").write_text(
        "timestamp,item_id,event,query_id\n2026-01-01,1,click,1\n2026-01-02,1,purchase,2\n2026-01-02,1,click,2\n2026-01-09,2,click,3\n"
        "2026-01-09,3,impression,3\n"
    )
    lake = Lake(str(tmp_path / "lake"))
    ingest(shop, lake, now=NOW)
    return lake


def test_what_is_counted(small: Lake) -> None:
    found = describe(small, days=3, max_text_tokens=5)
    assert (found["items"], found["pictures"], found["without_picture"], found["without_description"]) == (3, 0, 3, 2)
    assert (found["without_category"], found["leaf_categories"], found["texts_cut_at_least"]) == (1, 2, 1)
    assert found["events"] == {"click": 3, "impression": 1, "purchase": 1}
    assert (found["pairs"], found["different_pairs"]) == ({"text → click": 3, "text → purchase": 1}, 3)  # one was clicked and bought
    assert (found["text_searches"], found["different_texts"]) == (3, 2)
    assert (found["repeated_share"], found["head_share"], found["days"]) == (2 / 3, 2 / 3, 9)
    assert found["cold_share"] == pytest.approx(2 / 3)
    assert describe(small, days=30)["cold_share"] == pytest.approx(1 / 3)


RULES: list[tuple[dict[str, Any], str]] = [
    ({"items": 5_000, "without_picture": 0, "different_pairs": 0}, ""),
    ({"items": 5_000, "without_picture": 5_000, "different_pairs": 9_000}, "smolvlm-tiny"),
    ({"items": 81, "without_picture": 0, "different_pairs": 5_421}, "moon-warm"),
    ({"items": 5_000, "without_picture": 0, "different_pairs": 100}, "moon-warm"),
    ({"items": 3_002, "without_picture": 0, "different_pairs": 9_000}, "moon-tiny"),
]


@pytest.mark.parametrize(("report", "recipe"), RULES)
def test_which_recipe_fits(report: dict[str, Any], recipe: str) -> None:
    assert fitting(report)[0] == recipe


def test_nothing_to_describe(tmp_path: Path, small: Lake) -> None:
    with pytest.raises(InputError, match="no items in sale"):
        describe(Lake(str(tmp_path / "empty")))
    with pytest.raises(InputError, match="days = 0"):
        describe(small, days=0)


def told(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["describe", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_directory_is_what_its_ingest_would_be_and_nothing_is_left(shop: Path, lake: Lake, tmp_path: Path, monkeypatch: Any) -> None:
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("MOON_HOME", str(home))
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = {path: path.stat().st_mtime_ns for path in [shop, *shop.rglob("*")]}
    found = told(str(shop))
    assert {name: found.pop(name) for name in ("source", "refused", "unread")} == {"source": str(shop), "refused": {}, "unread": {}}
    assert found == describe(lake)
    assert found["recipe"] == "moon-warm"
    assert not home.exists()
    assert list(scratch.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in [shop, *shop.rglob("*")]} == before


def test_pairs_are_those_that_check_counts(make_shop: Callable[..., Path]) -> None:
    """A pair that was clicked and bought is one, one that was returned is none, and so is what lies beyond a cap."""
    asked = [{"query_id": n, "timestamp": "2026-01-01", "text": "rug"} for n in range(1, 24)]
    acts = [(1, 1, "click"), (1, 1, "purchase"), (2, 2, "purchase"), (2, 2, "return")]
    acts += [(n, 1, "click") for n in range(3, 24)]  # with the first one 22 by one user on one item: two too many
    events = [
        {"timestamp": f"2026-01-02T00:{n:02}:00", "item_id": i, "query_id": q, "event": e, "user_id": 7} for n, (q, i, e) in enumerate(acts)
    ]
    place = make_shop(items=[{"item_id": n, "title": "Rug"} for n in (1, 2)], queries=asked, events=events)
    checked = json.loads(CliRunner().invoke(app, ["check", str(place), "--json"]).stdout)
    found = told(str(place))
    assert (found["pairs"], found["different_pairs"]) == ({"text → click": 20, "text → purchase": 1}, 20)
    assert checked["pairs"] == found["different_pairs"]


def test_a_recipe_is_named_by_different_pairs() -> None:
    assert "5000 items and 9000 pairs" in fitting({"items": 5_000, "without_picture": 0, "different_pairs": 9_000})[1]


def test_what_an_ingest_would_leave_out_is_counted(make_shop: Callable[..., Path]) -> None:
    """An address is a picture that nobody has asked for, a broken file is none, and a word of the shop's own may be explained."""
    items = [
        {"item_id": 1, "title": "Lamp", "images": ["http://shop.example/1.jpg"]},
        {"item_id": 2, "title": "Chair", "images": ["b.png"]},
    ]
    items += [{"item_id": 3, "title": "Rug", "images": ["c.png"]}, {"item_id": 4, "title": "Mat", "images": ["c.png"], "price": "cheap"}]
    asked = {"query_id": 1, "timestamp": "2026-01-01", "text": "rug"}
    events = [{"timestamp": "2026-01-01", "item_id": n, "event": "wishlist", "query_id": 1} for n in (3, 9)]
    place = make_shop(items=items, queries=[asked], events=events, pictures={"b.png": b"no picture", "c.png": "red"})
    found = told(str(place), "--event", "wishlist=cart")
    assert (found["items"], found["pictures"], found["without_picture"], found["pairs"]) == (3, 2, 1, {"text → cart": 1})
    assert found["refused"] == {"items.jsonl price": 1, "events.jsonl item_id": 1}
    assert found["unread"] == {"items.jsonl images": 1}


def test_a_directory_that_no_ingest_would_take(make_shop: Callable[..., Path], tmp_path: Path) -> None:
    for place, why in ((tmp_path / "nowhere", "nowhere"), (make_shop(items=[{"item_id": 1, "title": ""}]), "the catalogue is empty")):
        with pytest.raises(InputError, match=why):
            describe_directory(place, now=NOW)


@pytest.mark.parametrize(("arguments", "why"), [(["shop", "--home", "h"], "are two shops"), (["--event", "a=cart"], "has been read")])
def test_a_home_and_a_directory_are_not_mixed(arguments: list[str], why: str) -> None:
    done = CliRunner().invoke(app, ["describe", *arguments])
    assert isinstance(done.exception, InputError)
    assert why in str(done.exception)
