"""Item cards are published with the index: of the same items, at the cost of what has changed; an erased item's title goes from them."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from refreshing import change, refresh

from moon_ops.embeddings import cards
from moon_ops.embeddings.cards import Cards
from moon_ops.lake import lookups
from moon_ops.lake.lake import Lake
from moon_ops.lake.tables import items_as_of
from moon_ops.publication import item_cards, maintenance, marks, places, publication, sharing
from moon_ops.publication.erasure import erase
from moon_ops.settings import Settings

HOUR = dt.timedelta(hours=1)


def told(settings: Settings) -> dict[int, dict[str, Any]]:
    opened = Cards.open(places.cards_place(settings, 1))
    return opened.get(opened.matching(cards.Wanted()).tolist())


def lake(settings: Settings, now: dt.datetime) -> dict[int, dict[str, Any]]:
    rows = items_as_of(settings.lake, now, list(cards.COLUMNS)).to_pylist()
    return {row["item_id"]: row | {"category": row["category"] or None, "image_ids": row["image_ids"] or []} for row in rows}


def same(settings: Settings, now: dt.datetime) -> bool:
    found = {item: card | {"image_ids": card["image_ids"] or []} for item, card in told(settings).items()}
    return found == lake(settings, now)


def test_cards_say_what_the_lake_says_after_every_publication(current: Settings, now: dt.datetime) -> None:
    assert same(current, now)
    base = (places.cards_place(current, 1) / "base.arrow").stat().st_ino
    first, second, third = list(told(current))[:3]
    change(current, [first], now + HOUR, title="another title", price=1.25)
    change(current, [second], now + HOUR, status="deleted")
    refresh(current, now + HOUR)
    assert same(current, now + HOUR)
    assert told(current)[first]["title"] == "another title"
    assert second not in told(current)
    assert (places.cards_place(current, 1) / "base.arrow").stat().st_ino == base, "what has not changed is not written anew"
    change(current, [second], now + 2 * HOUR)
    change(current, [third], now + 2 * HOUR, status="deleted")
    refresh(current, now + 2 * HOUR)
    assert same(current, now + 2 * HOUR)
    generation = places.cards_place(current, 1).resolve()
    refresh(current, now + 3 * HOUR)
    assert item_cards.publish(current, 1, now + 3 * HOUR, full=False) == len(lake(current, now + 3 * HOUR))
    assert places.cards_place(current, 1).resolve() == generation, "nothing new is nothing written"


@pytest.mark.parametrize("damage", ["gone", "cut", "emptied", "of another version", "mark lost"])
def test_cards_that_cannot_be_read_are_made_anew(current: Settings, now: dt.datetime, damage: str) -> None:
    place = places.cards_place(current, 1)
    if damage == "gone":
        place.unlink()
    elif damage == "cut":
        (place / "delta.arrow").write_bytes(b"ARROW1")
    elif damage == "emptied":  # by a power failure
        (place / "gone.npy").write_bytes(b"")
        assert item_cards.opened(current, 1) is None, "a service goes on without"
    elif damage == "of another version":
        (place / "cards.json").write_text("{}")
    else:
        places.handed(current, place.name).unlink()
    change(current, list(lake(current, now))[:2], now + HOUR, title="changed")
    refresh(current, now + HOUR)
    assert same(current, now + HOUR)


def test_a_new_base_is_made_where_much_has_changed(current: Settings, now: dt.datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "SMALL", 3)
    monkeypatch.setattr(cards, "CHANGED_AT_MOST", 0.0)
    change(current, list(lake(current, now))[:5], now + HOUR, title="changed")
    refresh(current, now + HOUR)
    header = Cards.open(places.cards_place(current, 1)).header
    assert (header.delta, header.gone, header.base) == (0, 0, len(lake(current, now + HOUR)))
    assert same(current, now + HOUR)


def test_an_erased_items_title_is_in_no_file_of_cards(current: Settings, now: dt.datetime) -> None:
    item = next(iter(told(current)))
    change(current, [item], now + HOUR, title="a very secret title")
    refresh(current, now + HOUR)

    def holding() -> list[Path]:
        return [p for p in (current.home / "tables").rglob("*") if p.is_file() and b"a very secret title" in p.read_bytes()]

    assert {path.name for path in holding()} == {"delta.arrow"}
    receipt = erase(current, item, now=now + 2 * HOUR)
    assert receipt.places["tables/cards-v1"] == 1
    assert not holding()
    assert item not in told(current)


def test_an_erased_items_id_is_in_no_index_of_the_lake(current: Settings, now: dt.datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "LEAST", 1)
    for name in maintenance.tables(current.lake):
        lookups.tend(current.lake, name)
    item, *others = current.lake.read("embeddings/v1", ["version_id", "item_id"]).to_pylist()

    def holding(version: str) -> list[Path]:
        place = Path(current.lake.address("embeddings/v1"))
        return [p for p in place.rglob("*") if p.is_file() and version.encode() in p.read_bytes()]

    def directories(version: str) -> set[str]:
        return {path.parts[len(Path(current.lake.address("embeddings/v1")).parts)] for path in holding(version)}

    assert directories(item["version_id"]) == {"data", "_indices"}
    erase(current, item["item_id"], now=now + HOUR)
    assert not holding(item["version_id"])
    assert directories(others[0]["version_id"]) == {"data", "_indices"}, "the others are found as before"


def test_maintenance_makes_no_card_anew(current: Settings, now: dt.datetime) -> None:
    change(current, list(lake(current, now))[:2], now + HOUR, title="changed")
    refresh(current, now + HOUR)
    before = marks.since_of(current, "cards-v1", full=False).mark
    maintenance.maintain(current, keep=dt.timedelta(days=7), now=now + HOUR, fragments=1)
    after = marks.since_of(current, "cards-v1", full=False).mark
    assert after > before
    generation = places.cards_place(current, 1).resolve()
    publication.publish(current, 1, now=now + 2 * HOUR)
    assert places.cards_place(current, 1).resolve() == generation
    assert same(current, now + 2 * HOUR)


def test_other_machines_fetch_cards_with_the_index(current: Settings, tmp_path: Path, now: dt.datetime) -> None:
    (current.home / "lake").rename(tmp_path / "shared")
    first = current.replace(lake=Lake(f"file://{tmp_path / 'shared'}"))
    second = first.replace(home=tmp_path / "second", feast_registry=f"sqlite:///{first.home / 'feature_store' / 'registry.db'}")
    second.home.mkdir()
    (second.home / "mlartifacts").symlink_to(first.home / "mlartifacts")  # a registry's server has them for all
    publication.publish(first, 1, now=now, full=True)
    assert sharing.fetch(second, 1)
    assert same(second, now)
    change(second, list(lake(second, now))[:2], now + HOUR, title="changed")
    refresh(second, now + HOUR)
    assert sharing.fetch(first, 1)
    assert same(first, now + HOUR)
    ours, theirs = (places.cards_place(settings, 1) / "base.arrow" for settings in (first, second))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_publication_of_an_older_version_has_no_cards(current: Settings, tmp_path: Path, now: dt.datetime) -> None:
    """It takes them away on machines that fetch it: they would be of another time than its index."""
    (current.home / "lake").rename(tmp_path / "shared")
    first = current.replace(lake=Lake(f"file://{tmp_path / 'shared'}"))
    publication.publish(first, 1, now=now, full=True)
    second = first.replace(home=tmp_path / "second", feast_registry=f"sqlite:///{first.home / 'feature_store' / 'registry.db'}")
    second.home.mkdir()
    (second.home / "mlartifacts").symlink_to(first.home / "mlartifacts")  # a registry's server has them for all
    sharing.fetch(second, 1)
    places.cards_place(first, 1).unlink()
    places.handed(first, "cards-v1").unlink()
    with sharing.turn(first):
        sharing.share(first, 1, now + HOUR)
    assert sharing.fetch(second, 1)
    assert item_cards.opened(second, 1) is None
    assert not places.handed(second, "cards-v1").exists()
    publication.publish(second, 1, now=now + HOUR)
    assert same(second, now + HOUR)
