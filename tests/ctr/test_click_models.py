"""Click models on random tensors: shapes, what padding may not change, and what each extractor reads, computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moon_ops.ctr.extractors.cube import Cube
from moon_ops.ctr.extractors.make import Make
from moon_ops.ctr.extractors.query import Query
from moon_ops.ctr.extractors.sata import SaTa
from moon_ops.ctr.extractors.seen import Seen, TargetAttention, similarity
from moon_ops.ctr.extractors.simscore import SimScore
from moon_ops.ctr.extractors.simtier import TIERS, SimTier
from moon_ops.ctr.models import EXTRACTORS, IDS, ClickModel, Sizes

B, S, W, D, E = 5, 4, 6, 8, 3
TABLES = {"item": 20, "user": 9, "query": 11, "spu": 9, "category": 7, "brand": 5, "seller": 5, "price": 12}
SIZES = Sizes(TABLES, words=50, embedding_dim=E, hidden=(16, 8), vector_dim=D, behaviors=S, dropout=0.0)
THERE = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]], dtype=torch.bool)
ASKED = THERE & torch.tensor([1, 0, 1, 1], dtype=torch.bool)
VECTORS = ("target_vector", "query_vector", "behavior_vector", "behavior_query_vector")
ALL = sorted(EXTRACTORS)
BY_CONTENT = [name for name in ALL if name != "din"]


def unit(*shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    torch.manual_seed(0)
    columns = {"ids": torch.stack([torch.randint(1, TABLES[name], (B,)) for name in IDS], 1)}
    columns |= {"dense": torch.randn(B, 4), "words": torch.randint(0, 50, (B, W))}
    columns["behavior_item"] = torch.randint(1, 20, (B, S)) * THERE
    columns["behavior_category"] = torch.randint(1, 7, (B, S)) * THERE
    columns["behavior_query"] = torch.randint(1, 11, (B, S)) * ASKED
    columns |= {"target_vector": unit(B, D), "query_vector": unit(B, D)}
    return columns | {"behavior_vector": unit(B, S, D) * THERE[..., None], "behavior_query_vector": unit(B, S, D) * ASKED[..., None]}


def model(extractor: str) -> ClickModel:
    torch.manual_seed(1)
    made = ClickModel(SIZES, extractor).eval()
    with torch.no_grad():  # as drawn, embeddings are too small to tell anything from rounding
        made.embedding.weight.mul_(100)
    return made


@torch.no_grad()
def logits(extractor: str, batch: dict[str, Tensor], **changed: Tensor) -> Tensor:
    made = model(extractor)
    return made(*({**batch, **changed}[name] for name in made.inputs))


@pytest.mark.parametrize("extractor", ALL)
def test_one_logit_per_row(batch: dict[str, Tensor], extractor: str) -> None:
    found = logits(extractor, batch)
    assert found.shape == (B,)
    assert torch.isfinite(found).all()
    assert len({round(x, 4) for x in found.tolist()}) == B


@pytest.mark.parametrize("extractor", ALL)
def test_what_stands_in_padding_changes_nothing(batch: dict[str, Tensor], extractor: str) -> None:
    """A behaviour is there if its item is: categories and vectors of the others are never read."""
    changed = {
        "behavior_category": torch.where(THERE, batch["behavior_category"], 5),
        "behavior_vector": torch.where(THERE[..., None], batch["behavior_vector"], unit(B, S, D)),
        "behavior_query_vector": torch.where(ASKED[..., None], batch["behavior_query_vector"], unit(B, S, D)),
    }
    assert not all(torch.equal(batch[name], column) for name, column in changed.items())
    assert torch.allclose(logits(extractor, batch, **changed), logits(extractor, batch), atol=1e-6)


@pytest.mark.parametrize("extractor", ALL)
@pytest.mark.parametrize("name", ["ids", "dense", "words", "behavior_item"])
def test_every_id_is_read(batch: dict[str, Tensor], extractor: str, name: str) -> None:
    other = batch[name].roll(1, 0)
    assert not torch.allclose(logits(extractor, batch, **{name: other}), logits(extractor, batch), atol=1e-5)


def test_tables_do_not_overlap(batch: dict[str, Tensor]) -> None:
    """The same row number in two tables is two embeddings."""
    made = model("din")
    same = {**batch, "ids": torch.full((B, len(IDS)), 3)}
    ids, words, _ = made.embed({name: same[name] for name in made.inputs})
    assert len({tuple(row) for row in ids[0].round(decimals=4).tolist()}) == len(IDS)
    assert made.offsets.tolist() == [0, 20, 29, 40, 49, 56, 61, 66, 78]
    assert torch.equal(words["words"][0, 0], made.embedding.weight[78 + batch["words"][0, 0]])


@pytest.mark.parametrize("name", VECTORS)
def test_only_what_asks_for_vectors_reads_them(batch: dict[str, Tensor], name: str) -> None:
    other = {name: batch[name].roll(1, 0)}
    assert name not in model("din").inputs
    for extractor in BY_CONTENT:
        if name in model(extractor).inputs and not (extractor.endswith("make") and name == "behavior_query_vector"):
            assert not torch.allclose(logits(extractor, batch, **other), logits(extractor, batch), atol=1e-5), extractor


def test_words_are_averaged_over_those_there_are(batch: dict[str, Tensor]) -> None:
    once, twice = torch.zeros(B, W, dtype=torch.long), torch.zeros(B, W, dtype=torch.long)
    once[:, 0] = 7
    twice[:, :2] = 7
    assert torch.allclose(logits("din", batch, words=once), logits("din", batch, words=twice), atol=1e-5)


@pytest.fixture
def seen(batch: dict[str, Tensor]) -> Seen:
    """The second behaviour of the second row was never embedded; nor was the fifth row's target."""
    vectors = {name: batch[name].clone() for name in VECTORS}
    vectors["behavior_vector"][1, 1] = 0.0
    vectors["target_vector"][4] = 0.0
    behaviors, queries = (torch.randn(B, S, 2 * E) * there[..., None] for there in (THERE, ASKED))
    return Seen(torch.randn(B, 2 * E), behaviors, queries, THERE, ASKED, vectors)


def cosines(seen: Seen, row: int) -> list[float]:
    """s_b of the behaviours of a row that have a vector, one after the other."""
    vectors, target = seen.vectors["behavior_vector"][row], seen.vectors["target_vector"][row]
    return [float(v @ target) for b, v in enumerate(vectors) if seen.present[row, b] and v.any() and target.any()]


@torch.no_grad()
def test_similarities_by_hand(seen: Seen) -> None:
    scores, there = seen.similarity()
    for row in range(B):
        assert scores[row][there[row]].tolist() == pytest.approx(cosines(seen, row), abs=1e-6)
    assert there.tolist()[1] == [True, False, True, True]
    assert not there[4].any()
    assert (scores[~there] == 0).all()


@torch.no_grad()
def test_simscore_is_the_scores_their_mean_and_their_maximum(seen: Seen) -> None:
    found = SimScore(S)(seen)
    assert torch.equal(found[:, :S], seen.similarity()[0])
    known = cosines(seen, 1)
    assert found[1, S:].tolist() == pytest.approx([sum(known) / 3, max(*known, 0.0)], abs=1e-6)
    assert found[3].tolist() == [0.0] * (S + 2)


@torch.no_grad()
def test_simtier_counts_behaviours_by_how_similar_they_are(seen: Seen) -> None:
    extractor = SimTier()
    torch.nn.init.eye_(extractor.layer.weight)
    torch.nn.init.zeros_(extractor.layer.bias)
    found = extractor(seen)
    for row in range(B):
        counts = [0] * TIERS
        for cosine in cosines(seen, row):
            counts[min(int((cosine + 1) * TIERS / 2), TIERS - 1)] += 1
        assert found[row].tolist() == pytest.approx([math.log1p(count) for count in counts], abs=1e-6)


@torch.no_grad()
def test_sata_weighs_by_ids_and_content_together(seen: Seen) -> None:
    torch.manual_seed(3)
    extractor, scores = SaTa(2 * E), seen.similarity()[0]
    assert (extractor.gates.tolist(), extractor.tau.item()) == ([1.0, 1.0, 1.0], pytest.approx(0.1))
    extractor.gates.copy_(torch.tensor([0.7, 1.3, 0.2]))
    found = extractor(seen)

    def through(layer: torch.nn.Module, embedded: Tensor) -> Tensor:
        linear = layer(embedded)
        return linear * torch.sigmoid(linear)

    for row in range(B):
        there = THERE[row].nonzero().flatten()
        by_id = through(extractor.key, seen.behaviors[row][there]) @ through(extractor.ask, seen.target[row])
        alike = scores[row][there] / 0.1
        weights = torch.softmax(0.7 * by_id + 1.3 * alike + 0.2 * by_id * alike, 0)
        expected = weights @ through(extractor.value, seen.behaviors[row][there])
        assert found[row].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert found[3].tolist() == [0.0] * 2 * E


@torch.no_grad()
@pytest.mark.parametrize(("cosine", "vector"), [(True, False), (False, True), (True, True)])
def test_the_querys_content_is_its_cosine_its_vector_or_both(seen: Seen, cosine: bool, vector: bool) -> None:
    part = Query(D, cosine=cosine, vector=vector)
    found, target, query = part(seen), seen.vectors["target_vector"], seen.vectors["query_vector"]
    assert found.shape == (B, part.width)
    expected = [(target * query).sum(-1, keepdim=True)] if cosine else []
    expected += [part.project(query)] if part.project is not None else []
    known = [[0.0 if row == 4 else 1.0, 1.0] if cosine else [1.0] for row in range(B)]  # the fifth row's target has no vector
    assert torch.allclose(found, torch.cat([*expected, torch.tensor(known)], -1), atol=1e-6)
    assert (part.project is not None) == vector
    assert ("target_vector" in part.vectors) == cosine


def test_make_is_frozen_once_it_is_pretrained(batch: dict[str, Tensor]) -> None:
    made = model("make")
    (part,) = (p for p in made.parts if isinstance(p, Make))
    part.freeze()
    made(*(batch[name] for name in made.inputs)).sum().backward()
    assert all(p.grad is None for p in part.parameters())
    assert made.predictor[0].weight.grad is not None


@torch.no_grad()
def test_cube_is_what_the_paper_lists(seen: Seen) -> None:
    """ID interest, fusion and content interests of items and of queries, raw similarities, r_t, r_q, cos(r_t, r_q): one after the other."""
    torch.manual_seed(2)
    cube = Cube(2 * E, D, S).eval()
    found = cube(seen)
    assert found.shape == (B, cube.width)
    target, query = seen.vectors["target_vector"], seen.vectors["query_vector"]
    width, row = 2 * E, 1
    kinds = ((seen.behaviors, THERE, "behavior_vector", 0), (seen.queries, ASKED, "behavior_query_vector", 1))
    raw, fusion, content = [], [], []
    for embedded, present, name, number in kinds:
        scores, there = similarity(seen.vectors[name], target, present)
        at = there[row].nonzero().flatten()
        weights = torch.softmax(cube.log_scale[number].exp() * scores[row][at], 0)
        raw.append(scores[row])
        fusion.append(weights @ embedded[row][at])
        content.append(cube.project(weights @ seen.vectors[name][row][at]))
    keys = torch.cat([seen.behaviors[row][THERE[row]], seen.queries[row][ASKED[row]]])
    attention = torch.softmax(cube.key(keys) @ cube.ask(seen.target[row]) / width**0.5, 0)
    by_id = attention @ cube.value(keys)
    rest = [cube.project(target[row]), cube.project(query[row]), (target[row] @ query[row])[None], torch.tensor([1.0, 1.0])]
    assert found[row].tolist() == pytest.approx(torch.cat([by_id, *fusion, *content, *raw, *rest]).tolist(), abs=1e-5)
    assert found[4, -2:].tolist() == [0.0, 1.0]


PARTS = ("items", "queries", "by_id", "fusion", "content", "cosines", "vectors", "match")
WIDTHS = {"by_id": 2 * E, "fusion": 4 * E, "content": 32, "cosines": 2 * S, "vectors": 32, "match": 1}


@torch.no_grad()
@pytest.mark.parametrize("part", PARTS)
def test_cube_without_a_part_is_cube_but_for_that_part(seen: Seen, part: str) -> None:
    """The features that are left are those of the whole one, with the same weights; and it asks for nothing that it does not read."""
    torch.manual_seed(2)
    whole, less = Cube(2 * E, D, S).eval(), Cube(2 * E, D, S, [part]).eval()
    less.load_state_dict(whole.state_dict(), strict=False)
    columns = dict(zip(WIDTHS, whole(seen)[:, :-2].split(list(WIDTHS.values()), 1), strict=True))
    found = less(seen)
    assert found.shape == (B, less.width)
    kept = {kind: list(column.chunk(2, 1)) if kind in ("fusion", "content", "cosines") else [column] for kind, column in columns.items()}
    if part in ("items", "queries"):
        for kind in ("fusion", "content", "cosines"):
            del kept[kind][0 if part == "items" else 1]
        kept["by_id"] = [found[:, : 2 * E]]  # weighs the others anew
        assert not torch.allclose(kept["by_id"][0], columns["by_id"], atol=1e-5)
    else:
        del kept[part]
    expected = torch.cat([half for halves in kept.values() for half in halves], 1)
    assert torch.allclose(found[:, :-2], expected, atol=1e-6)
    assert ("behavior_vector" in less.vectors, "behavior_query_vector" in less.vectors) == (part != "items", part != "queries")
    made = ClickModel(replace(SIZES, without=(part,)), "cube")
    assert ("behavior_query" in made.inputs) == (part != "queries")


@torch.no_grad()
def test_a_user_without_behaviour_has_no_interest(seen: Seen) -> None:
    torch.manual_seed(2)
    cube = Cube(2 * E, D, S).eval()
    assert (cube(seen)[3, : 3 * 2 * E] == 0).all()


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
