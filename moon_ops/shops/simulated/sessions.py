"""A day's visits: who comes when, what each visitor has in mind and whether they type it or photograph it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moon_ops.shops.simulated.catalogue import DAY_MICROSECONDS, Catalogue
from moon_ops.shops.simulated.parameters import SESSIONS, ShopSize
from moon_ops.shops.simulated.users import Users
from moon_ops.shops.simulated.vocabulary import CATEGORIES

Rows = NDArray[np.int64]

FIRST_WEEKDAY = 3  # the simulation starts on a Thursday, 1 January 2026


@dataclass(frozen=True)
class Shelves:
    """Items by category in order of arrival: what is available at a moment is a prefix of each shelf."""

    catalogue: Catalogue

    @cached_property
    def rows(self) -> list[Rows]:
        """Item rows of each category, the earliest arrival first."""
        order = np.argsort(self.catalogue.available_from, kind="stable")
        return [order[self.catalogue.category[order] == c] for c in range(len(CATEGORIES))]

    @cached_property
    def _arrivals(self) -> list[Rows]:
        return [self.catalogue.available_from[rows] for rows in self.rows]

    @cached_property
    def _sales(self) -> list[NDArray[np.float64]]:
        """Cumulative popularity along each shelf."""
        return [np.cumsum(np.exp(self.catalogue.log_popularity[rows])) for rows in self.rows]

    def draw(self, category: Rows, moment: Rows, chance: NDArray[np.float64], *, popular: bool) -> Rows:
        """Items in ``category`` [S] at ``moment`` [S], one for each of ``chance`` [S, K] in 0..1. Returns rows [S, K].

        By popularity, or each as likely as the other.
        """
        drawn = np.empty(chance.shape, dtype=np.int64)
        for c in np.unique(category):
            mine = category == c
            count = np.searchsorted(self._arrivals[c], moment[mine], side="right")[:, None]
            if popular:
                place = np.searchsorted(self._sales[c], chance[mine] * self._sales[c][count - 1], side="right")
            else:
                place = (chance[mine] * count).astype(np.int64)
            drawn[mine] = self.rows[c][np.minimum(place, count - 1)]
        return drawn


@dataclass(frozen=True)
class Visits:
    """A day's sessions as columns [S], in order of time.

    ``start`` is µs after the start of the simulation; ``intent`` is the row of the item in mind,
    ``photographed`` that of the item in the user's picture (-1 for a typed query).
    """

    user: Rows
    start: Rows
    category: Rows
    intent: Rows
    photographed: Rows

    @property
    def by_image(self) -> NDArray[np.bool_]:
        """Whether the query is a picture, [S]."""
        return self.photographed >= 0


def sessions_on(size: ShopSize, day: int) -> int:
    """How many sessions begin on ``day``: fixed, so that ids do not depend on the days before having been simulated."""
    mean_length = sum(SESSIONS.list_lengths) / 2
    factor = SESSIONS.weekday_factors[(FIRST_WEEKDAY + day) % 7]
    return round(size.impressions / mean_length / size.days * factor)


def visits(shelves: Shelves, users: Users, size: ShopSize, *, day: int, rng: np.random.Generator) -> Visits:
    """The visits of ``day`` (from 0)."""
    count = sessions_on(size, day)
    user = np.searchsorted(np.cumsum(users.activity), rng.random(count)).clip(max=size.users - 1)
    start = day * DAY_MICROSECONDS + _time_of_day(count, rng)
    favoured = np.cumsum(users.affinity[user], axis=1)
    category = (favoured < rng.random((count, 1))).sum(axis=1).clip(max=len(CATEGORIES) - 1)
    intent = _intents(shelves, users, user, start, category, rng)
    photographed = np.where(rng.random(count) < SESSIONS.image_share, _seen(shelves.catalogue, intent, rng), -1)
    return Visits(user, start, category, intent, photographed)


def _time_of_day(count: int, rng: np.random.Generator) -> Rows:
    """Sorted starting times in µs after midnight, whole milliseconds."""
    edges = np.concatenate([[0.0], np.cumsum(SESSIONS.hours) / sum(SESSIONS.hours)])
    hour = np.interp(np.sort(rng.random(count)), edges, np.arange(25))
    return (hour / 24 * (86_400 - SESSIONS.longest) * 1000).astype(np.int64) * 1000


def _intents(shelves: Shelves, users: Users, user: Rows, start: Rows, category: Rows, rng: np.random.Generator) -> Rows:
    """Of a few items known by their popularity, the one that taste picks: rows [S]."""
    shape = (len(user), SESSIONS.considered)
    known = shelves.draw(category, start, rng.random(shape), popular=True)
    appeal = SESSIONS.intent_taste * users.taste(user[:, None], known, shelves.catalogue) + rng.gumbel(size=shape)
    return known[np.arange(len(user)), appeal.argmax(axis=1)]


def siblings(catalogue: Catalogue, item: Rows, *, limit: int = 4) -> Rows:
    """The rows of all SKUs of each item's product [S] → [S, limit]; the last repeats where there are fewer."""
    first = np.searchsorted(catalogue.spu_id, catalogue.spu_id[item], side="left")
    last = np.searchsorted(catalogue.spu_id, catalogue.spu_id[item], side="right") - 1
    return np.minimum(first[:, None] + np.arange(limit), last[:, None])


def _seen(catalogue: Catalogue, intent: Rows, rng: np.random.Generator) -> Rows:
    """What stands in front of the camera: the intent, or now and then the product in another colour."""
    family = siblings(catalogue, intent)
    other = family[np.arange(len(intent)), rng.integers(0, family.shape[1], len(intent))]
    return np.where(rng.random(len(intent)) < SESSIONS.photographed_sibling, other, intent)
