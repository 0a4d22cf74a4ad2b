"""Vectors of many texts and pictures at once, and the same for clients of OpenAI's embeddings."""

from __future__ import annotations

import base64
import datetime as dt
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from starlette.routing import Match
from starlette.types import Scope

from moon_ops.embeddings.prefixes import cut
from moon_ops.errors import InputError
from moon_ops.serving.answers import MAX_TEXT, REFUSALS, Utf8, absent, signed
from moon_ops.serving.champion import Champion
from moon_ops.serving.questions import MAX_IMAGE, MOST, Question, Text, certified, embed, is_data_url, require_certified
from moon_ops.serving.service import Service

PATH = "/v1/embed"
MODEL = "moon-release"  # whichever is served; with -N at its end that one alone
RED: Any = {"text": "red table lamp"}
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="

Data = Annotated[Utf8, Field(max_length=MAX_IMAGE)]  # a text or a data URL


class EmbedRequest(BaseModel):
    """Texts, pictures, or both together, each a vector; ``dimensions`` is a length that the release vouches for."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"inputs": ["blue mug", RED, {"image": PIXEL}]}]})
    inputs: list[Text | Question] = Field(min_length=1, max_length=MOST)
    dimensions: int | None = Field(None, ge=1)


class EmbeddingsRequest(BaseModel):
    """As OpenAI's: ``input`` is a text, or a list of them; a picture is a data URL."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": MODEL, "input": ["red table lamp", PIXEL]}]}
    )  # others are passed over
    model: str = Field(max_length=100)
    input: Data | Annotated[list[Data], Field(min_length=1, max_length=MOST)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)
    user: str | None = None


class Json(APIRoute):
    """A route that is there for JSON alone: the same path takes forms, too."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As usual, if the body is JSON."""
        kind = dict(scope.get("headers", ())).get(b"content-type", b"").partition(b";")[0].strip().lower()
        return super().matches(scope) if kind == b"application/json" else (Match.NONE, {})


def add(app: FastAPI, service: Service) -> None:
    """``/v1/embed`` for many, ``/v1/embeddings`` and ``/v1/models``; before the routes that take forms."""
    follower, engine, router = service.follower, service.engine, APIRouter(route_class=Json)

    @router.post(PATH, responses=REFUSALS)
    async def embed_many(request: EmbedRequest) -> dict[str, Any]:
        """Unit vectors of up to 64 texts and pictures, in their order; with ``dimensions`` the first numbers of each, unit length again."""
        champion = follower.champion()
        dimensions = require_certified(champion, request.dimensions)
        asked = [Question(text=one) if isinstance(one, str) else one for one in request.inputs]
        vectors = cut(await embed(engine, champion, asked, "inputs"), dimensions)
        return {**signed(champion), "dimensions": dimensions, "embeddings": vectors.tolist()}

    app.include_router(router)
    _add_compatible(app, service)


def _add_compatible(app: FastAPI, service: Service) -> None:
    follower = service.follower

    @app.post("/v1/embeddings", responses=REFUSALS, response_model=None)
    async def embeddings(request: EmbeddingsRequest) -> dict[str, Any] | JSONResponse:
        """OpenAI's embeddings, of texts and of pictures in data URLs. The model is the release: ``moon-release`` is whichever is served."""
        champion = follower.champion()
        if request.model not in (MODEL, named(champion)):
            action = f"name {named(champion)}, or {MODEL} for whichever is served; vectors of two releases cannot be compared"
            return absent(f"model {request.model!r} is not served", action)
        dimensions = require_certified(champion, request.dimensions)
        given = [request.input] if isinstance(request.input, str) else request.input
        asked = [_asked(one, number) for number, one in enumerate(given)]
        vectors = cut(await embed(service.engine, champion, asked, "input"), dimensions)
        tokens = _tokens(champion, asked)
        rows = [{"object": "embedding", "index": n, "embedding": _written(v, request.encoding_format)} for n, v in enumerate(vectors)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": rows, "model": named(champion), "usage": usage, **signed(champion)}

    @app.get("/v1/models", responses=REFUSALS)
    async def models() -> dict[str, Any]:
        """The release that is served, as OpenAI's clients list models; ``dimensions`` are the lengths that it vouches for."""
        return {"object": "list", "data": [_model(follower.champion())]}

    @app.get("/v1/models/{model}", responses=REFUSALS, response_model=None)
    async def model(model: str) -> dict[str, Any] | JSONResponse:
        """One model."""
        champion = follower.champion()
        return _model(champion) if model in (MODEL, named(champion)) else absent(f"model {model!r} is not served", "look at /v1/models")


def document(app: FastAPI) -> None:
    """Let the OpenAPI document say of ``/v1/embed`` that it takes JSON, too: of two routes of one path it shows the last one."""
    ref = {"$ref": f"#/components/schemas/{EmbedRequest.__name__}"}
    for route in app.routes:
        if isinstance(route, APIRoute) and route.path == PATH and not isinstance(route, Json):
            route.openapi_extra = {"requestBody": {"content": {"application/json": {"schema": ref}}}}


def named(champion: Champion) -> str:
    """What the release is called as a model."""
    return f"{MODEL}-{champion.version}"


def _model(champion: Champion) -> dict[str, Any]:
    created = int(dt.datetime.fromisoformat(champion.manifest["created"]).timestamp())
    about = {"dimensions": certified(champion), "contract_id": champion.contract_id}
    return {"id": named(champion), "object": "model", "created": created, "owned_by": "moon_ops", **about}


def _asked(one: str, number: int) -> Question:
    if is_data_url(one):
        return Question(image=one)
    if len(one) > MAX_TEXT:  # a picture may be longer
        raise InputError(f"input[{number}] has {len(one):,} characters, more than {MAX_TEXT:,}", action="send a shorter text")
    return Question(text=one)


def _tokens(champion: Champion, asked: list[Question]) -> int:
    """How many tokens the encoder was given, pictures too."""
    texts = champion.runtime.tokenize([one.text for one in asked])
    pictures = sum(one.image is not None for one in asked)
    return sum(map(len, texts)) + pictures * len(champion.runtime.contract.layout.picture())


def _written(vector: NDArray[np.float32], encoding: str) -> list[float] | str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if encoding == "base64" else vector.tolist()
