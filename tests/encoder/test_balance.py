"""The guided experts in training: routed experts are to be used alike, and a query's tokens take part by where the catalogue has them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from moon_ops.embeddings.runtime import Runtime
from moon_ops.encoder import optimizers
from moon_ops.encoder.experts import GuidedExperts
from moon_ops.encoder.export import export
from moon_ops.encoder.model import Encoder, build
from moon_ops.encoder.objectives import Found, balanced
from moon_ops.encoder.pretrain import Pretraining, Tasks
from moon_ops.encoder.stage2 import Behaviour
from moon_ops.encoder.tokenizer import separator_ids
from moon_ops.inputs.contract import Sample
from moon_ops.recipes.encoder import Experts

ITEMS = ["red dress | clothes | acme | cotton | for warm days", "red mug | clothes | acme | red cotton | for tea"] * 8
CPU = torch.device("cpu")


def made(least: Any, **experts: Any) -> Encoder:
    return build(least(experts={"routed": 4, "width": 8, **experts}), [*ITEMS, "cotton dress", "warm cotton"], seed=0).eval()


def lively(encoder: Encoder) -> GuidedExperts:
    """The encoder's experts, each with weights of its own."""
    assert encoder.experts is not None
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.experts.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return encoder.experts


def ids_of(encoder: Encoder, text: str) -> list[int]:
    return encoder.tokenizer.encode(text, add_special_tokens=False).ids


def hidden(encoder: Encoder, text: str) -> torch.Tensor:
    """Last hidden states [L, D]."""
    ids, mask = (torch.from_numpy(part) for part in encoder.layout.batch([ids_of(encoder, text)], [0]))
    with torch.no_grad():
        return encoder.hidden(ids, mask, encoder.tokens_or_none(torch.zeros((0, 3, 16, 16), dtype=torch.uint8)))[0]


def test_a_token_leans_to_where_the_catalogue_has_it(least: Any) -> None:
    encoder = made(least, queries=True)
    experts = encoder.experts
    assert experts is not None
    (end,) = set(separator_ids(encoder.tokenizer)) & set(ids_of(encoder, ITEMS[0]))
    experts.lean([[30, end, 40, end, 50, end, 40, 30, end, 60], [40, end, 40, end, 40, end, 70, end], [40, 30, 30]])
    found = {token: experts.leaning[token].tolist() for token in (30, 40, 50, 60, 70, end)}
    expected = {30: [0, 1 / 2], 40: [2 / 5, 1 / 5], 50: [0, 0], 60: [0, 0], 70: [0, 1], end: [0, 0]}
    assert {token: pytest.approx(share) for token, share in expected.items()} == found


def test_a_query_is_seen_by_the_guided_experts_only_if_the_recipe_says_so(least: Any) -> None:
    """Items are read as before either way, and so is a word that no category and no attribute has."""
    plain, seeing = made(least), made(least, queries=True)
    assert seeing.experts is not None
    seeing.experts.load_state_dict(lively(plain).state_dict(), strict=False)  # all but what tokens lean to
    for text in (ITEMS[0], "for warm days"):
        torch.testing.assert_close(hidden(seeing, text), hidden(plain, text))
    for text in ("clothes", "cotton"):
        assert (hidden(seeing, text) - hidden(plain, text)).abs().max() > 1e-3


def test_what_tokens_lean_to_is_saved_and_exported(least: Any, tmp_path: Path) -> None:
    encoder = made(least, queries=True)
    lively(encoder)
    encoder.save(tmp_path)
    again = Encoder.load(tmp_path).eval()
    assert again.experts is not None
    assert encoder.experts is not None
    assert torch.equal(again.experts.leaning, encoder.experts.leaning)
    assert encoder.experts.leaning.any()
    assert export(tmp_path).min_cosine > 0.9999
    found = Runtime(tmp_path, threads=1).embed([Sample("cotton"), Sample(ITEMS[0])], {})
    for row, text in zip(found, ("cotton", ITEMS[0]), strict=True):
        expected = torch.nn.functional.normalize(hidden(encoder, text).mean(0), dim=0)
        assert row == pytest.approx(expected.numpy(), abs=1e-5)


def stage_of(world: Any, least: Any, name: str, experts: dict[str, Any] | None) -> Any:
    """A stage of an encoder whose first routed expert is taken by all tokens at first."""
    recipe = least(**{name: {"steps": 4}}, training={"batch": 6}, **({"experts": {"routed": 4, "width": 8, **experts}} if experts else {}))
    encoder = copy.deepcopy(world.encoder)
    encoder.experts = GuidedExperts(encoder.trunk, recipe.experts, separator_ids(encoder.tokenizer))
    torch.manual_seed(0)
    for layer in encoder.experts.layers:
        layer.router = torch.nn.Linear(encoder.dim, 4)
        torch.nn.init.zeros_(layer.router.weight)
        with torch.no_grad():
            layer.router.bias.copy_(torch.tensor([0.5, 0.0, 0.0, 0.0]))
    if name == "stage2a":
        return Behaviour(encoder, world.pairs, world.store, recipe, 0)
    return Pretraining(encoder, Tasks.of(encoder, world.rows), world.store, recipe, 0)


@pytest.mark.parametrize("chunk", [0, 2])
@pytest.mark.parametrize("name", ["stage1", "stage2a"])
def test_experts_are_balanced_over_all_sides_of_a_batch(world: Any, least: Any, name: str, chunk: int) -> None:
    """The loss that is told is the stage's own; without a weight the gradient is, too."""
    gradients, losses = {}, {}
    for balance in (0.0, 0.5):
        stage = stage_of(world, least, name, {"balance": balance})
        passes = stage.losses(stage.model, stage.batch(0, 0, 1), chunk, CPU)
        assert len(passes) == (1 if not chunk else 3)
        losses[balance] = float(stage.found.loss)
        for one in passes:
            one().backward()
        gradients[balance] = [layer.router.bias.grad for layer in stage.model.encoder.experts.layers]
        assert ("balance" in stage.found.metrics) == bool(balance)
    assert losses[0.0] == pytest.approx(losses[0.5])
    assert all(not gradient.any() for gradient in gradients[0.0]), "experts that start at nothing learn nothing of where tokens go"
    for gradient in gradients[0.5]:
        assert gradient[0] > 0 > gradient[1:].max(), "from the expert that all tokens take to the others"


@pytest.mark.parametrize("chunk", [0, 3])
def test_balance_falls_while_it_is_trained(world: Any, least: Any, chunk: int) -> None:
    stage = stage_of(world, least, "stage2a", {"balance": 1.0})
    adamw = optimizers.build(stage.model, least(training={"learning_rate": 0.05}).training)
    told = []
    for step in range(12):
        for one in stage.losses(stage.model, stage.batch(step, 0, 1), chunk, CPU):
            one().backward()
        for optimizer in adamw:
            optimizer.step()
            optimizer.zero_grad()
        told.append(stage.found.metrics["balance"])
    assert told[0] > 1.3
    assert told[-1] < 1.15


def test_a_pass_without_rows_has_nothing_to_balance(least: Any) -> None:
    """Of several processes one may have fewer rows, and takes as many passes."""
    experts = lively(made(least, balance=0.5))
    found, passes = balanced(experts, lambda: (Found(torch.zeros(()), {}), [lambda: torch.ones(())] * 2))
    assert [float(one()) for one in passes] == [1, 1]
    assert found.metrics == {}


def test_gathered_figures_are_of_all_forwards_and_later_ones_of_the_last(least: Any) -> None:
    encoder = made(least)
    experts = lively(encoder)
    alone = []
    for text in ("red dress", "cotton"):
        hidden(encoder, text)
        alone.append((experts.usage(), len(ids_of(encoder, text))))
    with experts.gathering():
        hidden(encoder, "red dress")
        hidden(encoder, "cotton")
    together = sum(share * count for share, count in alone) / sum(count for _, count in alone)
    torch.testing.assert_close(experts.usage(), together)
    hidden(encoder, "cotton")
    torch.testing.assert_close(experts.usage(), alone[1][0])


@pytest.mark.parametrize("balance", [-0.1, 1.5])
def test_a_weight_is_from_0_to_1(balance: float) -> None:
    with pytest.raises(ValueError, match=r"experts\.balance = .* must be from 0 to 1"):
        Experts(routed=2, balance=balance)
