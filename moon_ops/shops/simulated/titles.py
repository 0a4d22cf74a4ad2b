"""What sellers and searchers write. Motif and texture are never in a seller's words: only the picture shows them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moon_ops.shops.simulated.parameters import TEXT
from moon_ops.shops.simulated.vocabulary import CATEGORIES, COLOURS, DESCRIPTIONS, JUNK, OCCASIONS, PATTERN_WORDS


@dataclass(frozen=True)
class Facts:
    """What can be put into words about an item. ``category`` and ``colour`` are positions in the vocabulary."""

    category: int
    colour: int
    brand: str
    material: str
    occasion: str
    audience: str
    size: str
    pattern: str
    motif: str


def _maybe(rng: np.random.Generator, probability: float, *words: str) -> list[str]:
    """One of ``words`` with ``probability``, else nothing. Draws twice either way: no choice shifts the next."""
    chance, which = rng.random(2)
    return [words[int(which * len(words))]] if words and chance < probability else []


def title(facts: Facts, tier: str, rng: np.random.Generator) -> str:
    """A seller's title; the smaller the seller, the messier."""
    mess = {"large": 0.5, "medium": 1.0, "small": 1.5}[tier]
    words = _maybe(rng, TEXT.title_brand / max(mess, 0.7), facts.brand)
    words += _maybe(rng, TEXT.title_audience, facts.audience)
    words += _maybe(rng, TEXT.title_colour, *COLOURS[facts.colour].words)
    words += _maybe(rng, TEXT.title_pattern, *PATTERN_WORDS.get(facts.pattern, ()))
    words += _maybe(rng, TEXT.title_material, facts.material)
    words += _maybe(rng, 1.0, *CATEGORIES[facts.category].nouns)
    words += _maybe(rng, TEXT.title_occasion, f"for {facts.occasion}", facts.occasion)
    words += _maybe(rng, TEXT.title_size, facts.size, f"size {facts.size}")
    if rng.random() < TEXT.title_shuffled * mess:
        words = [words[i] for i in rng.permutation(len(words))]
    words = _maybe(rng, TEXT.title_junk * mess * 0.6, *JUNK) + words + _maybe(rng, TEXT.title_junk * mess * 0.6, *JUNK)
    return _typed(_cased(" ".join(words), rng), TEXT.title_typo * mess, rng)


def _cased(text: str, rng: np.random.Generator) -> str:
    """As it came, in title case, in capitals or all small."""
    style = rng.choice(4, p=(0.35, 0.4, 0.07, 0.18))
    return (text, text.title().replace("'S", "'s"), text.upper(), text.lower())[style]


def _typed(text: str, typo: float, rng: np.random.Generator) -> str:
    """With ``typo`` probability two letters change places or one is lost."""
    chance, where, kind = rng.random(3)
    if chance >= typo or len(text) < 4:
        return text
    i = 1 + int(where * (len(text) - 2))
    return text[: i - 1] + text[i] + text[i - 1] + text[i + 1 :] if kind < 0.5 else text[:i] + text[i + 1 :]


def description(facts: Facts, rng: np.random.Generator) -> str:
    """One or two stock sentences; they hold text-only facts (material, occasion, audience, size)."""
    words = {
        **{name: getattr(facts, name) for name in ("material", "size", "occasion", "brand", "audience")},
        "noun": CATEGORIES[facts.category].nouns[0],
        "other_occasion": OCCASIONS[int(rng.integers(len(OCCASIONS)))],
    }
    chosen = rng.permutation(len(DESCRIPTIONS))[: rng.integers(1, 3)]
    return " ".join(DESCRIPTIONS[i].format(**words) for i in chosen)


def attributes(facts: Facts, tier: str, rng: np.random.Generator) -> dict[str, str]:
    """The structured fields as far as the seller filled them in, and ``seller_tier``, which the shop knows."""
    fields = {
        "colour": COLOURS[facts.colour].words[0],
        "material": facts.material,
        "occasion": facts.occasion,
        "audience": facts.audience,
        "size": facts.size,
    }
    kept = rng.random(len(fields)) >= TEXT.attribute_missing
    filled = {name: value for (name, value), keep in zip(fields.items(), kept, strict=True) if keep}
    return {**filled, "seller_tier": tier}


def query_text(facts: Facts, rng: np.random.Generator) -> str:
    """A few words for an item somebody has in mind, as typed into a search box."""
    nouns = CATEGORIES[facts.category].nouns
    words = _maybe(rng, TEXT.query_brand, facts.brand)
    words += _maybe(rng, TEXT.query_colour, *COLOURS[facts.colour].words)
    words += _maybe(rng, TEXT.query_pattern, *PATTERN_WORDS.get(facts.pattern, ()))
    words += _maybe(rng, TEXT.query_material, facts.material)
    noun = _maybe(rng, TEXT.query_synonym, *nouns) or [nouns[0]]
    words += _maybe(rng, TEXT.query_category, *noun)
    words += _maybe(rng, TEXT.query_motif * (facts.motif != "none"), f"with {facts.motif}", facts.motif)
    words += _maybe(rng, TEXT.query_occasion, facts.occasion, f"for {facts.audience}")
    return _typed(" ".join(words[:6] or noun).lower(), TEXT.query_typo, rng)
