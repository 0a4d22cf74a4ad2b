"""Rows that continue an item: many exports give each further picture of a product a row, with the product's id and no title.

They are put together with the row that has the title, which counts for all but the pictures. A row that says something else of its item
than that one (another price) is no continuation, and is refused for it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from moon_ops.lake import layout
from moon_ops.lake.layout import ROW, Refusals
from moon_ops.lake.reading import pictures

SAID = ("spu_id", "seller_id", "brand", "description", "price", "status", "available_from", "available_until", "category", "attributes")


def merged(table: pa.Table, refusals: Refusals) -> pa.Table:
    """The ``items`` rows with each item's pictures together in the row that has its title, in the order of the file.

    A row without a title that follows continues the item of its id, and so does one with the same title that names another picture. How
    many went into another row is counted in ``refusals.merged``. Rows of an id of which none has a title stay as they are.
    """
    _, place, counts = np.unique(table["item_id"].to_numpy(), return_inverse=True, return_counts=True)
    again = counts[place] > 1
    if not again.any():
        return table
    groups: dict[int, list[int]] = {}
    for row in np.flatnonzero(again).tolist():
        groups.setdefault(int(place[row]), []).append(row)
    names = ["title", "images", "extra", ROW, *SAID]
    few = np.flatnonzero(again)
    cells = dict(zip(few.tolist(), table.select(names).take(pa.array(few)).to_pylist(), strict=True))
    gone, images, others = list[int](), dict[int, list[str]](), set[str]()
    for rows in groups.values():
        _one(rows, cells, refusals, gone, images, others)
    if not gone:
        return table
    if others:
        shown = ", ".join(sorted(others)[:5]) + (" and more" if len(others) > 5 else "")
        refusals.note("items", f"of rows that continue an item, the columns {shown} differ from its first row, which counts")
    together = [images.get(row, pictures.references(cell)) for row, cell in enumerate(table["images"].to_pylist())]
    table = layout.replace(table, "images", pa.array(together, pa.list_(pa.string())))
    keep = np.ones(table.num_rows, bool)
    keep[gone] = False
    return table.filter(pa.array(keep))


def _one(
    rows: Sequence[int],
    cells: dict[int, dict[str, Any]],
    refusals: Refusals,
    gone: list[int],
    images: dict[int, list[str]],
    others: set[str],
) -> None:
    """Put the ``rows`` of one item together, or refuse those that contradict the first: both are ``gone``."""
    head = next((row for row in rows if cells[row]["title"] is not None), None)
    if head is None:
        return
    shown = {row: pictures.references(cells[row]["images"]) for row in rows}
    named = dict.fromkeys(shown[head])
    for row in rows[rows.index(head) + 1 :]:  # what stands before it continues nothing
        title = cells[row]["title"]
        more = [picture for picture in shown[row] if picture not in named]
        if title is not None and (title != cells[head]["title"] or not more):
            continue
        gone.append(row)
        if column := _contradicted(cells[head], cells[row]):
            _refuse(cells[head][ROW], cells[row][ROW], column, refusals)
            continue
        refusals.merged["items"] = refusals.merged.get("items", 0) + 1
        refusals.bring_picture(cells[head][ROW], cells[row][ROW], more)
        named |= dict.fromkeys(more)
        others |= _others(cells[head]["extra"], cells[row]["extra"])
    images[head] = list(named)


def _contradicted(head: dict[str, Any], row: dict[str, Any]) -> str:
    """The first column in which the row says something else than the head; empty if there is none."""
    for name in SAID:
        said = row[name]
        if said is None or said in ([], {}, ""):
            continue
        if said != ("active" if name == "status" and head[name] is None else head[name]):
            return name
    return ""


def _refuse(head: int, number: int, column: str, refusals: Refusals) -> None:
    first, row = refusals.quoted("items", [head, number])
    has = f"which has {first.get(column)!r} there" if first.get(column) is not None else "which has nothing there"
    why = f"{column} = {row.get(column)!r}: the row continues item {row.get('item_id')!r} of row {head}, {has}"
    refusals.add(
        "items",
        number,
        column,
        f"{why}: the first row counts (send all rows of the item again: one alone takes the pictures of the others away)",
    )


def _others(head: str | None, row: str | None) -> set[str]:
    """Columns of the shop's own in which the row says something else."""
    first, mine = (json.loads(cell) if cell else {} for cell in (head, row))
    return {name for name, cell in mine.items() if first.get(name) != cell}
