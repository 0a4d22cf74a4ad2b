"""What other services ask of this one: the nearest items of the shards that it holds (:mod:`moon_ops.serving.peers`)."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from moon_ops.embeddings.cards import Wanted
from moon_ops.errors import InputError, ServiceError
from moon_ops.serving import finding, questions
from moon_ops.serving.peers import LOOK, PATH
from moon_ops.serving.service import Service
from moon_ops.serving.shelf import IndexName, Part, Question, Shelf


class LookRequest(BaseModel):
    """The ``only`` shards of an ``index`` that are wanted."""

    model_config = ConfigDict(extra="forbid")
    index: IndexName
    only: list[int] = Field(min_length=1)


class ShardsRequest(LookRequest):
    """The shards to be searched, and the unit vectors [B, D] of the queries: float32, little-endian, in base64."""

    k: int = Field(ge=1, le=finding.MOST)
    vectors: str = Field(max_length=questions.MAX_IMAGE)
    wanted: Wanted | None = None


def add(app: FastAPI, service: Service) -> None:
    """``/v1/shards/search`` and ``/v1/shards/ready``."""
    shelf, engine = service.follower.shelf, service.engine

    @app.post(PATH, include_in_schema=False)
    async def shards(request: ShardsRequest) -> dict[str, Any]:
        """Item ids (int64) and cosines (float32), [B, k] each, in base64; -1 where there are no more. 503 for an index that is not here."""
        return await engine.asking(_found, shelf, request)

    @app.post(LOOK, include_in_schema=False)
    async def ready(request: LookRequest) -> dict[str, Any]:
        """Whether these shards are open here, of this index; 503 with the reason if not. One that is not open is opened."""
        await engine.asking(_held, shelf, request)
        return {"index": dataclasses.asdict(request.index)}


def _held(shelf: Shelf, request: LookRequest) -> Part:
    part = shelf.asked(request.index)
    if beyond := sorted(set(request.only) - part.index.held):
        held = ", ".join(map(str, sorted(part.index.held))) or "none"
        raise ServiceError(f"shard {beyond[0]} is not here: held are {held}", action="correct MOON_INDEX_PEERS of who asks")
    return part


def _found(shelf: Shelf, request: ShardsRequest) -> dict[str, Any]:
    part = _held(shelf, request)
    asked = Question(_vectors(request.vectors, part.index.header.dim), request.k, request.wanted)
    ids, cosines = part.find(asked, request.index.contract_id, request.only)
    return {"index": dataclasses.asdict(request.index), "ids": _written(ids, "<i8"), "cosines": _written(cosines, "<f4")}


def _vectors(written: str, dim: int) -> NDArray[np.float32]:
    try:
        vectors = np.frombuffer(base64.b64decode(written, validate=True), "<f4").reshape(-1, dim)
    except ValueError as broken:
        raise InputError(f"vectors are not base64 of float32, {dim} each ({broken})", action="send them as this version does") from broken
    if not 1 <= len(vectors) <= questions.MOST or not np.isfinite(vectors).all():
        raise InputError(f"{len(vectors)} vectors, or numbers that are not finite", action=f"send 1 to {questions.MOST} vectors")
    return vectors


def _written(matrix: NDArray[Any], kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(matrix, kind).tobytes()).decode()
