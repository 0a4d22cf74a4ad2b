"""Behaviour that comes back in."""

from __future__ import annotations

import datetime as dt
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from moon_ops.serving.answers import REFUSALS
from moon_ops.serving.behaviour import MOST_EVENTS, MOST_QUERIES, Event, NewQuery
from moon_ops.serving.service import Service

CLICK: dict[str, Any] = {
    "event_id": "e-1",
    "timestamp": "2026-01-31T12:00:00Z",
    "user_id": 1,
    "item_id": 2,
    "event": "click",
    "query_id": 3,
}
EXAMPLE: Any = {"events": [CLICK]}


class Events(BaseModel):
    """What happened, and the queries that events name, if they are new."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [EXAMPLE]})
    events: list[Event] = Field(min_length=1, max_length=MOST_EVENTS)
    queries: list[NewQuery] = Field([], max_length=MOST_QUERIES)


def add(app: FastAPI, service: Service) -> None:
    """``/v1/events``."""

    @app.post("/v1/events", status_code=202, responses=REFUSALS)
    def saw(request: Events) -> dict[str, Any]:
        """Take impressions, clicks, carts and purchases in. They are kept when this answers; the sequences of users who have clicked are
        served some seconds later, counts of items from the next night on. Sent again with their ``event_id``, events are known.
        """
        report = service.behaviour.saw(request.events, request.queries, dt.datetime.now(dt.UTC))
        body = {"new": report.events, "queries": report.queries, "known": report.known, "refused": report.refused | report.erased}
        return {**body, "first_refusal": report.first_refusal}
