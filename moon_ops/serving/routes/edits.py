"""Single items: what is like one, a part of one replaced, and one taken out of sale."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query
from fastapi.responses import JSONResponse, Response
from numpy.typing import NDArray

from moon_ops.lake import ids
from moon_ops.lake.ingest import IngestReport
from moon_ops.serving import edits, finding
from moon_ops.serving.answers import REFUSALS, Id, absent, signed
from moon_ops.serving.champion import Champion
from moon_ops.serving.edits import Part
from moon_ops.serving.questions import stored
from moon_ops.serving.service import Service

MORE = 20  # hits that are looked at beyond k: the item itself, and those that were withdrawn since the publication


def add(app: FastAPI, service: Service) -> None:
    """``/v1/items/{item_id}/similar``, and ``PATCH`` and ``DELETE`` of ``/v1/items/{item_id}``; an id may hold slashes."""

    @app.get("/v1/items/{item_id:path}/similar", responses=REFUSALS, response_model=None)
    async def similar(item_id: Id, k: Annotated[int, Query(ge=1, le=200)] = 10) -> dict[str, Any] | JSONResponse:
        """The k items on sale that are nearest to an item, without itself, also if the item is not sold any more."""
        champion = service.follower.champion()
        (vector,), (there,) = stored(champion, [item_id])
        if not there:
            return absent(f"item {item_id!r} has no vector", "ask for an item that has been published")
        nearest = await service.engine.asking(_nearest, service, champion, vector, ids.key(item_id), k)
        return {**signed(champion), "item_id": ids.wire(item_id), **nearest}

    @app.patch("/v1/items/{item_id:path}", responses=REFUSALS)
    def change(item_id: Id, part: Part) -> Response:
        """Replace a part of an item; what is not named stays. It is kept when this answers, and found some seconds later.

        ``first_refusal`` says what could not be used, e.g. a picture that cannot be read: the item keeps those that it has.
        """
        return _answer(item_id, edits.change(service.intake, item_id, part, dt.datetime.now(dt.UTC)))

    @app.delete("/v1/items/{item_id:path}", responses=REFUSALS)
    def withdraw(item_id: Id) -> Response:
        """Take an item out of sale. It is kept when this answers, and no file of before undoes it; searches of this
        service drop it at once, and those of others within seconds."""
        report = edits.withdraw(service.intake, item_id, dt.datetime.now(dt.UTC))
        if report is not None:
            service.follower.withdrawals.note(ids.key(item_id))
        return _answer(item_id, report)


def _nearest(service: Service, champion: Champion, vector: NDArray[np.float32], own: int, k: int) -> dict[str, Any]:
    """The items on sale nearest to a vector [D] but the item ``own``."""
    hits, fault = finding.on_sale(service, champion, champion.search(vector, k + MORE))
    others = [(hit, row) for hit, row in hits if hit.item_id != own][:k]
    items = [{**row, "score": hit.score} for row, (hit, _) in zip(finding.listed(service, others), others, strict=True)]
    return {"items": items} | ({"degraded": fault} if fault else {})


def _answer(item_id: ids.ShopId, report: IngestReport | None) -> Response:
    if report is None:
        return absent(f"there is no item {item_id!r}", "send it to POST /v1/items")
    body = {"item_id": ids.wire(item_id), "changed": bool(report.updated), "first_refusal": report.first_refusal}
    return JSONResponse(body, status_code=200)
