"""Studies: what the table and the figures say of made-up outcomes, and that no run is done twice."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from moon_ops.encoder import train as training
from moon_ops.errors import InputError, StageError
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.recipes.encoder import EncoderRecipe
from moon_ops.recipes.reading import recipe
from moon_ops.registry.registry import Registry
from moon_ops.release.windows import Windows, windows
from moon_ops.settings import Settings
from moon_ops.studies import encoder as study
from moon_ops.studies.arms import FULL, ablation
from moon_ops.studies.encoder import HEADLINE, Outcome, interval, place_of, table, whole_seeds
from moon_ops.studies.figures import ablation_figure, scaling_figure

GREEN = (34, 145, 90)


def outcomes(arm: str, *recalls: float, tokens: int = 1000, first: int = 0) -> list[Outcome]:
    """One of each seed, from ``first`` on."""
    return [
        Outcome(arm, seed, 10, tokens, 30.0 + seed, {HEADLINE: recall, "image_search/recall@1": recall / 2})
        for seed, recall in enumerate(recalls, first)
    ]


@pytest.mark.parametrize("values", [(0.5, 0.6), (0.1, 0.4, 0.4, 0.9), (-0.02, 0.01, 0.03)])
def test_an_interval_is_students_t_around_the_mean(values: tuple[float, ...]) -> None:
    mean, half = interval(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))


def test_an_interval_of_three_by_hand_and_of_one() -> None:
    """0.1, 0.2, 0.3: mean 0.2, deviation 0.1, and t of two degrees of freedom 4.3027."""
    assert interval([0.1, 0.2, 0.3]) == (pytest.approx(0.2), pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6))
    mean, half = interval([0.7])
    assert mean == 0.7
    assert math.isnan(half)


def rows(text: str) -> dict[str, list[str]]:
    """Arm → the other cells of its row."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert {len(cells) for cells in lines} == {10}
    return {cells[0]: cells[1:] for cells in lines[2:]}


def test_a_row_says_means_and_the_paired_difference() -> None:
    """The intervals are 4.3027 / √3 = 2.484 deviations wide; differences −0.11, −0.10, −0.09 although the arms themselves vary more."""
    found = [*outcomes(FULL, 0.5, 0.6, 0.7), *outcomes("− queue", 0.39, 0.5, 0.61)]
    more = {f"{HEADLINE}:picture_only": 0.25, f"{HEADLINE}:text_only": 0.125, "text_search/recall@10": 1.0}
    found = [replace(o, metrics=o.metrics | more) for o in found]
    rest = ["0.250 ± 0.000", "0.125 ± 0.000", "1.000 ± 0.000", "0.00", "31"]
    assert rows(table(found, [FULL, "− queue"], FULL)) == {
        FULL: ["0.300 ± 0.124", "0.600 ± 0.248", "", "", *rest],
        "− queue": ["0.250 ± 0.137", "0.500 ± 0.273", "-0.100 ± 0.025", "yes", *rest],
    }


@pytest.mark.parametrize(
    ("arm", "recalls", "verdict"),
    [
        ("− queue", (0.4, 0.41, 0.42), "yes"),
        ("− queue", (0.6, 0.61, 0.62), "no, it hurts"),
        ("+ experts", (0.6, 0.61, 0.62), "yes"),
        ("+ experts", (0.4, 0.41, 0.42), "no, it hurts"),
        ("− queue", (0.4, 0.6, 0.55), "not shown"),
        ("+ experts", (0.5, 0.51, 0.52), "not shown"),
        ("− queue", (0.1,), "not shown"),
        ("untrained", (0.1, 0.11, 0.12), ""),
        ("+ stage 1", (0.1, 0.11, 0.12), ""),
        ("tokens x 2", (0.6, 0.61, 0.62), ""),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_the_verdict_is_on_the_part_not_on_the_arm(arm: str, recalls: tuple[float, ...], verdict: str) -> None:
    """The full recipe reaches 0.50, 0.51, 0.52. An arm that is better without a part says that the part hurts."""
    assert rows(table([*outcomes(FULL, 0.5, 0.51, 0.52), *outcomes(arm, *recalls)], [FULL, arm], FULL))[arm][3] == verdict


def test_only_seeds_that_both_have_are_compared() -> None:
    found = [*outcomes(FULL, 0.5, 0.6), *outcomes("− queue", 0.45, 0.9, first=1)]
    assert rows(table(found, ["− queue"], FULL))["− queue"][2:4] == ["-0.150 ± nan", "not shown"]


def test_arms_without_a_run_are_left_out_and_what_was_not_measured_is_a_dash() -> None:
    text_only = [replace(o, metrics={"text_search/recall@10": 0.5}) for o in outcomes("− queue", 0.0, 0.0)]
    found = rows(table([*text_only, *outcomes(FULL, 0.5, 0.6)], ["untrained", "− queue", FULL], FULL))
    assert list(found) == ["− queue", FULL]
    assert found["− queue"] == ["–", "–", "–", "not shown", "–", "–", "0.500 ± 0.000", "0.00", "30"]
    alone = rows(table(outcomes("− queue", 0.4, 0.5), ["− queue", FULL], FULL))
    assert alone["− queue"][2:4] == ["", ""], "nothing to compare with"


def test_seeds_are_whole_different_and_at_least_two() -> None:
    assert whole_seeds("0,1,2") == [0, 1, 2]
    assert whole_seeds(" 7 , 3,") == [7, 3]
    assert whole_seeds("4,5,4") == [4, 5]


@pytest.mark.parametrize("text", ["", "1", "1,1", "0,00", "1,x", "-1,2", "1.5,2", "1;2"])
def test_seeds_that_give_no_interval_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"must be at least two different whole numbers, with commas → give e.g. 0,1,2"):
        whole_seeds(text)


def test_a_half_written_line_is_dropped_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    place = tmp_path / "study.jsonl"
    assert study.read(place) == []
    first, second = outcomes("a", 0.1, 0.2)
    study._append(place, first)
    place.write_text(place.read_text() + json.dumps(asdict(second))[:40])
    assert study.read(place) == [first]
    study._append(place, second)
    assert study.read(place) == [first, second]
    place.write_text('3\n{"arm": "of another version"}\n' + json.dumps(asdict(second)) + "\n")
    assert study.read(place) == [second]


@pytest.fixture
def times(workshop: Settings) -> Windows:
    return windows(workshop.lake)


@pytest.fixture
def mini(workshop: Settings) -> EncoderRecipe:
    """Two steps, and none of stages 1 and 2b."""
    return recipe(EncoderRecipe, "mini", workshop.models, stage1={"steps": 0}, stage2a={"steps": 2}, stage2b={"steps": 0})


def test_a_killed_study_goes_on_where_it_was(
    workshop: Settings, times: Windows, mini: EncoderRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = [arm for arm in ablation(mini) if arm.name in ("untrained", "+ text dropout")]
    place = place_of(workshop, "ablation", mini, times)
    trained: list[tuple[int, float, int]] = []
    real_train, real_measure = training.train, study.measure_eager

    def counted(lake: Any, out: Path, chosen: EncoderRecipe, **arguments: Any) -> Any:
        trained.append((chosen.steps, chosen.training.text_dropout, arguments["seed"]))
        return real_train(lake, out, chosen, **arguments)

    def dies_second(*arguments: Any) -> dict[str, float]:
        if len(trained) == 2:
            raise KeyboardInterrupt
        return real_measure(*arguments)

    monkeypatch.setattr(training, "train", counted)
    with monkeypatch.context() as patch:
        patch.setattr(study, "measure_eager", dies_second)
        with pytest.raises(KeyboardInterrupt):
            study.run(workshop, "ablation", mini, arms, [0, 1], times, place=place)
    (kept,) = study.read(place)
    found = study.run(workshop, "ablation", mini, arms, [0, 1], times, place=place)
    assert trained == [(0, 0.0, 0), (2, 0.3, 0), (2, 0.3, 0), (0, 0.0, 1), (2, 0.3, 1)], "the finished run is not done again"
    assert found == study.read(place)
    assert found[0] == kept
    assert [(o.arm, o.seed, o.steps) for o in found] == [
        ("untrained", 0, 0), ("+ text dropout", 0, 2), ("untrained", 1, 0), ("+ text dropout", 1, 2),
    ]  # fmt: skip
    assert [o.tokens > 0 for o in found] == [False, True, False, True]
    assert all(0 <= o.headline <= 1 for o in found)
    assert list(place.with_suffix("").iterdir()) == [], "encoders are not kept"
    registry = Registry(workshop)
    runs = registry.client.search_runs([registry.experiment_id], filter_string="tags.study = 'ablation'")
    finished = [r for r in runs if r.info.status == "FINISHED"]
    assert Counter((r.data.params["arm"], int(r.data.params["seed"])) for r in finished) == Counter((o.arm, o.seed) for o in found)
    assert [(r.data.params["arm"], r.info.status) for r in runs if r not in finished] == [("+ text dropout", "FAILED")]
    logged = {(r.data.params["arm"], int(r.data.params["seed"])): r.data.metrics["image_search/recall_at_10"] for r in finished}
    assert logged == {(o.arm, o.seed): o.headline for o in found}


PARTS = (
    "− Matryoshka",
    "+ near-identical photographs once",
    "+ core region",
    "+ moving average of weights",
    "+ experts",
    "+ guided experts, balanced",
)


def test_the_newer_parts_are_run_and_printed_on_a_shop_without_clicks_too(
    workshop: Settings, make_shop: Any, now: Any, tmp_path: Path
) -> None:
    pictures = {f"{n}.png": picture(n) for n in range(16)}
    items = [{"item_id": n, "title": f"thing {n}", "images": [f"{n}.png"], "available_from": "2026-01-01T00:00:00Z"} for n in range(8)]
    when = [f"2026-01-{2 + n:02}T00:00:00Z" for n in range(16)]
    queries = [{"query_id": n, "timestamp": when[n], "image": f"{n}.png"} for n in range(16)]
    events = [{"timestamp": when[n], "item_id": n % 8, "query_id": n, "event": "purchase"} for n in range(16)]
    lake = Lake(str(tmp_path / "without-clicks"))
    ingest(make_shop(pictures=pictures, items=items, queries=queries, events=events), lake, now=now)
    settings, times = workshop.replace(lake=lake), windows(lake)
    stages = {"stage1": {"steps": 0}, "stage2a": {"steps": 1}, "stage2b": {"steps": 0}}
    full = recipe(EncoderRecipe, "mini", settings.models, training={"batch": 4, "prefixes": [8, 16]}, **stages)
    arms = [arm for arm in ablation(full) if arm.name in (FULL, *PARTS)]
    found = study.run(settings, "ablation", full, arms, [0], times, place=place_of(settings, "ablation", full, times))
    printed = rows(table(found, [arm.name for arm in ablation(full)], FULL))
    assert set(printed) == {FULL, *PARTS}
    assert all(cells[1] != "–" for cells in printed.values())


def picture(seed: int) -> bytes:
    """Eight by eight random squares."""
    squares = np.random.default_rng(seed).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(squares).resize((32, 32), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def test_the_same_study_twice_at_once_is_refused(
    workshop: Settings, times: Windows, mini: EncoderRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_of(workshop, "ablation", mini, times)

    def another(*_: Any, **__: Any) -> None:
        study.run(workshop, "ablation", mini, ablation(mini)[:1], [0], times, place=place)

    monkeypatch.setattr(training, "train", another)
    with pytest.raises(StageError, match=r"the study ablation-mini-[0-9a-f]{8} with these very settings is running already"):
        another()


def test_another_recipe_another_window_or_another_method_is_another_study(
    workshop: Settings, times: Windows, mini: EncoderRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_of(workshop, "ablation", mini, times)
    assert place.parent == workshop.home / "studies"
    assert place == place_of(workshop, "ablation", mini, times)
    later = windows(workshop.lake, trained_until=times.trained_until + (times.ctr_until - times.trained_until) / 2)
    others = [
        place_of(workshop, "scaling", mini, times),
        place_of(workshop, "ablation", replace(mini, vocabulary=800), times),
        place_of(workshop, "ablation", mini, later),
    ]
    monkeypatch.setattr(study, "METHOD", study.METHOD + 1)
    assert len({place, *others, place_of(workshop, "ablation", mini, times)}) == 5


def colours(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as picture:
        assert min(picture.size) > 100
        return {pixel for _, pixel in picture.convert("RGB").getcolors(1 << 24) or []}


def test_the_ablations_figure_has_the_full_recipe_in_green(tmp_path: Path) -> None:
    found = [*outcomes(FULL, 0.5, 0.6), *outcomes("− queue", 0.4, 0.5), *outcomes("+ experts", 0.4)]
    ablation_figure(found, [FULL, "− queue", "+ experts", "never run"], FULL, tmp_path / "with.png")
    ablation_figure(found, ["− queue", "+ experts"], FULL, tmp_path / "without.png")
    assert GREEN in colours(tmp_path / "with.png")
    assert GREEN not in colours(tmp_path / "without.png")


def test_the_scaling_figure_is_drawn_for_either_curve_alone_too(tmp_path: Path) -> None:
    tokens = [*outcomes("tokens x 1", 0.5, 0.6, tokens=1000), *outcomes("tokens x 2", 0.6, 0.7, tokens=2000)]
    negatives = [*outcomes("negatives 7", 0.5, 0.6), *outcomes("negatives 63", 0.6)]
    drawn = {}
    for name, some in {"both": [*tokens, *negatives], "tokens": tokens, "negatives": negatives}.items():
        scaling_figure(some, tmp_path / f"{name}.png")
        assert GREEN in colours(tmp_path / f"{name}.png")
        drawn[name] = (tmp_path / f"{name}.png").read_bytes()
    assert len(set(drawn.values())) == 3
