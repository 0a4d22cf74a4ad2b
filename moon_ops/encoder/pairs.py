"""Query → item: the pairs that the encoder learns from, as they were known at ``trained_until``.

P pairs over Q queries and I items; rows of the two sample lists stand for them everywhere. K (query, item) are known as positive.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops.dealing import Deal, here
from moon_ops.encoder import acts as happened
from moon_ops.encoder.acts import Acts, Times
from moon_ops.encoder.positives import alike, distinct
from moon_ops.encoder.samples import Samples, Texts, rows_of
from moon_ops.errors import StageError
from moon_ops.inputs.contract import Sample, item_sample, query_sample
from moon_ops.lake import counting
from moon_ops.lake.lake import Lake
from moon_ops.lake.tables import items_as_of
from moon_ops.recipes.caps import Caps, Most
from moon_ops.recipes.encoder import EVENTS

if TYPE_CHECKING:
    from moon_ops.encoder.texts import Words

Rows = NDArray[np.int64]
PLAIN, ALL = Caps(), Most()
READ = ["title", "category", "brand", "attributes", "description", "image_ids"]  # of an item
MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)  # of SplitMix64: odd, with bits of all places


@dataclass(frozen=True)
class Pairs:
    """What users did after which query; ``query`` and ``item`` [P] are rows of the two sample lists."""

    queries: Sequence[Sample]  # of a shop Samples: columns
    items: Sequence[Sample]
    item_ids: Rows  # [I]
    spu_ids: Rows  # [I]
    categories: Rows  # [I], a number per leaf category, -1 for none
    query: Rows  # [P]
    item: Rows  # [P]
    event: Rows  # [P], the strongest: place in EVENTS
    group: Rows  # [Q], of each query: the same words and picture asked again are one group, whatever their ids
    known: Rows  # [K, 2], group and item row: all that was clicked, carted or bought, also what makes no pair
    exposed: Rows  # [E], rows of the items that users were shown, as often as they were
    acted: Rows = field(default_factory=lambda: np.zeros(0, np.int64))  # [Q], microseconds since 1970 of the first act after each query
    left_out: dict[str, int] = field(default_factory=dict)  # events by cap, and in except_between; undone: purchases; most.*: pairs
    words: Words | None = None  # the texts of both, if somebody has made tokens of them

    def __len__(self) -> int:
        return len(self.query)

    def only(self, chosen: Rows | NDArray[np.bool_]) -> Pairs:
        """The same queries and items with some of the pairs."""
        return replace(self, query=self.query[chosen], item=self.item[chosen], event=self.event[chosen])

    def of(self, events: Sequence[str]) -> Pairs:
        """The pairs whose strongest event is one of ``events``."""
        return self.only(np.isin(self.event, [EVENTS.index(e) for e in events]))

    def joined(self, label: Rows) -> Pairs:
        """The same pairs with the groups of those together whose ``label`` [P] is the same; a group's own labels are one or all its own."""
        groups, count = self.group[self.query], int(max(self.group.max(initial=-1), self.known[:, 0].max(initial=-1))) + 1
        least = np.arange(count) + int(label.max(initial=0)) + 1  # of a group without a pair: a label of its own
        np.minimum.at(least, groups, label)
        number = np.unique(least, return_inverse=True)[1].astype(np.int64)
        return replace(self, group=number[self.group], known=distinct(number[self.known[:, 0]], self.known[:, 1]))

    def image_ids(self) -> Texts:
        """Every picture that training may look at, each once: first those of queries."""
        asked, items = Samples.of(self.queries).take(np.unique(self.query)), Samples.of(self.items)
        return asked.names.flat.distinct(items.names.flat)


def behaviour(
    lake: Lake, trained_until: dt.datetime, caps: Caps = PLAIN, most: Most = ALL, excepted: Times | None = None, *, deal: Deal = here
) -> Pairs:
    """Clicks, carts and purchases after a query and before ``trained_until``, with the item versions valid then.

    Of one query the pairs of its strongest event are kept: who bought one of the three things clicked on wanted that one. What was
    cancelled or returned by then was not bought. Events beyond ``caps`` make no pairs, and ``most`` bounds those of a
    visitor, an item or a query. Of events in ``excepted`` nothing is known at all. Events are read by days, wherever ``deal`` has it done.
    Raises :class:`StageError` if there are fewer than two: nothing could be contrasted.
    """
    done, items = happened.acts(lake, trained_until, caps, excepted, deal), items_as_of(lake, trained_until)
    acts, item_ids = done.rows, items["item_id"].to_numpy()
    (asked, bought, strength), beyond = _learned(acts, item_ids, most)
    if len(asked) < 2:
        raise StageError(
            f"the lake has {len(asked)} clicks, carts and purchases after a query before trained_until = "
            f"{trained_until:%Y-%m-%dT%H:%MZ}: too few",
            action="ingest events, or train until a later time",
        )
    queries = lake.read("queries", ["query_id", "text", "image_id"]).sort_by("query_id")
    known = queries["query_id"].to_numpy()
    keep = np.isin(asked, known)
    asked, bought, strength = asked[keep], bought[keep], strength[keep]
    used, query = np.unique(np.searchsorted(known, asked), return_inverse=True)
    groups, positive = _known(acts, queries, item_ids)
    return Pairs(
        queries=Samples.of(query_sample(q) for q in rows_of(queries.take(pa.array(used)))),
        items=Samples.of(item_sample(i) for i in rows_of(items.select(READ))),
        item_ids=item_ids,
        spu_ids=items["spu_id"].to_numpy(),
        categories=_leaves(items),
        query=query.astype(np.int64),
        item=np.searchsorted(item_ids, bought),
        event=strength,
        group=groups[used],
        known=positive,
        exposed=_exposed(done, item_ids),
        acted=_acted(acts, known[used]),
        left_out=done.left_out | beyond,
    )


def _known(acts: pa.Table, queries: pa.Table, item_ids: Rows) -> tuple[Rows, Rows]:
    """The group [N] of each of ``queries``, -1 of those that led to nothing, and each group with what was chosen after it [K, 2].

    What training pairs leave out is there, too: the weaker of a query's events, and what is beyond ``most``.
    """
    asked, chosen, known = acts["query_id"].to_numpy(), acts["item_id"].to_numpy(), queries["query_id"].to_numpy()
    there = np.isin(asked, known) & np.isin(chosen, item_ids)
    row, item = np.searchsorted(known, asked[there]), np.searchsorted(item_ids, chosen[there])
    used = np.unique(row)
    some = queries.take(pa.array(used))
    groups = np.full(len(known), -1, np.int64)
    groups[used] = alike((query["text"] for query in rows_of(some)), (query["image_id"] for query in rows_of(some)))
    return groups, distinct(groups[row], item)


def _exposed(done: Acts, item_ids: Rows) -> Rows:
    """The row of each impression's item [E]."""
    there = np.isin(done.shown, item_ids)
    return np.repeat(np.searchsorted(item_ids, done.shown[there]), done.times[there])


def _acted(acts: pa.Table, query_ids: Rows) -> Rows:
    """When the first act after each of the queries was [Q], in microseconds since 1970; each has one."""
    found = acts.group_by("query_id").aggregate([("event_timestamp", "min")]).sort_by("query_id")
    times = found["event_timestamp_min"].cast(pa.int64()).to_numpy()
    return times[np.searchsorted(found["query_id"].to_numpy(), query_ids)]


def _learned(acts: pa.Table, item_ids: Rows, most: Most) -> tuple[tuple[Rows, Rows, Rows], dict[str, int]]:
    """The pairs that :func:`_strongest` finds, as many of each visitor, query and item as ``most`` allows; and how many are left out."""
    kept = counting.newest(acts, Most(visitor=most.visitor))
    pairs, left_out = _strongest(kept.events, item_ids), kept.left_out
    for name, column, cap in (("query", 0, most.query), ("item", 1, most.item)):
        few = _few(pairs[column], pairs[0], pairs[1], cap) if cap else np.ones(len(pairs[0]), bool)
        if not few.all():
            left_out[f"most.{name}"] = int((~few).sum())
            pairs = pairs[0][few], pairs[1][few], pairs[2][few]
    return pairs, left_out


def _few(key: Rows, asked: Rows, bought: Rows, cap: int) -> NDArray[np.bool_]:
    """Which pairs [P] are among the ``cap`` of their ``key`` [P], chosen by a hash of query and item: the same ones at each run."""
    if not len(key) or np.unique(key, return_counts=True)[1].max() <= cap:
        return np.ones(len(key), bool)
    mixed = (asked.astype(np.uint64) * MIX[0] ^ bought.astype(np.uint64)) * MIX[1]
    order = np.lexsort((mixed ^ (mixed >> np.uint64(32)), key))
    starts = np.flatnonzero(np.append(True, key[order][1:] != key[order][:-1]))
    place = np.arange(len(key)) - np.repeat(starts, np.diff(starts, append=len(key)))
    few = np.empty(len(key), bool)
    few[order] = place < cap
    return few


def _strongest(kept: pa.Table, item_ids: Rows) -> tuple[Rows, Rows, Rows]:
    """Query id, item id and strength [P] of each query's strongest event, each pair once, in order of the ids."""
    asked, bought = kept["query_id"].to_numpy(), kept["item_id"].to_numpy()
    strength = pc.index_in(kept["event"], pa.array(EVENTS)).to_numpy().astype(np.int64)
    there = np.isin(bought, item_ids)
    asked, bought, strength = asked[there], bought[there], strength[there]
    order = np.lexsort((bought, -strength, asked))
    asked, bought, strength = asked[order], bought[order], strength[order]
    if not len(asked):
        return asked, bought, strength
    first = np.r_[True, asked[1:] != asked[:-1]]
    strongest = strength[first][np.cumsum(first) - 1]
    again = np.r_[False, (asked[1:] == asked[:-1]) & (bought[1:] == bought[:-1])]
    keep = (strength == strongest) & ~again
    return asked[keep], bought[keep], strength[keep]


def _leaves(items: pa.Table) -> Rows:
    """A number for each distinct leaf category, in the order of their names; -1 for an item without one."""
    levels = (item["category"] for item in rows_of(items.select(["category"])))
    leaves = Texts.of(level[-1] if level else "" for level in levels).column.dictionary_encode()
    known = leaves.dictionary.to_pylist()
    names = {name: number for number, name in enumerate(sorted(set(known) - {""}))}
    return np.array([names.get(leaf, -1) for leaf in known], np.int64)[leaves.indices.to_numpy()]
