"""Click probabilities of items."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from moon_ops.inputs.images import MAX_BYTES
from moon_ops.lake import ids
from moon_ops.serving.answers import MAX_TEXT, Id, Utf8, decoded, signed
from moon_ops.serving.champion import Champion
from moon_ops.serving.request import Asked, contexts
from moon_ops.serving.service import Service
from moon_ops.serving.stores import ONLINE


class ScoreRequest(BaseModel):
    """Items to score for a user and a query; ``image`` is base64."""

    model_config = ConfigDict(extra="forbid")  # a misspelt field would be a request without a query
    user_id: Id
    item_ids: list[Id] = Field(min_length=1, max_length=500)
    query_id: Id | None = None  # the shop's, where the query has been asked before
    text: Utf8 = Field("", max_length=MAX_TEXT)
    image: str | None = Field(None, max_length=MAX_BYTES * 4 // 3 + 4)
    context: dict[str, Any] = Field({}, max_length=100)  # the click model's context features, e.g. {"position": 1}; of all items
    item_contexts: list[dict[str, Any]] | None = None  # and of each, e.g. [{"relevance": 0.7}, …]


def add(app: FastAPI, service: Service) -> None:
    """``/v1/score``."""
    follower, engine = service.follower, service.engine

    @app.post("/v1/score")
    async def score(request: ScoreRequest) -> dict[str, Any]:
        """Click probabilities of items for a user and a query."""
        champion, picture = follower.champion(), decoded(request.image)
        query = await engine.vector(champion, request.text, picture) if request.text.strip() or picture else None
        return {**signed(champion), **await engine.scoring(_scored, service, champion, request, query)}


def _scored(service: Service, champion: Champion, request: ScoreRequest, query: NDArray[np.float32] | None) -> dict[str, Any]:
    """The items with their click probabilities; ``query``: the vector [D] of text and picture, if there are any."""
    own, count = champion.scorer.own if champion.scorer else (), len(request.item_ids)
    context = contexts(request.context, request.item_contexts, count, own, dt.datetime.now(dt.UTC))
    asked_id = None if request.query_id is None else ids.key(request.query_id)
    asked = Asked(asked_id, request.text, is_image=request.image is not None, vector=query, contexts=context)
    called = [ids.wire(i) for i in request.item_ids]
    with service.follower.stores.asked(ONLINE):
        scores = champion.score(ids.key(request.user_id), [ids.key(i) for i in request.item_ids], asked, called)
    service.watch.saw(champion.version, "score", scores)
    return {"scores": [{"item_id": i, "score": s} for i, s in zip(called, scores, strict=True)]}
