"""How one product (SPU) is designed and which items (SKUs) are sold of it.

Each is drawn from its own generator, so it is the same whatever the length of the simulation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moon_ops.shops.simulated import titles
from moon_ops.shops.simulated.drawing import Look, Rgb
from moon_ops.shops.simulated.fabric import MARKS, MOTIFS, PATTERNS, TEXTURES
from moon_ops.shops.simulated.parameters import CATALOGUE, ShopSize
from moon_ops.shops.simulated.randomness import Stream, generator
from moon_ops.shops.simulated.vocabulary import AUDIENCES, BRANDS, CATEGORIES, COLOURS, NEUTRALS, OCCASIONS, TIERS

SKU_COUNTS = np.arange(2, 2 + len(CATALOGUE.sku_shares))  # how many items a product may have
VARIANTS = 3  # silhouettes of each category


@dataclass(frozen=True)
class Product:
    """What all items of a product share. ``available_from`` is µs after the start (negative for the first stock).

    ``look`` and ``facts`` still lack colours; ``log_price`` is relative to the category's usual price.
    """

    spu_id: int
    category: int
    seller_id: int
    tier: int
    available_from: int
    look: Look
    facts: titles.Facts
    log_price: float
    log_popularity: float
    quality: float


@dataclass(frozen=True)
class Item:
    """One item for sale. Colours are positions in ``COLOURS``; ``views`` is its number of studio pictures."""

    item_id: int
    product: Product
    colour: int
    second_colour: int
    look: Look
    facts: titles.Facts
    title: str
    description: str
    attributes: dict[str, str]
    price: float
    log_price: float
    log_popularity: float
    quality: float
    views: int


def design(size: ShopSize, *, seed: int, spu_id: int, available_from: int) -> Product:
    """Product ``spu_id``, the same for equal arguments."""
    rng = generator(seed, Stream.SPU, spu_id)
    category = _deal(seed, spu_id - 1)
    seller_id, tier = _seller(size, rng)
    look, facts = _idea(category, rng)
    popularity = min((1 - rng.random()) ** (-1 / CATALOGUE.popularity_tail), CATALOGUE.popularity_limit)
    return Product(
        spu_id=spu_id,
        category=category,
        seller_id=seller_id,
        tier=tier,
        available_from=available_from,
        look=look,
        facts=facts,
        log_price=rng.normal(0, CATALOGUE.price_sigma),
        log_popularity=float(np.log(popularity)),
        quality=rng.normal(0, CATALOGUE.spu_quality_sigma),
    )


def items_of(product: Product, *, seed: int, first_id: int) -> list[Item]:
    """The product in two to four colours, with ids from ``first_id``; now and then the last is in another pattern."""
    rng = generator(seed, Stream.SKU, product.spu_id)
    count = int(rng.choice(SKU_COUNTS, p=CATALOGUE.sku_shares))
    colours = rng.permutation(len(COLOURS))[:count].tolist()
    patterns = [product.look.pattern] * count
    if rng.random() < CATALOGUE.pattern_by_sku_share:
        patterns[-1] = _pattern(rng)
    return [
        _item(product, first_id + k, colour, pattern, generator(seed, Stream.SKU, product.spu_id, k))
        for k, (colour, pattern) in enumerate(zip(colours, patterns, strict=True))
    ]


def _deal(seed: int, number: int) -> int:
    """The category of product ``number``: dealt from a shuffled deck, so that the smallest shop has every category."""
    deck = np.repeat(np.arange(len(CATEGORIES)), [category.weight for category in CATEGORIES])
    return int(generator(seed, Stream.DECK, number // len(deck)).permutation(deck)[number % len(deck)])


def _seller(size: ShopSize, rng: np.random.Generator) -> tuple[int, int]:
    """A seller's id (from 1, the largest first) and tier (position in ``TIERS``)."""
    sellers = max(len(TIERS), size.items // CATALOGUE.items_per_seller)
    share = np.arange(1, sellers + 1) ** -CATALOGUE.seller_tail
    rank = int(np.searchsorted(np.cumsum(share) / share.sum(), rng.random()))
    large = max(1, round(sellers * CATALOGUE.large_seller_share))
    medium = large + max(1, round(sellers * CATALOGUE.medium_seller_share))
    return rank + 1, int(rank >= large) + int(rank >= medium)


def _idea(category: int, rng: np.random.Generator) -> tuple[Look, titles.Facts]:
    """Silhouette, pattern, texture, motif and brand of a product, and its words."""
    kind = CATEGORIES[category]
    brand = int(rng.integers(len(BRANDS)))
    look = Look(
        category=kind.silhouette,
        variant=int(rng.integers(VARIANTS)),
        shape=tuple(rng.random(6).tolist()),
        primary=(0, 0, 0),
        secondary=(0, 0, 0),
        pattern=_pattern(rng),
        pattern_repeats=rng.uniform(*CATALOGUE.pattern_repeats),
        pattern_angle=float(rng.integers(4) * np.pi / 4 + rng.normal(0, 0.05)),
        texture=_one(TEXTURES, rng),
        motif=_one(MOTIFS[1:], rng) if rng.random() < CATALOGUE.motif_share else MOTIFS[0],
        motif_scale=rng.uniform(*CATALOGUE.motif_scale),
        mark=MARKS[brand % len(MARKS)],
    )
    facts = titles.Facts(
        category=category,
        colour=0,
        brand=BRANDS[brand],
        material=_one(kind.materials, rng),
        occasion=_one(OCCASIONS, rng),
        audience=_one(AUDIENCES, rng),
        size=_one(kind.sizes, rng),
        pattern=look.pattern,
        motif=look.motif,
    )
    return look, facts


def _one(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


def _pattern(rng: np.random.Generator) -> str:
    return PATTERNS[0] if rng.random() < CATALOGUE.plain_share else _one(PATTERNS[1:], rng)


def _item(product: Product, item_id: int, colour: int, pattern: str, rng: np.random.Generator) -> Item:
    """One SKU: its colours, its price near the product's, and the words its seller found for it."""
    choices = np.arange(len(COLOURS)) if rng.random() < CATALOGUE.two_tone_share else np.array(NEUTRALS)
    second = int(rng.choice(choices[choices != colour]))
    look = replace(product.look, primary=_shade(colour, rng), secondary=_shade(second, rng), pattern=pattern)
    facts, tier = replace(product.facts, colour=colour, pattern=pattern), TIERS[product.tier]
    log_price = product.log_price + rng.normal(0, CATALOGUE.sku_price_sigma)
    return Item(
        item_id=item_id,
        product=product,
        colour=colour,
        second_colour=second,
        look=look,
        facts=facts,
        title=titles.title(facts, tier, rng),
        description=titles.description(facts, rng),
        attributes=titles.attributes(facts, tier, rng),
        price=round(CATEGORIES[product.category].price * float(np.exp(log_price)), 2),
        log_price=log_price,
        log_popularity=product.log_popularity + rng.normal(0, CATALOGUE.sku_popularity_sigma),
        quality=product.quality + rng.normal(0, CATALOGUE.sku_quality_sigma),
        views=int(rng.choice((1, 2, 3), p=CATALOGUE.view_shares)),
    )


def _shade(colour: int, rng: np.random.Generator) -> Rgb:
    """A colour of the family, as one maker happens to dye it."""
    centre = np.array(COLOURS[colour].rgb)
    red, green, blue = np.clip(centre + rng.normal(0, CATALOGUE.colour_jitter, 3), 0, 255).astype(int).tolist()
    return red, green, blue
