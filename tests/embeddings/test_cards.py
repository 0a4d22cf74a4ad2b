"""Item cards: what was put in comes out, by id and by filter, whatever has changed since the base was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from moon_ops.embeddings import card_files, cards
from moon_ops.embeddings.cards import Cards, CardsHeader, Wanted
from moon_ops.errors import StageError

WORDS = {"brand": pa.string(), "category": pa.list_(pa.string())}
ROWS = pa.schema([pa.field(f.name, WORDS.get(f.name, f.type)) for f in card_files.SCHEMA])
CATEGORIES = (["Home", "Lamps"], ["Home", "Chairs", "Office"], None, [])


def item(number: int, **more: Any) -> dict[str, Any]:
    return {
        "item_id": number,
        "spu_id": number // 2 * 2,
        "seller_id": None if number % 5 == 0 else 2**53 + number % 3,
        "price": None if number % 7 == 0 else number / 4,
        "brand": (None, "Nord", "Süd & Co")[number % 3],
        "category": CATEGORIES[number % 4],
        "title": f"thing {number}",
        "image_ids": [f"{number}-{n}" for n in range(number % 3)],
        **more,
    }


def table(*items: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(items), schema=ROWS)


@pytest.fixture
def items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, Any]]:
    monkeypatch.setattr(cards, "BATCH", 16)
    known = {number: item(number) for number in range(3, 200, 3)}
    header = cards.build(tmp_path / "cards", [table(*list(known.values())[:40]), table(*list(known.values())[40:])])
    assert (header.items, header.base, header.delta) == (66, 66, 0)
    return known


def told(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"category": row["category"] or None}


def brute(known: dict[int, dict[str, Any]], wanted: Wanted) -> list[int]:
    def fits(row: dict[str, Any]) -> bool:
        levels, asked = [w.lower() for w in row["category"] or []], [w.strip().lower() for w in wanted.category.split(">")]
        low, high = wanted.price_min, wanted.price_max
        return (
            (not wanted.category or any(levels[n : n + len(asked)] == asked for n in range(len(levels))))
            and (not wanted.brand or (row["brand"] or "").lower() == wanted.brand.lower())
            and (wanted.seller is None or row["seller_id"] == wanted.seller)
            and (low is None or (row["price"] is not None and row["price"] >= low))
            and (high is None or (row["price"] is not None and row["price"] <= high))
        )

    return sorted(number for number, row in known.items() if fits(row))


WANTED = [
    Wanted(),
    Wanted(category="home"),
    Wanted(category="LAMPS"),
    Wanted(category="Home > Chairs"),
    Wanted(category="chairs>office", brand="nord"),
    Wanted(category="Home > Office"),
    Wanted(brand="süd & co", price_max=20),
    Wanted(seller=2**53 + 1),
    Wanted(price_min=10, price_max=10.5),
    Wanted(brand="nobody"),
]


def check(place: Path, known: dict[int, dict[str, Any]]) -> None:
    opened = Cards.open(place)
    assert len(opened) == len(known)
    assert opened.get(range(250)) == {number: told(row) for number, row in known.items()}
    for wanted in WANTED:
        assert opened.matching(wanted).tolist() == brute(known, wanted), wanted


def test_cards_hold_what_was_put_in_before_and_after_changes(items: dict[int, dict[str, Any]], tmp_path: Path) -> None:
    place = tmp_path / "cards"
    check(place, items)
    base = (place / "base.arrow").stat().st_ino
    fresh = [item(9, title="changed", brand="New", category=["Garden"]), item(10), item(240, price=2.25)]
    header = cards.update(place, table(*fresh), np.array([12, 13, 15]))
    items |= {row["item_id"]: row for row in fresh}
    for gone in (12, 15):
        del items[gone]
    assert (header.items, header.base, header.delta, header.gone) == (66, 66, 3, 3)
    check(place, items)
    cards.update(place, table(item(12, title="back"), item(10, title="anew")), np.array([9, 240]))
    items |= {12: item(12, title="back"), 10: item(10, title="anew")}
    for gone in (9, 240):
        del items[gone]
    check(place, items)
    assert (place / "base.arrow").stat().st_ino == base, "a base is shared by its generations"
    batches = [batch for layer in Cards.open(place)._layers for batch in layer.batches]
    assert not [title for batch in batches for title in batch["title"].to_pylist() if title == "changed"]


def test_who_has_opened_cards_keeps_them(items: dict[int, dict[str, Any]], tmp_path: Path) -> None:
    opened = Cards.open(tmp_path / "cards")
    cards.build(tmp_path / "cards", [table(item(1))])
    assert opened.get([9])[9]["title"] == "thing 9"
    assert (Cards.open(tmp_path / "cards").get([9]), len(Cards.open(tmp_path / "cards"))) == ({}, 1)


def test_an_empty_catalogue_has_no_cards(tmp_path: Path) -> None:
    cards.build(tmp_path / "cards", [])
    assert (len(Cards.open(tmp_path / "cards")), Cards.open(tmp_path / "cards").get([1])) == (0, {})


def test_a_new_base_is_due_when_a_tenth_has_changed() -> None:
    assert not CardsHeader(1, 100_000, 100_000, 9_000, 1_000).crowded
    assert CardsHeader(1, 100_000, 100_000, 9_001, 1_000).crowded
    assert not CardsHeader(1, 100, 100, 50, 50).crowded


def test_cards_of_another_version_and_none_at_all_are_told(items: dict[int, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(StageError, match="there are no item cards"):
        Cards.open(tmp_path / "nothing")
    (tmp_path / "cards" / "cards.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(StageError, match="another version of moon_ops"):
        Cards.open(tmp_path / "cards")


def test_cards_become_rows_again_with_all_that_they_lack(items: dict[int, dict[str, Any]], tmp_path: Path) -> None:
    """What an update writes anew of those that changed before."""
    cards.build(tmp_path / "cards", [table(*items.values())])
    base = Cards.open(tmp_path / "cards")._base
    some = np.array(sorted(items)[::2])
    assert card_files.shown(base, some).to_pylist() == [base.card(number) for number in some.tolist()]
    assert card_files.shown(base, some[:0]).num_rows == 0
