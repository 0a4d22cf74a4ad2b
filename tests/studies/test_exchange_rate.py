"""The exchange rate on encoders whose worth is known, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moon_ops.errors import StageError
from moon_ops.release import expected_gain
from moon_ops.release.windows import windows
from moon_ops.settings import Settings
from moon_ops.studies import exchange_rate
from moon_ops.studies.click_arms import ClickArm
from moon_ops.studies.exchange_rate import RECALL, Point
from moon_ops.studies.exchange_rate_shown import figures, keep, tables
from moon_ops.studies.prediction_error import MEAN


def points(noise: float, count: int = 9) -> list[Point]:
    """AUC = .6 + .1 × recall, on new items twice that; text recall has nothing to do with it."""
    drawn = np.random.default_rng(0)
    out = []
    for n in range(count):
        recall = 0.1 + 0.09 * n
        auc = 0.6 + 0.1 * recall
        metrics = {RECALL: recall, "text_search/recall@10": float(drawn.random()), "training/loss": 2 - recall}
        seeds = {"overall": [auc + e for e in drawn.normal(size=3) * noise], "new items": [auc + 0.1 * recall] * 3}
        out.append(Point(n + 1, f"c-{n}", metrics, seeds))
    return out


def test_the_slope_is_found_with_an_interval_that_holds_it() -> None:
    found = {(s.metric, s.outcome): s for s in exchange_rate.slopes(points(0.004))}
    rate = found[RECALL, "overall"]
    assert rate.low < 0.1 < rate.high
    assert rate.low > 0 < rate.r2
    assert rate.encoders == 9
    assert found[RECALL, "new items"].slope == pytest.approx(0.2)
    rival = found["text_search/recall@10", "overall"]
    assert rival.low < 0 < rival.high, "what has nothing to do with it does not exclude zero"
    assert found["training/loss", "overall"].slope == pytest.approx(-rate.slope)


def test_a_metric_that_an_encoder_lacks_is_left_out() -> None:
    some = points(0.0)
    lacking = [replace(some[0], metrics={RECALL: 0.1}), *some[1:]]
    assert {s.metric for s in exchange_rate.slopes(lacking)} == {RECALL}
    for metrics in ({RECALL: 0.5}, {"training/loss": 1.0}):
        with pytest.raises(StageError, match="do not differ in image_search/recall@10, or have none"):
            exchange_rate.slopes([replace(p, metrics=metrics) for p in some])


def test_what_has_no_value_has_no_slope(released: Settings, tmp_path: Path) -> None:
    """A loss that is the same everywhere, and a slice without clicks; nobody reads NaN from a file as a rate."""
    some = [replace(p, metrics=p.metrics | {"training/loss": 1.0}) for p in points(0.0)]
    some[0] = replace(some[0], aucs={"overall": some[0].aucs["overall"]})
    found = exchange_rate.slopes(some)
    assert {(s.metric, s.outcome) for s in found} == {(RECALL, "overall"), ("text_search/recall@10", "overall")}
    settings = released.replace(home=tmp_path)
    keep(settings, some, exchange_rate.rate(some), {}, {})
    with pytest.raises(StageError, match="the exchange rate was not measured on new items"):
        expected_gain.worth(settings, 0.008, "new items")
    unsearched = replace(some[1], metrics=some[1].metrics | {RECALL: np.nan})
    with pytest.raises(StageError, match="do not differ in image_search/recall@10, or have none"):
        exchange_rate.slopes([*some[2:], unsearched])
    with pytest.raises(StageError, match="the click models have no AUC"):
        exchange_rate.slopes([replace(p, aucs={"overall": [np.nan]}) for p in some])


def test_what_is_kept_can_be_read_by_a_gate(released: Settings, tmp_path: Path) -> None:
    settings = released.replace(home=tmp_path)
    with pytest.raises(StageError, match="the exchange rate was never measured → run `moon exchange-rate`"):
        expected_gain.worth(settings, 0.008)
    some = points(0.0)
    (place, written, drawn), _ = keep(settings, some, exchange_rate.rate(some), {7: "not published"}, {})
    assert json.loads(place.read_text())["left_out"] == {"7": "not published"}
    assert "| image_search/recall@10 | overall | +0.00100 | [+0.00100, +0.00100] | 1.00 | yes |" in written.read_text()
    assert drawn.read_bytes()[:4] == b"\x89PNG"
    assert expected_gain.worth(settings, 0.008)[0] == pytest.approx(0.0008)
    evidence = expected_gain.in_auc(settings, {RECALL: 0.85}, {RECALL: 0.842})
    assert evidence["exchange_rate/expected_auc_gain"] == pytest.approx(0.0008)
    assert expected_gain.in_auc(settings, {RECALL: 0.85}, None) == expected_gain.in_auc(released, {RECALL: 0.85}, {RECALL: 0.8}) == {}
    assert expected_gain.worth(settings, -0.008, "new items")[0] == pytest.approx(-0.0016)


def test_the_error_of_one_left_out_stands_beside_that_of_the_mean() -> None:
    some = [replace(p, recipe="ab"[n % 2]) for n, p in enumerate(points(0.004))]
    found = exchange_rate.rate(some)
    errors = {(e.metric, e.outcome, e.left_out): e for e in found.errors}
    assert errors[RECALL, "new items", "encoder"].rmse == pytest.approx(0, abs=1e-12)
    assert errors[RECALL, "overall", "encoder"].rmse < errors[MEAN, "overall", "encoder"].rmse / 3
    assert errors[RECALL, "overall", "recipe"].largest < 0.01
    said = tables(found, [])
    assert "image_search/recall@10 and training/loss are not distinguishable by how well they predict an encoder that is left out" in said
    assert "| error, its recipe left out |" in said
    assert "| the mean alone | overall | " in said
    logged = figures(found, [])
    assert logged["exchange_rate/encoder_left_out/rmse/the_mean_alone:overall"] == errors[MEAN, "overall", "encoder"].rmse
    assert logged["exchange_rate/image_search/recall_at_10:new_items"] == pytest.approx(0.2)
    assert "recipe_left_out" not in str(figures(exchange_rate.rate(points(0.004)), [])), "one recipe alone cannot be left out"


def test_where_no_metric_helps_the_table_says_so() -> None:
    noise = np.random.default_rng(1).normal(size=9) / 100
    some = [replace(p, aucs={"overall": [0.6 + noise[n]]}) for n, p in enumerate(points(0.0))]
    assert "- overall: image_search/recall@10 is not shown to predict better than the mean alone" in tables(exchange_rate.rate(some), [])


def test_one_encoder_has_no_slope(released: Settings) -> None:
    with pytest.raises(StageError, match=r"1 encoders can be compared, and a slope needs 6"):
        exchange_rate.measure(released, ClickArm("ctr-cube", "ctr-cube"), [0, 1], windows(released.lake))


def test_what_cannot_be_compared_is_left_out_with_the_reason(released: Settings) -> None:
    early = windows(released.lake)
    before = replace(early, trained_until=early.start + (early.trained_until - early.start) / 2)
    with pytest.raises(StageError, match=r"0 encoders can be compared.*; 1: trained until .*, into the window"):
        exchange_rate.measure(released, ClickArm("ctr-cube", "ctr-cube"), [0, 1], before)
