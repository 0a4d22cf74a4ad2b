"""The golden set that an encoder's variants are judged on: what the shop's users asked and bought before the encoder's training ended."""

from __future__ import annotations

import datetime as dt

import numpy as np

from moon_ops.encoder.pairs import behaviour
from moon_ops.encoder.variants import Golden
from moon_ops.inputs.contract import Layout
from moon_ops.inputs.images import decode
from moon_ops.inputs.regions import views
from moon_ops.lake.lake import Lake
from moon_ops.lake.tables import image_bytes

EXPORTED = (100, 300)  # queries and items on which graphs are compared with the model itself, which is slow
QUERIES, ITEMS = 400, 1500  # a recall of .5 is then known to ± .05, and a loss, being paired, to about a fifth of that


def golden(lake: Lake, layout: Layout, until: dt.datetime, *, queries: int = QUERIES, items: int = ITEMS) -> Golden:
    """Up to ``queries`` of the pairs before ``until``, drawn with a fixed seed, and the items among which each is to find its own."""
    pairs = behaviour(lake, until)
    generator = np.random.default_rng(0)
    drawn = np.sort(generator.permutation(len(pairs))[:queries])
    bought = np.unique(pairs.item[drawn])
    others = np.setdiff1d(generator.permutation(len(pairs.items)), bought)[: max(0, items - len(bought))]
    kept = np.sort(np.concatenate([bought, others]))
    asked, shown = [pairs.queries[q] for q in pairs.query[drawn]], [pairs.items[i] for i in kept]
    wanted = dict.fromkeys(i for sample in (*asked, *shown) for i in sample.image_ids[: layout.max_pictures])
    pixels = {name: views(decode(content), layout.picture_size, layout.core_region) for name, content in image_bytes(lake, list(wanted))}
    return Golden(asked, shown, np.searchsorted(kept, pairs.item[drawn]).tolist(), pixels)
