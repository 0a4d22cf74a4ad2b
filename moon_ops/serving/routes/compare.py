"""What the candidate finds beside the champion."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import FastAPI, File, Form, Response, UploadFile

from moon_ops.serving.answers import MAX_TEXT, REFUSALS, absent, signed, upload
from moon_ops.serving.beside import Beside
from moon_ops.serving.finding import found
from moon_ops.serving.routes.search import Filtered
from moon_ops.serving.service import Service


def add(app: FastAPI, service: Service) -> None:
    """``/v1/compare``."""
    follower, engine = service.follower, service.engine
    beside = Beside(service.settings, follower.shelf, follower.peers)

    @app.post("/v1/compare", responses=REFUSALS, response_model=None)
    async def compare(
        image: Annotated[UploadFile | None, File()] = None,
        text: Annotated[str, Form(max_length=MAX_TEXT)] = "",
        k: Annotated[int, Form(ge=1, le=200)] = 10,
        group: Annotated[Literal["", "product"], Form()] = "",
        *,
        filters: Filtered,
    ) -> dict[str, Any] | Response:
        """The answers of ``champion`` and ``candidate`` to one search, each as ``/v1/search`` has them. The candidate is loaded when it is
        first asked for, which takes seconds, and let go when nobody has asked for ten minutes; it takes as much memory as the champion.
        """
        picture, query = upload(image), filters.query(k, 0, by_product=bool(group))
        champion, candidate, answers = follower.champion(), await asyncio.to_thread(beside.candidate), {}  # no thread of searches waits
        if candidate is None:
            return absent("there is no candidate to compare with", "make a release; one that passes its gates is the candidate")
        for name, release in (("champion", champion), ("candidate", candidate)):
            vector = await engine.vector(release, text, picture)
            answers[name] = {**signed(release), **await engine.asking(found, service, release, vector, query)}
        return answers
