"""Studies of click models on the released tiny shop: every run once, the same rows for all, and a table that says what it knows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from unittest.mock import Mock

import numpy as np
import pytest

from moon_ops.errors import InputError
from moon_ops.registry.encoders import encoder_version
from moon_ops.release import clicks
from moon_ops.release.windows import windows
from moon_ops.settings import Settings
from moon_ops.studies import clicks as click_study
from moon_ops.studies.clicks import ClickArm, Judged

ARMS = [ClickArm("ctr-din", "ctr-din", {"epochs": 1}), ClickArm("cube", "ctr-cube", {"epochs": 1, "behaviors": 5})]


@pytest.fixture(scope="module")
def judged(released: Settings) -> Iterator[Judged]:
    times = windows(released.lake, trained_until=encoder_version(released, 1).trained_until)
    yield click_study.run(released, 1, ARMS, [0, 1], times, oracle=released.home / "shop-tiny" / "oracle.parquet")
    shutil.rmtree(released.home / "studies")  # the home is everybody's


def test_every_arm_scores_the_same_rows_with_every_seed(judged: Judged) -> None:
    assert set(judged.scores) == {(arm.name, seed) for arm in ARMS for seed in (0, 1)}
    assert {len(scores) for scores in judged.scores.values()} == {len(judged.labels)}
    assert len(judged.metric("cube", "auc")) == 2
    assert judged.oracle is not None
    assert np.isfinite(judged.oracle).all()


def test_what_is_done_is_read_and_another_recipe_is_another_run(
    judged: Judged, released: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = windows(released.lake, trained_until=encoder_version(released, 1).trained_until)
    trained = Mock(side_effect=AssertionError("it was trained before"))
    monkeypatch.setattr(clicks, "train_ctr", trained)
    again = click_study.run(released, 1, ARMS, [0, 1], times)
    for key, scores in judged.scores.items():
        assert again.scores[key].tolist() == scores.tolist()
    with pytest.raises(AssertionError, match="it was trained before"):
        click_study.run(released, 1, [ClickArm("cube", "ctr-cube", {"epochs": 1, "behaviors": 6})], [0], times)


def test_the_table_has_intervals_and_says_when_data_are_too_few(judged: Judged) -> None:
    table = click_study.table(judged, ARMS, "ctr-din")
    head, _, first, second, *_ = table.splitlines()
    assert head.startswith("| model | AUC | GAUC | log loss | calibration | Δ AUC overall |")
    assert first.startswith("| ctr-din | 0.")
    gap = judged.difference("cube", "ctr-din")
    assert f"{gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]" in second
    assert ("too little data" in second) == (gap.verdict == "too little data")
    assert "the oracle 0." in table


def test_long_sequences_are_searched_first() -> None:
    arms = click_study.lengths("ctr-cube", [1000, 5])
    assert [(arm.name, dict(arm.change)) for arm in arms] == [
        ("5 behaviours", {"behaviors": 5, "top_k": 0}),
        ("1000 behaviours", {"behaviors": 1000, "top_k": 50}),
    ]
    with pytest.raises(InputError, match=r"lengths = \[0\] must be whole numbers from 1"):
        click_study.lengths("ctr-cube", [0])


def test_the_baseline_is_always_one_of_the_models() -> None:
    assert [arm.name for arm in click_study.models(["ctr-cube", "ctr-din", "ctr-cube"])] == ["ctr-din", "ctr-cube"]
    assert len(click_study.MODELS) == 9
