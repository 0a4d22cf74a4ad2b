"""Search by picture or text, and the vector of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, File, Form, UploadFile

from moon_ops.embeddings.cards import Wanted
from moon_ops.lake import ids
from moon_ops.serving.answers import MAX_TEXT, Id, Utf8, signed, upload
from moon_ops.serving.finding import Query, found
from moon_ops.serving.service import Service

MOST_OFFSET = 1000  # answers that are passed over
Price = Annotated[float | None, Form(ge=0, allow_inf_nan=False)]
Word = Annotated[Utf8, Form(max_length=1000)]


@dataclass(frozen=True)
class Filters:
    """What items must be."""

    wanted: Wanted
    status: str

    def query(self, k: int, offset: int, *, by_product: bool) -> Query:
        """The question to the index."""
        return Query(k, offset, by_product, self.wanted, self.status)


async def filters_of(  # no plain function: FastAPI would run it in a thread
    category: Word = "",
    brand: Word = "",
    seller_id: Annotated[Id | None, Form()] = None,
    price_min: Price = None,
    price_max: Price = None,
    status: Annotated[Literal["", "active", "deleted"], Form()] = "",
) -> Filters:
    """The filters in a form. ``category``: a word of any level of its path, or levels with ``>`` between them, in any letter case."""
    seller = None if seller_id is None else ids.key(seller_id)
    return Filters(Wanted(category.strip(), brand.strip(), seller, price_min, price_max), status)


Filtered = Annotated[Filters, Depends(filters_of)]


def add(app: FastAPI, service: Service) -> None:
    """``/v1/search`` and ``/v1/embed``."""
    follower, engine = service.follower, service.engine

    @app.post("/v1/search")
    async def search(
        image: Annotated[UploadFile | None, File()] = None,
        text: Annotated[str, Form(max_length=MAX_TEXT)] = "",
        k: Annotated[int, Form(ge=1, le=200)] = 10,
        offset: Annotated[int, Form(ge=0, le=MOST_OFFSET)] = 0,
        group: Annotated[Literal["", "product"], Form()] = "",
        *,
        filters: Filtered,
    ) -> dict[str, Any]:
        """The k items nearest to a picture, a text, or both, after the first ``offset``; with ``group=product`` the nearest of each of k
        products. Items withdrawn since the last publication are left out.
        """
        champion, picture = follower.champion(), upload(image)
        vector = await engine.vector(champion, text, picture)
        follower.recent.keep(text, picture)
        query = filters.query(k, offset, by_product=bool(group))
        return {**signed(champion), **await engine.asking(found, service, champion, vector, query)}

    @app.post("/v1/embed")
    async def embed(
        image: Annotated[UploadFile | None, File()] = None, text: Annotated[str, Form(max_length=MAX_TEXT)] = ""
    ) -> dict[str, Any]:
        """The unit vector of a picture, a text, or both."""
        champion = follower.champion()
        vector = await engine.vector(champion, text, upload(image))
        return {**signed(champion), "embedding": vector.tolist()}
