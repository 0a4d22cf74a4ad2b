"""The search of learning rates: one grid for all recipes, a choice by validation alone, and what the table says of it."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from moon_ops.cli.main import app
from moon_ops.encoder import train as training
from moon_ops.errors import InputError
from moon_ops.metric_names import VALIDATED
from moon_ops.recipes.encoder import EncoderRecipe
from moon_ops.recipes.reading import recipe
from moon_ops.settings import ROOT, Settings
from moon_ops.studies import encoder as study
from moon_ops.studies.encoder import HEADLINE, Outcome
from moon_ops.studies.rates import Chosen, arms, choose, grid, judged, table, validated

STUDY = recipe(EncoderRecipe, "moon-study", ROOT / "models")
BIG = ["--set", "training.validate_share=0.5", "--set", "training.validate_least=5"]


def outcomes(**recalls: list[tuple[float, float]]) -> list[Outcome]:
    """By multiplier, written x1 or x0_3: validation recall and recall of what judges, a seed each."""
    return [
        Outcome(f"rates x {name[1:].replace('_', '.')}", seed, 10, 1000, 1.0, {VALIDATED: before, HEADLINE: after})
        for name, some in recalls.items()
        for seed, (before, after) in enumerate(some)
    ]


def test_a_grid_is_ascending_and_has_the_shipped_rates() -> None:
    assert grid("3, 0.3,3") == [0.3, 1.0, 3.0]
    assert grid("1,2") == [1.0, 2.0]


@pytest.mark.parametrize("text", ["", "1", "0,2", "-1", "x", "1,nan", "2,inf"])
def test_a_grid_of_other_words_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"must be positive numbers with commas, one of them not 1 → give e.g. 0.3,1,3"):
        grid(text)


def test_an_arm_multiplies_all_rates_and_changes_nothing_else() -> None:
    found = {arm.name: arm.change(STUDY) for arm in arms(STUDY, [0.5, 1.0])}
    assert list(found) == ["rates x 0.5", "rates x 1"]
    half = found["rates x 0.5"]
    assert half.training.learning_rate == STUDY.training.learning_rate / 2
    assert half.training.matrix_learning_rate == STUDY.training.matrix_learning_rate / 2 > 0
    back = replace(half.training, learning_rate=STUDY.training.learning_rate, matrix_learning_rate=STUDY.training.matrix_learning_rate)
    assert replace(half, training=back) == STUDY == found["rates x 1"]
    with pytest.raises(InputError, match=r"100 makes training.matrix_learning_rate of moon-study 2, which must be below 1 → leave it out"):
        arms(STUDY, [1.0, 100.0])


def test_a_recipe_without_validation_gets_it_and_takes_all_of_its_steps() -> None:
    made = validated(STUDY)
    assert (made.training.validate_steps, made.training.patience) == (25, 0)
    own = replace(STUDY, training=replace(STUDY.training, validate_steps=7, patience=2))
    assert validated(own) == own


def test_validation_chooses_and_not_what_judges() -> None:
    found = outcomes(x0_3=[(0.5, 0.9), (0.3, 0.9)], x1=[(0.4, 0.5), (0.3, 0.5)], x3=[(0.45, 0.1), (0.45, 0.1)])
    chosen = choose("a", found, [0.3, 1.0, 3.0], [0, 1])
    assert (chosen.multiplier, chosen.at_the_edge) == (3.0, True)
    assert chosen.validated == {0.3: pytest.approx(0.4), 1.0: pytest.approx(0.35), 3.0: pytest.approx(0.45)}
    assert choose("a", found, [0.3, 1.0], [0, 1]).multiplier == 0.3, "only what is asked for"
    assert choose("a", found, [0.3, 1.0, 3.0], [0]).multiplier == 0.3


def test_of_equal_ones_the_nearest_to_the_shipped_rates_is_chosen() -> None:
    found = outcomes(x0_3=[(0.5, 0)], x1=[(0.4, 0)], x3=[(0.5, 0)], x10=[(0.5, 0)])
    assert choose("a", found, [1.0, 3.0, 10.0], [0]).multiplier == 3.0
    level = [replace(o, metrics={VALIDATED: 0.5}) for o in found]
    assert choose("a", level, [0.3, 1.0, 3.0], [0]).multiplier == 1.0


def test_the_table_has_both_rates_and_their_paired_difference() -> None:
    moved = outcomes(x1=[(0.4, 0.5), (0.4, 0.6), (0.4, 0.7)], x3=[(0.5, 0.6), (0.5, 0.7), (0.5, 0.8)], x10=[(0.1, 0.0)] * 3)
    kept = outcomes(x1=[(0.6, 0.5), (0.6, 0.5), (0.6, 0.5)], x3=[(0.1, 0.6)] * 3, x10=[(0.1, 0.0)] * 3)
    both = {"moved": moved, "kept": kept}
    chosen = [choose(name, some, [1.0, 3.0, 10.0], [0, 1, 2]) for name, some in both.items()]
    lines = table(chosen, both, [0, 1, 2], judged(both)).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    tried = "1: 0.400, 3: 0.500, 10: 0.100"
    assert cells[0] == ["moved", tried, "3", "0.600 ± 0.248", "0.700 ± 0.248", "+0.100 ± 0.000"]
    assert cells[1][2:] == ["1 (the grid's edge: try more)", "0.500 ± 0.000", "0.500 ± 0.000", ""]
    assert Chosen("a", 1.0, {1.0: 0.5}).at_the_edge is False
    texts = {"a": [Outcome("rates x 1", 0, 1, 1, 1.0, {"text_search/recall@10": 0.5})]}
    assert judged(texts) == "text_search/recall@10"


@pytest.fixture
def two(workshop: Settings) -> Settings:
    """A home with two recipes of two steps each."""
    for name, batch in (("one", 8), ("two", 4)):
        changed = (workshop.models / "mini.toml").read_text().replace("steps = 12", "steps = 2").replace("steps = 4", "steps = 0")
        (workshop.models / f"{name}.toml").write_text(
            changed.replace("batch = 8", f"batch = {batch}").replace("steps = 2\n\n[stage2a]", "steps = 0\n\n[stage2a]")
        )
    return workshop


def test_the_command_tries_both_recipes_alike_and_does_nothing_twice(two: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    home = two.home
    shutil.copytree(two.lake.uri, home / "lake")
    monkeypatch.setenv("MOON_MODELS", str(two.models))
    trained: list[tuple[int, float, int]] = []
    honest = training.train

    def counted(lake: Any, out: Any, chosen: EncoderRecipe, **more: Any) -> Any:
        trained.append((chosen.training.batch, round(chosen.training.learning_rate, 6), more["seed"]))
        return honest(lake, out, chosen, **more)

    monkeypatch.setattr(training, "train", counted)
    command = ["study", "learning-rates", "--home", str(home), "--recipes", "one,two", "--multipliers", "2", "--seeds", "0,1", *BIG]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert sorted(trained) == sorted((batch, rate, seed) for batch in (8, 4) for rate in (0.002, 0.004) for seed in (0, 1))
    (written,) = (home / "studies").glob("learning-rates-*.md")
    assert [line.split("|")[1].strip() for line in written.read_text().splitlines()[2:]] == ["one", "two"]
    assert written.read_text() in shown.output
    kept = [outcome for place in (home / "studies").glob("learning-rates-*.jsonl") for outcome in study.read(place)]
    assert len(kept) == 8
    assert all(0 <= outcome.metrics[VALIDATED] <= 1 and not math.isnan(outcome.headline) for outcome in kept)
    trained.clear()
    assert written.read_text() in CliRunner().invoke(app, command).output
    assert trained == []


def test_a_rate_that_cannot_be_is_refused_before_anything_is_trained(two: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOON_MODELS", str(two.models))
    monkeypatch.setattr(training, "train", None)
    command = ["study", "learning-rates", "--home", str(two.home), "--recipes", "one", "--multipliers", "900"]
    with pytest.raises(InputError, match=r"900 makes training.learning_rate of one 1.8"):
        CliRunner().invoke(app, command, catch_exceptions=False)
