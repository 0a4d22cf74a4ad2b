"""Whether the process lives, and what it serves."""

from __future__ import annotations

import datetime as dt
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from moon_ops.serving.service import Service


def add(app: FastAPI, service: Service) -> None:
    """``/health`` and ``/ready``."""
    follower, watch, started = service.follower, service.watch, dt.datetime.now(dt.UTC).isoformat(timespec="seconds")

    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """``status`` is ready, degraded (another release than the one asked for is served, or something is away, and why), or unavailable
        (503: nothing is served, or a shard of its index has not been reached yet). ``dimensions``: of each vector that is searched.
        ``fixed``: it serves one release, whatever the alias says. ``alerts`` are figures past their limit, ``canary`` what the last
        candidate has shown before it was served or refused.
        """
        champion, state = follower.current, follower.state()
        body: dict[str, Any] = {"ready": champion is not None and state.whole, "status": state.status, "asked": state.asked}
        body |= {"release": None, "refused": state.why, "fixed": follower.fixed}
        if champion is not None:
            body |= {"release": champion.version, "encoder": champion.encoder, "contract_id": champion.contract_id}
            body |= {"dimensions": champion.index.header.dim}
            body |= {"items": champion.index.header.items, "ctr": (champion.manifest["ctr"] or {}).get("version")}
        body |= {"started": started, "since": follower.since and follower.since.isoformat(timespec="seconds")}
        body |= {"alerts": [{"kind": a.kind, "release": a.release, "since": a.at, "text": a.text} for a in watch.alerts()]}
        body |= {"watch": watch.shown(), "canary": follower.canary and follower.canary.shown()}
        if service.draining.is_set():
            body |= {"ready": False, "status": "draining"}
        return JSONResponse(body, status_code=200 if body["ready"] else 503)
