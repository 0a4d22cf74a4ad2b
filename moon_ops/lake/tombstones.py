"""What was erased and does not come back: the keys of items, users, queries and sessions that an ingest refuses, with the time of
their erasure.

A refusal keeps nothing of the row: what was erased must not come back in the quarantine either.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.lake import ids
from moon_ops.lake.ids import KINDS
from moon_ops.lake.lake import Lake
from moon_ops.lake.layout import Refusals
from moon_ops.lake.refusal_order import ERASED
from moon_ops.lake.schemas import SCHEMAS

TABLE = "erased"
COMMANDS = {"item": "moon restore ITEM_ID", "user": "moon restore --user USER_ID", "query": "moon restore --query QUERY_ID"}
COMMANDS["session"] = COMMANDS["user"]  # sessions go and come back with their user


def add(lake: Lake, kind: str, keys: Sequence[int], now: dt.datetime) -> None:
    """Note that these are erased, each once."""
    there = known(lake, kind, keys)
    rows = [{"kind": kind, "key": key, "created": now} for key in dict.fromkeys(keys) if key not in there]
    if rows:
        lake.append(TABLE, pa.Table.from_pylist(rows, schema=SCHEMAS[TABLE]))


def known(lake: Lake, kind: str, keys: Sequence[int]) -> dict[int, dt.datetime]:
    """Which of the keys are erased, and since when."""
    if not lake.exists(TABLE):
        return {}
    rows = ids.matching(lake, TABLE, "key", pa.array(keys, pa.int64()), ("created",), f"kind = '{kind}'")
    return dict(zip(rows["key"].to_pylist(), rows["created"].to_pylist(), strict=True))


def remove(lake: Lake, kind: str, key: int) -> bool:
    """Let one come back with the next file that names it, a user with their sessions, which have the time of the user's erasure; whether
    it was erased.
    """
    since = known(lake, kind, [key]).get(key)
    if since is None:
        return False
    sessions = f" OR (kind = 'session' AND created = timestamp '{since:%Y-%m-%d %H:%M:%S.%f}')" if kind == "user" else ""
    lake.open(TABLE).delete(f"(kind = '{kind}' AND key = {key}){sessions}")
    return True


def refuse(lake: Lake, raw: Mapping[str, pa.Table], refusals: Refusals, *, others: bool = True) -> dict[str, pa.Table]:
    """The rows that name nothing that was erased; the others are refused, without their content, which goes from those that were refused
    for something else, too, unless that was done (``others``).
    """
    tables = dict(raw)
    if not lake.exists(TABLE):
        return tables
    erased = lake.read(TABLE)
    gone = {kind: erased.filter(pc.equal(erased["kind"], kind))["key"].combine_chunks() for kind in pc.unique(erased["kind"]).to_pylist()}
    if others:
        _hush(refusals, {kind: set(keys.to_pylist()) for kind, keys in gone.items()})
    for name, table in raw.items():
        refusals.order.begin(ERASED, name)
        for kind, column in ((k, c) for k in gone for c in table.column_names if KINDS.get(c) == k):
            bad = pc.fill_null(pc.is_in(tables[name][column], gone[kind]), False)
            if kind == "session":  # what another user does there is theirs
                bad = pc.and_(bad, pc.is_null(tables[name]["user_id"]))
            tables[name] = refusals.split(tables[name], bad, name, column, _why(kind), silent=True)
    return tables


def _why(kind: str) -> str:
    return f"names {'an' if kind == 'item' else 'a'} {kind} that was erased, and does not come back: `{COMMANDS[kind]}` allows it again"


def _hush(refusals: Refusals, gone: Mapping[str, set[int]]) -> None:
    """Take the content from refused rows that name what was erased."""
    for number, refused in enumerate(refusals.rows):
        for name, cell in json.loads(refused["row"]).items():
            kind = KINDS.get(name, "")
            if kind in gone and not gone[kind].isdisjoint(keys_of(cell)):
                refusals.hush(number, f"{name} {_why(kind)}")
                break


def keys_of(cell: Any) -> set[int]:
    """What a cell may stand for: ``6.0`` is 6 in a column of numbers."""
    cell = cell.strip() if isinstance(cell, str) else cell
    with contextlib.suppress(ValueError, pa.ArrowException, OverflowError):
        return {ids.key(ids.clean(cell)), *ids.read(pa.array([cell])).keys.drop_null().to_pylist()}
    return set()
