"""Errors of what was left out, against what can be worked out by hand; and that metrics that are equally good are said to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moon_ops.studies import prediction_error as off
from moon_ops.studies.prediction_error import ENCODER, MEAN, RECIPE, SAME

ROOT = Path(__file__).parents[2]
RECALL10 = "image search recall@10"
X = np.array([0.1, 0.2, 0.35, 0.5, 0.6, 0.8, 0.85, 0.9])
NOISE = np.array([3, -1, 2, -4, 1, 0, -2, 3]) / 1000
Y = 0.6 + 0.1 * X + NOISE


def test_one_left_out_is_the_residual_over_what_it_weighs() -> None:
    """PRESS: for least squares e / (1 − h), for the mean (y − ȳ) · n / (n − 1)."""
    hat = 1 / len(X) + (X - X.mean()) ** 2 / ((X - X.mean()) ** 2).sum()
    slope, start = np.polyfit(X, Y, 1)
    assert off.left_out(X, Y, range(8)) == pytest.approx((Y - start - slope * X) / (1 - hat))
    assert off.left_out(None, Y, range(8)) == pytest.approx((Y - Y.mean()) * 8 / 7)


def test_a_recipe_left_out_is_predicted_by_the_others_alone() -> None:
    recipes = ["a"] * 4 + ["b"] * 4
    shifted = Y + np.where(np.array(recipes) == "b", 0.05, 0)
    found = {(e.metric, e.left_out): e for e in off.errors({"m": X}, shifted, "overall", range(1, 9), recipes)}
    by_hand = shifted[4:] - np.polyval(np.polyfit(X[:4], shifted[:4], 1), X[4:])
    other = shifted[:4] - np.polyval(np.polyfit(X[4:], shifted[4:], 1), X[:4])
    every = np.concatenate([other, by_hand])
    error = found["m", RECIPE]
    assert (error.rmse, error.largest) == pytest.approx((np.sqrt((every**2).mean()), np.abs(every).max()))
    assert error.worst == int(np.abs(every).argmax()) + 1
    assert error.rmse > 2 * found["m", ENCODER].rmse, "what is new about a recipe is no error of one encoder left out"
    assert set(found) == {(m, way) for m in ("m", MEAN) for way in (ENCODER, RECIPE)}
    assert {e.left_out for e in off.errors({"m": X}, Y, "overall", range(1, 9), ["a"] * 8)} == {ENCODER}


def test_where_the_others_do_not_differ_their_mean_predicts() -> None:
    x = np.array([0.0, 0.0, 0.0, 1.0])
    assert off.left_out(x, np.array([1.0, 2.0, 3.0, 8.0]), range(4))[3] == pytest.approx(6.0)


def test_swaps_are_counted_exactly() -> None:
    assert off.swapped(np.ones(6)) == 2 / 64
    assert off.swapped(np.array([1.0, 1.0, -1.0])) == 1.0
    assert off.swapped(np.array([2.0, 1.0, 1.0])) == 2 / 8
    assert off.swapped(np.zeros(5)) == 1.0
    many = off.swapped(np.ones(16))
    assert many == off.swapped(np.ones(16)) <= 3 / off.DRAWS + 1 / off.DRAWS


def test_a_metric_as_good_is_not_distinguishable_and_noise_is_worse() -> None:
    twin = X + np.array([1, -1, 1, -1, 1, -1, 1, -1]) / 100
    noise = np.random.default_rng(3).random(8)
    found = {c.metric: c for c in off.compared({"recall": X, "twin": twin, "noise": noise}, Y, "overall", "recall")}
    assert found["twin"].verdict == SAME
    assert found["noise"].verdict == found[MEAN].verdict == "worse"
    assert found["noise"].difference > 0.01
    back = {c.metric: c for c in off.compared({"noise": noise, "recall": X}, Y, "overall", "noise")}
    assert back["recall"].verdict == "better"
    assert back["recall"].difference == pytest.approx(-found["noise"].difference)
    assert found["noise"].p >= off.swapped(off.left_out(noise, Y, range(8)) ** 2 - off.left_out(X, Y, range(8)) ** 2), "Holm"


def test_the_prediction_interval_holds_one_more_encoder_as_often_as_it_says() -> None:
    drawn, held = np.random.default_rng(0), 0
    for _ in range(2000):
        x = drawn.random(8)
        known = off.predicted(x[:7], 0.6 + 0.1 * x[:7] + drawn.normal(size=7) / 100, x[7])
        held += known.low <= 0.6 + 0.1 * x[7] + drawn.normal() / 100 <= known.high
    assert 0.935 < held / 2000 < 0.965
    assert off.predicted(X, Y, 0.95).outside
    assert not off.predicted(X, Y, 0.9).outside


NAMES = (RECALL10, "image search recall@1", "text search recall@10", "within-product recall@10", "training loss")
EXCHANGE = (ROOT / "docs" / "ctr.md").read_text().partition("## The exchange rate")[2]
LISTED = [row for row in (line.strip("| ").split(" | ") for line in EXCHANGE.splitlines()) if len(row) == 9 and row[0].isdecimal()]
METRICS = {name: np.array([float(row[2 + place]) for row in LISTED]) for place, name in enumerate(NAMES)}
RECIPES = [row[1].split(" ")[0].rstrip(",") for row in LISTED]


@pytest.mark.parametrize(("column", "cell"), [(7, 1), (8, 5)])
def test_the_errors_that_the_documents_state_follow_from_the_encoders_that_they_list(column: int, cell: int) -> None:
    """docs/ctr.md: eighteen encoders of five recipes, and which metrics differ in how well they predict one that is left out."""
    assert len(LISTED) == 18
    assert len(set(RECIPES)) == 5
    auc = np.array([float(row[column]) for row in LISTED])
    beside = {c.metric: c for c in off.compared(METRICS, auc, "", RECALL10)}
    every = off.errors(METRICS, auc, "", range(1, 19), RECIPES)
    recipes = {error.metric: error.rmse for error in every if error.left_out == off.RECIPE}
    for error in (error for error in every if error.left_out == off.ENCODER):
        (stated,) = (line.strip("|").split("|") for line in EXCHANGE.splitlines() if line.startswith(f"| {error.metric} | .0"))
        shown = [part.strip() for part in stated[cell : cell + 4]]
        assert [float(part) for part in shown[:3]] == pytest.approx([error.rmse, error.largest, recipes[error.metric]], abs=2e-4)
        if error.metric in beside:
            verdict, _, p = shown[3].partition(", p ")
            assert verdict == beside[error.metric].verdict
            assert not p or float(p) == pytest.approx(beside[error.metric].p, abs=0.006)


def test_the_predictions_that_the_documents_state_follow_from_the_encoders_that_were_known() -> None:
    predicted = [row for row in (line.strip("| ").split(" | ") for line in EXCHANGE.splitlines()) if len(row) == 5 and row[0].isdecimal()]
    assert [row[0] for row in predicted] == ["14", "15", "16", "17", "18"]
    for row in predicted:
        number = int(row[0]) - 1
        for column, cell in ((7, 1), (8, 3)):
            auc = np.array([float(known[column]) for known in LISTED])
            found = off.predicted(METRICS[RECALL10][:13], auc[:13], METRICS[RECALL10][number])
            stated = [float(part) for part in row[cell].replace("[", "").replace("]", "").replace(",", "").split()]
            assert stated == pytest.approx([found.value, found.low, found.high], abs=6e-4)
            assert float(row[cell + 1].strip("*")) == pytest.approx(auc[number], abs=6e-4)
            assert row[cell + 1].startswith("**") == (not found.low <= auc[number] <= found.high)
