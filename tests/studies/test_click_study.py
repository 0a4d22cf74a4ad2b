"""Studies of click models on the released tiny shop: every run once, the same rows for all, and a table that says what it knows."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args
from unittest.mock import Mock

import numpy as np
import pytest

from moon_ops.errors import InputError
from moon_ops.recipes.ctr import CubePart
from moon_ops.registry.encoders import encoder_version
from moon_ops.release import clicks
from moon_ops.release.windows import Windows, windows
from moon_ops.settings import Settings
from moon_ops.studies import click_arms
from moon_ops.studies import clicks as click_study
from moon_ops.studies.click_arms import ClickArm
from moon_ops.studies.clicks import Judged

ARMS = [ClickArm("ctr-din", "ctr-din", {"epochs": 1}), ClickArm("cube", "ctr-cube", {"epochs": 1, "behaviors": 5})]


@pytest.fixture(scope="module")
def home(released: Settings, moved: Callable[[Settings, Path], Settings], tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The released home at another place: studies leave what they have done in it."""
    return moved(released, tmp_path_factory.mktemp("studied") / "home")


@pytest.fixture(scope="module")
def judged(released: Settings, home: Settings) -> Judged:
    times = windows(home.lake, trained_until=encoder_version(home, 1).trained_until)
    return click_study.run(home, 1, ARMS, [0, 1], times, oracle=released.home / "shop-tiny" / "oracle.parquet")


def test_every_arm_scores_the_same_rows_with_every_seed(judged: Judged) -> None:
    assert set(judged.scores) == {(arm.name, seed) for arm in ARMS for seed in (0, 1)}
    assert {len(scores) for scores in judged.scores.values()} == {len(judged.labels)}
    assert len(judged.metric("cube", "auc")) == 2
    assert judged.oracle is not None
    assert np.isfinite(judged.oracle).all()


def test_what_is_done_is_read_and_another_recipe_is_another_run(judged: Judged, home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    times = windows(home.lake, trained_until=encoder_version(home, 1).trained_until)
    trained = Mock(side_effect=AssertionError("it was trained before"))
    monkeypatch.setattr(clicks, "train_ctr", trained)
    again = click_study.run(home, 1, ARMS, [0, 1], times)
    for key, scores in judged.scores.items():
        assert again.scores[key].tolist() == scores.tolist()
    with pytest.raises(AssertionError, match="it was trained before"):
        click_study.run(home, 1, [ClickArm("cube", "ctr-cube", {"epochs": 1, "behaviors": 6})], [0], times)


def test_the_table_has_intervals_and_says_when_data_are_too_few(judged: Judged) -> None:
    table = click_study.table(judged, ARMS, "ctr-din")
    head, _, first, second, *_ = table.splitlines()
    assert head.startswith("| model | AUC | GAUC | log loss | calibration | AUC if all were seen | Δ AUC overall |")
    assert first.startswith("| ctr-din | 0.")
    gap = judged.difference("cube", "ctr-din")
    assert f"{gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]" in second
    assert ("too little data" in second) == (gap.verdict == "too little data")
    assert "the oracle 0." in table


def test_long_sequences_are_searched_first() -> None:
    arms = click_arms.lengths("ctr-cube", [1000, 5])
    assert [(arm.name, dict(arm.change)) for arm in arms] == [
        ("5 behaviours", {"behaviors": 5, "top_k": 0}),
        ("1000 behaviours", {"behaviors": 1000, "top_k": 50}),
    ]
    with pytest.raises(InputError, match=r"lengths = \[0\] must be whole numbers from 1"):
        click_arms.lengths("ctr-cube", [0])


def test_the_baseline_is_always_one_of_the_models() -> None:
    assert [arm.name for arm in click_arms.models(["ctr-cube", "ctr-din", "ctr-cube"])] == ["ctr-din", "ctr-cube"]
    assert len(click_arms.MODELS) == 9


SPAN = Windows(*(dt.datetime(2026, 5, day, tzinfo=dt.UTC) for day in (1, 11, 15, 20)))


def test_what_an_arm_learns_from_and_is_judged_on() -> None:
    """Rows after the encoder's training, as long a time before its end, and all before each judged day."""

    def trained(arm: ClickArm) -> list[tuple[int, int, int]]:
        return [(w.start.day, w.ctr_until.day, w.end.day) for w in arm.trainings(SPAN)]

    plain, later, before = click_arms.later([ClickArm("a", "ctr-din")])
    assert (trained(plain), trained(later), trained(before)) == ([(1, 15, 20)], [(11, 15, 20)], [(7, 11, 20)])
    once, refit, daily = click_arms.days(["ctr-din"], 1)
    assert (trained(once), trained(refit)) == ([(1, 15, 20)], [(1, 15, 20)])
    assert trained(daily) == [(1, 15, 16), (1, 16, 17), (1, 17, 18), (1, 18, 19), (1, 19, 20)]
    assert trained(click_arms.days(["ctr-din"], 2)[2]) == [(1, 15, 17), (1, 17, 19), (1, 19, 20)]
    assert [dict(arm.change) for arm in (once, refit, daily)] == [{}, {"refit": True}, {"refit": True}]


def test_every_day_is_scored_by_the_model_trained_on_all_before_it(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row once, by the training whose judged time it lies in; a killed study trains none of the finished days again."""
    times = windows(home.lake, trained_until=encoder_version(home, 1).trained_until)
    made: list[Windows] = []

    def score(*given: Any) -> np.ndarray[Any, Any]:
        made.append(given[4])
        return np.full(len(given[5][0]), float(len(made)))

    monkeypatch.setattr(click_study, "_scored", score)
    arm = ClickArm("daily", "ctr-din", every=1)
    found = click_study.run(home, 1, [arm], [0], times)
    again = click_study.run(home, 1, [arm], [0], times)
    assert [w.ctr_until for w in made] == [w.ctr_until for w in arm.trainings(times)]
    joined = clicks.impressions(home, 1, times.ctr_until, times.end)
    days = np.array([(t - times.ctr_until).days for t in joined.column("event_timestamp").to_pylist()])
    assert found.scores["daily", 0].tolist() == (days + 1.0).tolist() == again.scores["daily", 0].tolist()


def test_an_arm_without_vectors_of_its_own_trains_on_those_that_its_recipe_names(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that ``vectors = "float16"`` is not set aside by the float32 vectors that a study scores with."""
    times = windows(home.lake, trained_until=encoder_version(home, 1).trained_until)
    given: list[Any] = []

    def train(*_: Any, tables: Any, **__: Any) -> Any:
        given.append(tables)
        raise InterruptedError

    monkeypatch.setattr(clicks, "train_ctr", train)
    arm, others = ClickArm("half", "ctr-din-cos", changes=('vectors="float16"',)), clicks.vectors_known(home, 1)
    for vectors in (None, {"half": others}):
        with pytest.raises(InterruptedError):
            click_study.run(home, 1, [arm], [7], times, vectors=vectors)
    assert given == [None, others]


def test_the_strongest_rival_has_the_highest_mean_auc() -> None:
    labels, users = np.array([0, 1, 0, 1]), np.arange(4)
    good, bad = np.array([0.1, 0.9, 0.2, 0.8]), np.array([0.9, 0.1, 0.8, 0.2])
    judged = Judged(labels, users, {}, {("a", 0): bad, ("b", 0): good, ("c", 0): bad})
    assert click_study.strongest(judged, ["a", "b"]) == "b"
    assert click_study.strongest(judged, ["a", "c"]) == "a"


def test_the_arms_of_cube_are_the_whole_one_less_a_part_each() -> None:
    arms = click_arms.cube_parts()
    assert len({arm.name for arm in arms}) == len(arms)
    less = [arm.change["without"] for arm in arms if "without" in arm.change]
    assert less == [(part,) for part in get_args(CubePart)]
    assert {arm.recipe for arm in arms if arm.change.get("position")} >= {"ctr-din", "ctr-din-cos-query", "ctr-cube"}
