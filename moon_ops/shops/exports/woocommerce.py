"""WooCommerce: the products' CSV export.

A variation is an item, and its product the ``spu_id``; it has from the product what it does not say itself. A product of which there are
variations is none itself. An item is called by its SKU, or where it has none by its ID.
"""

from __future__ import annotations

import re
from collections import defaultdict

from moon_ops.lake.reading import pictures
from moon_ops.shops.exports.export import Export, Item, alone, deepest, listed
from moon_ops.shops.exports.sheets import Line

NAMES = ("name", "product_name")
REGULAR, SALE, PARENT = "regular_price", "sale_price", "parent"
BRAND = ("brands", "brand")
ENDS = ("date_sale_price_ends", "date_sale_price_starts")  # a price that holds for a while is not the item's
NUMBERED = range(1, 51)  # attributes that a product may have
USED = {
    *(*NAMES, *BRAND, *ENDS, REGULAR, SALE, PARENT),
    *("id", "type", "sku", "published", "visibility_in_catalog", "short_description", "description", "categories", "tags", "images"),
    *(f"attribute_{n}_{what}" for n in NUMBERED for what in ("name", "value(s)")),
}
STATES = {"1": "active", "true": "active", "0": "deleted", "-1": "deleted", "false": "deleted", "": "active"}  # 0: private, -1: draft
MARKED = re.compile(r"^'(?=[=+\-@])")  # keeps a spreadsheet from calculating
COMMA = re.compile(r"(?<!\\),")


def is_catalogue(names: set[str]) -> bool:
    """Whether a file with these columns holds products."""
    return {"type", "sku"} <= names and bool(names & {*NAMES}) and bool(names & {REGULAR, "images", "published"})


def load(lines: list[Line], export: Export) -> None:
    """Make items of the rows."""
    lines = [Line(line.place, {name: MARKED.sub("", cell) for name, cell in line.cells.items()}) for line in lines]
    products = [line for line in lines if "variation" not in _kinds(line)]
    called = {name: line for line in products for name in (f"id:{line.get('id')}", line.get("sku")) if name not in ("", "id:")}
    variations: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        if "variation" not in _kinds(line):
            continue
        if parent := called.get(re.sub(r"^id:\s*", "id:", line.get(PARENT))):
            variations[parent.place].append(line)
        else:
            export.refuse(line, f"is a variation, and its product {line.get(PARENT)!r} is not in the export")
    for product in products:
        mine = variations.get(product.place, [])
        taken = {picture for line in mine for picture in _pictures(line)}
        export.merged += bool(mine)
        for line in mine or [product]:
            _item(line, product, taken, export)


def _kinds(line: Line) -> list[str]:
    """E.g. ``variation`` and ``virtual``."""
    return listed(line.get("type").lower())


def _item(line: Line, product: Line, taken: set[str], export: Export) -> None:
    states = [STATES.get(one.get("published").lower()) for one in (line, product)]
    if None in states:
        export.refuse(line, f"published = {line.get('published') or product.get('published')!r} is none of 1, 0 and -1")
        return
    hidden = "deleted" in states or product.get("visibility_in_catalog") == "hidden"
    described = [text for name in ("short_description", "description") if (text := line.get(name) or product.get(name))]
    price = line.get(REGULAR) if line.get(*ENDS) else line.get(SALE, REGULAR)
    sku = line.get("sku") if line is product or line.get("sku") != product.get("sku") else ""  # some write the product's there
    export.items.append(
        Item(
            line,
            product=product,
            item_id=sku or line.get("id"),
            spu_id=product.get("sku", "id"),
            title=line.get(*NAMES) or product.get(*NAMES),
            category=deepest(path.split(">") for path in _listed(line.get("categories") or product.get("categories"))),
            brand=line.get(*BRAND) or product.get(*BRAND),
            description="\n".join(text.replace("\\n", "\n") for text in described),
            attributes=_attributes(product) | _attributes(line),
            price=price,
            status="deleted" if hidden else "active",
            images=alone(_pictures(line), _pictures(product), taken) if line is not product else _pictures(product),
            tags=_listed(line.get("tags") or product.get("tags")),
            sku=line.get("sku"),
            names=[name for name in (line.get(*NAMES), line.get("id")) if name],
        )
    )


def _listed(cell: str) -> list[str]:
    """The parts of a cell between commas; a comma in a part has a backslash before it."""
    return [part.replace("\\,", ",").strip() for part in COMMA.split(cell) if part.strip()]


def _pictures(line: Line) -> list[str]:
    return pictures.references(line.get("images"))


def _attributes(line: Line) -> dict[str, str]:
    found = ((line.get(f"attribute_{n}_name"), line.get(f"attribute_{n}_value(s)")) for n in NUMBERED)
    return {name: value.replace("\\,", ",") for name, value in found if name and value}
