"""The peers of benchmarks/serving.py: the same search over plain FastAPI, as one writes it in an afternoon (run by it, in a process).

``onnx``: our encoder with ONNX Runtime, one request at a time from its first byte to its last; ``torch``: the checkpoint in torch, in the
threads that FastAPI gives a handler. Index, titles and answer are those of the service.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import uvicorn
from fastapi import FastAPI, File, UploadFile
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from moon_ops.inputs.images import decode
from moon_ops.inputs.regions import views
from moon_ops.publication.shop_ids import ShopIds
from moon_ops.serving.behaviour import Behaviour
from moon_ops.serving.engine import Engine
from moon_ops.serving.exposition import Counts
from moon_ops.serving.finding import Query, found
from moon_ops.serving.follower import Follower
from moon_ops.serving.live import Intake
from moon_ops.serving.permits import Rules
from moon_ops.serving.service import Service
from moon_ops.serving.watch import Watch
from moon_ops.settings import Settings


def made(settings: Settings) -> Service:
    """What finds items and titles for a vector."""
    follower = Follower(settings)
    follower.follow()
    taken = Intake(settings, follower), ShopIds(settings), Behaviour(settings, follower)
    return Service(
        settings, Engine(settings), follower, Watch(settings, follower), *taken, Rules.of(settings).ring, Counts(CollectorRegistry(), None)
    )


def onnx(service: Service) -> FastAPI:
    """One request at a time."""
    app, champion = FastAPI(), service.follower.champion()

    @app.post("/v1/search")
    async def search(image: Annotated[UploadFile, File()]) -> dict[str, Any]:
        """The ten nearest items."""
        return found(service, champion, champion.embed("", await image.read()), Query(10))

    return app


def torch(service: Service) -> FastAPI:
    """Our model in torch, which takes as many threads as it likes for each request."""
    import torch

    from moon_ops.encoder.model import Encoder

    app, champion = FastAPI(), service.follower.champion()
    encoder = Encoder.load(champion.parts.encoder).eval()
    layout = encoder.layout
    ids, mask = (torch.from_numpy(made) for made in layout.batch([[]], [1]))

    @torch.no_grad()
    def embed(content: bytes) -> NDArray[np.float32]:
        pixels = views(decode(content), layout.picture_size, layout.core_region)
        return np.asarray(encoder(ids, mask, torch.from_numpy(pixels)).numpy()[0], np.float32)

    @app.post("/v1/search")
    def search(image: Annotated[UploadFile, File()]) -> dict[str, Any]:
        """The ten nearest items."""
        return found(service, champion, embed(image.file.read()), Query(10))

    return app


if __name__ == "__main__" and len(sys.argv) == 4:
    kind, home, port = sys.argv[1:]
    service = made(Settings(home=Path(home)))
    uvicorn.run({"onnx": onnx, "torch": torch}[kind](service), port=int(port), log_level="warning")
