"""What was predicted is written down before the answer is there, in two places, and is never changed."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import asdict, replace
from unittest.mock import Mock

import pytest

from moon_ops.errors import StageError
from moon_ops.publication import places
from moon_ops.registry.registry import CTR, ENCODER, Registry
from moon_ops.release import expected_gain
from moon_ops.release.windows import windows
from moon_ops.settings import Settings
from moon_ops.studies import clicks, exchange_rate, predictions
from moon_ops.studies.click_arms import ClickArm
from moon_ops.studies.exchange_rate import RECALL, Point
from moon_ops.studies.exchange_rate_shown import keep
from moon_ops.studies.predictions import Expected, Prediction
from tests.studies.test_exchange_rate import points

ARM, SEEDS = ClickArm("ctr-cube", "ctr-cube"), [0, 1]
HOUR = dt.timedelta(hours=1)


@pytest.fixture
def fresh(copied: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A home with a measured rate over nine other encoders, in which the released encoder has no click model yet; its recall is .5."""
    monkeypatch.setattr(exchange_rate, "_metrics", Mock(return_value={RECALL: 0.5}))
    Registry(copied).tag(CTR, 1, {"encoder": "99"})
    measured(copied, points(0.004))
    return copied


def measured(settings: Settings, some: list[Point], arm: ClickArm = ARM) -> list[Prediction]:
    on = exchange_rate.terms(arm, SEEDS, windows(settings.lake))
    return keep(settings, some, exchange_rate.rate(some), {}, on)[1]


def predict(settings: Settings, now: dt.datetime, arm: ClickArm = ARM) -> Prediction:
    return exchange_rate.predict(settings, 1, arm, SEEDS, windows(settings.lake), now=now)


def answer(settings: Settings, auc: float) -> Point:
    contract = Registry(settings).tags(ENCODER, 1)["contract_id"]
    return Point(1, contract, {RECALL: 0.5}, {"overall": [auc, auc], "new items": [0.7, 0.7]})


def test_a_prediction_is_written_down_and_compared_later(fresh: Settings, now: dt.datetime) -> None:
    made = predict(fresh, now)
    by = {e.outcome: e for e in made.expected}
    assert (made.encoder, made.encoders, made.found) == (1, 9, {})
    assert by["overall"].low < 0.65 < by["overall"].high
    assert by["new items"].auc == pytest.approx(0.7)
    assert predictions.known(fresh) == [made]
    assert "not yet" in predictions.table([made])
    assert expected_gain.worth(fresh, 0.01)[0] == pytest.approx(0.001, rel=0.1), "the rate stays beside it"
    listed = measured(fresh, [*points(0.004), answer(fresh, 0.9)])
    assert listed == predictions.known(fresh) == [replace(made, found={"overall": 0.9, "new items": 0.7})]
    assert "| 0.9000 | **no** |" in (fresh.home / "exchange_rate.md").read_text()
    assert "| 0.7000 | yes |" in (fresh.home / "exchange_rate.md").read_text()


def test_what_was_found_stays_and_so_does_what_was_predicted(fresh: Settings, now: dt.datetime) -> None:
    made = predict(fresh, now)
    (found,) = measured(fresh, [*points(0.004), answer(fresh, 0.65)])
    assert measured(fresh, [*points(0.0), answer(fresh, 0.8)]) == [found], "measured again, on changed data"
    with pytest.raises(StageError, match="encoder 1 has click models already: what is known is not predicted"):
        predict(fresh, now + HOUR)
    assert replace(found, found={}) == made


def test_the_same_prediction_again_keeps_its_time_and_another_stands_beside_it(fresh: Settings, now: dt.datetime) -> None:
    made = predict(fresh, now)
    assert predict(fresh, now + HOUR) == made
    measured(fresh, points(0.002))
    later = predict(fresh, now + 2 * HOUR)
    assert predictions.known(fresh) == [made, later]
    assert later.expected != made.expected


@pytest.mark.parametrize("content", [None, "", '{"slopes": ['])
def test_a_file_that_is_lost_or_cut_loses_no_prediction(fresh: Settings, now: dt.datetime, content: str | None) -> None:
    made = predict(fresh, now)
    file = fresh.home / "exchange_rate.json"
    file.unlink() if content is None else file.write_text(content)
    assert predictions.known(fresh) == [made]
    assert measured(fresh, points(0.004)) == [made]
    assert [Prediction.read(one) for one in json.loads(file.read_text())["predictions"]] == [made]


def test_a_kill_between_registry_and_file_loses_nothing(fresh: Settings, now: dt.datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (fresh.home / "exchange_rate.json").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(predictions, "write_text", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predict(fresh, now)
    assert (fresh.home / "exchange_rate.json").read_text() == before
    (kept,) = predictions.known(fresh)
    assert predict(fresh, now + HOUR) == kept
    assert json.loads((fresh.home / "exchange_rate.json").read_text())["predictions"] == [asdict(kept)]


def test_auc_on_other_terms_is_no_answer(fresh: Settings, now: dt.datetime) -> None:
    made = predict(fresh, now)
    assert measured(fresh, [*points(0.004), answer(fresh, 0.65)], ClickArm("ctr-din", "ctr-din")) == [made]
    with pytest.raises(StageError, match="was not measured with this click recipe, these seeds and this time"):
        predict(fresh, now)


def test_what_cannot_be_predicted_is_refused(fresh: Settings, now: dt.datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    Registry(fresh).tag(CTR, 1, {"encoder": "1"})
    with pytest.raises(StageError, match="encoder 1 has click models already"):
        predict(fresh, now)
    Registry(fresh).tag(CTR, 1, {"encoder": "99"})
    with monkeypatch.context() as patch:
        patch.setattr(clicks, "begun", Mock(return_value=True))
        with pytest.raises(StageError, match="encoder 1 has click models already"):
            predict(fresh, now)
    places.table_place(fresh, "items", 1).rename(fresh.home / "away")
    with pytest.raises(StageError, match="encoder 1 cannot be compared: not published"):
        predict(fresh, now)
    with pytest.raises(StageError, match="moon-encoder has no version 7"):
        exchange_rate.predict(fresh, 7, ARM, SEEDS, windows(fresh.lake), now=now)
    assert predictions.known(fresh) == []


def test_scores_of_one_seed_are_an_answer_begun(copied: Settings) -> None:
    times = windows(copied.lake)
    assert not clicks.begun(copied, 1, ARM, SEEDS, times)
    state = clicks.marks.lake_state(copied, 1)
    clicks._directory(copied)
    contract = clicks.clicks.vectors_known(copied, 1).items.contract_id  # what a study trains on
    clicks._place(copied, contract, ARM, 1, times, state).touch()
    assert clicks.begun(copied, 1, ARM, SEEDS, times)
    assert not clicks.begun(copied, 1, ARM, [0], times)


def test_a_prediction_beyond_what_was_measured_says_so() -> None:
    far = Expected(RECALL, "overall", 0.95, 0.7, 0.69, 0.71, outside=True)
    shown = predictions.table([Prediction(4, "c", "2026-06-01T00:00:00+00:00", 8, {}, [far])])
    assert "| image_search/recall@10 0.9500, outside the measured range |" in shown
