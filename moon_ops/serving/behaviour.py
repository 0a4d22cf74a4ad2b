"""Behaviour that comes back over HTTP: what users saw, clicked and bought, in the lake at once, and in their sequences within seconds.

An event is checked as one in a shop's file. One with an ``event_id`` is known by it, so a request may be sent again until it is answered.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr

from moon_ops.errors import InputError
from moon_ops.inputs.images import MAX_BYTES
from moon_ops.lake.ingest import IngestReport
from moon_ops.publication.behaviour import publish_sequences
from moon_ops.serving.live import Extra, Id, Intake, pictures
from moon_ops.serving.taking import write_rows

MOST_EVENTS, MOST_QUERIES = 1000, 200  # in a request
Time = Annotated[StrictStr | StrictInt | StrictFloat, Field(description="ISO 8601, or seconds or milliseconds since 1970")]
NAMED = Annotated[StrictStr | StrictInt, Field(description="the shop's; sent again with the same content, the event is known")]


class Event(BaseModel):
    """What somebody did, with the columns of events in docs/shop.md."""

    model_config = ConfigDict(extra="forbid")
    timestamp: Time
    item_id: Id
    event: StrictStr  # impression, click, cart, purchase, cancel, return
    user_id: Id | None = None
    query_id: Id | None = None
    session_id: Id | None = None
    position: int | None = Field(None, ge=0, le=1_000_000)
    event_id: NAMED | None = None
    order_id: StrictStr | StrictInt | None = None
    extra: dict[str, Extra] | None = None  # columns of the shop's own


class NewQuery(BaseModel):
    """What a user asked; an event names it by its id."""

    model_config = ConfigDict(extra="forbid")
    query_id: Id
    timestamp: Time
    text: str | None = Field(None, max_length=10_000)
    image: str | None = Field(None, max_length=MAX_BYTES * 4 // 3 + 4)  # base64


class Behaviour(Intake):
    """Takes events in, and keeps a thread that hands users' sequences over."""

    waiting = "users' sequences wait"

    def saw(self, events: Sequence[Event], queries: Sequence[NewQuery], now: dt.datetime) -> IngestReport:
        """Commit queries and events to the lake; :class:`InputError` with the reason if none of them can be used."""

        def fill(folder: Path) -> None:
            if queries:
                write_rows(folder / "queries.jsonl", [_query(folder, number, query) for number, query in enumerate(queries)])
            write_rows(folder / "events.jsonl", [_event(number, event) for number, event in enumerate(events)])

        return self.taken(fill, "event", now)

    def refresh(self, now: dt.datetime) -> bool:
        """Hand over the sequences of those who have clicked since; whether there were any."""
        champion = self.follower.current
        return champion is not None and publish_sequences(self.settings, champion.encoder, now=now) > 0


def _event(number: int, event: Event) -> dict[str, Any]:
    own = event.extra or {}
    if taken := sorted(set(own) & set(Event.model_fields)):
        raise InputError(f"events[{number}].extra.{taken[0]} is a standard column", action=f"send it as events[{number}].{taken[0]}")
    return own | event.model_dump(exclude_none=True, exclude={"extra"})


def _query(folder: Path, number: int, query: NewQuery) -> dict[str, Any]:
    row = query.model_dump(exclude_none=True, exclude={"image"})
    return row if query.image is None else row | {"image": pictures(folder, number, [query.image], f"queries[{number}].image")[0]}
