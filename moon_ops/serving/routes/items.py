"""The catalogue: look items and pictures up, and take new items in."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from moon_ops.errors import InputError
from moon_ops.inputs.images import for_browsers
from moon_ops.lake import ids
from moon_ops.lake.tables import image_bytes
from moon_ops.serving.answers import Id, shown
from moon_ops.serving.live import MOST, NewItem
from moon_ops.serving.problems import problem
from moon_ops.serving.service import Service
from moon_ops.serving.stores import LAKE, SHOWN, reading, titles


class NewItems(BaseModel):
    """Items to take in."""

    items: list[NewItem] = Field(min_length=1, max_length=MOST)


def add(app: FastAPI, service: Service) -> None:
    """``/v1/items`` and ``/v1/images``."""
    _add_reading(app, service)
    _add_intake(app, service)


def _add_reading(app: FastAPI, service: Service) -> None:
    settings, stores, shop_ids = service.settings, service.follower.stores, service.shop_ids

    @app.get("/v1/items")
    def items(item_id: Annotated[list[Id], Query(max_length=200)]) -> dict[str, Any]:
        """Titles, prices, pictures and products of items; ``unknown`` are ids of none that is on sale."""
        with stores.asked(LAKE):
            known = titles(settings.lake, [ids.key(i) for i in item_id], dt.datetime.now(dt.UTC), (*SHOWN, "spu_id"))
        found = [(ids.wire(i), known.get(ids.key(i))) for i in item_id]
        there = [(i, item) for i, item in found if item is not None]
        products = shop_ids.product([item["spu_id"] for _, item in there])
        listed = [{"item_id": i, "spu_id": product, **shown(item)} for (i, item), product in zip(there, products, strict=True)]
        return {"items": listed, "unknown": [i for i, item in found if item is None]}

    @app.get("/v1/images/{image_id}")
    def image(image_id: str) -> Response:
        """A picture of the catalogue."""
        if not (len(image_id) == 64 and all(c in "0123456789abcdef" for c in image_id)):
            raise InputError(f"image_id = {image_id!r} is not a sha256 in hex", action="use an image_id that /v1/search returns")
        with stores.asked(LAKE), reading(settings.lake):
            found = [content for _, content in image_bytes(settings.lake, [image_id])]
        for content in found:
            kind, content = for_browsers(content)
            return Response(content, media_type=kind, headers={"cache-control": "public, max-age=31536000, immutable"})
        return problem(404, f"there is no picture {image_id}", "use an image_id that /v1/search returns")


def _add_intake(app: FastAPI, service: Service) -> None:
    @app.post("/v1/items", status_code=202)
    def accept(request: NewItems, authorization: Annotated[str, Header()] = "") -> Response:  # noqa: ARG001 - for /docs; see Guard
        """Take new or changed items in; they can be found some seconds later. An item that is known is replaced as a whole."""
        report = service.intake.accept(request.items, dt.datetime.now(dt.UTC))
        body = {"new": report.items, "changed": report.updated, "known": report.known, "refused": report.refused}
        return JSONResponse({**body, "first_refusal": report.first_refusal}, status_code=202)
