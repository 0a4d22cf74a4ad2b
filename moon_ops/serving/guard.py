"""What a request must be before it is read: not too large, and, where items are sent, from somebody who knows the token.

Bodies are parsed on the event loop, so a large one would hold up every other request; a stranger's is not read at all.
"""

from __future__ import annotations

import json
import secrets

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moon_ops.serving import hooks

MOST_BYTES = 48 * 2**20  # of a request's body: some twenty of the largest pictures
DIGITS = 12  # of a length; int() refuses some thousand
ITEMS = "/v1/items"


class Guard:
    """ASGI middleware that answers 403 and 413 itself."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if scope["path"].rstrip("/") == ITEMS and not self._knows(headers.get(b"authorization", b"")):
            action = "send the header Authorization: Bearer TOKEN" if self.token else "start the service with MOON_ITEMS_TOKEN set"
            await _answer(send, 403, "new items are taken from who knows the token", action)
            return
        most = hooks.MOST_BYTES if scope["path"].rstrip("/") == hooks.PATH else MOST_BYTES
        too_large = f"the request has more than {most // 2**20} MiB" if most >= 2**20 else f"the request has more than {most // 2**10} KiB"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > DIGITS or int(length) > most:
            await _answer(send, 413, too_large, "send fewer items, or smaller pictures")
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise HTTPException(413, too_large)  # one without a length; the framework answers
            return message

        await self.app(scope, counted, send)

    def _knows(self, header: bytes) -> bool:
        return bool(self.token) and secrets.compare_digest(header, f"Bearer {self.token}".encode())


async def _answer(send: Send, status: int, error: str, action: str) -> None:
    body = json.dumps({"error": error, "action": action}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
