"""What a shop tells of its items: the rows of the table ``items``, made of those of a file and of the pictures that these name."""

from __future__ import annotations

import pyarrow as pa

from moon_ops.lake import layout, versions
from moon_ops.lake.intake import Intake
from moon_ops.lake.lake import Lake
from moon_ops.lake.layout import ROW
from moon_ops.lake.reading import markup, pictures

FEW = 10_000  # rows that are Python's objects at a time
COPIED = ("item_id", "source_id", "title", "brand", "description", "seller_id", "price", "status", "available_until")


def references(table: pa.Table, column: str) -> list[str]:
    """Every picture that the rows name, in order, each once."""
    cells = table[column].drop_null()
    return list(dict.fromkeys(path for cell in cells.to_pylist() for path in _named(cell, column)))


def _named(cell: object, column: str) -> list[str]:
    """The pictures that a cell names; a query has one."""
    return pictures.references(cell if column == "images" or cell is None else [cell])


def described(raw: pa.Table, intake: Intake, kept: dict[int, list[str]]) -> pa.Table:
    """The rows of the ``items`` table, without ``created``; few at a time are Python's objects, which are large."""
    parts = (_some_items(raw.slice(start, FEW), intake, kept) for start in range(0, raw.num_rows, FEW))
    return pa.concat_tables([versions.DESCRIBED.empty_table(), *parts])


def _some_items(raw: pa.Table, intake: Intake, kept: dict[int, list[str]]) -> pa.Table:
    """A picture that was refused is left out of its item."""
    made = []
    for row in raw.to_pylist():
        try:
            attributes = layout.pairs(row["attributes"])
        except ValueError:
            reason = f"attributes = {row['attributes']!r} is not an object"
            intake.refusals.add("items", row[ROW], "attributes", reason)
            continue
        had = kept.get(row["item_id"], [])
        shown = intake.ids(_named(row["images"], "images"), "items", row[ROW], "images")
        item = {
            **{name: row[name] for name in (*COPIED, "extra")},
            "spu_id": row["item_id"] if row["spu_id"] is None else row["spu_id"],
            "category": [markup.text(word) for word in layout.words(row["category"], ">")],
            "attributes": [(name, markup.text(value)) for name, value in attributes],
            "image_ids": [*had, *(picture for picture in shown if picture not in had)],
            "event_timestamp": row["available_from"],
        }
        made.append({**item, "content_hash": versions.content_hash(item)})
    return pa.Table.from_pylist(made, schema=versions.DESCRIBED)


def pictures_kept(lake: Lake, raw: pa.Table, intake: Intake) -> dict[int, list[str]]:
    """The pictures that known items have, for those of which one cannot be read now: a host that is down takes no picture away."""
    if not intake.faults:
        return {}
    cells = zip(raw["item_id"].to_pylist(), raw["images"].to_pylist(), strict=True)
    without = [item for item, cell in cells if any(r in intake.faults for r in _named(cell, "images"))]
    if not without:
        return {}
    known = versions.current(lake, ["image_ids"], pa.array(without, pa.int64()))
    return {row["item_id"]: row["image_ids"] for row in known.select(["item_id", "image_ids"]).to_pylist()}
