"""The champion release over HTTP: search by picture or text, embed, score; and a page to try it.

Bad requests get 422 with the field and what to do; while there is no champion, search, embed and score get 503.
"""

from __future__ import annotations

import base64
import datetime as dt
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, File, Form, Header, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from moon_ops.errors import InputError, MoonError
from moon_ops.inputs.images import MAX_BYTES, for_browsers
from moon_ops.lake import ids
from moon_ops.lake.tables import image_bytes
from moon_ops.publication.shop_ids import ShopIds
from moon_ops.serving import fixed, hooks
from moon_ops.serving.champion import Champion, Hit
from moon_ops.serving.follower import Follower
from moon_ops.serving.guard import Guard
from moon_ops.serving.live import MOST, Intake, NewItem
from moon_ops.serving.metrics import Measured, Traffic, exposition
from moon_ops.serving.request import Asked, contexts
from moon_ops.serving.sockets import require_free
from moon_ops.serving.stores import LAKE, ONLINE, SHOWN, Stores, reading, titles
from moon_ops.serving.watch import Watch
from moon_ops.settings import Settings

MOST_FAULTS = 5  # that an answer lists
MAX_TEXT = 10_000  # characters; an encoder reads a few dozen tokens
Id = Annotated[int | str, BeforeValidator(ids.clean)]  # the shop's: a number or a text, as :mod:`moon_ops.lake.ids` has them
GROUPED_FROM = 4  # times k items are looked at for k products, and four times as many again while that is too few
MOST_GROUPED = 10_000  # items that are looked at: of one product with more variants fewer than k are found
LOGGING = {  # each line with its time, of the service and of uvicorn alike
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s", "datefmt": "%Y-%m-%dT%H:%M:%S%z"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
    "loggers": {"moon_ops": {"level": "INFO"}, "uvicorn": {"level": "WARNING"}},
    "root": {"level": "WARNING", "handlers": ["stderr"]},
}
PAGE = Path(__file__).parent / "web" / "index.html"


class NewItems(BaseModel):
    """Items to take in."""

    items: list[NewItem] = Field(min_length=1, max_length=MOST)


class ScoreRequest(BaseModel):
    """Items to score for a user and a query; ``image`` is base64."""

    model_config = ConfigDict(extra="forbid")  # a misspelt field would be a request without a query
    user_id: Id
    item_ids: list[Id] = Field(min_length=1, max_length=500)
    query_id: Id | None = None  # the shop's, where the query has been asked before
    text: Annotated[str, AfterValidator(lambda text: _utf8(text))] = Field("", max_length=MAX_TEXT)
    image: str | None = Field(None, max_length=MAX_BYTES * 4 // 3 + 4)
    context: dict[str, Any] = Field({}, max_length=100)  # the click model's context features, e.g. {"position": 1}; of all items
    item_contexts: list[dict[str, Any]] | None = None  # and of each, e.g. [{"relevance": 0.7}, …]


def create_app(settings: Settings, *, release: int | None = None) -> FastAPI:
    """The service for one ``MOON_HOME``; it follows the champion from start-up on, or serves one ``release`` to be looked at."""
    settings = settings if release is None else fixed.without_effect(settings)
    follower = Follower(settings) if release is None else fixed.Fixed(settings, release)
    intake, watch, registry = Intake(settings, follower), Watch(settings, follower), CollectorRegistry(auto_describe=False)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        follower.start()
        watch.start()
        if settings.items_token.get_secret_value():
            intake.start()
        yield
        intake.stop()
        watch.stop()
        follower.stop()

    app = FastAPI(title="moon_ops", lifespan=lifespan)
    app.state.follower, app.state.watch = follower, watch
    app.add_middleware(Guard, token=settings.items_token.get_secret_value())
    app.add_middleware(Measured, follower=follower, watch=watch, traffic=Traffic(registry))  # around the guard: what it refuses counts
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(MoonError, _refuse)
    _add_health(app, follower, watch)
    app.add_api_route("/metrics", exposition(registry, follower, watch), include_in_schema=False)
    shop_ids = ShopIds(settings)
    _add_queries(app, follower, settings, watch, shop_ids)
    _add_items(app, settings, follower.stores, shop_ids)
    _add_intake(app, intake)
    if settings.webhook_secret.get_secret_value():
        _add_hook(app, follower, settings)
    return app


def _add_health(app: FastAPI, follower: Follower, watch: Watch) -> None:
    started = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")

    @app.get("/health")
    def health() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @app.get("/ready")
    def ready() -> JSONResponse:
        """``status`` is ready, degraded (another release than the one asked for is served, or something is away, and why), or unavailable
        (503). ``fixed``: it serves one release, whatever the alias says. ``alerts`` are figures past their limit, ``canary`` what the last
        candidate has shown before it was served or refused.
        """
        champion, state = follower.current, follower.state()
        body: dict[str, Any] = {"ready": champion is not None, "status": state.status, "asked": state.asked}
        body |= {"release": None, "refused": state.why, "fixed": follower.fixed}
        if champion is not None:
            body |= {"release": champion.version, "encoder": champion.encoder, "contract_id": champion.contract_id}
            body |= {"items": champion.index.header.items, "ctr": (champion.manifest["ctr"] or {}).get("version")}
        body |= {"started": started, "since": follower.since and follower.since.isoformat(timespec="seconds")}
        body |= {"alerts": [{"kind": a.kind, "release": a.release, "since": a.at, "text": a.text} for a in watch.alerts()]}
        body |= {"watch": watch.shown(), "canary": follower.canary and follower.canary.shown()}
        return JSONResponse(body, status_code=200 if champion is not None else 503)


def _add_queries(app: FastAPI, follower: Follower, settings: Settings, watch: Watch, shop_ids: ShopIds) -> None:
    @app.post("/v1/search")
    def search(
        image: Annotated[UploadFile | None, File()] = None,
        text: Annotated[str, Form(max_length=MAX_TEXT)] = "",
        k: Annotated[int, Form(ge=1, le=200)] = 10,
        group: Annotated[Literal["", "product"], Form()] = "",
    ) -> dict[str, Any]:
        """The k items nearest to a picture, a text, or both; with ``group=product`` the nearest of each of k products. An item that was
        ``withdrawn`` since the last publication says so; without the lake they have ids and scores alone, and ``degraded`` says why.
        """
        champion, picture = follower.champion(), _upload(image)
        vector = champion.embed(text, picture)
        hits = _one_each(champion, vector, k, shop_ids) if group else champion.search(vector, k)
        follower.recent.keep(text, picture)
        watch.saw(champion.version, "search", [hit.score for hit in hits[:1]])
        found, fault = follower.stores.titles(settings.lake, [h.item_id for h in hits], dt.datetime.now(dt.UTC))
        lacking = "; ".join(filter(None, (fault, shop_ids.lacking() if group else "")))
        return {**_signed(champion), **_listed(hits, found, lacking, shop_ids)}

    @app.post("/v1/embed")
    def embed(image: Annotated[UploadFile | None, File()] = None, text: Annotated[str, Form(max_length=MAX_TEXT)] = "") -> dict[str, Any]:
        """The unit vector of a picture, a text, or both."""
        champion = follower.champion()
        return {**_signed(champion), "embedding": champion.embed(text, _upload(image)).tolist()}

    @app.post("/v1/score")
    def score(request: ScoreRequest) -> dict[str, Any]:
        """Click probabilities of items for a user and a query."""
        champion, picture = follower.champion(), _decoded(request.image)
        query = champion.embed(request.text, picture) if request.text.strip() or picture else None
        own, count = champion.scorer.own if champion.scorer else (), len(request.item_ids)
        context = contexts(request.context, request.item_contexts, count, own, dt.datetime.now(dt.UTC))
        asked_id = None if request.query_id is None else ids.key(request.query_id)
        asked = Asked(asked_id, request.text, is_image=picture is not None, vector=query, contexts=context)
        called = [ids.wire(i) for i in request.item_ids]
        with follower.stores.asked(ONLINE):
            scores = champion.score(ids.key(request.user_id), [ids.key(i) for i in request.item_ids], asked, called)
        watch.saw(champion.version, "score", scores)
        return {**_signed(champion), "scores": [{"item_id": i, "score": s} for i, s in zip(called, scores, strict=True)]}


def _add_items(app: FastAPI, settings: Settings, stores: Stores, shop_ids: ShopIds) -> None:
    @app.get("/v1/items")
    def items(item_id: Annotated[list[Id], Query(max_length=200)]) -> dict[str, Any]:
        """Titles, prices, pictures and products of items; ``unknown`` are ids of none that is on sale."""
        with stores.asked(LAKE):
            known = titles(settings.lake, [ids.key(i) for i in item_id], dt.datetime.now(dt.UTC), (*SHOWN, "spu_id"))
        found = [(ids.wire(i), known.get(ids.key(i))) for i in item_id]
        there = [(i, item) for i, item in found if item is not None]
        products = shop_ids.product([item["spu_id"] for _, item in there])
        shown = [{"item_id": i, "spu_id": product, **_shown(item)} for (i, item), product in zip(there, products, strict=True)]
        return {"items": shown, "unknown": [i for i, item in found if item is None]}

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
        return JSONResponse({"error": f"there is no picture {image_id}"}, status_code=404)

    @app.get("/", response_class=HTMLResponse)
    def page() -> str:
        """The visual search page."""
        return PAGE.read_text()


def _add_intake(app: FastAPI, intake: Intake) -> None:
    @app.post("/v1/items", status_code=202)
    def accept(request: NewItems, authorization: Annotated[str, Header()] = "") -> Response:  # noqa: ARG001 - for /docs; see Guard
        """Take new or changed items in; they can be found some seconds later. An item that is known is replaced as a whole."""
        report = intake.accept(request.items, dt.datetime.now(dt.UTC))
        body = {"new": report.items, "changed": report.updated, "known": report.known, "refused": report.refused}
        return JSONResponse({**body, "first_refusal": report.first_refusal}, status_code=202)


def _add_hook(app: FastAPI, follower: Follower, settings: Settings) -> None:
    secret = settings.webhook_secret.get_secret_value()

    @app.post(hooks.PATH, status_code=202)
    async def moved(request: Request) -> Response:
        """MLflow's word that an alias has moved, signed with MOON_WEBHOOK_SECRET: the registry is asked at once."""
        if not hooks.is_signed(secret, request.headers, await request.body(), time.time()):
            action = "sign it with MOON_WEBHOOK_SECRET, as MLflow does, and compare the clocks"
            return JSONResponse({"error": "the signature is wrong, or older than five minutes", "action": action}, status_code=401)
        follower.wake()
        return JSONResponse({"status": "the registry is asked"}, status_code=202)


def _refuse(_: Request, fault: Exception) -> JSONResponse:
    assert isinstance(fault, MoonError)
    return JSONResponse({"error": fault.problem, "action": fault.action}, status_code=422 if isinstance(fault, InputError) else 503)


def _invalid(_: Request, fault: Exception) -> JSONResponse:
    """Which field is wrong and why; the request is not sent back, it may be pictures."""
    assert isinstance(fault, RequestValidationError)
    wrong = [{"field": ".".join(map(str, one["loc"])), "reason": one["msg"]} for one in fault.errors()[:MOST_FAULTS]]
    error = "; ".join(f"{one['field']}: {one['reason']}" for one in wrong)
    return JSONResponse({"error": error, "action": "correct the request", "detail": wrong}, status_code=422)


def _utf8(text: str) -> str:
    text.encode()  # half a surrogate pair is no text: ValueError, which becomes 422
    return text


def _signed(champion: Champion) -> dict[str, Any]:
    """What every answer carries: which release made it, under which contract."""
    return {"release": champion.version, "contract_id": champion.contract_id}


def _one_each(champion: Champion, vector: NDArray[np.float32], k: int, shop_ids: ShopIds) -> list[Hit]:
    """The nearest item of each of the ``k`` nearest products, best first."""
    wanted = k * GROUPED_FROM
    while True:
        hits = champion.search(vector, wanted)
        first: dict[int, Hit] = {}
        for hit, product in zip(hits, shop_ids.products_of([hit.item_id for hit in hits]), strict=True):
            first.setdefault(product, hit)
        if len(first) >= k or len(hits) < wanted or wanted >= MOST_GROUPED:
            return list(first.values())[:k]
        wanted *= 4


def _listed(hits: list[Hit], known: dict[int, dict[str, Any]], fault: str, shop_ids: ShopIds) -> dict[str, Any]:
    """The items found; ``withdrawn``: not on sale any more, which the next publication knows, too. ``fault``: why the lake was silent."""
    keys = [hit.item_id for hit in hits]
    items = [
        {"item_id": item, "spu_id": product, "score": hit.score, **_shown(known.get(hit.item_id, {}))}
        for hit, item, product in zip(hits, shop_ids.item(keys), shop_ids.product_of(keys), strict=True)
    ]
    if fault:
        return {"degraded": fault, "items": items}
    return {"items": [item if key in known else {**item, "withdrawn": True} for key, item in zip(keys, items, strict=True)]}


def _shown(item: dict[str, Any]) -> dict[str, Any]:
    return {name: item.get(name) for name in SHOWN}


def _upload(image: UploadFile | None) -> bytes | None:
    """The uploaded bytes; one byte more than allowed is read, so that a larger file is refused by the decoder and not cut."""
    return None if image is None else image.file.read(MAX_BYTES + 1)


def _decoded(image: str | None) -> bytes | None:
    try:
        return None if image is None else base64.b64decode(image, validate=True)
    except ValueError as broken:
        raise InputError(f"image is not base64 ({broken})", action="send the picture's bytes in base64") from broken


def serve(settings: Settings, *, release: int | None = None) -> None:
    """Serve until interrupted: the champion, or one ``release``. :class:`ServiceError` if the port is in use."""
    import uvicorn

    require_free(settings.host, settings.port)
    if release is not None:
        fixed.parts(settings, release)  # one that cannot be served is an error now
    uvicorn.run(create_app(settings, release=release), host=settings.host, port=settings.port, log_config=LOGGING)
