"""What the stages minimise, on vectors made by hand; and gradient caching, which must change nothing but memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from moon_ops.encoder.batches import Batch, PairBatches, Shows
from moon_ops.encoder.fit import cached
from moon_ops.encoder.losses import circle, info_nce
from moon_ops.encoder.negatives import Queue
from moon_ops.encoder.objectives import Found, Sides, behaviour_loss, refined_loss
from moon_ops.recipes.encoder import Stage2a, Stage2b

SCALE = torch.tensor(7.0)


def unit(rows: int, seed: int, width: int = 6) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


PRODUCT, ALL = torch.tensor([1, 2, 1, 3, 4]), torch.ones(5)
LEVELS = {"query": unit(5, 0), "item": unit(5, 1), "item_image": unit(5, 2), "item_text": unit(5, 3)}


def nce(query: str, item: str, rows: tuple[int, ...] = (0, 1, 2, 3, 4)) -> float:
    chosen = list(rows)
    same = PRODUCT[chosen][:, None] == PRODUCT[chosen][None, :]
    return float(info_nce(LEVELS[query][chosen], LEVELS[item][chosen], torch.arange(len(chosen)), SCALE, same))


def test_stage_2a_is_info_nce_of_query_and_item() -> None:
    found = behaviour_loss((PRODUCT, ALL), LEVELS, SCALE, Stage2a(), ())
    assert float(found.loss) == pytest.approx(nce("query", "item"), rel=1e-6)


def test_mim_adds_the_query_against_the_picture_alone_and_against_the_text_alone() -> None:
    found = behaviour_loss((PRODUCT, ALL), LEVELS, SCALE, Stage2a(loss="mim"), ())
    assert float(found.loss) == pytest.approx(nce("query", "item") + nce("query", "item_image") + nce("query", "item_text"), rel=1e-6)


@pytest.mark.parametrize("weight", [0.3, 2.0])
def test_within_product_alignment_counts_by_its_weight(weight: float) -> None:
    found = behaviour_loss((PRODUCT, ALL), LEVELS, SCALE, Stage2a(within_product=weight), ())
    assert float(found.loss) == pytest.approx(nce("query", "item") + weight * nce("item_image", "item_text"), rel=1e-6)


@pytest.mark.parametrize("pictured", [(0, 2, 4), (1,), ()])
def test_an_item_without_a_picture_is_aligned_with_none(pictured: tuple[int, ...]) -> None:
    """Its text stood in for its picture, and was aligned with itself."""
    has = torch.tensor([row in pictured for row in range(5)])
    found = behaviour_loss((PRODUCT, has), LEVELS, SCALE, Stage2a(loss="mim", within_product=0.5), ())
    shown = nce("query", "item_image", pictured) + 0.5 * nce("item_image", "item_text", pictured) if pictured else 0.0
    assert float(found.loss) == pytest.approx(nce("query", "item") + nce("query", "item_text") + shown, rel=1e-6)


def refined(stage: Stage2b, *, negative: bool = True, queued: bool = True) -> float:
    vectors = {"query": unit(5, 0), "item": unit(5, 1)} | ({"negative": unit(3, 4)} if negative else {})
    queue = Queue(4, 6)
    if queued:
        queue.push(unit(4, 5), torch.tensor([1, 6, 3, 7]))
    hard = torch.tensor([2, 8, 9]) if negative else torch.empty(0, dtype=torch.int64)
    return float(refined_loss((PRODUCT, hard), vectors, SCALE, queue, stage, ()).loss)


@pytest.mark.parametrize("loss", ["circle", "info_nce"])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("queued", [False, True])
def test_stage_2b_contrasts_with_the_batch_the_hard_ones_and_the_queue(loss: Any, negative: bool, queued: bool) -> None:
    items = [unit(5, 1), *([unit(3, 4)] if negative else []), *([unit(4, 5)] if queued else [])]
    of = [1, 2, 1, 3, 4, *([2, 8, 9] if negative else []), *([1, 6, 3, 7] if queued else [])]
    same = torch.tensor([[int(mine) == other for other in of] for mine in PRODUCT])
    every, target = torch.cat(items), torch.arange(5)
    if loss == "circle":
        expected = circle(unit(5, 0), every, target, same, margin=0.1, scale=20.0, both_ways=True)
    else:
        expected = info_nce(unit(5, 0), every, target, SCALE, same)
    stage = Stage2b(loss=loss, margin=0.1, scale=20.0, hard_negatives=3 if negative else 0)
    assert refined(stage, negative=negative, queued=queued) == pytest.approx(float(expected), rel=1e-6)


def test_false_negatives_and_hardness_of_three_pairs() -> None:
    """Queries at 0°, 60° and 90°, items at 0°, 90° and 180°; the first two pairs are of one product."""

    def at(*degrees: float) -> Tensor:
        return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])

    found = behaviour_loss((torch.tensor([1, 1, 2]), torch.ones(3)), {"query": at(0, 60, 90), "item": at(0, 90, 181)}, SCALE, Stage2a(), ())
    assert found.metrics.pop("false_negatives") == pytest.approx(2 / 6)
    # left as negatives: 0°–181° (-0.9998), 60°–181° (-0.515), 90°–0° (0.0) and 90°–90° (1.0)
    assert found.metrics == {
        "hardness/-1.0": 0.5,
        "hardness/+0.0": 0.25,
        "hardness/+0.2": 0.0,
        "hardness/+0.4": 0.0,
        "hardness/+0.6": 0.0,
        "hardness/+0.8": 0.25,
    }


def test_a_batch_of_one_product_has_no_negatives_and_no_hardness() -> None:
    vectors = {"query": unit(3, 0), "item": unit(3, 1)}
    found = behaviour_loss((torch.tensor([5, 5, 5]), torch.ones(3)), vectors, SCALE, Stage2a(), ())
    assert found.metrics["false_negatives"] == 1.0
    assert sum(value for name, value in found.metrics.items() if name.startswith("hardness")) == 0
    assert float(found.loss) == 0.0


def test_the_scale_starts_at_one_over_the_temperature_and_stays_below_a_hundred(world: Any) -> None:
    sides = Sides(world.encoder, 0.05)
    assert float(sides.scale) == pytest.approx(20.0)
    with torch.no_grad():
        sides.log_scale.fill_(9.0)
    assert float(sides.scale) == pytest.approx(100.0)


def test_a_scale_that_has_gone_too_far_comes_back(world: Any, batch: Batch) -> None:
    """It was held below a hundred where it was used only: beyond it there was no gradient, and it stayed there."""
    sides = Sides(world.encoder, 0.05)
    with torch.no_grad():
        sides.log_scale.fill_(9.0)
    assert float(sides([batch.sides["query"]])[-1]) == pytest.approx(100.0)
    sides.hold()
    assert float(sides.log_scale.detach()) == pytest.approx(math.log(100))
    assert float(torch.autograd.grad(sides.scale, sides.log_scale)[0]) == pytest.approx(100.0, rel=1e-4)


@pytest.fixture(scope="module")
def batch(world: Any, least: Any) -> Batch:
    """Eight pairs, and more hard negatives than pairs."""
    hard = (np.arange(len(world.pairs.items))[:, None] + np.array([1, 2, 3])) % len(world.pairs.items)
    training = least(training={"batch": 8}).training
    made = PairBatches(world.encoder, world.pairs, world.store, training, seed=(0,), shows=Shows(hard=hard, levels=True)).batch(0)
    assert len(made.sides["negative"]) > 8
    return made


def test_the_sides_are_what_the_encoder_makes_of_each(world: Any, batch: Batch) -> None:
    sides = Sides(world.encoder, 0.07)
    with torch.no_grad():
        *vectors, scale = sides(list(batch.sides.values()))
        alone = [world.encoder(side.input_ids, side.attention_mask, side.pixels) for side in batch.sides.values()]
    assert float(scale) == pytest.approx(1 / 0.07)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(vectors, alone, strict=True))


def stage_2a(batch: Batch, prefixes: tuple[int, ...]) -> Callable[[dict[str, Tensor], Tensor], Found]:
    return lambda v, scale: behaviour_loss((batch.product, batch.pictured), v, scale, Stage2a(loss="mim", within_product=0.5), prefixes)


def stage_2b(batch: Batch, prefixes: tuple[int, ...]) -> Callable[[dict[str, Tensor], Tensor], Found]:
    queue = Queue(4, 32)
    queue.push(unit(4, 5, 32), torch.arange(4))
    return lambda v, scale: refined_loss((batch.product, batch.negative_product), v, scale, queue, Stage2b(hard_negatives=3), prefixes)


@pytest.mark.parametrize("prefixes", [(), (8, 16)], ids=["whole", "prefixes"])
@pytest.mark.parametrize("objective", [stage_2a, stage_2b])
@pytest.mark.parametrize("chunk", [1, 3, 4, 8, 11])
def test_gradient_caching_gives_the_loss_and_the_gradients_of_one_pass(
    world: Any, batch: Batch, chunk: int, objective: Any, prefixes: tuple[int, ...]
) -> None:
    taken = ("query", "item", "item_image", "item_text") if objective is stage_2a else ("query", "item", "negative")
    chosen = {name: batch.sides[name] for name in taken}

    def gradients(size: int) -> tuple[float, dict[str, Tensor], int]:
        model = Sides(copy.deepcopy(world.encoder), 0.07)
        found, passes = cached(model, chosen, size, objective(batch, prefixes))
        for one in passes:
            one().backward()
        return float(found.loss.detach()), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, len(passes)

    loss, expected, _ = gradients(0)
    found_loss, found, passes = gradients(chunk)
    longest = max(len(side) for side in chosen.values())
    assert passes == math.ceil(longest / chunk)
    assert found_loss == pytest.approx(loss, rel=1e-5)
    assert set(expected) <= set(found)
    assert any(g.abs().max() > 1e-3 for g in expected.values())
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected.get(name, torch.zeros(())), atol=1e-5, rtol=1e-4), name
