"""What moves visitors, seen from inside: match, taste, quality, novelty and popularity. No pictures are drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from moon_ops.shops.simulated.behaviour import Day, live
from moon_ops.shops.simulated.catalogue import Catalogue, stock
from moon_ops.shops.simulated.parameters import ShopSize
from moon_ops.shops.simulated.ranker import match
from moon_ops.shops.simulated.sessions import Shelves, siblings
from moon_ops.shops.simulated.users import Users, population

SIZE = ShopSize(items=900, users=400, impressions=60_000, days=10)


@dataclass(frozen=True)
class World:
    catalogue: Catalogue
    users: Users
    days: list[Day]

    def per_impression(self, value) -> np.ndarray:
        return np.concatenate([value(day) for day in self.days])


def clicked(day: Day) -> np.ndarray:
    outcome = np.zeros(len(day.impressions.item), dtype=bool)
    outcome[day.events.impression[day.events.kind == 1]] = True
    return outcome


@pytest.fixture(scope="module")
def world() -> World:
    catalogue, users = stock(SIZE, seed=3, days=SIZE.days), population(SIZE, seed=3)
    shelves = Shelves(catalogue)
    return World(catalogue, users, [live(shelves, users, SIZE, seed=3, day=day) for day in range(SIZE.days)])


def test_taste_decides_among_items_that_match_equally_badly(world: World) -> None:
    click, fit = world.per_impression(clicked), world.per_impression(lambda day: day.impressions.match)
    taste = world.per_impression(
        lambda day: world.users.taste(day.visits.user[day.impressions.session], day.impressions.item, world.catalogue)
    )
    stranger = fit < 0.5
    low, high = np.quantile(taste[stranger], (0.25, 0.75))
    disliked, liked = click[stranger & (taste < low)].mean(), click[stranger & (taste > high)].mean()
    assert liked > 3 * disliked


def test_the_wanted_item_is_clicked_most_then_its_siblings(world: World) -> None:
    click, fit = world.per_impression(clicked), world.per_impression(lambda day: day.impressions.match)
    wanted, sibling, stranger = click[fit == 1].mean(), click[fit == 0.6].mean(), click[fit < 0.5].mean()
    assert wanted > 2 * sibling > 4 * stranger


def test_quality_shows_though_no_picture_does(world: World) -> None:
    click = world.per_impression(clicked)
    quality = world.per_impression(lambda day: world.catalogue.quality[day.impressions.item])
    assert click[quality > 0.6].mean() > 1.5 * click[quality < -0.6].mean()


def test_clicks_come_as_often_as_their_probability_says(world: World) -> None:
    click = world.per_impression(clicked)
    probability = world.per_impression(lambda day: day.click_probability)
    for part in np.array_split(np.argsort(probability), 5):
        error = np.sqrt((probability[part] * (1 - probability[part])).sum())
        assert abs(click[part].sum() - probability[part].sum()) < 3 * error


def test_tastes_persist_and_are_few(world: World) -> None:
    colour = world.users.tastes["colour"]
    assert ((colour > 0).sum(axis=1) == 3).all()
    assert ((colour < 0).sum(axis=1) == 3).all()


def test_users_keep_to_a_few_categories(world: World) -> None:
    top_three = np.sort(world.users.affinity, axis=1)[:, -3:].sum(axis=1)
    assert np.median(top_three) > 0.75


def test_a_visit_buys_one_item_at_most_and_image_visits_buy_more(world: World) -> None:
    bought = {True: 0, False: 0}
    visits = {True: 0, False: 0}
    for day in world.days:
        session = day.impressions.session[day.events.impression[day.events.kind == 3]]
        assert len(np.unique(session)) == len(session)
        for by_image in bought:
            bought[by_image] += int((day.visits.by_image[session] == by_image).sum())
            visits[by_image] += int((day.visits.by_image == by_image).sum())
    assert bought[True] / visits[True] > 1.5 * bought[False] / visits[False] > 0.1


def test_the_wanted_item_is_shown_in_four_visits_of_five(world: World) -> None:
    found = [np.isin(np.arange(len(day.visits.user)), day.impressions.session[day.impressions.match == 1]).mean() for day in world.days]
    assert np.mean(found) == pytest.approx(0.8, abs=0.05)


def test_new_items_are_shown_from_their_first_day(world: World) -> None:
    for day in (8, 9):
        arrived = np.flatnonzero(world.catalogue.available_from // 86_400_000_000 == day)
        assert len(arrived) > 50
        seen = np.isin(arrived, world.days[day].impressions.item)
        assert seen.mean() > 0.5


def test_lists_hold_no_item_twice_and_positions_have_no_gap(world: World) -> None:
    shown = world.days[0].impressions
    assert len(np.unique(np.stack([shown.session, shown.item]), axis=1).T) == len(shown.item)
    first = np.flatnonzero(shown.position == 1)
    assert (np.diff(shown.position)[np.setdiff1d(np.arange(len(shown.item) - 1), first - 1)] == 1).all()
    lengths = np.diff(np.append(first, len(shown.item)))
    assert 6 <= lengths.min() <= lengths.max() <= 14


def test_every_moment_of_a_visit_is_on_its_day(world: World) -> None:
    for number, day in enumerate(world.days):
        assert (day.events.timestamp // 86_400_000_000 == number).all()


def test_match_orders_self_sibling_stranger_and_other_category(world: World) -> None:
    catalogue = world.catalogue
    item = np.zeros(len(catalogue.items), dtype=np.int64)
    fit = match(item, np.arange(len(item)), catalogue)
    same_product = catalogue.spu_id == catalogue.spu_id[0]
    same_category = catalogue.category == catalogue.category[0]
    assert fit[0] == 1
    assert (fit[same_product][1:] == 0.6).all()
    assert 0 < fit[same_category & ~same_product].max() < 0.6
    assert (fit[~same_category] == 0).all()


def test_siblings_are_all_items_of_the_product(world: World) -> None:
    rows = np.array([0, 100, 500])
    for row, family in zip(rows, siblings(world.catalogue, rows), strict=True):
        assert set(family) == set(np.flatnonzero(world.catalogue.spu_id == world.catalogue.spu_id[row]))


def test_a_day_does_not_depend_on_what_arrives_later(world: World) -> None:
    fewer = Shelves(stock(SIZE, seed=3, days=9))
    again = live(fewer, world.users, SIZE, seed=3, day=8)
    assert len(fewer.catalogue.items) < len(world.catalogue.items)
    assert (again.impressions.item == world.days[8].impressions.item).all()
    assert (again.events.timestamp == world.days[8].events.timestamp).all()
    assert (again.click_probability == world.days[8].click_probability).all()
