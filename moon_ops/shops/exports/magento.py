"""Magento 2 and Adobe Commerce: the products' CSV export.

A simple product that a configurable one names among its variations is an item with that one's SKU as its ``spu_id``, and has from it what
it does not say itself. A configurable product of which there are variations is no item. A row of a store view says the product again in
another language: it counts only where ``--store`` names its view.
"""

from __future__ import annotations

import datetime as dt
import re

import pyarrow as pa

from moon_ops.errors import counted
from moon_ops.lake.reading import pictures, times
from moon_ops.shops.exports.export import Export, Item, alone, deepest, listed
from moon_ops.shops.exports.sheets import Line

STORE, VARIATIONS, MORE = "store_view_code", "configurable_variations", "additional_attributes"
SHOWN = ("base_image", "image", "small_image", "thumbnail_image", "thumbnail")
HIDDEN = "hide_from_product_page"
BRAND = ("brand", "manufacturer")
SPECIAL = ("special_price_to_date",)  # a price that holds for a while is not the item's
BEGINS = "special_price_from_date"
DAY = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{2}|\d{4})(?=\D|$)")  # 2/27/26, as Magento exports days
USED = {
    *(STORE, VARIATIONS, MORE, HIDDEN, *SHOWN, *BRAND, *SPECIAL, BEGINS),
    *("sku", "product_type", "name", "description", "short_description", "categories", "product_online", "visibility", "price"),
    *("special_price", "additional_images", "configurable_variation_labels"),
}
STATES = {"1": "active", "enabled": "active", "yes": "active", "": "active", "2": "deleted", "0": "deleted", "disabled": "deleted"}
PAIR = re.compile(r",(?=[a-z][a-z0-9_]*=)")
NOT_ALONE = "not visible individually"
NONE = "no_selection"  # of a picture


def is_catalogue(names: set[str]) -> bool:
    """Whether a file with these columns holds products."""
    return {"sku", "product_type"} <= names


def load(lines: list[Line], export: Export) -> None:
    """Make items of the rows."""
    products = _by_sku(lines, export)
    parents = {}
    absent = 0
    for line in products.values():
        for sku, options in _variations(line).items():
            absent += sku not in products
            parents[sku] = (line, options)
    if absent:
        export.notes.append(f"{absent} variations that configurable products name are not in the export")
    sold = {parent.place for sku, (parent, _) in parents.items() if sku in products}
    taken = {parent.get("sku"): set[str]() for parent, _ in parents.values()}
    for sku, (parent, _) in parents.items():
        if sku in products:
            taken[parent.get("sku")] |= set(_pictures(products[sku]))
    for sku, line in products.items():
        if line.place in sold and sku not in parents:
            export.merged += 1
            continue
        parent, options = parents.get(sku, (line, {}))
        _item(line, parent, options, taken.get(parent.get("sku"), set()), export)


def _by_sku(lines: list[Line], export: Export) -> dict[str, Line]:
    """The row of each product, with the texts of the chosen store view; SKUs that differ in case alone are one to Magento."""
    products: dict[str, Line] = {}
    known: dict[str, str] = {}
    said: list[Line] = []
    for line in lines:
        sku = line.get("sku")
        if not sku:
            export.refuse(line, "has no sku")
        elif STORE in line.cells:
            said.append(line)
        elif sku.lower() in known:
            export.refuse(line, f"sku {sku!r} is there twice: the first row ({products[known[sku.lower()]].place}) counts")
        else:
            known[sku.lower()] = sku
            products[sku] = line
    others = 0
    for line in said:
        sku = known.get(line.get("sku").lower(), "")
        if not sku:
            export.refuse(line, f"is of the store view {line.get(STORE)!r}, and no row says the product itself")
            continue
        export.merged += 1
        others += line.get(STORE) != export.chosen.store
        if line.get(STORE) == export.chosen.store:
            products[sku] = Line(products[sku].place, products[sku].cells | line.cells)
    if export.chosen.store and all(line.get(STORE) != export.chosen.store for line in said):
        export.notes.append(f"no row is of the store view {export.chosen.store!r}")
    if others:
        one = "row of a store view that was not asked for (--store) is left out"
        many = "rows of store views that were not asked for (--store) are left out"
        export.notes.append(counted(others, one, many))
    return products


def _variations(line: Line) -> dict[str, dict[str, str]]:
    """The SKUs of a configurable product's variations, with their options by name: ``sku=A,color=Blue|sku=B,color=Red``."""
    labels = _pairs(line.get("configurable_variation_labels"))
    found = {}
    for part in listed(line.get(VARIATIONS), "|"):
        options = _pairs(part)
        if sku := options.pop("sku", ""):
            found[sku] = {labels.get(name, name): value for name, value in options.items()}
    return found


def _pairs(cell: str) -> dict[str, str]:
    """``color=Blue,material=Linen, washed`` by name; a value may be in quotes."""
    found = (part.partition("=") for part in PAIR.split(cell) if "=" in part)
    return {name.strip().strip('"'): value.strip().strip('"') for name, _, value in found}


def _item(line: Line, parent: Line, options: dict[str, str], taken: set[str], export: Export) -> None:
    states = [STATES.get(one.get("product_online").lower()) for one in (line, parent)]
    if None in states:
        export.refuse(line, f"product_online = {line.get('product_online') or parent.get('product_online')!r} is neither 1 nor 2")
        return
    unseen = parent.get("visibility").lower() == NOT_ALONE
    described = [text for name in ("short_description", "description") if (text := line.get(name) or parent.get(name))]
    more, theirs = _pairs(line.get(MORE)), _pairs(parent.get(MORE))
    brand = line.get(*BRAND) or parent.get(*BRAND) or next((more.get(n) or theirs.get(n) for n in BRAND if n in more or n in theirs), "")
    export.items.append(
        Item(
            line,
            product=parent,
            item_id=line.get("sku"),
            spu_id=parent.get("sku"),
            title=line.get("name") or parent.get("name"),
            category=_category(line.get("categories") or parent.get("categories")),
            brand=brand or "",
            description="\n".join(described),
            attributes={name: value for name, value in (theirs | more | options).items() if name not in BRAND},
            price=line.get("special_price", "price") if _holds(line, export.chosen.now) else line.get("price"),
            status="deleted" if "deleted" in states or unseen else "active",
            images=alone(_pictures(line), _pictures(parent), taken) if line is not parent else _pictures(line),
            sku=line.get("sku"),
            names=[name for name in (line.get("name"),) if name],
        )
    )


def _holds(line: Line, now: dt.datetime | None) -> bool:
    """Whether the special price is the item's: it has begun (a day that cannot be read has not), and has no last day."""
    begins = line.get(BEGINS)
    if not begins or line.get(*SPECIAL):
        return not line.get(*SPECIAL)
    day = DAY.match(begins)
    said = f"{day[3] if len(day[3]) == 4 else '20' + day[3]}-{day[1]}-{day[2]}" if day else begins
    first = times.parsed(pa.array([said]))[0].as_py()
    return first is not None and now is not None and first <= now


def _category(cell: str) -> list[str]:
    """The longest path without the root that all of them have: ``Default Category/Home/Bowls,Default Category/Sale``."""
    root = re.split(r"(?<!\\)/", cell, maxsplit=1)[0].strip()
    paths = re.split(rf",(?={re.escape(root)}(?:/|,|$))", cell) if root else []
    return [part.replace("\\/", "/") for part in deepest(re.split(r"(?<!\\)/", path)[1:] for path in paths)]


def _pictures(line: Line) -> list[str]:
    """The pictures of the page, the main one first."""
    hidden = set(pictures.references(line.get(HIDDEN)))
    cells = [*(line.get(name) for name in SHOWN[:2]), line.get("additional_images"), *(line.get(name) for name in SHOWN[2:])]
    found = [picture for cell in cells for picture in pictures.references(cell)]
    return list(dict.fromkeys(picture for picture in found if picture != NONE and picture not in hidden))
