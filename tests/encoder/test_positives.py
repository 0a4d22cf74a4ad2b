"""What is known to answer a query is no negative of it: by its words, not by its id, and whatever became of the pair."""

from __future__ import annotations

import copy
import datetime as dt
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from moon_ops.encoder.batches import PairBatches, Shows
from moon_ops.encoder.losses import info_nce
from moon_ops.encoder.negatives import Queue
from moon_ops.encoder.objectives import behaviour_loss, refined_loss
from moon_ops.encoder.pairs import Pairs, behaviour
from moon_ops.encoder.positives import NOBODY, Asked, Positives, alike
from moon_ops.encoder.stage2 import Behaviour, Refinement, prepare
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.recipes.caps import Most
from moon_ops.recipes.encoder import Stage2a, Stage2b

SCALE = torch.tensor(7.0)
DAY = dt.datetime(2026, 1, 10, tzinfo=dt.UTC)


def test_queries_of_the_same_words_and_picture_are_one_group() -> None:
    texts = ["Red  dress", "red dress ", "ｒｅｄ dress", "blue dress", None, "", "red dress", "red dress"]
    pictures = [None, None, None, None, "a", "a", "a", "b"]
    assert alike(texts, pictures).tolist() == [0, 0, 0, 1, 2, 2, 3, 4]


@pytest.mark.parametrize("seed", range(3))
def test_the_mask_is_what_brute_force_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    who, what = rng.integers(0, 30, 200), rng.integers(0, 50, 200)
    asker, product = torch.from_numpy(rng.integers(-1, 35, 40)), torch.from_numpy(rng.integers(0, 60, 70))
    known = set(zip(who.tolist(), what.tolist(), strict=True))
    expected = [[(a, p) in known for p in product.tolist()] for a in asker.tolist()]
    found = Positives(who, what).mask(asker, product)
    assert found.tolist() == expected
    assert found.any()


def test_nothing_known_masks_nothing() -> None:
    none = np.empty(0, np.int64)
    for asker in (torch.tensor([0, NOBODY, 3]), torch.empty(0, dtype=torch.int64)):
        for product in (torch.tensor([4, 4]), torch.empty(0, dtype=torch.int64)):
            assert Positives(none, none).mask(asker, product).tolist() == [[False] * len(product)] * len(asker)


@pytest.fixture
def mugs(make_shop: Any, tmp_path: Any, now: dt.datetime) -> Lake:
    """Queries 1, 2 and 5 say the same; 1 bought item 1 and clicked 2, 2 bought 3, 5 only clicked 4; 3 bought 2, and 4 bought 4."""
    words = {1: "Red mug", 2: "red  mug", 3: "lamp", 4: "blue vase", 5: "red mug"}
    done = [(1, 1, "purchase"), (1, 2, "click"), (2, 3, "purchase"), (3, 2, "purchase"), (4, 4, "purchase"), (5, 4, "click")]
    items = [{"item_id": i, "title": f"thing {i}", "available_from": "2026-01-01T00:00:00Z"} for i in range(1, 6)]
    queries = [{"query_id": q, "timestamp": "2026-01-02T00:00:00Z", "text": text} for q, text in words.items()]
    events = [{"timestamp": f"2026-01-03T00:00:0{n}Z", "item_id": i, "query_id": q, "event": e} for n, (q, i, e) in enumerate(done)]
    filled = Lake(str(tmp_path / "lake"))
    ingest(make_shop(items=items, queries=queries, events=events), filled, now=now)
    return filled


def known(pairs: Pairs) -> dict[str, set[int]]:
    """Text of a query → all items that its group is known to want."""
    return {
        s.text.casefold(): {int(pairs.item_ids[i]) for g, i in pairs.known if g == group}
        for s, group in zip(pairs.queries, pairs.group, strict=True)
    }


RED = {1, 2, 3, 4}


def test_behaviour_knows_what_makes_no_pair_and_what_others_found_by_the_same_words(mugs: Lake) -> None:
    pairs = behaviour(mugs, DAY)
    assert {(pairs.queries[q].text, int(pairs.item_ids[i])) for q, i in zip(pairs.query, pairs.item, strict=True)} == {
        ("Red mug", 1), ("red  mug", 3), ("lamp", 2), ("blue vase", 4), ("red mug", 4),
    }  # fmt: skip
    assert known(pairs) == {"red mug": RED, "red  mug": RED, "lamp": {2}, "blue vase": {4}}
    assert known(behaviour(mugs, DAY, most=Most(item=1)))["red mug"] == RED, "also beyond a cap on pairs"
    assert known(pairs.of(("purchase",)))["red mug"] == RED, "also in a stage that learns from purchases alone"
    early = behaviour(mugs, dt.datetime(2026, 1, 3, 0, 0, 4, tzinfo=dt.UTC))
    assert known(early)["red mug"] == {1, 2, 3}, "nothing from trained_until on is known"


def test_twins_of_a_photograph_know_what_either_led_to(world: Any) -> None:
    pairs = replace(world.pairs, query=np.array([0, 1, 2]), item=np.array([5, 6, 7]), event=np.zeros(3, np.int64))
    pairs = replace(pairs, group=np.arange(len(pairs.queries)), known=np.array([[0, 5], [1, 6], [2, 7], [9, 8]]))
    joined = pairs.joined(np.array([0, 1, 0]))
    of = {tuple(sorted(int(i) for g, i in joined.known if g == group)) for group in joined.group[:3]}
    assert of == {(5, 7), (6,)}
    assert joined.group[0] == joined.group[2] != joined.group[1]
    assert sorted(joined.known[:, 1].tolist()) == [5, 6, 7, 8]


def of_words(world: Any, least: Any, texts: list[str], known: list[tuple[int, int]]) -> tuple[Pairs, Any]:
    """Pair n: query n with its text → item n, each a product of its own; ``known`` are queries and items."""
    count = len(texts)
    rows = np.arange(count)
    groups = alike(texts, [None] * count)
    both = [(groups[q], i) for q, i in [*zip(rows, rows, strict=True), *known]]
    queries = [replace(s, text=text, image_ids=()) for s, text in zip(world.pairs.queries, texts, strict=False)]
    pairs = replace(world.pairs, queries=queries, query=rows, item=rows, event=np.full(count, 2), group=groups, known=np.array(both))
    return replace(pairs, spu_ids=np.arange(len(pairs.items))), least(training={"batch": count}, stage2a={"steps": 1}, stage2b={"steps": 1})


def test_stage_2a_contrasts_no_query_with_what_its_own_words_have_led_to(world: Any, least: Any) -> None:
    """The second pair's item was a negative of the first, though users of the very same words had bought it."""
    pairs, recipe = of_words(world, least, ["red mug", "red mug"], [])
    for loss in ("info_nce", "mim"):
        changed = replace(recipe, stage2a=replace(recipe.stage2a, loss=loss))
        stage = Behaviour(copy.deepcopy(world.encoder), pairs, world.store, changed, 0)
        stage.losses(stage.model, stage.batch(0, 0, 1), 0, torch.device("cpu"))
        assert float(stage.found.loss.detach()) == 0.0, "there is no negative left"
        assert stage.found.metrics["false_negatives"] == 1.0


def test_stage_2b_leaves_what_a_query_clicked_out_of_batch_hard_negatives_and_queue(world: Any, least: Any) -> None:
    pairs, recipe = of_words(world, least, ["red mug", "lamp"], [(0, 1), (0, 2), (0, 3), (1, 0), (1, 2), (1, 3)])
    stage = replace(recipe.stage2b, loss="info_nce", queue=4, hard_negatives=1, least_entities=0, category_balance=False)
    recipe = replace(recipe, stage2b=stage)
    prepared = prepare(world.encoder, pairs, world.rows, world.store, replace(stage, least_similar=False, hard_negatives=0), 0)
    hard = np.full((len(pairs.items), 1), -1)
    hard[:2] = 2
    made = Refinement(copy.deepcopy(world.encoder), pairs, world.store, recipe, 0, replace(prepared, hard=hard))
    assert made.queue is not None
    made.queue.push(torch.randn(1, 32), torch.tensor([3]))
    made.losses(made.model, made.batch(0, 0, 1), 0, torch.device("cpu"))
    assert float(made.found.loss.detach()) == 0.0, "batch, hard one and queued one are known to answer both"
    made.queue.push(torch.randn(1, 32), torch.tensor([4]))
    made.losses(made.model, made.batch(0, 0, 1), 0, torch.device("cpu"))
    assert float(made.found.loss.detach()) > 0.0


def unit(rows: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_the_losses_are_info_nce_without_the_known_ones() -> None:
    product, asker = torch.tensor([1, 2, 3]), torch.tensor([0, 0, NOBODY])
    asked = Asked(asker, Positives(np.array([0, 0, 0]), np.array([1, 3, 9])))
    same = torch.tensor(
        [[True, False, True], [True, True, True], [False, False, True]]
    )  # of the first two what asker 0 knows, and their own
    vectors, target = {"query": unit(3, 0), "item": unit(3, 1)}, torch.arange(3)
    found = behaviour_loss((product, torch.ones(3)), vectors, SCALE, Stage2a(), (), asked)
    assert float(found.loss) == pytest.approx(float(info_nce(*vectors.values(), target, SCALE, same)), rel=1e-6)
    queue = Queue(4, 6)
    queue.push(unit(2, 2), torch.tensor([9, 8]))
    stage = Stage2b(loss="info_nce", hard_negatives=1)
    refined = refined_loss((product, torch.tensor([3, 7])), vectors | {"negative": unit(2, 3)}, SCALE, queue, stage, (), asked)
    wide = torch.cat(
        [same, torch.tensor([[True, False], [True, False], [True, False]]), torch.tensor([[True, False], [True, False], [False] * 2])], 1
    )
    items = torch.cat([unit(3, 1), unit(2, 3), unit(2, 2)])
    assert float(refined.loss) == pytest.approx(float(info_nce(unit(3, 0), items, target, SCALE, wide)), rel=1e-6)


def test_an_item_that_asks_is_no_negative_of_itself(world: Any, least: Any) -> None:
    """In pairs of an item and what was chosen together with it: another pair's item that is the asking one was its negative."""
    training = least(training={"batch": 32}).training
    shows = Shows(kinds={"title+image:title+image": 1.0}, product=world.pairs.item_ids)
    made = PairBatches(world.encoder, world.pairs, world.store, training, seed=(0,), shows=shows)
    itself = 0
    for step in range(4):
        batch = made.batch(step)
        own = torch.from_numpy(world.pairs.item_ids)[batch.asker - made.groups]
        mask = made.positives.mask(batch.asker, batch.product)
        assert mask[torch.arange(32), torch.arange(32)].all(), "its own pair's"
        again = own[:, None] == batch.product[None, :]
        assert mask[again].all()
        itself += int(again.sum())
    assert itself > 0


def test_a_made_photograph_knows_its_own_item_alone(world: Any, least: Any) -> None:
    training = least(training={"batch": 8, "synthetic": 0.5}).training
    batch = PairBatches(world.encoder, world.pairs, world.store, training, seed=(0,)).batch(0)
    assert int((batch.asker == NOBODY).sum()) == 4
