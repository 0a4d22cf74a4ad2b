"""The catalogue: which products arrive when, and their items as columns.

The first stock is there from the start. Late in the base length others begin to arrive at a constant rate, and go on
arriving in a longer simulation; items keep their ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moon_ops.shops.simulated.fabric import MOTIFS, PATTERNS, TEXTURES
from moon_ops.shops.simulated.parameters import CATALOGUE, ShopSize
from moon_ops.shops.simulated.products import SKU_COUNTS, VARIANTS, Item, design, items_of
from moon_ops.shops.simulated.randomness import Stream, generator
from moon_ops.shops.simulated.vocabulary import COLOURS

DAY_MICROSECONDS = 86_400_000_000

# How many values each visual facet has; an item's value is a position among them.
FACETS = {
    "colour": len(COLOURS),
    "second_colour": len(COLOURS),
    "pattern": len(PATTERNS),
    "texture": len(TEXTURES),
    "motif": len(MOTIFS),
    "variant": VARIANTS,
}


@dataclass(frozen=True)
class Catalogue:
    """All items in the order of their ids (1, 2, …). An item's *row* is ``item_id - 1``; columns are arrays [items]."""

    items: tuple[Item, ...]

    def _integers(self, value: Callable[[Item], int]) -> NDArray[np.int64]:
        return np.array([value(item) for item in self.items], dtype=np.int64)

    def _floats(self, value: Callable[[Item], float]) -> NDArray[np.float64]:
        return np.array([value(item) for item in self.items], dtype=np.float64)

    @cached_property
    def spu_id(self) -> NDArray[np.int64]:
        """Ascending: the items of a product stand next to each other."""
        return self._integers(lambda item: item.product.spu_id)

    @cached_property
    def category(self) -> NDArray[np.int64]:
        """Position in ``CATEGORIES``."""
        return self._integers(lambda item: item.product.category)

    @cached_property
    def tier(self) -> NDArray[np.int64]:
        """The seller's position in ``TIERS``."""
        return self._integers(lambda item: item.product.tier)

    @cached_property
    def available_from(self) -> NDArray[np.int64]:
        """Microseconds after the start of the simulation, negative for the first stock."""
        return self._integers(lambda item: item.product.available_from)

    @cached_property
    def log_price(self) -> NDArray[np.float64]:
        """Log of price over the category's usual price."""
        return self._floats(lambda item: item.log_price)

    @cached_property
    def log_popularity(self) -> NDArray[np.float64]:
        """Log of how often an item comes to mind, 0 for the weakest product."""
        return self._floats(lambda item: item.log_popularity)

    @cached_property
    def quality(self) -> NDArray[np.float64]:
        """What makes an item click better than its looks say, in logits."""
        return self._floats(lambda item: item.quality)

    @cached_property
    def facets(self) -> dict[str, NDArray[np.int64]]:
        """What each item shows, by facet (see ``FACETS``)."""
        return {
            "colour": self._integers(lambda item: item.colour),
            "second_colour": self._integers(lambda item: item.second_colour),
            "pattern": self._integers(lambda item: PATTERNS.index(item.look.pattern)),
            "texture": self._integers(lambda item: TEXTURES.index(item.look.texture)),
            "motif": self._integers(lambda item: MOTIFS.index(item.look.motif)),
            "variant": self._integers(lambda item: item.look.variant),
        }


def stock(size: ShopSize, *, seed: int, days: int) -> Catalogue:
    """Every item that is available before day ``days`` ends."""
    items: list[Item] = []
    for number in range(_products(size, days)):
        product = design(size, seed=seed, spu_id=number + 1, available_from=_arrival(size, seed, number))
        items += items_of(product, seed=seed, first_id=len(items) + 1)
    return Catalogue(tuple(items))


def _schedule(size: ShopSize) -> tuple[int, float, float]:
    """How many products there are from the start, the day from which others arrive, and how many arrive a day."""
    products = size.items / float(np.dot(SKU_COUNTS, CATALOGUE.sku_shares))
    first_stock = round(products * (1 - CATALOGUE.new_share))
    new_from = CATALOGUE.new_from * size.days
    return first_stock, new_from, (products - first_stock) / (size.days - new_from)


def _products(size: ShopSize, days: int) -> int:
    """How many products have arrived before day ``days`` ends."""
    first_stock, new_from, rate = _schedule(size)
    arrived = max(0.0, days - new_from) * rate
    return first_stock + math.ceil(round(arrived, 6))  # rounded, or 8.0000001 would be nine


def _arrival(size: ShopSize, seed: int, number: int) -> int:
    """When product ``number`` (from 0) becomes available, in whole milliseconds given as µs after the start."""
    first_stock, new_from, rate = _schedule(size)
    if number < first_stock:
        day = -CATALOGUE.stock_days * (1 - generator(seed, Stream.LISTING, number).random())
    else:
        day = new_from + (number - first_stock) / rate
    return math.floor(day * DAY_MICROSECONDS / 1000) * 1000
