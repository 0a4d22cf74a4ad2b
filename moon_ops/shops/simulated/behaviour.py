"""What visitors do with a list: click, put into the cart, buy; and the true probabilities behind it (the oracle)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moon_ops.shops.simulated.parameters import CLICKS, Range, ShopSize
from moon_ops.shops.simulated.randomness import Stream, generator
from moon_ops.shops.simulated.ranker import Impressions, show
from moon_ops.shops.simulated.sessions import Rows, Shelves, Visits, visits
from moon_ops.shops.simulated.users import Users

KINDS = ("impression", "click", "cart", "purchase")  # an event is a position here


@dataclass(frozen=True)
class Events:
    """A day's events as columns [E], sorted by time. ``impression`` is a row of the day's impressions."""

    timestamp: Rows  # µs after the start of the simulation
    kind: Rows
    impression: Rows


@dataclass(frozen=True)
class Day:
    """Everything that happened on one day, and what was likely to: both arrays [I] are in the order of impressions."""

    visits: Visits
    impressions: Impressions
    events: Events
    attraction: NDArray[np.float64]
    click_probability: NDArray[np.float64]


def live(shelves: Shelves, users: Users, size: ShopSize, *, seed: int, day: int) -> Day:
    """Simulate ``day`` (from 0). It needs no other day, and is the same whatever the length of the simulation."""
    rng = generator(seed, Stream.DAY, day)
    came = visits(shelves, users, size, day=day, rng=rng)
    shown = show(shelves, came, rng=rng)
    attraction = _attraction(shelves, users, came, shown)
    click_probability = attraction * shown.position**-CLICKS.examination_decay
    clicked = rng.random(len(attraction)) < click_probability
    carted, bought = _buy(shelves, came, shown, clicked, rng)
    events = _in_time(came, shown, (clicked, carted, bought), rng)
    return Day(came, shown, events, attraction, click_probability)


def _sigmoid(logit: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-logit))


def _attraction(shelves: Shelves, users: Users, came: Visits, shown: Impressions) -> NDArray[np.float64]:
    """The probability of a click once the item is looked at, [I]."""
    catalogue, user = shelves.catalogue, came.user[shown.session]
    dear = np.abs(catalogue.log_price[shown.item] - users.price_level[user]) * users.price_sensitivity[user]
    return _sigmoid(
        CLICKS.base
        + CLICKS.match * shown.match
        + CLICKS.taste * users.taste(user, shown.item, catalogue)
        - CLICKS.price * dear
        + catalogue.quality[shown.item]
        + np.array(CLICKS.seller)[catalogue.tier[shown.item]]
    )


def _buy(
    shelves: Shelves, came: Visits, shown: Impressions, clicked: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which impressions end in the cart and which are bought, each [I]. A visit buys one item at most."""
    image, quality = came.by_image[shown.session], shelves.catalogue.quality[shown.item]
    cart = CLICKS.cart_base + CLICKS.cart_match * shown.match + CLICKS.cart_image * image + CLICKS.cart_quality * quality
    carted = clicked & (rng.random(len(cart)) < _sigmoid(cart))
    purchase = CLICKS.purchase_base + CLICKS.purchase_match * shown.match + CLICKS.purchase_image * image
    bought = carted & (rng.random(len(cart)) < _sigmoid(purchase))
    _, first = np.unique(shown.session[bought], return_index=True)
    once = np.zeros_like(bought)
    once[np.flatnonzero(bought)[first]] = True
    return carted, once


def _in_time(came: Visits, shown: Impressions, outcomes: tuple[NDArray[np.bool_], ...], rng: np.random.Generator) -> Events:
    """Impressions as the list scrolls by; a click seconds later, the cart within minutes, the purchase last."""
    count = len(shown.item)
    scrolled = shown.position - rng.random(count) / 2
    seen = came.start[shown.session] + _microseconds(CLICKS.first_result + CLICKS.each_result * scrolled)
    clicked = seen + _delay(CLICKS.click_delay, count, rng)
    carted = clicked + _delay(CLICKS.cart_delay, count, rng)
    bought = carted + _delay(CLICKS.purchase_delay, count, rng)
    happened = [np.arange(count), *(np.flatnonzero(outcome) for outcome in outcomes)]
    timestamp = np.concatenate([time[rows] for time, rows in zip((seen, clicked, carted, bought), happened, strict=True)])
    kind = np.repeat(np.arange(len(KINDS)), [len(rows) for rows in happened])
    impression = np.concatenate(happened)
    order = np.lexsort((kind, impression, timestamp))
    return Events(timestamp[order], kind[order], impression[order])


def _delay(seconds: Range, count: int, rng: np.random.Generator) -> Rows:
    """At least the first of ``seconds``, plus an exponential time with the second as its mean, in µs."""
    least, mean = seconds
    return _microseconds(least + mean * np.minimum(rng.exponential(size=count), 6))


def _microseconds(seconds: NDArray[np.float64]) -> Rows:
    """Rounded down to whole milliseconds."""
    return (seconds * 1000).astype(np.int64) * 1000
