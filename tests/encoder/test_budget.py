"""How long a training takes is measured before it begins, and minutes are turned into steps; the encoder does not notice."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from moon_ops.encoder import budget as budget_module
from moon_ops.encoder import train as train_module
from moon_ops.encoder.budget import Budget, Means, Pace, fitted, operations, said
from moon_ops.encoder.model import build
from moon_ops.encoder.towers import Conv
from moon_ops.encoder.train import train
from moon_ops.errors import InputError
from moon_ops.recipes.encoder import EncoderRecipe, Stage1, Stage2a, Stage2b
from moon_ops.recipes.reading import recipe
from moon_ops.settings import ROOT

STAGES = {"stage1": Stage1, "stage2a": Stage2a, "stage2b": Stage2b}
UNTIL = dt.datetime(2026, 1, 16, tzinfo=dt.UTC)


def nano(**override: Any) -> EncoderRecipe:
    stages: dict[str, Any] = {"stage2a": {"steps": 30, "sizes": (16, 32)}, "stage2b": {"steps": 10}}
    vit = recipe(EncoderRecipe, "moon-nano", ROOT / "models", training={"batch": 8, **override.pop("training", {})})
    return replace(
        vit, tower="conv", vision={"channels": [8, 8], "blocks": 0}, **{n: STAGES[n](**s) for n, s in (stages | override).items()}
    )


def pace(of: EncoderRecipe, seconds: float = 2.0) -> Pace:
    """A machine on which a step of half the size takes half the time."""
    return Pace(of, {16: seconds / 2, 32: seconds})


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def test_steps_take_what_was_measured_in_each_size() -> None:
    assert pace(nano()).seconds() == 15 * 1 + 15 * 2 + 10 * 2
    assert pace(nano(stage2a={"steps": 30, "sizes": (16, 16, 32)})).seconds() == 20 * 1 + 10 * 2 + 10 * 2
    assert pace(nano(stage1={"steps": 5}, stage2b={"steps": 10, "hard_negatives": 1})).seconds() == 45 + 5 * 2 + 10 * 3


@pytest.mark.parametrize(
    ("minutes", "spent", "following", "steps"),
    [
        (None, 0.0, 0, 40),
        (10, 0.0, 0, 40),  # there is time for more: the recipe's own
        (65 / 60, 0.0, 0, 40),
        (65 / 2 / 60, 0.0, 0, 20),
        (65 / 60, 32.5, 0, 20),  # half of it is gone
        (1.0, 0.0, 10, 24),  # 20 s are kept for what follows, of 65 s there are 40
    ],
)
def test_minutes_become_steps(minutes: float | None, spent: float, following: int, steps: int) -> None:
    chosen = fitted(pace(nano()), Budget(minutes, spent, following))
    assert chosen.steps == steps
    assert chosen.stage2a.steps == round(steps * 0.75)


def test_too_few_minutes_are_refused_with_the_number_that_would_do() -> None:
    budget = Budget(0.5, spent=20, following=10)
    with pytest.raises(InputError, match=r"minutes = 0\.5 is too short.*moon-nano's 40 steps take 1\.1 minutes.*give 1 minute or more"):
        fitted(pace(nano()), budget)
    assert fitted(pace(nano()), Budget(1, spent=20, following=10)).steps >= 4


@pytest.mark.parametrize("minutes", [0, -1, float("inf"), float("nan")])
def test_minutes_that_are_none(minutes: float) -> None:
    with pytest.raises(InputError, match="must be above 0"):
        Budget(minutes)


def test_what_is_cut_and_why_is_said() -> None:
    measured = pace(nano())
    cut = Budget(0.5, following=0)
    line = said(measured, fitted(measured, cut), cut, "no")
    assert "stage2a 14 of 30, stage2b 4 of 10" in line
    assert "1 s at 16 px, 2 s at 32 px a step on" in line
    assert "in float32" in line
    assert "nothing has to be cut" in said(measured, nano(), Budget(9), "no")
    assert "cut" not in said(measured, nano(), Budget(), "bf16")
    assert "all ten parts about 1.6" in said(measured, nano(), Budget(spent=10, following=10), "bf16")


def test_operations_are_two_for_each_multiplication() -> None:
    encoder = build(nano(), ["a red mug"], seed=0)
    counted, hooks = [0], []

    def count(module: Any, inputs: Any, output: torch.Tensor) -> None:
        inside = module.weight[0].numel()  # of one output
        counted[0] += 2 * output[0].numel() * inside

    for module in encoder.modules():
        if isinstance(module, (Conv, nn.Linear)):
            hooks.append(module.register_forward_hook(count))
    encoder.picture_tokens(torch.zeros((1, 3, 32, 32)))
    for hook in hooks:
        hook.remove()
    found = operations(encoder, (16, 32))
    assert counted[0] > 0
    assert found[32] * 1e9 == pytest.approx(counted[0])
    assert found[32] / found[16] == pytest.approx(4, rel=0.05)


def test_an_encoder_does_not_notice_that_it_was_measured(lake: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = train(lake, tmp_path / "plain", nano(), trained_until=UNTIL, seed=0)
    measured = train(lake, tmp_path / "measured", nano(), trained_until=UNTIL, seed=0, means=Means(Budget(60)))
    assert plain == measured
    one, other = weights(tmp_path / "plain"), weights(tmp_path / "measured")
    assert all(torch.equal(one[name], other[name]) for name in one)
    told = capsys.readouterr().err
    assert "GFLOP at 16 px" in told
    assert "training takes about" in told
    assert "nothing has to be cut for 60 minutes" in told


def test_a_killed_run_keeps_its_steps_on_a_machine_that_has_become_slower(
    lake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listen(step: int, found: dict[str, float]) -> None:
        if step == 10:
            raise KeyboardInterrupt

    few = nano(training={"checkpoint_steps": 5})
    monkeypatch.setattr(train_module, "measure", lambda *_: pace(few))
    with pytest.raises(KeyboardInterrupt):
        train(lake, tmp_path / "e", few, trained_until=UNTIL, seed=0, on_step=listen, means=Means(Budget(0.9)))
    monkeypatch.setattr(train_module, "measure", lambda *_: pace(few, seconds=100))
    report = train(lake, tmp_path / "e", few, trained_until=UNTIL, seed=0, means=Means(Budget(0.9)))
    assert 20 < report.steps < 40
    assert report.resumed_at == 10
    trained = json.loads((tmp_path / "e" / "recipe.json").read_text())
    assert trained["stage2a"]["steps"] + trained["stage2b"]["steps"] == report.steps


def test_the_first_of_several_processes_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the second one sees it: it measures, since a step needs both, and takes what the first one says."""
    said, measured = iter([None, 17]), []

    class Machine:
        mixed_precision = "no"

    monkeypatch.setattr(budget_module, "once", lambda _: next(said))
    chosen = budget_module.within(Budget(0.5), nano(), tmp_path, Machine(), lambda: measured.append(1) or pace(nano()))  # type: ignore[arg-type]
    assert (chosen.steps, measured) == (17, [1])
    assert not list(tmp_path.iterdir())
