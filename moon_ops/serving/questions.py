"""Questions that come as JSON: a text, a picture, or both; and their vectors, which go through the encoder with whatever else waits.

Q questions, D dimensions, d of them kept.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from moon_ops.ctr.alignment import Aligned
from moon_ops.errors import InputError
from moon_ops.inputs.images import MAX_BYTES
from moon_ops.lake import ids
from moon_ops.serving.answers import MAX_TEXT, Id, Utf8
from moon_ops.serving.champion import Champion
from moon_ops.serving.engine import Engine

MOST = 64  # questions in a request
MAX_IMAGE = MAX_BYTES * 4 // 3 + 100  # characters of a picture in base64, with what stands before it in a data URL
Text = Annotated[Utf8, Field(max_length=MAX_TEXT)]
Image = Annotated[str, Field(max_length=MAX_IMAGE, description="the picture's bytes in base64, or a data URL of them")]


class Question(BaseModel):
    """A text, a picture, or both."""

    model_config = ConfigDict(extra="forbid")
    text: Text = ""
    image: Image | None = None


def is_data_url(text: str) -> bool:
    """Whether a text is a picture in a data URL."""
    return text[:11].lower() == "data:image/"


def picture(image: str | None, field: str = "image") -> bytes | None:
    """The bytes of a picture in base64 or in a data URL; :class:`InputError` that names the ``field`` if it is neither."""
    if image is None:
        return None
    head, comma, content = image.partition(",") if image[:5].lower() == "data:" else ("", "", image)
    if head and not (comma and head.lower().endswith(";base64")):
        raise InputError(f"{field} is a data URL without base64", action="send data:image/jpeg;base64,…")
    try:
        return base64.b64decode(content, validate=True)
    except ValueError as broken:
        raise InputError(f"{field} is not base64 ({broken})", action="send the picture's bytes in base64") from broken


async def embed(engine: Engine, champion: Champion, asked: Sequence[Question], field: str) -> NDArray[np.float32]:
    """Unit vectors [Q, D]; :class:`InputError` names the question that is empty, or whose picture cannot be read."""
    contents = []
    for number, one in enumerate(asked):
        contents.append(picture(one.image, f"{field}[{number}].image"))
        if contents[-1] is None and not one.text.strip():
            raise InputError(f"{field}[{number}] has neither text nor image", action="send one of them, or both")
    made = (
        engine.vector(champion, one.text, content, f"{field}[{number}].image")
        for number, (one, content) in enumerate(zip(asked, contents, strict=True))
    )
    return np.stack(await asyncio.gather(*made))


def certified(champion: Champion) -> list[int]:
    """The lengths of vectors that the release vouches for, the whole one last: those that its manifest has measured and found good."""
    found = champion.manifest.get("searches", {}).get("prefixes", [])
    return sorted({int(one["dim"]) for one in found if one.get("certified")} | {champion.runtime.dim})


def require_certified(champion: Champion, dimensions: int | None) -> int:
    """The length to be answered with; :class:`InputError` with the list for one that the release does not vouch for."""
    known = certified(champion)
    if dimensions is not None and dimensions not in known:
        listed = ", ".join(map(str, known))
        problem = f"dimensions = {dimensions}: release {champion.version} vouches for vectors of {listed}"
        raise InputError(problem, action="ask for one of these, or leave dimensions out")
    return champion.runtime.dim if dimensions is None else dimensions


def stored(champion: Champion, item_ids: Sequence[Id]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The published vectors [N, D] of items, and which of them have one [N]."""
    table = champion.tables.items
    table = table.vectors if isinstance(table, Aligned) else table  # as the encoder made them, not as an older click model reads them
    codes = table.codes(np.array([ids.key(i) for i in item_ids], np.int64))
    return table.gather(codes), codes >= 0


def relevance(champion: Champion, *, pictured: bool) -> dict[str, Any] | None:
    """The threshold that the release has measured for such questions (:mod:`moon_ops.release.relevance`); None if it has none."""
    found: dict[str, Any] | None = champion.manifest.get("searches", {}).get("relevance", {}).get("image" if pictured else "text")
    return found
