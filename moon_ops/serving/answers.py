"""What the routes share: texts, ids and pictures as requests give them, and what every answer carries."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import UploadFile
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BeforeValidator

from moon_ops.errors import InputError
from moon_ops.inputs.images import MAX_BYTES
from moon_ops.lake import ids
from moon_ops.serving.access import noted
from moon_ops.serving.champion import Champion
from moon_ops.serving.problems import KIND, problem
from moon_ops.serving.stores import SHOWN

MAX_TEXT = 10_000  # characters; an encoder reads a few dozen tokens
_FAULT = {"type": "object", "properties": {"error": {"type": "string"}, "action": {"type": "string"}}, "required": ["error"]}
REFUSALS: dict[int | str, dict[str, Any]] = {  # what every route may answer instead, for the OpenAPI document
    status: {"description": said, "content": {KIND: {"schema": _FAULT}}}
    for status, said in (
        (401, "No key, or none that is known"),
        (403, "The key does not have the scope"),
        (404, "What was asked for is not there"),
        (413, "The request is too large"),
        (422, "A field is wrong: which, why, and what to do"),
        (429, "Too many requests: Retry-After says when to come back"),
        (503, "Not possible now, and why"),
    )
}
Id = Annotated[int | str, BeforeValidator(ids.clean)]  # the shop's: a number or a text, as :mod:`moon_ops.lake.ids` has them
Utf8 = Annotated[str, AfterValidator(lambda text: utf8(text))]


def utf8(text: str) -> str:
    """The text; :class:`ValueError`, which becomes 422, for half a surrogate pair: it is no text."""
    text.encode()
    return text


def upload(image: UploadFile | None) -> bytes | None:
    """The uploaded bytes; one byte more than allowed is read, so that a larger file is refused by the decoder and not cut."""
    return None if image is None else image.file.read(MAX_BYTES + 1)


def decoded(image: str | None) -> bytes | None:
    """The bytes of a picture in base64; :class:`InputError` if they are not."""
    try:
        return None if image is None else base64.b64decode(image, validate=True)
    except ValueError as broken:
        raise InputError(f"image is not base64 ({broken})", action="send the picture's bytes in base64") from broken


def signed(champion: Champion) -> dict[str, Any]:
    """What every answer carries: which release made it, under which contract. The log's line of the request has the release, too."""
    noted(release=champion.version)
    return {"release": champion.version, "contract_id": champion.contract_id}


def shown(item: Mapping[str, Any]) -> dict[str, Any]:
    """What is shown of an item."""
    return {name: item.get(name) for name in SHOWN}


def absent(what: str, action: str) -> JSONResponse:
    """The answer to a request for what is not there."""
    return problem(404, what, action)
