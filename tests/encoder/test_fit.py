"""The loop against a slow obvious one, on a model of a few numbers; optimizers, rates and the loader."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moon_ops.encoder.checkpoints import Checkpoints
from moon_ops.encoder.fit import Loop, accelerator
from moon_ops.encoder.loader import batches
from moon_ops.encoder.objectives import Found
from moon_ops.encoder.optimizers import build, set_rates, warm_cosine
from moon_ops.errors import InputError
from moon_ops.recipes.encoder import Training


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(3, 3)
        self.embed = nn.Linear(3, 2, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(self.hidden(x).tanh()) * self.log_scale.exp()


class Numbers:
    """A batch: its number, and what it is called."""

    def __init__(self, number: int) -> None:
        self.x = torch.randn(6, 3, generator=torch.Generator().manual_seed(number))
        self.names = tuple(range(100, 112))


class Toy:
    """A stage that learns to make batch ``n`` small, in two passes."""

    name, steps, rate = "toy", 5, 0.5

    def __init__(self, spoiled_at: int = -1) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = Model()
        self.found = Found(torch.zeros(()), {})
        self.seen: list[int] = []
        self.spoiled_at = spoiled_at

    def batch(self, number: int, part: int, parts: int) -> Numbers:
        made = Numbers(number)
        if number == self.spoiled_at:
            made.x[0, 0] = math.nan
        return made

    def losses(self, model: nn.Module, batch: Numbers, chunk: int, device: torch.device) -> list[Callable[[], Tensor]]:
        def half(n: int) -> Tensor:
            return model(batch.x[n : n + 3]).square().sum() * 4

        with torch.no_grad():
            self.found = Found(half(0) + half(3), {"own": 1.5})
        return [lambda: half(0), lambda: half(3)]

    def after(self, batch: Numbers) -> None:
        self.seen.append(int(batch.x[0, 0] * 1e6))

    def tensors(self) -> dict[str, Tensor]:
        return {}


def training(**given: Any) -> Training:
    return Training(**({"batch": 6, "learning_rate": 0.02, "warmup_steps": 2} | given))


def loop(recipe: Training, where: Path, **more: Any) -> Loop:
    return Loop(recipe, accelerator(recipe), Checkpoints(where), workers=0, **more)


def obvious(recipe: Training) -> tuple[nn.Module, list[float]]:
    """Every batch in one pass, gradients of a step averaged by hand."""
    model, losses = Toy().model, []
    optimizers = build(model, recipe)
    for step in range(Toy.steps):
        share = Toy.rate * warm_cosine(step, recipe.warmup_steps, Toy.steps)
        numbers = range(step * recipe.accumulation, (step + 1) * recipe.accumulation)
        loss = torch.stack([model(Numbers(n).x).square().sum() * 4 for n in numbers]).mean()
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["full"] * share
                for p in group["params"]:
                    p.grad /= max(1.0, norm + 1e-6)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return model, losses


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("muon", [0.0, 0.05])
def test_the_loop_does_what_the_obvious_one_does(accumulation: int, muon: float, tmp_path: Path) -> None:
    recipe = training(accumulation=accumulation, matrix_learning_rate=muon)
    model, losses = obvious(recipe)
    stage, ran = Toy(), loop(recipe, tmp_path)
    ran.run(stage)
    assert ran.losses == pytest.approx(losses, rel=1e-4)
    assert stage.seen == [int(Numbers(n).x[0, 0] * 1e6) for n in range(5 * accumulation)]
    for name, expected in model.named_parameters():
        assert torch.allclose(dict(stage.model.named_parameters())[name], expected, atol=1e-5), name
    assert not torch.allclose(Toy().model.hidden.weight, model.hidden.weight, atol=1e-3)  # type: ignore[union-attr, arg-type]
    assert not stage.model.training


@pytest.mark.parametrize("muon", [0.0, 0.05])
def test_a_scaled_loss_trains_the_same_however_many_optimizers_and_stages_there_are(muon: float, tmp_path: Path) -> None:
    """What fp16 does, in float32, where it has to change nothing. The scale is undone once for each gradient."""
    recipe = training(matrix_learning_rate=muon)
    plain, scaled = Toy(), Toy()
    one, two = loop(recipe, tmp_path / "a"), loop(recipe, tmp_path / "b")
    two.machine.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for stages, ran in ((plain, one), (scaled, two)):
        ran.run(stages)
        ran.run(stages)  # a second stage on the same parameters
    assert two.losses == pytest.approx(one.losses, rel=1e-4)
    state = Checkpoints(tmp_path / "b").read()
    assert state is not None
    assert state.scaler["scale"] == 1024.0
    for a, b in zip(plain.model.parameters(), scaled.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_loss_that_is_no_number_names_the_step_the_stage_and_the_items_and_leaves_the_weights(tmp_path: Path) -> None:
    stage, ran = Toy(spoiled_at=3), loop(training(checkpoint_steps=1), tmp_path)
    said = r"the loss is nan at step 3 of toy, in a batch with items 100, 101, 102, 103, 104, 105, 106, 107 …; .* → lower learning_rate"
    with pytest.raises(InputError, match=said):
        ran.run(stage)
    assert len(ran.losses) == 3
    assert all(p.isfinite().all() for p in stage.model.parameters())
    state = Checkpoints(tmp_path).read()
    assert state is not None
    assert state.step == 3


def test_a_loop_goes_on_from_its_checkpoint_with_the_losses_before_it(tmp_path: Path) -> None:
    recipe = training(checkpoint_steps=1, accumulation=2, matrix_learning_rate=0.05)
    whole, killed, resumed = Toy(), Toy(spoiled_at=7), Toy()
    expected, ran = loop(recipe, tmp_path / "whole"), loop(recipe, tmp_path / "run")
    expected.run(whole)
    with pytest.raises(InputError, match="at step 3 of toy"):
        ran.run(killed)
    again = loop(recipe, tmp_path / "run")
    again.checkpoints.restore(resumed.model)
    again.run(resumed, again.checkpoints.read())
    assert again.losses == expected.losses
    assert resumed.seen == whole.seen[6:]
    assert all(torch.equal(a, b) for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True))


def test_the_listener_hears_of_every_tenth_step_and_the_last_counted_over_all_stages(tmp_path: Path) -> None:
    heard: list[tuple[int, dict[str, float]]] = []
    stage = Toy()
    stage.steps = 12
    recipe = training()
    ran = loop(recipe, tmp_path, listener=lambda step, found: heard.append((step, found)), done=100)
    ran.run(stage)
    assert [step for step, _ in heard] == [100, 110, 111]
    assert set(heard[0][1]) == {"loss"} | {f"toy/{n}" for n in ("loss", "learning_rate", "gradient_norm", "samples_per_second", "own")}
    assert heard[1][1]["loss"] == heard[1][1]["toy/loss"] == ran.losses[10]
    assert heard[1][1]["toy/learning_rate"] == pytest.approx(0.5 * 0.02 * warm_cosine(10, 2, 12))
    assert ran.done == 112


def test_one_process_may_train_with_one_precision_after_another() -> None:
    assert [accelerator(training(precision=p)).mixed_precision for p in ("no", "bf16", "no")] == ["no", "bf16", "no"]


def test_the_rate_rises_linearly_and_falls_along_a_half_cosine() -> None:
    shares = [warm_cosine(step, 4, 20) for step in range(20)]
    assert shares[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert shares[12] == pytest.approx(0.5)
    assert shares[19] == pytest.approx(0.5 * (1 + math.cos(math.pi * 15 / 16)))
    assert warm_cosine(0, 0, 1) == 1.0


def test_no_stage_is_all_warm_up() -> None:
    shares = [warm_cosine(step, 20, 20) for step in range(20)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert all(before > after for before, after in pairwise(shares[4:]))
    assert warm_cosine(0, 20, 3) == 1.0


def test_matrices_go_to_muon_and_gains_biases_and_the_scale_do_not_decay() -> None:
    model = Model()
    adam, muon = build(model, training(matrix_learning_rate=0.05, weight_decay=0.1))
    assert [p for g in muon.param_groups for p in g["params"]] == [model.hidden.weight]
    decaying, flat, scale = adam.param_groups
    assert (decaying["params"], decaying["weight_decay"]) == ([model.embed.weight], 0.1)
    assert (flat["params"], flat["weight_decay"]) == ([model.hidden.bias], 0.0)
    assert (scale["params"], scale["weight_decay"], scale["lr"]) == ([model.log_scale], 0.0, pytest.approx(0.2))
    assert len(build(model, training())) == 1


def test_every_group_gets_its_share_of_its_own_full_rate() -> None:
    optimizers = build(Model(), training(matrix_learning_rate=0.05))
    assert set_rates(optimizers, training(), 0, 10, 0.3) == pytest.approx(0.02 * 0.5 * 0.3)
    assert [g["lr"] for o in optimizers for g in o.param_groups] == pytest.approx([0.003, 0.003, 0.03, 0.0075])


def test_parameters_that_do_not_learn_are_left_out() -> None:
    model = Model()
    model.hidden.requires_grad_(False)
    (adam,) = build(model, training(matrix_learning_rate=0.05))
    assert sum(p.numel() for g in adam.param_groups for p in g["params"]) == 6 + 1


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_come_in_order_whoever_makes_them(workers: int) -> None:
    assert list(batches(lambda n: n * n, range(3, 9), workers)) == [9, 16, 25, 36, 49, 64]
    assert list(batches(lambda n: n, range(0), workers)) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_batch_reaches_the_loop(workers: int) -> None:
    def make(number: int) -> int:
        raise InputError("a picture is broken", action="mend it")

    with pytest.raises(InputError, match="a picture is broken"):
        next(batches(make, range(3), workers))


def test_the_toy_learns(tmp_path: Path) -> None:
    stage, ran = Toy(), loop(training(), tmp_path)
    start = copy.deepcopy(stage.model)
    ran.run(stage)
    x = Numbers(7).x
    assert stage.model(x).square().sum() < start(x).square().sum()


def test_one_schedule_over_the_whole_run_goes_on_in_the_next_stage(tmp_path: Path) -> None:
    heard: list[tuple[int, dict[str, float]]] = []
    recipe = training(schedule="run")
    running = loop(recipe, tmp_path, listener=lambda step, found: heard.append((step, found)), total=10)
    running.run(Toy())
    running.run(Toy())
    rates = {step: found["toy/learning_rate"] for step, found in heard}
    assert rates == {step: pytest.approx(0.5 * 0.02 * warm_cosine(step, 2, 10)) for step in (0, 4, 5, 9)}
