"""Who shops: tastes, favourite categories, what they like to pay and how often they come."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moon_ops.shops.simulated.catalogue import FACETS, Catalogue
from moon_ops.shops.simulated.parameters import USERS, ShopSize
from moon_ops.shops.simulated.randomness import Stream, generator
from moon_ops.shops.simulated.vocabulary import CATEGORIES

# A user's total taste is the weighted sum of what each facet of an item is worth to them.
FACET_WEIGHTS = {
    "colour": USERS.colour_taste,
    "second_colour": USERS.second_colour_taste,
    "pattern": USERS.pattern_taste,
    "texture": USERS.texture_taste,
    "motif": USERS.motif_taste,
}


@dataclass(frozen=True)
class Users:
    """Users as columns; a user's *row* is ``user_id - 1``.

    ``activity`` [U] sums to 1, as does each row of ``affinity`` [U, categories]; ``price_level`` [U] is a log, relative
    to the category's usual price; ``tastes`` holds an array [U, values] for each facet, 0 where a user does not care.
    """

    activity: NDArray[np.float64]
    affinity: NDArray[np.float64]
    price_level: NDArray[np.float64]
    price_sensitivity: NDArray[np.float64]
    tastes: dict[str, NDArray[np.float64]]

    def taste(self, user: NDArray[np.int64], item: NDArray[np.int64], catalogue: Catalogue) -> NDArray[np.float64]:
        """How much each user likes the looks of each item (rows that broadcast): about 0 ± 1.2 over the shop."""
        total = np.zeros(np.broadcast_shapes(user.shape, item.shape))
        for facet, weight in FACET_WEIGHTS.items():
            total += weight * self.tastes[facet][user, catalogue.facets[facet][item]]
        return total


def population(size: ShopSize, *, seed: int) -> Users:
    """The users of a shop. They are all there from the first day; most come seldom."""
    rng = generator(seed, Stream.USERS)
    activity = rng.lognormal(0, USERS.activity_sigma, size.users)
    weight = np.array([category.weight for category in CATEGORIES], dtype=float)
    affinity = rng.gamma(USERS.categories * weight / weight.mean(), size=(size.users, len(weight))) + 1e-9
    return Users(
        activity=activity / activity.sum(),
        affinity=affinity / affinity.sum(axis=1, keepdims=True),
        price_level=rng.normal(0, USERS.price_level_sigma, size.users),
        price_sensitivity=rng.lognormal(0, USERS.price_sensitivity_sigma, size.users),
        tastes={facet: _likes(size.users, FACETS[facet], rng) for facet in FACET_WEIGHTS},
    )


def _likes(users: int, values: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A few values liked (> 0), as many disliked (< 0), the rest exactly 0: [users, values]."""
    rank = rng.random((users, values)).argsort(axis=1).argsort(axis=1)
    strength = rng.gamma(USERS.taste_shape, 1 / USERS.taste_shape, (users, values))
    liked = rank < max(1, round(USERS.liked_share * values))
    disliked = rank >= values - max(1, round(USERS.disliked_share * values))
    return strength * (liked.astype(float) - disliked)
