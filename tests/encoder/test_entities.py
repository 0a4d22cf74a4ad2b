"""Named entities from the catalogue's own values."""

from __future__ import annotations

from typing import Any

import pytest

from moon_ops.encoder.entities import Gazetteer, Recognizer, words


def item(brand: str | None = None, category: list[str] | None = None, **attributes: str) -> dict[str, Any]:
    return {"brand": brand, "category": category, "attributes": list(attributes.items())}


@pytest.fixture
def gazetteer() -> Gazetteer:
    return Gazetteer.from_items(
        [
            item("Café Noir", ["Home & Living", "Table Lamps"], material="stainless steel", colour="red"),
            item("Red Wing", ["Shoes"], colour="dark red", size="43", cut="L"),
            item(None, None, pattern="size", edition="one of a kind"),
            {"brand": "Nike"},  # what a table without the other columns gives
        ]
    )


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a present for her", 0),
        ("", 0),
        ("nike", 1),
        ("Nike NIKE nike!", 1),  # distinct ones
        ("nike café-noir", 2),
        ("NIKE Cafe\u0301 Noir", 2),  # a combining accent
        ("nike cafe noir", 2),  # none
        ("ｎｉｋｅ shoes", 2),  # full width
        ("café", 0),  # part of a brand's name
        ("home living", 1),
        ("living", 0),  # part of a category's name
        ("stainless steel", 1),  # and not also its two parts
        ("steel, stainless", 2),
        ("kind", 1),
        ("red wing", 1),  # the longest: not red, and a wing
        ("dark red wing", 1),  # the longest from the left takes "dark red", and "wing" alone is nobody's name
        ("dark red red wing", 2),
        ("red shoes, red shoes", 2),
        ("nikeshoes", 0),
    ],
)
def test_what_a_text_mentions(gazetteer: Gazetteer, text: str, count: int) -> None:
    assert gazetteer.count(text) == count


@pytest.mark.parametrize("text", ["43", "L", "size", "colour", "material", "one", "of a"])
def test_numbers_letters_names_of_attributes_and_fillers_name_nothing(gazetteer: Gazetteer, text: str) -> None:
    assert gazetteer.count(text) == 0


def test_every_entity_is_counted_once() -> None:
    found = Gazetteer.from_items([item("Acme", ["Lamps"], material="brushed steel"), item("acme", ["Lamp"], material="steel")])
    assert len(found) == 5  # acme, lamp, brushed steel, brushed, steel


@pytest.mark.parametrize(
    ("category", "text"),
    [
        ("Lamps", "lamp"),
        ("Lamp", "lamps"),
        ("Dresses", "dress"),
        ("Dress", "dresses"),
        ("Shoes", "shoe"),
        ("Watches", "watch"),
        ("Box", "boxes"),
        ("Berries", "berry"),
        ("Berry", "berries"),
        ("Table Lamps", "table lamp"),
    ],
)
def test_a_category_is_known_in_either_number_and_is_one_entity(category: str, text: str) -> None:
    found = Gazetteer.from_items([item(category=[category])])
    assert found.count(text) == 1
    assert found.count(f"{text} {category}") == 1


@pytest.mark.parametrize(("category", "text"), [("Dress", "dres"), ("Table Lamps", "tables lamps"), ("Gas", "ga")])
def test_what_is_not_another_number_is_not_known(category: str, text: str) -> None:
    assert Gazetteer.from_items([item(category=[category])]).count(text) == 0


def test_a_brand_has_no_plural() -> None:
    assert Gazetteer.from_items([item("Acme")]).count("acmes") == 0


def test_a_value_and_a_category_that_differ_in_number_are_one_entity() -> None:
    found = Gazetteer.from_items([item(category=["Lamps"], kind="lamp")])
    assert found.count("lamp lamps") == 1


def test_an_attribute_named_like_a_guess_stays_unnamed() -> None:
    found = Gazetteer.from_items([item(category=["Sizes"], size="M2")])
    assert [found.count("size"), found.count("sizes"), found.count("m2")] == [0, 1, 1]


def test_other_scripts() -> None:
    assert words("Ёлка ΑΘΉΝΑ Straße") == ("елка", "αθηνα", "strasse")
    assert Gazetteer.from_items([item("ТЕПЛО")]).count("лампа тепло") == 1


def test_a_catalogue_without_values_knows_nothing() -> None:
    empty: Recognizer = Gazetteer.from_items([])
    assert empty.count("red lamp") == 0


def test_the_shop_itself_is_recognised(lake: Any) -> None:
    rows = lake.read("items", ["title", "brand", "category", "attributes"]).to_pylist()
    found = Gazetteer.from_items(rows)
    assert all(found.count(row["brand"]) == 1 for row in rows if row["brand"])
    assert sum(found.count(row["title"]) >= 2 for row in rows) > len(rows) / 2
