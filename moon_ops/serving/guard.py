"""What a request must be before it is read: not too large. Who may send it at all, :mod:`moon_ops.serving.permits` says before.

Bodies are parsed on the event loop, so a large one would hold up every other request.
"""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moon_ops.serving import hooks
from moon_ops.serving.problems import ELSE, problem

MOST_BYTES = 48 * 2**20  # of a request's body: some twenty of the largest pictures
DIGITS = 12  # of a length; int() refuses some thousand
WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")
LAST = {"connection": "close"}  # the body is not read


class Guard:
    """ASGI middleware that answers 413 itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http" or scope["method"] not in WITH_BODY:
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        most = hooks.MOST_BYTES if scope["path"].rstrip("/") == hooks.PATH else MOST_BYTES
        too_large = f"the request has more than {most // 2**20} MiB" if most >= 2**20 else f"the request has more than {most // 2**10} KiB"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > DIGITS or int(length) > most:
            await problem(413, too_large, ELSE[413], headers=LAST)(scope, receive, send)
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
