"""The moving average of weights: what it is, that a stage ends with it, and that a killed run goes on with it exactly."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import nn

from moon_ops.encoder import fit
from moon_ops.encoder.averaging import Average
from moon_ops.encoder.train import train
from moon_ops.recipes.encoder import EncoderRecipe

UNTIL = dt.datetime(2026, 1, 16, tzinfo=dt.UTC)
CONVOLVED: dict[str, Any] = {"tower": "conv", "vision": {"channels": [8, 8], "blocks": 0}}
STAGES = {"stage2a": {"steps": 4}, "stage2b": {"steps": 3, "least_entities": 0}}


def convolved(recipe: EncoderRecipe) -> EncoderRecipe:
    """The recipe with a tower that has running statistics."""
    return TypeAdapter(EncoderRecipe).validate_python(asdict(recipe) | CONVOLVED)


def averaged(seen: list[dict[str, torch.Tensor]], decay: float) -> dict[str, torch.Tensor]:
    """The average of a model that was first as ``seen`` says and then, after each step: in float64, without what is counted."""
    found = {name: value.double() for name, value in seen[0].items() if value.is_floating_point()}
    for step, now in enumerate(seen[1:]):
        keep = min(decay, (1 + step) / (10 + step))
        found = {name: keep * value + (1 - keep) * now[name].double() for name, value in found.items()}
    return found


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def moved(model: nn.Module, steps: int) -> list[dict[str, torch.Tensor]]:
    seen = []
    for step in range(steps):
        with torch.no_grad():
            model[0].weight.add_(step + 1)
        model(torch.full((2, 3), float(step)) + torch.eye(2, 3))
        seen.append(state(model))
    return seen


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_average_of_weights_and_running_statistics(decay: float) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average, seen = Average(model, decay), [state(model)]
    for step in range(30):
        seen += moved(model, 1)
        average.update(step)
        if step == 17:  # killed here
            average = Average(model, decay, {"queue": torch.zeros(2), **{n: t.clone() for n, t in average.tensors().items()}})
    counted = int(model[1].num_batches_tracked)
    average.give()
    for name, value in averaged(seen, decay).items():
        assert torch.allclose(model.state_dict()[name].double(), value, rtol=1e-4), name
    assert int(model[1].num_batches_tracked) == counted == 30


def test_without_it_nothing_is_kept_and_the_weights_stay() -> None:
    model = nn.Linear(3, 4)
    average = Average(model, 0.0)
    (last,) = moved(nn.Sequential(model), 1)
    average.update(0)
    average.give()
    assert torch.equal(model.weight, last["0.weight"])
    assert average.tensors() == {}


def run(lake: Any, out: Path, recipe: Any, die_at: int = -1, **more: Any) -> dict[str, torch.Tensor]:
    def listen(step: int, found: dict[str, float]) -> None:
        if step == die_at:
            raise KeyboardInterrupt

    train(lake, out, recipe, trained_until=UNTIL, seed=0, on_step=listen, **more)
    return load_file(out / "model.safetensors")


def test_a_stage_ends_with_the_average_and_the_next_one_begins_with_it(
    lake: Any, least: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[dict[str, torch.Tensor]]] = {}
    honest_run, honest_step = fit.Loop.run, fit.Loop._step

    def before(self: Any, stage: Any, resumed: Any = None) -> None:
        seen[stage.name] = [state(stage.model)]
        honest_run(self, stage, resumed)

    def after(self: Any, stage: Any, *more: Any) -> Any:
        done = honest_step(self, stage, *more)
        seen[stage.name].append(state(stage.model))
        return done

    monkeypatch.setattr(fit.Loop, "run", before)
    monkeypatch.setattr(fit.Loop, "_step", after)
    run(lake, tmp_path / "e", convolved(least(training={"ema": 0.5}, **STAGES)), keep_stages=True)
    for stage, steps in (("stage2a", 4), ("stage2b", 3)):
        saved = load_file(tmp_path / f"e-{stage}" / "model.safetensors")
        expected = {name.removeprefix("encoder.model."): value for name, value in averaged(seen[stage], 0.5).items()}
        assert len(seen[stage]) == steps + 1
        compared = saved.keys() & expected.keys()
        assert {"vision_model.layers.0.first_norm.running_mean", "connector.weight"} <= compared
        for name in compared:
            assert torch.allclose(saved[name].double(), expected[name], atol=1e-6), name
    begun = {name.removeprefix("encoder.model."): value for name, value in seen["stage2b"][0].items()}
    left = load_file(tmp_path / "e-stage2a" / "model.safetensors")
    assert all(torch.equal(begun[name], value) for name, value in left.items() if name in begun)


def test_a_killed_run_goes_on_with_its_average(lake: Any, least: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "LOG_STEPS", 1)
    recipe = convolved(least(training={"ema": 0.9, "checkpoint_steps": 1}, **STAGES))
    whole = run(lake, tmp_path / "whole", recipe)
    for die_at in (2, 4):  # within a stage, and where the next one has begun
        out = tmp_path / f"killed-{die_at}"
        with pytest.raises(KeyboardInterrupt):
            run(lake, out, recipe, die_at)
        again = run(lake, out, recipe)
        assert all(torch.equal(again[name], value) for name, value in whole.items()), die_at
