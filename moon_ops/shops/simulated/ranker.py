"""The search that the shop has today: retrieve candidates, score them, show a list.

It knows relevance only through noise. What it shows is the exposure that every later model learns from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moon_ops.shops.simulated.catalogue import DAY_MICROSECONDS, Catalogue
from moon_ops.shops.simulated.parameters import MATCH, SESSIONS
from moon_ops.shops.simulated.sessions import Rows, Shelves, Visits, siblings
from moon_ops.shops.simulated.vocabulary import CATEGORIES


@dataclass(frozen=True)
class Impressions:
    """What was shown on a day, as columns [I] in order of session and position.

    ``session`` is a position in the day's visits, ``item`` a row of the catalogue; ``position`` counts from 1;
    ``match`` is how well the item answers the session's intent (0 to 1).
    """

    session: Rows
    item: Rows
    position: Rows
    match: NDArray[np.float64]


def match(intent: Rows, item: Rows, catalogue: Catalogue) -> NDArray[np.float64]:
    """How well ``item`` answers ``intent`` (broadcast): 1 itself, siblings less, strangers little."""
    facets = catalogue.facets
    shared = np.zeros(np.broadcast_shapes(intent.shape, item.shape))
    for facet in ("colour", "pattern", "motif", "variant", "texture"):
        shared += getattr(MATCH, facet) * (facets[facet][intent] == facets[facet][item])
    stranger = MATCH.same_category * shared * (catalogue.category[intent] == catalogue.category[item])
    answer = np.where(catalogue.spu_id[intent] == catalogue.spu_id[item], MATCH.sibling, stranger)
    return np.where(intent == item, 1.0, answer)


def show(shelves: Shelves, visits: Visits, *, rng: np.random.Generator) -> Impressions:
    """The list that each visit gets."""
    catalogue = shelves.catalogue
    candidates = _retrieve(shelves, visits, rng)  # [S, C]
    relevance = match(visits.intent[:, None], candidates, catalogue)
    score = _score(catalogue, visits, candidates, relevance, rng)
    score[_repeated(candidates)] = -np.inf
    missed = rng.random(len(visits.user)) < SESSIONS.intent_missing
    score[missed[:, None] & (candidates == visits.intent[:, None])] = -np.inf
    return _cut(candidates, relevance, score, rng)


def _retrieve(shelves: Shelves, visits: Visits, rng: np.random.Generator) -> Rows:
    """Candidates of each visit [S, C]: the product in mind, best sellers, others, and some of another category."""
    count = len(visits.user)

    def chances(candidates: int) -> NDArray[np.float64]:
        return rng.random((count, candidates))

    foreign = (visits.category + rng.integers(1, len(CATEGORIES), count)) % len(CATEGORIES)
    return np.concatenate(
        [
            siblings(shelves.catalogue, visits.intent),
            shelves.draw(visits.category, visits.start, chances(SESSIONS.popular_candidates), popular=True),
            shelves.draw(visits.category, visits.start, chances(SESSIONS.other_candidates), popular=False),
            shelves.draw(foreign, visits.start, chances(SESSIONS.foreign_candidates), popular=True),
        ],
        axis=1,
    )


def _score(
    catalogue: Catalogue, visits: Visits, candidates: Rows, relevance: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Noisy relevance, popularity and a lift for new items, [S, C]."""
    weight = np.where(visits.by_image, SESSIONS.image_relevance, SESSIONS.text_relevance)[:, None]
    age = visits.start[:, None] - catalogue.available_from[candidates]
    new = age < SESSIONS.new_days * DAY_MICROSECONDS
    popularity = SESSIONS.popularity_weight * catalogue.log_popularity[candidates]
    return weight * relevance + popularity + SESSIONS.new_boost * new + rng.normal(size=candidates.shape)


def _repeated(candidates: Rows) -> NDArray[np.bool_]:
    """Which candidates of a row were already met further left in some order, [S, C]: one of each stays."""
    order = np.argsort(candidates, axis=1, kind="stable")
    ordered = np.take_along_axis(candidates, order, axis=1)
    repeated = np.zeros(candidates.shape, dtype=bool)
    np.put_along_axis(repeated, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return repeated


def _cut(candidates: Rows, relevance: NDArray[np.float64], score: NDArray[np.float64], rng: np.random.Generator) -> Impressions:
    """The best of each row, as many as the visitor scrolls through."""
    shortest, longest = SESSIONS.list_lengths
    best = np.argsort(-score, axis=1, kind="stable")[:, :longest]  # [S, L]
    length = rng.integers(shortest, longest + 1, len(best))
    shown = np.isfinite(np.take_along_axis(score, best, axis=1)) & (np.arange(longest) < length[:, None])
    session, place = np.nonzero(shown)
    column = best[session, place]
    return Impressions(session, candidates[session, column], place + 1, relevance[session, column])
