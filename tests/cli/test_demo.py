"""The whole loop: a release, a second one beside it, rollback, and a shop without click sequences."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from moon_ops.cli import demo
from moon_ops.cli.demo import Choices
from moon_ops.cli.main import app
from moon_ops.errors import GateError, InputError, MoonError, StageError
from moon_ops.registry.registry import CHAMPION, PREVIOUS, RELEASE, Registry
from moon_ops.release.promotion import Wish, promote, rollback
from moon_ops.release.status import lines, status
from moon_ops.settings import ROOT, Settings

GROCERY = ROOT.parent / "shared" / "data" / "grocery"

WISH = Wish("test", "2026-06-02T00:00:00+00:00")


def test_status_of_a_released_home(released: Settings) -> None:
    state = status(released)
    told = list(lines(state))
    assert told[0].startswith("champion    release 1: moon-encoder 1, moon-ctr 1, contract c-")
    assert "gate        passed  image_search/recall@10 = " in "\n".join(told)
    assert "catalogue   115 items, 115 with vectors" in told
    champion = state["champion"]
    assert (champion["release"], champion["encoder"], champion["ctr"]) == (1, 1, 1)
    assert champion["contract_id"].startswith("c-")
    assert state["items"] == state["embedded"] == 115
    wanted = {f"image_search/recall@{k}" for k in (1, 5, 10)} | {f"ctr/{name}" for name in ("auc", "auc_id_only", "auc_oracle", "gauc")}
    assert wanted <= set(state["metrics"])
    assert state["metrics"]["ctr/auc_oracle"] > state["metrics"]["ctr/auc"]
    assert json.loads(json.dumps(state)) == state


def test_report_is_drawn_and_logged(released: Settings) -> None:
    place = released.home / "report"
    for name in ("searches.png", "recall.png", "auc.png"):
        with Image.open(place / name) as picture:
            assert min(picture.size) > 200
    page = (place / "report.html").read_text()
    assert "image_search/recall@10" in page
    assert page.count('<img src="data:image/png;base64,') >= 3
    registry = Registry(released)
    run_id = registry.client.get_model_version(RELEASE, "1").run_id
    assert {f.path for f in registry.client.list_artifacts(run_id, "report")} == {f"report/{p.name}" for p in place.iterdir()}


def test_two_releases_side_by_side(copied: Settings, make_release: Any, tmp_path: Path) -> None:
    """In the terminal, as JSON, and as a page; a page that cannot be written is one line."""
    make_release(contract_id="c-other")
    home = ["--home", str(copied.home)]
    shown = CliRunner().invoke(app, ["diff", "1", "2", *home, "--html", str(tmp_path / "page.html")])
    assert shown.exit_code == 0
    assert "c-other" in shown.output
    assert "Both releases have encoder 1: every search finds the same." in (tmp_path / "page.html").read_text()
    found = json.loads(CliRunner().invoke(app, ["diff", "1", "2", *home, "--json"]).output)
    assert found["parts"]["contract"][1] == "c-other"
    refused = CliRunner().invoke(app, ["diff", "1", "2", *home, "--html", str(tmp_path / "nowhere" / "page.html")])
    assert isinstance(refused.exception, InputError)
    assert "its directory is not there" in str(refused.exception)


def test_everything_lies_in_moon_home(released: Settings) -> None:
    assert {p.name for p in released.home.iterdir() if not p.name.startswith(".")} == {
        "checkpoints", "demo.json", "feature_store", "index", "lake", "mlartifacts", "mlflow.db", "mlflow.lock", "moves.lock",
        "prepared", "release.lock", "report", "shop-tiny", "tables",
    }  # fmt: skip


@pytest.mark.slow
def test_a_second_release_is_compared_with_the_first_and_can_be_rolled_back(copied: Settings, now: dt.datetime) -> None:
    settings = copied
    marker = settings.home / "demo.json"
    marker.write_text(marker.read_text().replace(json.loads(marker.read_text())["shop"], str(settings.home / "shop-tiny")))
    more = Choices(size="tiny", encoder="moon-nano", days=24, seed=1)  # more data of the same shop, and another seed
    with contextlib.suppress(GateError):  # a legitimate end: the tiny shop's figures are noisy
        demo.run(settings, more, now=now + dt.timedelta(days=1))
    from moon_ops.registry.registry import manifest_of

    registry = Registry(settings)
    manifest = manifest_of(registry, 2)
    assert manifest["compared_with"]["release"] == 1
    against = {v["gate"]: v["champion"] for v in manifest["evidence"]}
    assert against["image_search/recall@10"] == manifest["compared_with"]["metrics"]["image_search/recall@10"]
    assert against["ctr/auc"] == manifest["compared_with"]["metrics"]["ctr/auc"]
    assert manifest["compared_with"]["metrics"]["ctr/rows"] == manifest["metrics"]["ctr/rows"], "both on the same impressions"
    assert status(settings)["items"] > 115
    if manifest["passed"]:
        assert registry.alias(CHAMPION) == 2
        assert (rollback(settings, WISH).before, registry.alias(CHAMPION)) == (2, 1)
        assert (registry.alias(CHAMPION), registry.alias(PREVIOUS)) == (1, 2)
        assert promote(settings, 2, WISH).before == 1
    else:
        assert registry.alias(CHAMPION) == 1


@pytest.mark.slow
def test_a_shop_without_click_sequences_gets_a_release_without_a_click_model(
    make_shop: Any, tmp_path: Path, now: dt.datetime, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twelve plain-coloured products, each photographed by many shoppers: colour alone finds the product."""
    colours = ["red", "green", "blue", "yellow", "purple", "orange", "black", "white", "grey", "brown", "cyan", "pink"]
    pictures: dict[str, str | bytes] = {f"{c}.png": c for c in colours}
    items = [
        {"item_id": n + 1, "title": f"{c} thing", "images": [f"{c}.png"], "available_from": "2025-12-01"} for n, c in enumerate(colours)
    ]
    queries, events = [], []
    for n in range(240):
        moment = dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(hours=n)
        queries.append({"query_id": n, "timestamp": moment.isoformat(), "image": f"{colours[n % 12]}.png"})
        events.append({"timestamp": moment.isoformat(), "item_id": n % 12 + 1, "query_id": n, "event": "purchase"})
    shop = make_shop("photos", pictures, items=items, queries=queries, events=events)
    settings = Settings.from_environment(tmp_path / "home")
    demo.run(settings, Choices(data=shop, encoder="moon-nano"), now=now)
    state = status(settings)
    assert state["champion"] == {**state["champion"], "release": 1, "encoder": 1, "ctr": None}
    assert state["metrics"]["image_search/recall@1"] > 0.9
    assert "ctr/auc" not in state["metrics"]
    assert "skipped: the shop has no click sequences" in capsys.readouterr().out
    with pytest.raises(InputError, match="holds the shop of"):
        demo.run(settings, Choices(size="tiny", encoder="moon-nano"), now=now)


def test_a_simulated_shop_is_not_mixed_with_one_that_was_ingested(released: Settings, moved: Any, tmp_path: Path, now: dt.datetime) -> None:
    settings = moved(released, tmp_path / "home")
    (settings.home / "demo.json").unlink(missing_ok=True)
    before = settings.lake.count("items")
    with pytest.raises(InputError, match="holds another shop: they would be mixed → set MOON_HOME to another one"):
        demo.run(settings, Choices(size="tiny", encoder="moon-nano"), now=now)
    assert settings.lake.count("items") == before


@pytest.mark.skipif(not GROCERY.is_dir(), reason="the grocery photographs are not here")
def test_grocery_is_in_the_ingest_layout(tmp_path: Path, now: dt.datetime) -> None:
    from moon_ops.ctr.impressions import has_click_sequences
    from moon_ops.lake.ingest import ingest
    from moon_ops.release.windows import windows

    settings = Settings.from_environment(tmp_path / "home")
    report = ingest(GROCERY, settings.lake, now=now)
    assert (report.items, report.images, report.queries, report.events, report.refused) == (81, 5502, 5421, 5421, {})
    assert not has_click_sequences(settings.lake)
    assert windows(settings.lake).trained_until > dt.datetime(2019, 3, 1, tzinfo=dt.UTC)


def test_a_shop_without_a_log_hears_what_is_missing(
    make_shop: Any, tmp_path: Path, now: dt.datetime, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings.from_environment(tmp_path / "home")
    shop = make_shop("silent", items=[{"item_id": 1, "title": "thing", "price": 5}])
    with pytest.raises(StageError, match="the lake has 0 events: there is nothing to learn from"):
        demo.run(settings, Choices(data=shop, encoder="moon-nano"), now=now)
    told = capsys.readouterr().out
    assert "missing for train: no queries: an encoder learns from what was asked and then clicked" in told
    assert "missing for ctr: no event has a user_id: no click model is trained" in told
    assert "missing for images: no item has a picture" in told


@pytest.mark.parametrize(
    ("chosen", "made", "installed"),
    [
        (Choices(), ["SEED=1"], ["--seed 1"]),
        (
            Choices(size="tiny", encoder="moon-nano", seed=1),
            ["SIZE=tiny", "ENCODER=moon-nano", "SEED=2"],
            ["--size tiny", "--encoder moon-nano", "--seed 2"],
        ),
        (Choices(data=Path("shop"), days=75), ["DATA=shop", "DAYS=75", "SEED=1"], ["--data shop", "--days 75", "--seed 1"]),
    ],
)
def test_the_next_release_is_of_the_same_shop(chosen: Choices, made: list[str], installed: list[str]) -> None:
    assert chosen.again(True) == made
    assert chosen.again(False) == installed


@pytest.mark.parametrize(
    ("chosen", "fault"),
    [
        (
            Choices(size="tiny", encoder="moon-mini"),
            r"no recipe 'moon-mini' in .* \(there are: moon-nano, moon-study, .*→ name one of these",
        ),
        (Choices(size="tiny", encoder="ctr-cube"), "ctr-cube.toml is a recipe for a click model, not for an encoder"),
        (Choices(size="tiny", minutes=-3.0), "minutes = -3.0 must be above 0"),
        (Choices(size="tiny", changes=("training.batchh=3",)), "training.batchh"),
    ],
)
def test_what_training_would_refuse_is_refused_before_a_shop_is_drawn(
    tmp_path: Path, now: dt.datetime, chosen: Choices, fault: str
) -> None:
    with pytest.raises(MoonError, match=fault):
        demo.run(Settings.from_environment(tmp_path / "home"), chosen, now=now)
    assert not list(tmp_path.rglob("shop-*"))
