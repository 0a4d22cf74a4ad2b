"""What a service answers, typed. Fields that a newer service has beside these are in ``raw``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias, TypeVar

ShopId: TypeAlias = "int | str"
T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """An item as an answer shows it. ``score`` is a cosine in searches, and a click probability where items are scored or recommended."""

    item_id: ShopId
    score: float | None = None
    spu_id: ShopId | None = None
    title: str | None = None
    category: list[str] | None = None
    price: float | None = None
    image_ids: list[str] | None = None
    withdrawn: bool = False  # not sold any more
    cosine: float | None = None
    relevant: bool | None = None  # None: the release has measured no threshold
    place: int | None = None  # among the candidates, from 1


@dataclass(frozen=True)
class Found:
    """Items, and which release found them under which contract; ``degraded`` says what is lacking, and is empty if nothing is."""

    release: int
    contract_id: str
    items: list[Item]
    degraded: str = ""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Embedded:
    """Unit vectors of one release. Those of another contract cannot be compared with them."""

    release: int
    contract_id: str
    embeddings: list[list[float]]
    dimensions: int


@dataclass(frozen=True)
class Taken:
    """What of a request is in the lake now: rows that are new, changed, known already, or refused, with the reason of the first."""

    new: int = 0
    changed: int = 0
    known: int = 0
    queries: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    first_refusal: str = ""


def made(kind: type[T], row: Mapping[str, Any], **more: Any) -> T:
    """A dataclass of the fields that a row has; fields that it does not know are left out."""
    known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in row.items() if name in known}, **more)


def found(body: Mapping[str, Any]) -> Found:
    """Of a search and the like; of ``/v1/score``, whose rows are called scores."""
    rows = body["items"] if "items" in body else body["scores"]
    return Found(body["release"], body["contract_id"], [made(Item, row) for row in rows], body.get("degraded", ""), body)
