"""Each request of the service as data: how it is sent, and what becomes of its answer. Knows nothing of how it travels."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar
from urllib.parse import quote

from moon_ops.client.answers import Embedded, Found, Item, ShopId, Taken, found, made

T = TypeVar("T")
Picture: TypeAlias = "bytes | Path"
Json: TypeAlias = "dict[str, Any]"


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request, with the arguments of httpx, and how its answer is read."""

    method: str
    path: str
    read: Callable[[Json], T]
    sent: Mapping[str, Any] = field(default_factory=dict)


def search(text: str, image: Picture | None, k: int, group: str, filters: Mapping[str, Any]) -> Call[Found]:
    """``/v1/search``; ``filters`` are further fields of its form."""
    form = {"text": text, "k": str(k), "group": group, **filters}
    files = {} if image is None else {"files": {"image": _content(image)}}
    return Call("POST", "/v1/search", found, {"data": {name: value for name, value in form.items() if value != ""}, **files})


def embed(inputs: Sequence[str | Picture], dimensions: int | None) -> Call[Embedded]:
    """``/v1/embed``."""
    body = {"inputs": [one if isinstance(one, str) else {"image": _written(one)} for one in inputs]}
    return _posted("/v1/embed", lambda answer: made(Embedded, answer), body, dimensions=dimensions)


def score(user_id: ShopId, item_ids: Sequence[ShopId], asked: Mapping[str, Any]) -> Call[Found]:
    """``/v1/score``."""
    return _posted("/v1/score", found, {"user_id": user_id, "item_ids": list(item_ids)}, **question(asked))


def relevance(item_ids: Sequence[ShopId], asked: Mapping[str, Any]) -> Call[Found]:
    """``/v1/relevance``."""
    return _posted("/v1/relevance", found, {"item_ids": list(item_ids)}, **question(asked))


def recommend(user_id: ShopId, asked: Mapping[str, Any]) -> Call[Found]:
    """``/v1/recommend``."""
    return _posted("/v1/recommend", found, {"user_id": user_id}, **question(asked))


def similar(item_id: ShopId, k: int) -> Call[Found]:
    """``/v1/items/{id}/similar``."""
    return Call("GET", f"{_item(item_id)}/similar", found, {"params": {"k": k}})


def items(item_ids: Sequence[ShopId]) -> Call[list[Item]]:
    """``GET /v1/items``."""
    return Call("GET", "/v1/items", lambda body: [made(Item, row) for row in body["items"]], {"params": {"item_id": list(item_ids)}})


def push(rows: Sequence[Mapping[str, Any]]) -> Call[Taken]:
    """``POST /v1/items``; pictures may be bytes or files."""
    sent = [{**row, "images": [one if isinstance(one, str) else _written(one) for one in row.get("images", ())]} for row in rows]
    return _posted("/v1/items", lambda body: made(Taken, body), {"items": sent})


def change(item_id: ShopId, part: Mapping[str, Any]) -> Call[bool]:
    """``PATCH /v1/items/{id}``; None empties a field."""
    return Call("PATCH", _item(item_id), lambda body: bool(body["changed"]), {"json": dict(part)})


def withdraw(item_id: ShopId) -> Call[bool]:
    """``DELETE /v1/items/{id}``."""
    return Call("DELETE", _item(item_id), lambda body: bool(body["changed"]))


def events(rows: Sequence[Mapping[str, Any]], queries: Sequence[Mapping[str, Any]]) -> Call[Taken]:
    """``/v1/events``."""
    return _posted("/v1/events", lambda body: made(Taken, body), {"events": list(rows)}, queries=list(queries) or None)


def ready() -> Call[Json]:
    """``/ready``."""
    return Call("GET", "/ready", lambda body: body)


def question(asked: Mapping[str, Any]) -> Json:
    """What is asked, with a picture as the service reads it."""
    return {name: _written(value) if isinstance(value, bytes | Path) else value for name, value in asked.items()}


def _posted(path: str, read: Callable[[Json], T], body: Json, **more: Any) -> Call[T]:
    return Call("POST", path, read, {"json": body | {name: value for name, value in more.items() if value is not None}})


def _item(item_id: ShopId) -> str:
    return f"/v1/items/{quote(str(item_id), safe='')}"


def _content(picture: Picture) -> bytes:
    return picture if isinstance(picture, bytes) else picture.read_bytes()


def _written(picture: Picture) -> str:
    return base64.b64encode(_content(picture)).decode()
