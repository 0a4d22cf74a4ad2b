"""What whoever looks after a service asks of it, apart from what its users do; each request needs a key with the scope admin."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request

from moon_ops.serving.answers import REFUSALS
from moon_ops.serving.service import Service


def add(app: FastAPI, service: Service) -> None:
    """``/admin/…``."""
    follower = service.follower

    @app.get("/admin/served", responses=REFUSALS)
    def served() -> dict[str, Any]:
        """What this process serves, what the alias asks for, and what waits."""
        state, champion = follower.state(), follower.current
        about = {} if champion is None else {"encoder": champion.encoder, "contract_id": champion.contract_id, "places": champion.places}
        waiting = {"items": service.intake.fault, "events": service.behaviour.fault}
        body = {"status": state.status, "release": state.serving, "asked": state.asked, "refused": state.why, **about}
        return {**body, "waiting": waiting, "draining": service.draining.is_set()}

    @app.get("/admin/keys", responses=REFUSALS)
    def keys() -> dict[str, Any]:
        """The keys, without their hashes; they are made and revoked with `moon keys`."""
        return {"keys": [key.shown() for key in service.ring.all()], "fault": service.ring.fault}

    @app.post("/admin/reload", responses=REFUSALS)
    def reload(request: Request) -> dict[str, Any]:
        """Ask the registry for the champion now, and open the newest publication of what is served."""
        _told(service, request)
        follower.wake()
        follower.reopen()
        return served()

    @app.post("/admin/drain", responses=REFUSALS)
    def drain(request: Request) -> dict[str, Any]:
        """Let ``/ready`` answer 503, so that no new requests are sent here; those that come are answered."""
        _told(service, request)
        service.draining.set()
        return served()

    @app.post("/admin/resume", responses=REFUSALS)
    def resume(request: Request) -> dict[str, Any]:
        """Take the drain back."""
        _told(service, request)
        service.draining.clear()
        return served()


def _told(service: Service, request: Request) -> None:
    """Have the other processes of the service do the same, unless this is one of them that asks."""
    mates = service.mates
    if mates is not None and not mates.is_mate(request.headers.raw):
        mates.ask(request.method, request.url.path)
