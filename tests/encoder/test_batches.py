"""Batches: which pairs a step sees, what each side shows of them, and that all of it follows from the seed and the step."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from moon_ops.encoder.batches import Batch, Inputs, PairBatches, Shows, _together
from moon_ops.encoder.texts import tokens
from moon_ops.inputs.contract import Sample, title_of
from moon_ops.recipes.encoder import PAIR_TYPES

Row = tuple[int, list[int]]  # pictures, and text tokens


@pytest.fixture
def make(world: Any, least: Any) -> Any:
    """``make(kinds=…, training={…})``: batches over the tiny shop."""

    def made(training: dict[str, Any] | None = None, pairs: Any = None, seed: tuple[int, ...] = (0, 2), **more: Any) -> PairBatches:
        recipe = least(training=training or {})
        return PairBatches(world.encoder, pairs or world.pairs, world.store, recipe.training, seed=seed, shows=Shows(**more))

    return made


def rows(world: Any, side: Inputs) -> list[Row]:
    marks = len(world.encoder.layout.picture())
    lengths = side.attention_mask.sum(1).tolist()
    return [
        (pictures, ids[pictures * marks : length].tolist())
        for pictures, ids, length in zip(side.pictures, side.input_ids, lengths, strict=True)
    ]


def pixels(side: Inputs) -> list[torch.Tensor]:
    return list(side.pixels.split(list(side.pictures)))


def same(a: Batch, b: Batch) -> bool:
    return a.names == b.names and all(
        torch.equal(a.sides[n].input_ids, b.sides[n].input_ids) and torch.equal(a.sides[n].pixels, b.sides[n].pixels) for n in a.sides
    )


EVERYTHING = {"augment": True, "text_dropout": 0.4, "synthetic": 0.25}


def test_a_batch_is_a_function_of_seed_and_step_alone(make: Any) -> None:
    in_order, backwards = make(EVERYTHING), make(EVERYTHING)
    forward = [in_order.batch(step) for step in range(4)]
    backward = [backwards.batch(step) for step in (3, 2, 1, 0)][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
    assert not same(forward[0], forward[1])
    assert not same(forward[0], make(EVERYTHING, seed=(1, 2)).batch(0))
    assert not torch.equal(forward[0].sides["query"].pixels[:1], make().batch(0).sides["query"].pixels[:1])  # they were changed


@pytest.mark.parametrize("kinds", [None, {"text:rich": 1.0, "image:image": 1.0}])
def test_the_halves_of_two_processes_are_the_whole_batch(make: Any, world: Any, kinds: dict[str, float] | None) -> None:
    made = make(pairs=one_picture(world.pairs), kinds=kinds)
    for step in range(3):
        whole, halves = made.batch(step), [made.batch(step, part, 2) for part in (0, 1)]
        assert halves[0].names + halves[1].names == whole.names
        assert torch.equal(torch.cat([h.product for h in halves]), whole.product)
        for name, side in whole.sides.items():
            assert rows(world, halves[0].sides[name]) + rows(world, halves[1].sides[name]) == rows(world, side)
            assert torch.equal(torch.cat([h.sides[name].pixels for h in halves]), side.pixels)


def one_picture(pairs: Any) -> Any:
    return replace(pairs, items=[Sample(s.text, s.image_ids[:1]) for s in pairs.items])


def test_every_pair_is_seen_once_before_any_is_seen_again(make: Any, world: Any) -> None:
    whole = len(world.pairs) // 8
    seen = Counter(name for step in range(whole) for name in make().batch(step).names)
    there = Counter(world.pairs.item_ids[world.pairs.item].tolist())
    assert sum((there - seen).values()) == len(world.pairs) - 8 * whole
    assert not seen - there


def test_each_step_has_each_pair_type_by_its_share(make: Any, world: Any) -> None:
    made = make(kinds={"text:rich": 1.0, "image:image": 2.0, "title+image:title+image": 5.0})
    for step in range(5):
        query = rows(world, made.batch(step).sides["query"])
        assert Counter((pictures, bool(text)) for pictures, text in query) == {(0, True): 1, (1, False): 2, (1, True): 5}


def test_a_type_that_nothing_fits_leaves_its_share_to_the_others(make: Any, world: Any) -> None:
    spoken = replace(world.pairs, queries=[Sample(s.text or "a bag") for s in world.pairs.queries])
    batch = make(pairs=spoken, kinds={"text:rich": 1.0, "image:image": 3.0}).batch(0)
    assert [pictures for pictures, _ in rows(world, batch.sides["query"])] == [0] * 8


def item_tokens(world: Any) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """Title and rich text of each item, as far as they are read beside all its pictures."""
    layout, out = world.encoder.layout, []
    for samples in ([Sample(title_of(s)) for s in world.pairs.items], world.pairs.items):
        found: dict[int, list[int]] = {}
        for name, item, text in zip(world.pairs.item_ids.tolist(), world.pairs.items, tokens(world.encoder, samples), strict=True):
            beside = min(len(item.image_ids), layout.max_pictures)
            found[name] = layout.batch([text], [beside])[0][0, beside * len(layout.picture()) :].tolist()
        out.append(found)
    return out[0], out[1]


def check_shown(world: Any, batch: Batch, kind: str) -> None:
    """What the nine types promise, of rows whose item has a picture and a text longer than its title."""
    asked_as, _, shown_as = kind.partition(":")
    title, rich = item_tokens(world)
    asked = {tuple(t) for t in tokens(world.encoder, world.pairs.queries)}
    for name, query, item in zip(batch.names, rows(world, batch.sides["query"]), rows(world, batch.sides["item"]), strict=True):
        assert query[0] == ("image" in asked_as)
        assert item[0] == ("image" in shown_as)
        assert item[1] == {"rich": rich[name], "title": title[name], "image": []}[shown_as.partition("+")[0]]
        if asked_as == "text":
            assert tuple(query[1]) in asked
        elif asked_as == "image":
            assert query[1] == []
        else:
            known = title if asked_as == "title+image" else rich
            assert query[1] in known.values()
            assert query[1] != item[1]  # another item


@pytest.mark.parametrize("kind", PAIR_TYPES)
def test_each_pair_type_shows_what_it_says(make: Any, world: Any, kind: str) -> None:
    pictured = {int(n) for n, s in zip(world.pairs.item_ids, world.pairs.items, strict=True) if s.image_ids}
    batch = make(kinds={kind: 1.0}).batch(0)
    assert set(batch.names) <= pictured
    check_shown(world, batch, kind)


@pytest.mark.parametrize("kind", PAIR_TYPES[:7])
def test_a_query_of_words_and_picture_shows_the_one_that_the_type_says(make: Any, world: Any, kind: str) -> None:
    picture = next(s.image_ids for s in world.pairs.queries if s.image_ids)
    words = next(s.text for s in world.pairs.queries if s.text)
    both = replace(world.pairs, queries=[Sample(s.text or words, s.image_ids or picture) for s in world.pairs.queries])
    check_shown(world, make(pairs=both, kinds={kind: 1.0}).batch(0), kind)


def test_without_types_a_query_is_shown_as_it_is_and_an_item_with_everything(make: Any, world: Any) -> None:
    batch = make().batch(0)
    _, rich = item_tokens(world)
    asked = {(len(s.image_ids), tuple(t)) for s, t in zip(world.pairs.queries, tokens(world.encoder, world.pairs.queries), strict=True)}
    assert {(pictures, tuple(text)) for pictures, text in rows(world, batch.sides["query"])} <= asked
    assert [(1, rich[name]) for name in batch.names] == rows(world, batch.sides["item"])


def test_dropped_texts_leave_the_picture(make: Any, world: Any) -> None:
    made = make({"text_dropout": 0.5, "batch": 64})
    found = [row for step in range(4) for row in rows(world, made.batch(step).sides["item"])]
    share = sum(not text for _, text in found) / len(found)
    assert 0.4 < share < 0.6
    assert all(pictures for pictures, text in found if not text)


def test_pictures_are_drawn_anew_and_as_many_as_the_recipe_says(make: Any, world: Any) -> None:
    made = make({"pictures": 2, "batch": 64})
    there = dict(zip(world.pairs.item_ids.tolist(), (len(s.image_ids) for s in world.pairs.items), strict=True))
    batch = made.batch(0)
    assert [pictures for pictures, _ in rows(world, batch.sides["item"])] == [min(there[name], 2) for name in batch.names]
    single = make({"batch": 64})
    shown: dict[int, set[bytes]] = {}
    for step in range(6):
        batch = single.batch(step)
        for name, picture in zip(batch.names, batch.sides["item"].pixels, strict=True):
            shown.setdefault(name, set()).add(picture.numpy().tobytes())
    assert max(len(pictures) for pictures in shown.values()) > 1
    assert all(len(pictures) <= there[name] for name, pictures in shown.items())


def test_an_item_s_text_ends_where_production_ends_it_though_training_shows_fewer_pictures(make: Any, world: Any) -> None:
    layout = world.encoder.layout
    long = replace(world.pairs.items[0], text="a red cotton dress " * 60)
    pairs = replace(world.pairs, items=[replace(long, image_ids=s.image_ids) for s in world.pairs.items])
    made = make({"pictures": 1}, pairs=pairs)
    for step in range(3):
        for count, (pictures, text) in enumerate(rows(world, made.batch(step).sides["item"])):
            item = pairs.item_ids.tolist().index(made.batch(step).names[count])
            assert pictures == 1
            served, _ = layout.batch([tokens(world.encoder, [long])[0]], [len(pairs.items[item].image_ids)])
            assert text == served[0, len(layout.picture()) * min(len(pairs.items[item].image_ids), 2) :].tolist()
    assert {len(s.image_ids) for s in pairs.items} >= {1, 2}, "both lengths are among them"


def test_now_and_then_fewer_pictures_are_shown_where_the_recipe_says_so(make: Any, world: Any) -> None:
    there = dict(zip(world.pairs.item_ids.tolist(), (len(s.image_ids) for s in world.pairs.items), strict=True))
    made = make({"pictures": 2, "fewest_pictures": 1, "batch": 64})
    batches = [made.batch(step) for step in range(3)]
    of_two = Counter(pictures for b in batches for name, pictures in zip(b.names, b.sides["item"].pictures, strict=True) if there[name] > 1)
    assert set(of_two) == {1, 2}
    assert 0.3 < of_two[1] / of_two.total() < 0.7
    always = make({"pictures": 2, "fewest_pictures": 2, "batch": 64}).batch(0)
    assert same(always, make({"pictures": 2, "batch": 64}).batch(0))


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.25, 2), (0.5, 4)])
def test_the_synthetic_share_asks_with_the_item_s_own_picture(make: Any, world: Any, share: float, count: int) -> None:
    made = make({"synthetic": share})
    samples = dict(zip(world.pairs.item_ids.tolist(), world.pairs.items, strict=True))
    for step in range(4):
        batch = made.batch(step)
        own = 0
        for name, picture, (_, text) in zip(batch.names, pixels(batch.sides["query"]), rows(world, batch.sides["query"]), strict=True):
            known = world.store.take(samples[name].image_ids)
            own += not text and any(torch.equal(picture[0], k) for k in known)
        assert own == count


def test_hard_negatives_are_shown_once_each_with_their_products(make: Any, world: Any) -> None:
    count = len(world.pairs.items)
    hard = np.stack([(np.arange(count) + 1) % count, np.full(count, -1)], 1)
    hard[::2] = -1  # every second item has none
    batch = make(hard=hard).batch(0)
    row_of = {int(name): row for row, name in enumerate(world.pairs.item_ids)}
    wanted = sorted({(row_of[name] + 1) % count for name in batch.names if row_of[name] % 2})
    _, rich = item_tokens(world)
    room = world.encoder.layout.max_tokens - len(world.encoder.layout.picture())
    expected = [(1, rich[int(world.pairs.item_ids[row])][:room]) for row in wanted]
    assert rows(world, batch.sides["negative"]) == expected
    assert batch.negative_product.tolist() == world.pairs.spu_ids[wanted].tolist()
    assert "negative" not in make(hard=np.full((count, 2), -1)).batch(0).sides


def test_levels_show_the_items_as_pictures_alone_and_as_text_alone(make: Any, world: Any) -> None:
    batch = make(levels=True).batch(0)
    _, rich = item_tokens(world)
    assert set(batch.sides) == {"query", "item", "item_image", "item_text"}
    assert rows(world, batch.sides["item_image"]) == [(1, [])] * 8
    assert rows(world, batch.sides["item_text"]) == [(0, rich[name]) for name in batch.names]


def test_products_are_spus_unless_they_are_said_to_be_something_else(make: Any, world: Any) -> None:
    batch = make().batch(0)
    spus = dict(zip(world.pairs.item_ids.tolist(), world.pairs.spu_ids.tolist(), strict=True))
    assert batch.product.tolist() == [spus[name] for name in batch.names]
    alone = make(product=world.pairs.item_ids).batch(0)
    assert alone.product.tolist() == list(alone.names)


def test_a_part_of_a_side_has_its_rows_without_padding_that_none_of_them_needs(make: Any, world: Any) -> None:
    side = make({"pictures": 2}).batch(0).sides["query"]
    parts = [side.part(0, 3), side.part(3, 4), side.part(4, 8)]
    assert [row for part in parts for row in rows(world, part)] == rows(world, side)
    assert torch.equal(torch.cat([part.pixels for part in parts]), side.pixels)
    assert all(part.input_ids.shape[1] == int(part.attention_mask.sum(1).max()) for part in parts)


def test_the_same_pair_is_changed_anew_in_each_step_and_each_process(make: Any, world: Any) -> None:
    pictured = np.array([n for n, q in enumerate(world.pairs.query) if world.pairs.queries[q].image_ids])
    made = make({"augment": True}, pairs=one_picture(world.pairs.only(pictured[:1])))
    first, other, half, second = made.batch(0), made.batch(1), made.batch(0, 0, 2), made.batch(0, 1, 2)
    assert first.names == other.names
    assert not torch.equal(first.sides["query"].pixels, other.sides["query"].pixels)
    assert not torch.equal(half.sides["query"].pixels, second.sides["query"].pixels)


def test_pair_types_are_mixed_so_that_each_process_gets_some_of_each(make: Any) -> None:
    made = make({"batch": 16}, kinds={"text:rich": 1.0, "image:image": 1.0})
    orders = [made.batch(step).sides["query"].pictures for step in range(3)]
    assert len(set(orders)) == 3
    assert all(sorted(order) == [0] * 8 + [1] * 8 for order in orders)
    assert all(0 < sum(order[:8]) < 8 for order in orders)


def test_pictures_grow_over_equal_parts_of_a_stage(make: Any, world: Any) -> None:
    """Smaller pictures are fewer tokens, are the same pictures by area, and stand in the same pairs."""
    growing, whole = make(sizes=[8, 12, 16], count=5), make()
    sides = [growing.batch(step).sides["item"] for step in range(5)]
    assert [side.pixels.shape[-1] for side in sides] == [8, 8, 12, 12, 16]
    assert growing.batch(9).sides["query"].pixels.shape[-1] == 16  # accumulation's last batches, and any after
    large, layout = whole.batch(0).sides["item"], world.encoder.layout_at(8)
    lengths = sides[0].attention_mask.sum(1).tolist()
    for (pictures, text), length, small in zip(rows(world, large), lengths, sides[0].input_ids, strict=True):
        marks = pictures * len(layout.picture())
        assert small[marks:length].tolist() == text[: length - marks]
    torch.testing.assert_close(sides[0].pixels, torch.nn.functional.avg_pool2d(large.pixels.float(), 2))


def test_a_smaller_picture_is_lit_and_cut_out_as_a_large_one_is(make: Any) -> None:
    side = make(EVERYTHING, sizes=[8], count=4).batch(1).sides["query"]
    assert side.pixels.shape[1:] == (3, 8, 8)
    assert side.pixels.min() >= 0
    assert side.pixels.max() <= 255


@pytest.mark.parametrize("seed", range(4))
def test_items_that_belong_together_are_paired_both_ways_eight_of_a_query_or_a_product(world: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, products = len(world.pairs.items), [1, 3, 20, 10_000][seed]
    query, item = rng.integers(0, 12, 150), rng.integers(0, count, 150)
    pairs = replace(world.pairs, query=query, item=item, spu_ids=rng.integers(0, products, count))
    expected = set()
    for groups, members in ((query, item), (pairs.spu_ids, np.arange(count))):
        for group in np.unique(groups):
            some = members[groups == group][:8].tolist()
            expected |= {(a, b) for a in some for b in some if a != b}
    assert _together(pairs).tolist() == [list(pair) for pair in sorted(expected)]
    none = replace(pairs, query=query[:0], item=item[:0], spu_ids=np.arange(count))
    assert _together(none).shape == (0, 2)
