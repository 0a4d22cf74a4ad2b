"""The champion release over HTTP: search by picture or text, embed, score; and a page to try it.

Bad requests get 422 with the field and what to do; while there is no champion, search, embed and score get 503.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version

import anyio
from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer
from prometheus_client import CollectorRegistry, ProcessCollector

from moon_ops.publication.shop_ids import ShopIds
from moon_ops.serving import fixed, problems
from moon_ops.serving.access import Access
from moon_ops.serving.behaviour import Behaviour
from moon_ops.serving.engine import Engine
from moon_ops.serving.exposition import Counts
from moon_ops.serving.follower import Follower
from moon_ops.serving.gate import Gate, Limits
from moon_ops.serving.guard import Guard
from moon_ops.serving.live import Intake
from moon_ops.serving.metrics import ELSE, Asked, Batches, Measured, Queue, State, Traffic, release_of
from moon_ops.serving.permits import Permits, Rules
from moon_ops.serving.processes import Mates
from moon_ops.serving.routes import (
    admin,
    compare,
    edits,
    events,
    health,
    hooks,
    items,
    operations,
    page,
    recommend,
    score,
    search,
    shards,
    vectors,
)
from moon_ops.serving.service import Service
from moon_ops.serving.watch import Watch
from moon_ops.settings import Settings
from moon_ops.telemetry import traces

log = logging.getLogger(__name__)
ROUTES = (health, vectors, search, compare, score, recommend, edits, items, events, operations, page, hooks, admin, shards)
KEY = HTTPBearer(auto_error=False, description="A key of `moon keys create`, where the service wants one")


def create_app(settings: Settings, *, release: int | None = None, mates: Mates | None = None) -> FastAPI:
    """The service for one ``MOON_HOME``; it follows the champion from start-up on, or serves one ``release`` to be looked at.

    ``mates``: the other processes of the same service, if there are any.
    """
    settings = settings if release is None else fixed.without_effect(settings)
    follower = Follower(settings) if release is None else fixed.Fixed(settings, release)
    registry = CollectorRegistry(auto_describe=False)
    batches, limits, watch = Batches(registry), Limits(settings.queue, settings.request_seconds), Watch(settings, follower)
    rules, engine = Rules.of(settings, writes=not follower.fixed, mates=mates), Engine(settings, seen=batches.add)
    taken = Intake(settings, follower), ShopIds(settings), Behaviour(settings, follower)
    counts = Counts(registry, mates)
    service = Service(settings, engine, follower, watch, *taken, rules.ring, counts, mates)
    app = FastAPI(title="moon_ops", version=version("moon_ops"), lifespan=_lifespan(service, rules), dependencies=[Security(KEY)])
    app.state.follower, app.state.watch, app.state.limits, app.state.registry = follower, watch, limits, registry
    app.add_middleware(Gate, limits=limits)  # the last one named is the first that a request meets
    app.add_middleware(Guard)
    app.add_middleware(Permits, rules=rules)
    traffic, follower.peers.seen = Traffic(registry), Asked(registry).add
    limits.told = lambda status: traffic.add(ELSE, release_of(follower.current), status, 0.0)
    app.add_middleware(Measured, follower=follower, watch=watch, traffic=traffic)
    app.add_middleware(Access)
    for kind, answer in problems.ANSWERS:
        app.add_exception_handler(kind, answer)
    for collector in (Queue(limits, service.engine.batcher), State(follower, watch)):
        registry.register(collector)
    ProcessCollector(registry=registry)  # when the process began, its memory and its files
    counts.add(app)
    for group in ROUTES:
        group.add(app, service)
    vectors.document(app)
    traces.of_requests(app)
    return app


def _lifespan(service: Service, rules: Rules) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """What runs beside the requests, from the service's start to its end."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await anyio.to_thread.run_sync(service.follower.start)  # up to ten seconds
        service.watch.start()
        if warning := rules.warning():
            log.warning(warning)
        if rules.taking():
            service.intake.start()
            service.behaviour.start()
        yield
        service.behaviour.stop()
        service.intake.stop()
        service.watch.stop()
        service.follower.stop()
        service.engine.stop()
        traces.flush()

    return lifespan
