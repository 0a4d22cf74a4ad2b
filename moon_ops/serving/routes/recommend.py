"""Retrieval, relevance and ranking: each alone, or all of them in one call, as the paper deploys them."""

from __future__ import annotations

import datetime as dt
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from moon_ops.lake import ids
from moon_ops.serving import finding, questions
from moon_ops.serving.answers import REFUSALS, Id, signed
from moon_ops.serving.champion import Champion, Hit
from moon_ops.serving.questions import Image, Text
from moon_ops.serving.request import Asked, contexts
from moon_ops.serving.service import Service
from moon_ops.serving.stores import ONLINE

MOST_ITEMS = 500


class RelevanceRequest(BaseModel):
    """A text, a picture (base64 or a data URL), or both, and the items that it is compared with."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"text": "red lamp", "item_ids": [1, 2, 3]}]})
    text: Text = ""
    image: Image | None = None
    item_ids: list[Id] = Field(min_length=1, max_length=MOST_ITEMS)


class RecommendRequest(BaseModel):
    """A user and a query. Of ``candidates`` nearest items those below ``threshold`` (a cosine; without it the release's own) are dropped,
    the rest is ranked by the click model, and ``k`` are answered.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"user_id": 1, "text": "red lamp", "k": 10}]})
    user_id: Id
    query_id: Id | None = None  # the shop's, where the query has been asked before
    text: Text = ""
    image: Image | None = None
    k: int = Field(10, ge=1, le=200)
    candidates: int = Field(100, ge=1, le=MOST_ITEMS)
    threshold: float | None = Field(None, ge=-1, le=1)
    context: dict[str, Any] = Field({}, max_length=100)  # the click model's context features, as /v1/score has them


def add(app: FastAPI, service: Service) -> None:
    """``/v1/relevance`` and ``/v1/recommend``."""
    follower, engine = service.follower, service.engine

    @app.post("/v1/relevance", responses=REFUSALS)
    async def relevance(request: RelevanceRequest) -> dict[str, Any]:
        """How near items are to a query: cosines of their vectors, and ``relevant``, whether they reach the release's ``threshold``.

        A cosine is no probability. A release that has measured no threshold says null; ``unknown`` are ids without a vector.
        """
        champion = follower.champion()
        vector = await engine.vector(champion, request.text, questions.picture(request.image))
        cut = questions.relevance(champion, pictured=request.image is not None)
        vectors, there = questions.stored(champion, request.item_ids)
        pairs = list(zip([ids.wire(i) for i in request.item_ids], (vectors @ vector).tolist(), there.tolist(), strict=True))
        rows = [{"item_id": i, "cosine": c, "relevant": c >= cut["cosine"] if cut else None} for i, c, known in pairs if known]
        unknown = [i for i, _, known in pairs if not known]
        return {**signed(champion), "measure": "cosine", "threshold": cut, "items": rows, "unknown": unknown}

    @app.post("/v1/recommend", responses=REFUSALS)
    async def recommend(request: RecommendRequest) -> dict[str, Any]:
        """Retrieval → relevance → ranking in one call. Each item has its figures of each stage: its ``place`` among the candidates, its
        ``cosine``, and the click probability (``score``) by which the answer is ordered; ``stages`` says how many were left after each.
        """
        champion = follower.champion()
        champion.require_scorer()
        picture = questions.picture(request.image)
        vector = await engine.vector(champion, request.text, picture)
        follower.recent.keep(request.text, picture)
        return {**signed(champion), **await engine.scoring(_stages, service, champion, request, vector)}


@dataclass(frozen=True)
class _Candidate:
    """An item on its way through the stages."""

    place: int
    hit: Hit
    row: dict[str, Any]


def _stages(service: Service, champion: Champion, request: RecommendRequest, vector: NDArray[np.float32]) -> dict[str, Any]:
    began = time.perf_counter()
    hits = champion.search(vector, request.candidates)
    sold, fault = finding.on_sale(service, champion, hits)
    places = {hit.item_id: place for place, hit in enumerate(hits, 1)}
    candidates = [_Candidate(places[hit.item_id], hit, row) for hit, row in sold]
    retrieval = {"candidates": len(hits), "withdrawn": len(hits) - len(sold), "ms": _ms(began)}
    cut = questions.relevance(champion, pictured=request.image is not None)
    threshold = request.threshold if request.threshold is not None else cut["cosine"] if cut else None
    left = [one for one in candidates if threshold is None or one.hit.score >= threshold]
    source = "request" if request.threshold is not None else "release" if cut else "none measured"
    relevance = {"threshold": threshold, "source": source, "kept": len(left), "dropped": len(candidates) - len(left)}
    began = time.perf_counter()
    scores = _scores(service, champion, request, [one.hit.item_id for one in left], vector) if left else []
    ranked = sorted(zip(left, scores, strict=True), key=lambda pair: (-pair[1], pair[0].place))[: request.k]
    rows = finding.listed(service, [(one.hit, one.row) for one, _ in ranked])
    items = [{**row, "place": one.place, "cosine": one.hit.score, "score": score} for row, (one, score) in zip(rows, ranked, strict=True)]
    ranking = {"click_model": (champion.manifest["ctr"] or {}).get("version"), "ms": _ms(began)}
    stages = {"retrieval": retrieval, "relevance": relevance, "ranking": ranking}
    return {"stages": stages, "items": items} | ({"degraded": fault} if fault else {})


def _scores(service: Service, champion: Champion, request: RecommendRequest, keys: list[int], vector: NDArray[np.float32]) -> list[float]:
    """Click probabilities of items, as ``/v1/score`` gives them."""
    assert champion.scorer is not None, "asked for before"
    context = contexts(request.context, None, len(keys), champion.scorer.own, dt.datetime.now(dt.UTC))
    asked_id = None if request.query_id is None else ids.key(request.query_id)
    asked = Asked(asked_id, request.text, is_image=request.image is not None, vector=vector, contexts=context)
    with service.follower.stores.asked(ONLINE):
        scores = champion.score(ids.key(request.user_id), keys, asked)
    service.watch.saw(champion.version, "score", scores)
    return scores


def _ms(began: float) -> float:
    return round(1e3 * (time.perf_counter() - began), 3)
