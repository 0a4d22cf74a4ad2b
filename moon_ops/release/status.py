"""What is there and what is served, in one look."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.embeddings import vector_tables
from moon_ops.errors import MoonError, ServiceError
from moon_ops.lake import versions
from moon_ops.lake.lake import Lake
from moon_ops.lake.query import newest
from moon_ops.lake.schemas import STAMP
from moon_ops.publication import places
from moon_ops.registry import moves as record
from moon_ops.registry.registry import CANDIDATE, CHAMPION, PREVIOUS, Registry, manifest_of
from moon_ops.release import evidence, refusals, served
from moon_ops.release.verification import dimensions_of
from moon_ops.settings import Settings

COUNTED = ("items", "embedded", "images", "queries", "events", "quarantine")  # what the lake holds


def status(settings: Settings, *, now: dt.datetime | None = None) -> dict[str, Any]:
    """The champion with its parts and figures, how many items there are, and how many of them it has vectors for; and what services of
    this home refuse at ``now``. Where the lake's store does not answer, ``lake_away`` says so and what it holds is None."""
    if not settings.home.exists():
        return {"champion": None, "candidate": None, "previous": None, "items": 0, "embedded": 0, "metrics": {}}
    registry = Registry(settings)
    champion = registry.alias(CHAMPION)
    manifest = manifest_of(registry, champion) if champion else None
    encoder = manifest["encoder"]["version"] if manifest else None
    try:
        items, serving = active_items(settings.lake, now), _serving(settings, registry, now)
        held = _held(settings, encoder or serving["encoder"], items)
    except ServiceError as silent:  # whoever asked it once more would wait as long again
        held, (loaded, since) = {"lake_away": silent.problem, **dict.fromkeys(COUNTED)}, served.since(settings)
        serving = {"release": loaded, "encoder": None, "degraded": "", "loaded": loaded, "since": since}
    return {
        "champion": {
            "release": champion,
            "encoder": manifest["encoder"]["version"],
            "ctr": manifest["ctr"]["version"] if manifest["ctr"] else None,
            "contract_id": manifest["contract_id"],
            "trained_until": manifest["trained_until"],
            "dimensions": dimensions_of(manifest) or None,  # of each vector that is searched; None: all of them
        }
        if manifest
        else None,
        "candidate": registry.alias(CANDIDATE),
        "previous": registry.alias(PREVIOUS),
        "serving": serving,
        "refused": [asdict(refusal) for refusal in refusals.standing(settings, now)] if now is not None else [],
        "last_move": next((move.told() for move in reversed(record.moves(registry))), None),
        **held,
        "gates": manifest["evidence"] if manifest else [],
        "metrics": manifest["metrics"] if manifest else {},
    }


def _held(settings: Settings, encoder: int | None, items: set[int]) -> dict[str, Any]:
    """What the lake holds beside its active ``items``; :class:`ServiceError` if its store does not answer."""
    lake = settings.lake
    embedded = len(items & embedded_items(lake, encoder)) if encoder else 0
    tables = ("images", "queries", "events", "quarantine")
    counts = {"lake_away": places.lake_away(settings), "items": len(items), "embedded": embedded}
    return counts | {table: lake.count(table) for table in tables}


def lines(found: dict[str, Any]) -> Iterator[str]:
    """:func:`status` for people: what is served and whether all is well first, then how good it is, then how much there is."""
    champion, serving = found["champion"], found.get("serving", {})
    if serving.get("degraded") and (champion or serving["release"]):
        to_serve = f"release {serving['release']}" if serving["release"] else "no release"
        yield f"DEGRADED    {to_serve} is to be served, because {serving['degraded']}"
    if found.get("lake_away"):
        yield f"DEGRADED    {found['lake_away']}: bring it back (is its store up, its disk mounted?)"
    if champion is None and (serving.get("release") or serving.get("loaded")):
        yield "champion    none: somebody took the alias away; `moon rollback` brings it back"
    elif champion is None:
        yield "champion    none: run `moon promote RELEASE`, or `moon demo` for a first one"
    else:
        click_model = f"moon-ctr {champion['ctr']}" if champion["ctr"] else "no click model"
        parts = f"moon-encoder {champion['encoder']}, {click_model}, contract {champion['contract_id']}"
        yield f"champion    release {champion['release']}: {parts}"
        if champion.get("dimensions"):
            yield f"            searches the first {champion['dimensions']} numbers of each vector"
        yield f"            trained until {champion['trained_until'][:16]}"
    yield f"others      candidate {found['candidate'] or 'none'}, previous {found['previous'] or 'none'}"
    if serving.get("loaded"):
        yield f"loaded      release {serving['loaded']} by a service of this home, {serving['since']}"
    yield from (f"refused     {refusals.Refusal(**one).told()}" for one in found.get("refused", []))
    if found.get("last_move"):
        yield f"last move   {found['last_move']}"
    yield from (f"gate        {line}" for line in evidence.lines(found.get("gates", [])))
    if found["items"] is None:
        return
    yield f"catalogue   {found['items']:,} items, {found['embedded']:,} with vectors"
    if "events" in found:
        counts = (f"{found[name]:,} {word}" for name, word in (("images", "pictures"), ("queries", "queries"), ("events", "events")))
        yield f"lake        {', '.join(counts)}, {found['quarantine']:,} refused rows"


def _serving(settings: Settings, registry: Registry, now: dt.datetime | None) -> dict[str, Any]:
    """What a service would serve now, why that is not the champion, and what one of this home has loaded last."""
    loaded, since = served.since(settings)
    try:
        choice = served.choose(settings, registry, now=now)
    except MoonError as fault:
        return {"release": None, "encoder": None, "degraded": str(fault), "loaded": loaded, "since": since}
    found = {"release": choice.release, "encoder": served.encoder_of(choice), "degraded": choice.why}
    return {**found, "loaded": loaded, "since": since}


def active_items(lake: Lake, now: dt.datetime | None = None) -> set[int]:
    """The items whose newest version is neither deleted nor over at ``now``; one that is to end is active until then."""
    table = versions.current(lake, ["status"])
    active = pc.equal(table["status"], pa.scalar("active"))
    if now is not None:
        over = pc.fill_null(pc.less_equal(table["available_until"], pa.scalar(now, STAMP)), False)
        active = pc.and_(active, pc.invert(over))
    return set(table.filter(active)["item_id"].to_pylist())


def embedded_items(lake: Lake, encoder: int) -> set[int]:
    """The items that have a vector under the encoder, of what they say now: one of a content that was replaced since counts for nothing."""
    name = vector_tables.table_name(encoder)
    if not lake.exists(name):
        return set()
    vectors = newest(lake.read(name, ["item_id", "content_hash", "event_timestamp", "created"]), "item_id")
    made = set(zip(vectors["item_id"].to_pylist(), vectors["content_hash"].to_pylist(), strict=True))
    table = versions.current(lake, ["content_hash"])
    return {
        item for item, said in zip(table["item_id"].to_pylist(), table["content_hash"].to_pylist(), strict=True) if (item, said) in made
    }
