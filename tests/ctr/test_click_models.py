"""Click models on random tensors: shapes, what padding may not change, and what only CUBE reads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moon_ops.ctr.models import INPUTS, ClickModel, CubeExtractor, Sizes, TargetAttention

B, S, W, D, E = 5, 4, 6, 8, 3
TABLES = {"item": 20, "user": 9, "spu": 9, "category": 7, "brand": 5, "seller": 5, "price": 12}
SIZES = Sizes(TABLES, words=50, embedding_dim=E, hidden=(16, 8), vector_dim=D, behaviors=S, dropout=0.0)
THERE = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]], dtype=torch.bool)
VECTORS = ("target_vector", "query_vector", "behavior_vector", "behavior_query_vector")


def unit(*shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    torch.manual_seed(0)
    columns = {name: torch.randint(1, rows, (B,)) for name, rows in TABLES.items()}
    columns |= {"dense": torch.randn(B, 4), "words": torch.randint(0, 50, (B, W))}
    columns["behavior_item"] = torch.randint(1, 20, (B, S)) * THERE
    columns["behavior_category"] = torch.randint(1, 7, (B, S)) * THERE
    columns |= {"target_vector": unit(B, D), "query_vector": unit(B, D)}
    columns |= {name: unit(B, S, D) * THERE[..., None] for name in ("behavior_vector", "behavior_query_vector")}
    return {name: columns[name] for name in INPUTS}


def model(extractor: str) -> ClickModel:
    torch.manual_seed(1)
    made = ClickModel(SIZES, extractor).eval()
    with torch.no_grad():  # as drawn, embeddings are too small to tell anything from rounding
        for table in (*made.tables.values(), made.words):
            table.weight.mul_(100)
            table.weight[0] = 0
    return made


@torch.no_grad()
def logits(extractor: str, batch: dict[str, Tensor], **changed: Tensor) -> Tensor:
    return model(extractor)(*{**batch, **changed}.values())


@pytest.mark.parametrize("extractor", ["din", "cube"])
def test_one_logit_per_row(batch: dict[str, Tensor], extractor: str) -> None:
    found = logits(extractor, batch)
    assert found.shape == (B,)
    assert torch.isfinite(found).all()
    assert len({round(x, 4) for x in found.tolist()}) == B


@pytest.mark.parametrize("extractor", ["din", "cube"])
def test_what_stands_in_padding_changes_nothing(batch: dict[str, Tensor], extractor: str) -> None:
    """A behaviour is there if its item is: categories and vectors of the others are never read."""
    changed = {
        "behavior_category": torch.where(THERE, batch["behavior_category"], 5),
        **{name: torch.where(THERE[..., None], batch[name], unit(B, S, D)) for name in ("behavior_vector", "behavior_query_vector")},
    }
    assert not all(torch.equal(batch[name], column) for name, column in changed.items())
    assert torch.allclose(logits(extractor, batch, **changed), logits(extractor, batch), atol=1e-6)


@pytest.mark.parametrize("extractor", ["din", "cube"])
@pytest.mark.parametrize("name", ["item", "user", "price", "dense", "words", "behavior_item"])
def test_every_id_is_read(batch: dict[str, Tensor], extractor: str, name: str) -> None:
    other = batch[name].roll(1, 0)
    assert not torch.allclose(logits(extractor, batch, **{name: other}), logits(extractor, batch), atol=1e-5)


@pytest.mark.parametrize("name", VECTORS)
def test_only_cube_reads_vectors(batch: dict[str, Tensor], name: str) -> None:
    other = {name: batch[name].roll(1, 0)}
    assert torch.equal(logits("din", batch, **other), logits("din", batch))
    assert not torch.allclose(logits("cube", batch, **other), logits("cube", batch), atol=1e-5)


def test_words_are_averaged_over_those_there_are(batch: dict[str, Tensor]) -> None:
    once, twice = torch.zeros(B, W, dtype=torch.long), torch.zeros(B, W, dtype=torch.long)
    once[:, 0] = 7
    twice[:, :2] = 7
    assert torch.allclose(logits("din", batch, words=once), logits("din", batch, words=twice), atol=1e-5)


def test_the_first_row_of_every_table_is_zero_and_stays_zero(batch: dict[str, Tensor]) -> None:
    made = ClickModel(SIZES, "cube")
    before = {name: table.weight.detach().clone() for name, table in made.tables.items()}
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.1)
    empty = {**batch, "brand": torch.zeros(B, dtype=torch.long)}
    made(*empty.values()).sum().backward()
    optimizer.step()
    assert made.tables["brand"].weight.grad is not None
    assert made.tables["brand"].weight.grad[0].abs().sum() == 0
    assert not torch.equal(made.tables["item"].weight, before["item"])


@pytest.fixture
def extractor() -> CubeExtractor:
    torch.manual_seed(2)
    return CubeExtractor(D, 2 * E, S).eval()


@torch.no_grad()
def test_weights_sum_to_one_over_the_behaviours_that_are_there(extractor: CubeExtractor, batch: dict[str, Tensor]) -> None:
    interest, weights, similarity = extractor._similar(batch["target_vector"], batch["behavior_vector"], THERE)
    assert weights.sum(1).tolist() == pytest.approx(THERE.any(1).float().tolist(), abs=1e-6)
    assert (weights >= 0).all()
    assert (weights[~THERE] == 0).all()
    assert (similarity[~THERE] == 0).all()
    scale = extractor.log_scale.exp()
    for row in range(B):  # the obvious way, behaviour by behaviour
        vectors = batch["behavior_vector"][row][THERE[row]]
        cosines = vectors @ batch["target_vector"][row]
        assert similarity[row][THERE[row]].tolist() == pytest.approx(cosines.tolist(), abs=1e-6)
        expected = torch.softmax(scale * cosines, 0) @ vectors if len(vectors) else torch.zeros(D)
        assert interest[row].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


@torch.no_grad()
def test_a_behaviour_without_a_vector_has_no_weight(extractor: CubeExtractor, batch: dict[str, Tensor]) -> None:
    vectors = batch["behavior_vector"].clone()
    vectors[1, 2] = 0.0  # a clicked item that was never embedded
    _, weights, _ = extractor._similar(batch["target_vector"], vectors, THERE)
    assert weights[1, 2] == 0
    assert weights[1].sum().item() == pytest.approx(1.0, abs=1e-6)


@torch.no_grad()
def test_the_features_are_those_that_the_paper_lists(extractor: CubeExtractor, batch: dict[str, Tensor]) -> None:
    """Fusion interest, four projected vectors, raw similarities to items and queries, cos(target, query), what is there."""
    target, query = batch["target_vector"].clone(), batch["query_vector"]
    target[4] = 0.0
    behaviors = torch.randn(B, S, 2 * E) * THERE[..., None]
    found = extractor(behaviors, THERE, target, query, batch["behavior_vector"], batch["behavior_query_vector"])
    assert found.shape == (B, extractor.width)
    _, weights, by_item = extractor._similar(target, batch["behavior_vector"], THERE)
    by_query = torch.einsum("bsd,bd->bs", batch["behavior_query_vector"], target) * THERE
    fusion = sum(weights[:, b, None] * behaviors[:, b] for b in range(S))
    assert isinstance(fusion, Tensor)
    assert torch.allclose(found[:, : 2 * E], fusion, atol=1e-6)
    assert torch.allclose(found[:, -2 * S - 3 : -3], torch.cat([by_item, by_query], 1), atol=1e-6)
    assert found[:, -3].tolist() == pytest.approx((target * query).sum(1).tolist(), abs=1e-6)
    assert found[:, -2:].tolist() == [[1.0, 1.0]] * 4 + [[0.0, 1.0]]


@torch.no_grad()
def test_target_attention_by_hand() -> None:
    """With an activation unit that gives 0 for everything, each behaviour there has weight 1/2, divided by √S."""
    attention = TargetAttention(2, 3)
    for parameter in attention.unit[2].parameters():
        parameter.zero_()
    behaviors = torch.tensor([[[9.0, 9.0], [1.0, 2.0], [3.0, 5.0], [9.0, 9.0]]])
    present = torch.tensor([[False, True, True, False]])
    found = attention(torch.zeros(1, 2), behaviors, present)
    assert found.tolist() == [pytest.approx([0.5 * 4 / 2, 0.5 * 7 / 2])]
