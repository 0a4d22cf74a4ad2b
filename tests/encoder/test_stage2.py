"""Stage 2b's preparation: cleaning and mining with the encoder that stage 2a left, and the queue it fills."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from moon_ops.encoder.eager import embed_eager
from moon_ops.encoder.stage2 import Behaviour, Prepared, Refinement, prepare
from moon_ops.errors import StageError
from moon_ops.recipes.encoder import Stage2b

PLAIN = {"least_similar": False, "category_balance": False, "least_entities": 0}


@pytest.fixture(scope="module")
def purchases(world: Any) -> Any:
    return world.pairs.of(("purchase",))


def prepared(world: Any, purchases: Any, **stage: Any) -> Prepared:
    return prepare(world.encoder, purchases, world.rows, world.store, Stage2b(**(PLAIN | stage)), seed=0)


def test_without_any_cleaning_every_purchase_is_kept(world: Any, purchases: Any) -> None:
    found = prepared(world, purchases)
    assert found.kept.tolist() == list(range(len(purchases)))
    assert (found.hard == -1).all()


def test_least_similar_keeps_of_each_item_the_query_that_the_encoder_finds_farthest(world: Any, purchases: Any) -> None:
    items = embed_eager(world.encoder, world.store, purchases.items)
    queries = embed_eager(world.encoder, world.store, purchases.queries)
    farthest: dict[int, tuple[float, int]] = {}
    for number, (q, i) in enumerate(zip(purchases.query.tolist(), purchases.item.tolist(), strict=True)):
        farthest[i] = min(farthest.get(i, (9.0, -1)), (float(queries[q] @ items[i]), number))
    found = prepared(world, purchases, least_similar=True)
    assert found.kept.tolist() == sorted(number for _, number in farthest.values())
    assert found.report.after_least_similar == len(farthest) < len(purchases)


def test_a_plugged_in_recognizer_decides_which_texts_name_enough(world: Any, purchases: Any) -> None:
    class Letters:
        def count(self, text: str) -> int:
            return int("a" in text) + int("e" in text)

    stage = Stage2b(**(PLAIN | {"least_entities": 2}))
    found = prepare(world.encoder, purchases, world.rows, world.store, stage, seed=0, recognizer=Letters())

    def enough(text: str) -> bool:
        return not text or ("a" in text and "e" in text)

    titles = [purchases.items[i].text.split(" | ")[0] for i in purchases.item]
    expected = [
        n for n, (q, title) in enumerate(zip(purchases.query, titles, strict=True)) if enough(purchases.queries[q].text) and enough(title)
    ]
    assert found.kept.tolist() == expected
    assert 0 < len(expected) < len(purchases)


def test_balance_follows_the_exposed_categories(world: Any, purchases: Any) -> None:
    found = prepared(world, purchases, category_balance=True)
    shown = purchases.categories[purchases.exposed]
    kept = purchases.categories[purchases.item[found.kept]]
    there = np.isin(shown, purchases.categories[purchases.item])
    for category in np.unique(kept):
        share = (shown[there] == category).mean() * len(kept)
        assert abs((kept == category).sum() - share) < 1
    assert len(kept) == len(purchases)


@pytest.mark.parametrize("merge", [True, False])
def test_hard_negatives_are_of_another_product_which_is_an_spu_where_skus_are_merged(world: Any, purchases: Any, merge: bool) -> None:
    found = prepared(world, purchases, hard_negatives=2, spu_merge=merge)
    own, other = np.nonzero(found.hard >= 0)[0], found.hard[found.hard >= 0]
    assert len(other) > 0
    assert (purchases.categories[own] == purchases.categories[other]).all()
    assert (purchases.item_ids[own] != purchases.item_ids[other]).all()
    assert (purchases.spu_ids[own] != purchases.spu_ids[other]).all() == merge


def test_hard_negatives_stay_below_the_ceiling_of_an_items_own_queries(world: Any, purchases: Any) -> None:
    items, queries = (embed_eager(world.encoder, world.store, some) for some in (purchases.items, purchases.queries))

    def beyond(found: Prepared) -> list[bool]:
        """Of each negative, whether it is nearer to the queries of its item than the ceiling."""
        out = []
        for item in np.unique(purchases.item).tolist():
            asked = queries[purchases.query[purchases.item == item]].mean(0)
            out += [float(asked @ items[other]) > 0.9 * float(asked @ items[item]) + 1e-5 for other in found.hard[item] if other >= 0]
        return out

    plain, below = (
        beyond(prepared(world, purchases, hard_negatives=2)),
        beyond(prepared(world, purchases, hard_negatives=2, hard_below=0.9)),
    )
    assert any(plain)
    assert len(below) > 0
    assert not any(below)


def test_what_was_prepared_survives_a_checkpoint(world: Any, purchases: Any) -> None:
    found = prepared(world, purchases, hard_negatives=2, least_similar=True)
    again = Prepared.restored(found.tensors())
    assert again.kept.tolist() == found.kept.tolist()
    assert again.hard.tolist() == found.hard.tolist()
    assert again.report == found.report


def test_the_items_of_each_batch_join_the_queue_and_the_oldest_leave_it(world: Any, purchases: Any, least: Any) -> None:
    recipe = least(stage2b=PLAIN | {"steps": 3, "queue": 12})
    stage = Refinement(copy.deepcopy(world.encoder), purchases, world.store, recipe, 0, prepared(world, purchases))
    seen: list[int] = []
    vectors = []
    for number in range(2):
        batch = stage.batch(number, 0, 1)
        stage.losses(stage.model, batch, 3, torch.device("cpu"))
        side = batch.sides["item"]
        vectors.append(world.encoder(side.input_ids, side.attention_mask, side.pixels).detach())
        stage.after(batch)
        seen += batch.product.tolist()
    assert stage.queue is not None
    assert stage.queue.product.tolist() == seen[-12:]
    assert torch.allclose(stage.queue.vectors, torch.cat(vectors)[-12:], atol=1e-5)
    resumed = Refinement(world.encoder, purchases, world.store, recipe, 0, stage.prepared, stage.tensors())
    assert resumed.queue is not None
    assert torch.equal(resumed.queue.vectors, stage.queue.vectors)


def test_stage_2a_learns_from_the_events_that_the_recipe_names(world: Any, least: Any) -> None:
    for events, allowed in ((("purchase",), {2}), (("click", "cart"), {0, 1})):
        stage = Behaviour(world.encoder, world.pairs, world.store, least(stage2a={"steps": 1, "events": events}), 0)
        assert set(stage.batches.pairs.event.tolist()) == allowed


def test_without_such_events_stage_2a_has_nothing_to_learn_from(world: Any, least: Any) -> None:
    """It learned from all kinds of events instead, and said nothing."""
    clicks = world.pairs.of(("click",))
    with pytest.raises(StageError, match=r"stage2a.events = \['purchase'\]: none of the \d+ pairs is of such an event"):
        Behaviour(world.encoder, clicks, world.store, least(stage2a={"steps": 1, "events": ("purchase",)}), 0)
