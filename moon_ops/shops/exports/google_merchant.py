"""Google Merchant: product feeds as text (tab-separated, or CSV) and as XML (RSS 2.0, Atom).

A feed says each variant as a row with an ``id``; ``item_group_id`` is the product, the ``spu_id``. What is out of stock is out of sale.
"""

from __future__ import annotations

from moon_ops.lake.reading import pictures
from moon_ops.shops.exports.export import Export, Item, listed
from moon_ops.shops.exports.sheets import Line

MAIN, MORE = "image_link", "additional_image_link"
ATTRIBUTES = ("color", "size", "material", "pattern", "gender", "age_group")
TYPE, GOOGLE, SALE, SPAN = "product_type", "google_product_category", "sale_price", "sale_price_effective_date"
USED = {"id", "item_group_id", "title", "description", MAIN, MORE, "price", SALE, SPAN, "availability", "brand", TYPE, GOOGLE}
USED |= {"expiration_date", *ATTRIBUTES}
AVAILABLE = {"in_stock": "active", "preorder": "active", "backorder": "active", "limited_availability": "active", "": "active"}
AVAILABLE |= {"out_of_stock": "deleted", "discontinued": "deleted"}
SEVERAL = "\n"  # between the values of an XML feed that gives one element more than once


def is_catalogue(names: set[str]) -> bool:
    """Whether a file with these columns holds products."""
    return {"id", "title"} <= names and bool(names & {MAIN, "availability", "link", "price"})


def load(lines: list[Line], export: Export) -> None:
    """Make items of the rows."""
    for line in lines:
        word = line.get("availability").lower().replace(" ", "_")
        status = AVAILABLE.get(word) or export.words.status.get(word)
        if status is None:
            export.refuse(line, f"availability = {line.get('availability')!r} is none of in_stock, out_of_stock, preorder, backorder")
            continue
        paths = line.get(TYPE).split(SEVERAL)[0] or line.get(GOOGLE)
        export.items.append(
            Item(
                line,
                item_id=line.get("id"),
                spu_id=line.get("item_group_id", "id"),
                title=line.get("title"),
                category=[] if paths.isdecimal() else listed(paths, ">"),  # a number is Google's own
                brand=line.get("brand"),
                description=line.get("description"),
                attributes={name: line.get(name).replace(SEVERAL, ", ") for name in ATTRIBUTES},
                price=line.get("price") if line.get(SPAN) else line.get(SALE, "price"),
                status=status,
                images=[*pictures.references(line.get(MAIN)), *pictures.references(line.get(MORE))],
                until=line.get("expiration_date"),
                sku=line.get("id"),
                names=[line.get("title")],
            )
        )
