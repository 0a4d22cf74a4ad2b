"""What is there and what is served, in one look."""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc

from moon_ops.embeddings import vector_tables
from moon_ops.errors import MoonError
from moon_ops.lake.lake import Lake
from moon_ops.registry import moves as record
from moon_ops.registry.registry import CANDIDATE, CHAMPION, PREVIOUS, Registry, manifest_of
from moon_ops.release import served
from moon_ops.settings import Settings


def status(settings: Settings) -> dict[str, Any]:
    """The champion with its parts and figures, how many items there are, and how many of them it has vectors for."""
    lake = settings.lake
    if not settings.home.exists():
        return {"champion": None, "candidate": None, "previous": None, "items": 0, "embedded": 0, "metrics": {}}
    registry = Registry(settings)
    champion = registry.alias(CHAMPION)
    manifest = manifest_of(registry, champion) if champion else None
    encoder = manifest["encoder"]["version"] if manifest else None
    items = active_items(lake)
    return {
        "champion": {
            "release": champion,
            "encoder": encoder,
            "ctr": manifest["ctr"]["version"] if manifest["ctr"] else None,
            "contract_id": manifest["contract_id"],
            "trained_until": manifest["trained_until"],
        }
        if manifest
        else None,
        "candidate": registry.alias(CANDIDATE),
        "previous": registry.alias(PREVIOUS),
        "serving": _serving(settings, registry),
        "last_move": next((move.told() for move in reversed(record.moves(registry))), None),
        "items": len(items),
        "embedded": len(items & embedded_items(lake, encoder)) if encoder else 0,
        "images": lake.count("images"),
        "queries": lake.count("queries"),
        "events": lake.count("events"),
        "quarantine": lake.count("quarantine"),
        "metrics": manifest["metrics"] if manifest else {},
    }


def _serving(settings: Settings, registry: Registry) -> dict[str, Any]:
    """What a service would serve now, why that is not the champion, and what one of this home has loaded last."""
    loaded, since = served.since(settings)
    try:
        choice = served.choose(settings, registry)
    except MoonError as fault:
        return {"release": None, "degraded": str(fault), "loaded": loaded, "since": since}
    return {"release": choice.release, "degraded": choice.why, "loaded": loaded, "since": since}


def active_items(lake: Lake) -> set[int]:
    """The items whose newest version is not deleted."""
    table = lake.read("items", ["item_id", "event_timestamp", "created", "status"])
    table = table.sort_by([("event_timestamp", "ascending"), ("created", "ascending")])
    newest = dict(zip(table["item_id"].to_pylist(), table["status"].to_pylist(), strict=True))
    return {item for item, state in newest.items() if state == "active"}


def embedded_items(lake: Lake, encoder: int) -> set[int]:
    """The items that have a vector under the encoder."""
    name = vector_tables.table_name(encoder)
    return set(pc.unique(lake.read(name, ["item_id"])["item_id"]).to_pylist()) if lake.exists(name) else set()
