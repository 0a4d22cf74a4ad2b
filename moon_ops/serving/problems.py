"""Answers that say what is wrong: RFC 9457, ``application/problem+json``, with our two members ``error`` and ``action`` beside its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from moon_ops.errors import InputError, MoonError

KIND = "application/problem+json"
MOST_FAULTS = 5  # that an answer lists
ELSE = {  # what to do about what the framework refuses
    404: "look at /docs for what there is",
    405: "look at /docs for how it is asked",
    413: "send fewer items, or smaller pictures",
    429: "send it again after the seconds in Retry-After, or send fewer at once",
}


def problem(status: int, error: str, action: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> JSONResponse:
    """The answer with a ``status``: what is wrong (``error``), what to do next (``action``), and members of its own."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": error, "error": error, "action": action}
    return JSONResponse({**body, **more}, status_code=status, headers=dict(headers or {}), media_type=KIND)


def refuse(_: Request, fault: Exception) -> JSONResponse:
    """The answer to a request that met one of our errors."""
    assert isinstance(fault, MoonError)
    if isinstance(fault, InputError):
        return problem(422, fault.problem, fault.action)
    return problem(503, fault.problem, fault.action, headers={"retry-after": "1"})


def invalid(_: Request, fault: Exception) -> JSONResponse:
    """Which fields are wrong and why (``errors``); the request is not sent back, it may be pictures."""
    assert isinstance(fault, RequestValidationError)
    wrong = [{"field": ".".join(map(str, one["loc"])), "reason": _reason(one["msg"])} for one in fault.errors()[:MOST_FAULTS]]
    error = "; ".join(f"{one['field']}: {one['reason']}" for one in wrong)
    return problem(422, error, "correct the request", errors=wrong)


def _reason(said: str) -> str:
    return "must be a file, with curl e.g. -F image=@photo.jpg" if "Expected UploadFile" in said else said


def gone(_: Request, __: Exception) -> JSONResponse:
    """The answer, which nobody reads, to a client that went away while its body was read: that is no fault of ours."""
    return problem(400, "the body did not come to its end", "send it again")


def other(_: Request, fault: Exception) -> JSONResponse:
    """What the framework refuses by itself: no such route, another method, a body that is no form."""
    assert isinstance(fault, HTTPException)
    return problem(fault.status_code, str(fault.detail), ELSE.get(fault.status_code, "correct the request"), headers=fault.headers)


ANSWERS: tuple[tuple[type[Exception], Callable[[Request, Exception], JSONResponse]], ...] = (
    (RequestValidationError, invalid),
    (MoonError, refuse),
    (HTTPException, other),
    (ClientDisconnect, gone),
)
