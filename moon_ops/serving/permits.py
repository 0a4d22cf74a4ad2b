"""Who may ask for what: the middleware that reads a request's key, and lets it through or answers 401, 403 or 429 before its body is read.

Without keys, a service that only this machine can reach answers searches, scores and looks of an administrator; another answers nothing.
Once there is a key, each request needs one with the scope of its route. ``MOON_OPEN`` opens searches and scores in either case.

Nothing is written without a key or ``MOON_ITEMS_TOKEN``: a page in somebody's browser can reach a service on this machine.
"""

from __future__ import annotations

import ipaddress
import math
import secrets
import time
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Receive, Scope, Send

from moon_ops.serving import hooks
from moon_ops.serving.keys import ADMIN, SCORE, SEARCH, WRITE, Keyring, place_of
from moon_ops.serving.problems import problem
from moon_ops.serving.processes import Mates
from moon_ops.settings import Settings

LOOKING = ("GET", "HEAD", "OPTIONS")  # methods that change nothing
SCORED = ("/v1/score", "/v1/recommend")
WRITTEN = ("/v1/items", "/v1/events")


def needed(method: str, path: str) -> str:
    """The scope that a request needs; empty for what anybody may ask: health, metrics, the page, and hooks, which have a signature."""
    path = path.rstrip("/")
    if path == "/admin" or path.startswith("/admin/"):
        return ADMIN
    if not path.startswith("/v1/") or path == hooks.PATH:
        return ""
    if path in SCORED:
        return SCORE
    return WRITE if path.startswith(WRITTEN) and method not in LOOKING else SEARCH


def loopback(host: str) -> bool:
    """Whether only this machine can reach a service that listens there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Refusal:
    """An answer in place of the route's; ``wait`` seconds until it makes sense to ask again."""

    status: int
    error: str
    action: str
    wait: float = 0.0

    def headers(self) -> dict[str, str]:
        """What a client reads of it: how to show a key, and when to come back. The connection ends: nobody has read the body."""
        found = {"connection": "close"} | ({"www-authenticate": "Bearer"} if self.status == 401 else {})
        return found | ({"retry-after": str(max(1, math.ceil(self.wait)))} if self.status == 429 else {})


@dataclass(frozen=True)
class Rules:
    """What one service lets through; ``writes``: whether it takes anything in."""

    settings: Settings
    ring: Keyring
    writes: bool = True
    token: str = field(default="", repr=False)
    mates: Mates | None = None

    @classmethod
    def of(cls, settings: Settings, *, writes: bool = True, mates: Mates | None = None) -> Rules:
        """Those that the settings name; ``mates``, the other processes of the service, may ask for everything."""
        ring = Keyring(place_of(settings), together=None if mates is None else mates.at)
        return cls(settings, ring, writes, settings.items_token.get_secret_value(), mates)

    def refusal(self, scope: str, method: str, shown: str, clock: float) -> Refusal | None:
        """None if the request may have what needs ``scope``. ``shown`` is the key it sends; ``clock`` [s] only rises."""
        if scope == WRITE and not self.writes:
            return Refusal(403, "this service shows one release and takes nothing in", "send it to the service that follows the champion")
        if scope == WRITE and self.token and secrets.compare_digest(shown.encode(), self.token.encode()):
            return None
        key = self.ring.find(shown) if shown else None
        if key is not None:
            if scope not in key.scopes and not self.opened(scope, method):
                return Refusal(403, f"key {key.id} has no scope {scope}", f"make one with `moon keys create NAME --scope {scope}`")
            wait = self.ring.wait(key, clock)
            return Refusal(429, f"key {key.id} asks more than {key.per_second:g} times a second", "ask again later", wait) if wait else None
        return None if self.opened(scope, method) else self._unknown(scope, shown)

    def opened(self, scope: str, method: str) -> bool:
        """Whether anybody may have it: by ``MOON_OPEN``, or because only this machine can ask and nobody has made a key."""
        if scope in (SEARCH, SCORE) and self.settings.open:
            return True
        alone = loopback(self.settings.host) and not self.ring.any()
        return alone and (scope in (SEARCH, SCORE) or (scope == ADMIN and method in LOOKING))

    def _unknown(self, scope: str, shown: str) -> Refusal:
        make = f"make a key with `moon keys create NAME --scope {scope}` and send the header Authorization: Bearer KEY"
        if scope == WRITE and not self.ring.any():
            action = (
                "send the header Authorization: Bearer TOKEN" if self.token else f"start the service with MOON_ITEMS_TOKEN set, or {make}"
            )
            return Refusal(403, "items and events are taken from who knows the token, or has a key", action)
        opens = "; MOON_OPEN=yes opens searches and scores to everybody" if scope in (SEARCH, SCORE) and not self.ring.any() else ""
        return Refusal(401, "no such key" if shown else f"this needs a key with the scope {scope}", make + opens)

    def taking(self) -> bool:
        """Whether somebody may send items and events now."""
        return self.writes and (bool(self.token) or any(WRITE in key.scopes and not key.revoked for key in self.ring.all()))

    def warning(self) -> str:
        """What whoever starts the service should know; empty if there is nothing."""
        if self.ring.fault or self.ring.any() or self.settings.open or loopback(self.settings.host):
            return self.ring.fault
        return (
            f"the service listens on {self.settings.host}, and there is no key: searches are refused until `moon keys create` has made one,"
            " or MOON_OPEN=yes opens them to everybody"
        )


class Permits:
    """ASGI middleware in front of everything that has a scope."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        wanted = needed(scope["method"], scope["path"]) if scope["type"] == "http" else ""
        if not wanted or (self.rules.mates is not None and self.rules.mates.is_mate(scope["headers"])):
            await self.app(scope, receive, send)
            return
        shown = _shown(dict(scope["headers"]).get(b"authorization", b""))
        refusal = self.rules.refusal(wanted, scope["method"], shown, time.monotonic())
        if refusal is None:
            await self.app(scope, receive, send)
            return
        answer = problem(refusal.status, refusal.error, refusal.action, headers=refusal.headers())
        await answer(scope, receive, send)


def _shown(header: bytes) -> str:
    """The key in a header; empty if there is none."""
    kind, _, token = header.decode("latin-1").strip().partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""
