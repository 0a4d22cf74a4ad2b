"""A request to score, as the rows that a click model was trained on: its query, its context, and what is known online of items and user."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moon_ops.columns import CLOCK, ROWS, USER_VIEW, Feature, by_view
from moon_ops.embeddings.as_of import Joined
from moon_ops.embeddings.table import MISSING
from moon_ops.errors import InputError
from moon_ops.lake.schemas import STAMP

UNHEARD = -2  # the id of a query that has none: to a click model it is unknown, which is not the same as no query
FOREVER = dt.datetime(9999, 1, 1, tzinfo=dt.UTC)
LISTS = pa.list_(pa.int64())
TYPES = {"id": pa.int64(), "category": pa.string(), "bucket": pa.float64(), "statistic": pa.int64()}
TYPES |= {"number": pa.float64(), "list": pa.list_(pa.string())}


@dataclass(frozen=True)
class Asked:
    """The query of a request: the shop's id of it if it has one, text, whether it shows a picture, and its vector [D]."""

    query_id: int | None
    text: str
    is_image: bool
    vector: NDArray[np.float32] | None
    contexts: Sequence[Mapping[str, Any]] = ()  # of each item: values by the names of context features; empty: none are known


def joined(known: Mapping[str, list[Any]], user_id: int, item_ids: Sequence[int], asked: Asked, own: Sequence[Feature]) -> Joined:
    """Online features as those that an impression is joined with: a row of each item, and one of the user, in each view."""
    count, views = len(item_ids), by_view(own)
    tables = {
        view: pa.table({f.column_joined: pa.array(known[f.column_joined], TYPES[f.kind]) for f in found})
        for view, found in views.items()
        if view != ROWS
    }
    tables["user_behavior"] = pa.table({name: pa.array(known[name], LISTS) for name in ("item_ids", "query_ids")})
    columns = {"item_id": pa.array(list(item_ids), pa.int64()), "user_id": pa.array([user_id] * count, pa.int64())}
    query = asked.query_id if asked.query_id is not None else UNHEARD if asked.vector is not None else MISSING
    columns |= {"query_id": pa.array([query] * count, pa.int64())}
    columns |= {name: pa.array([MISSING] * count, pa.int64()) for name in ("session_id", "label")}
    columns |= {"text": pa.array([asked.text or None] * count, pa.string()), "is_image": pa.array([asked.is_image] * count, pa.bool_())}
    columns["event_timestamp"] = pa.array([FOREVER] * count, STAMP)  # what is online is known already
    contexts = asked.contexts or [{}] * count
    for feature in (f for f in own if f.view == ROWS):
        columns[feature.name] = pa.array([context.get(feature.name) for context in contexts], TYPES[feature.kind])
    of_user = ("user_behavior", USER_VIEW)
    at = {view: np.zeros(count, np.int64) if view in of_user else np.arange(count) for view in tables}
    return Joined(pa.table(columns), tables, at)


def contexts(
    shared: Mapping[str, Any], each: Sequence[Mapping[str, Any]] | None, count: int, own: Sequence[Feature], now: dt.datetime
) -> list[dict[str, Any]]:
    """The context of each of ``count`` items: what the request says of all (``shared``) and of each, and the hour and weekday of ``now``.

    :class:`InputError` for a name that the click model does not read, a value of another kind, and not one context an item.
    """
    if each is not None and len(each) != count:
        raise InputError(f"item_contexts has {len(each)} entries for {count} item_ids", action="send one context an item, in their order")
    known = {feature.name: feature for feature in own if feature.view == ROWS}
    clock = {"hour": now.astimezone(dt.UTC).hour, "weekday": now.astimezone(dt.UTC).isoweekday()}
    told = {name: clock[f.source] for name, f in known.items() if f.source in CLOCK}
    return [{name: _value(known, name, value) for name, value in {**told, **shared, **one}.items()} for one in each or [{}] * count]


def _value(known: Mapping[str, Feature], name: str, value: Any) -> Any:
    """A value as training had it: numbers as numbers, categories as texts, lists as lists of texts."""
    if name not in known:
        action = f"send one of: {', '.join(known)}" if known else "leave context out: it has none"
        raise InputError(f"context.{name} is no context feature of this click model", action=action)
    kind, number = known[name].kind, isinstance(value, int | float) and not isinstance(value, bool)
    if value is None:
        return None
    if kind == "number" and number and math.isfinite(value):
        return float(value)
    if kind == "category" and (number or isinstance(value, str)):
        return value.strip() if isinstance(value, str) else str(int(value) if float(value).is_integer() else value)
    if kind == "list" and isinstance(value, list) and all(isinstance(part, str) for part in value):
        return [part.strip() for part in value if part.strip()]
    wanted = {"number": "a finite number", "category": "a text or a number", "list": "a list of texts"}[kind]
    raise InputError(f"context.{name} = {value!r} must be {wanted}", action="correct the request")
