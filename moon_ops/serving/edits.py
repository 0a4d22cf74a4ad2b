"""Changes of single items: a part of one replaced, or the item withdrawn. The lake keeps whole versions: the rest is read from the last."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from moon_ops.errors import InputError
from moon_ops.inputs.images import MAX_BYTES
from moon_ops.lake import ids, versions
from moon_ops.lake.ids import ShopId
from moon_ops.lake.ingest import IngestReport
from moon_ops.lake.lake import Lake
from moon_ops.lake.tables import image_bytes
from moon_ops.serving import live
from moon_ops.serving.live import MAX_TEXT, Extra, Id, Intake, NewItem
from moon_ops.serving.taking import write_rows

KEPT = ("title", "brand", "description", "price", "status")  # columns that are in the lake as a request says them


class Part(BaseModel):
    """What is to change of an item; what is not named stays, and null empties a field. ``images`` replaces all pictures, ``attributes`` and
    ``extra`` change the names that they give.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"price": 19.9}, {"title": "red lamp", "brand": None}]})
    title: Annotated[str, Field(max_length=MAX_TEXT)] | None = None
    spu_id: Id | None = None
    category: str | None = None
    brand: str | None = None
    description: Annotated[str, Field(max_length=MAX_TEXT)] | None = None
    attributes: dict[str, str | None] | None = None
    seller_id: Id | None = None
    price: float | None = None
    status: str | None = None
    extra: dict[str, Extra | None] | None = None
    images: list[Annotated[str, Field(max_length=MAX_BYTES * 4 // 3 + 4)]] = Field([], max_length=20)


def known(lake: Lake, item_id: ShopId) -> dict[str, Any] | None:
    """The newest version of an item, on sale or not; None if there has never been one."""
    columns = [*KEPT, "source_id", "spu_id", "seller_id", "category", "attributes", "image_ids", "extra"]
    rows = versions.current(lake, columns, pa.array([ids.key(item_id)], pa.int64())).to_pylist()
    return rows[0] if rows else None


def withdraw(intake: Intake, item_id: ShopId, now: dt.datetime) -> IngestReport | None:
    """Take an item out of sale; None if there is no such item. One that is withdrawn already stays so."""
    with intake.settings.lake.pushing(live.PATIENCE):
        if known(intake.settings.lake, item_id) is None:
            return None
        gone = {"item_id": item_id, "status": "deleted"}
        return intake.taken(lambda folder: write_rows(folder / "items.jsonl", [gone]), "item", now)


def change(intake: Intake, item_id: ShopId, part: Part, now: dt.datetime) -> IngestReport | None:
    """Replace a part of an item; None if there is no such item. :class:`InputError` for what an ingest would refuse.

    Nobody else pushes items meanwhile, so that of two parts changed at the same moment none is lost.
    """
    lake = intake.settings.lake
    with lake.pushing(live.PATIENCE):
        row = known(lake, item_id)
        if row is None:
            return None

        def fill(folder: Path) -> None:
            write_rows(folder / "items.jsonl", [_merged(lake, folder, {**row, "item_id": item_id}, part)])

        return intake.taken(fill, "item", now)


def _merged(lake: Lake, folder: Path, row: Mapping[str, Any], part: Part) -> dict[str, Any]:
    """The whole item in the ingest layout, with its pictures beside it."""
    given = part.model_dump(include=part.model_fields_set)
    attributes = {**dict(row["attributes"] or []), **(given.pop("attributes", None) or {})}
    own = {**json.loads(row["extra"] or "{}"), **(given.pop("extra", None) or {})}
    if taken := sorted(set(own) & set(NewItem.model_fields)):
        raise InputError(f"extra.{taken[0]} is a standard column", action=f"send it as {taken[0]}")
    before = {name: row[name] for name in KEPT}
    before |= {"category": row["category"] or None, "spu_id": _shop_id(lake, "product", row["spu_id"])}
    before |= {"seller_id": _shop_id(lake, "seller", row["seller_id"])}
    if row["available_until"] is not None:
        before["available_until"] = row["available_until"].isoformat()
    images = given.pop("images", None)
    told = {**own, **before, **given, "attributes": {name: value for name, value in attributes.items() if value is not None}}
    found = {name: value for name, value in told.items() if value is not None} | {"item_id": row["item_id"]}
    if images is None:
        return found | {"images": _kept(lake, folder, row["image_ids"] or [])}
    return found | {"images": live.pictures(folder, 0, images, "images")}


def _shop_id(lake: Lake, kind: str, key: int | None) -> ShopId | None:
    return None if key is None else ids.named(lake, kind, [key])[0]


def _kept(lake: Lake, folder: Path, image_ids: list[str]) -> list[str]:
    """The item's pictures as files again, in their order: a picture is known by its bytes."""
    for image_id, content in image_bytes(lake, image_ids):
        (folder / image_id).write_bytes(content)
    return [image_id for image_id in image_ids if (folder / image_id).is_file()]
