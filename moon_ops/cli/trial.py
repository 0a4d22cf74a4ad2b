"""Ask a running service what a user would ask, over real HTTP: searches by photograph and by words, an embedding, a score."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
from PIL import Image

from moon_ops.errors import ServiceError
from moon_ops.inputs.images import decode
from moon_ops.lake import ids
from moon_ops.lake.tables import image_bytes
from moon_ops.registry.encoders import encoder_version
from moon_ops.release import recall
from moon_ops.release.pictures import Searched
from moon_ops.release.windows import Windows
from moon_ops.settings import Settings

ROWS, FOUND = 12, 5
WAIT_SECONDS = 60.0


@contextmanager
def running(settings: Settings, *, release: int | None = None) -> Iterator[httpx.Client]:
    """A client of a service of the champion, or of one ``release``, started on a free port of this machine, ready to answer; it is stopped
    at the end."""
    import uvicorn

    from moon_ops.serving.app import create_app

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = uvicorn.Server(uvicorn.Config(create_app(settings, release=release), host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
            _wait(client)
            yield client
    finally:
        server.should_exit = True
        thread.join(10)


def searches(settings: Settings, encoder: int, windows: Windows, *, release: int) -> tuple[list[Searched], dict[str, float]]:
    """Photographs from after the encoder's training, in a seeded order and not chosen, with the items that a release finds; and median
    latencies [ms]."""
    queries = recall.bought_after(
        settings.lake, windows.trained_until, windows.end, trained_until=encoder_version(settings, encoder).trained_until
    )
    rows = np.random.default_rng(0).permutation(np.flatnonzero(queries.is_image))[:ROWS]
    photographs = dict(image_bytes(settings.lake, [queries.samples[r].image_ids[0] for r in rows]))
    took: dict[str, list[float]] = {}
    out = []
    with running(settings, release=release) as client:
        for row in rows:
            content = photographs[queries.samples[row].image_ids[0]]
            found = _ask(client, took, "/v1/search", data={"k": str(FOUND)}, files={"image": ("photograph", content)})["items"]
            spus = [ids.key(i["spu_id"]) for i in found]
            pictures = [_picture(client, item) for item in found]
            out.append(Searched(decode(content), pictures, [s == queries.spu_ids[row] for s in spus]))
            _ask(client, took, "/v1/embed", files={"image": ("photograph", content)})
            _score(client, took, [i["item_id"] for i in found], content)
    return out, {f"{path} p50": 1e3 * float(np.median(times)) for path, times in took.items()}


def _score(client: httpx.Client, took: dict[str, list[float]], item_ids: list[ids.ShopId], content: bytes) -> None:
    """Score what was found, where the release has a click model."""
    if client.get("/ready").json()["ctr"] is not None:
        _ask(client, took, "/v1/score", json={"user_id": 1, "item_ids": item_ids, "image": base64.b64encode(content).decode()})


def _ask(client: httpx.Client, took: dict[str, list[float]], path: str, **request: Any) -> dict[str, Any]:
    started = time.perf_counter()
    answer = client.post(path, **request)
    took.setdefault(path, []).append(time.perf_counter() - started)
    if answer.is_error:
        raise ServiceError(f"{path} answered {answer.status_code}: {answer.text}", action="see the service's log")
    found: dict[str, Any] = answer.json()
    return found


def _picture(client: httpx.Client, item: dict[str, Any]) -> Image.Image:
    """An item's first picture; a blank one for an item without."""
    if not item["image_ids"]:
        return Image.new("RGB", (96, 96), "white")
    return decode(client.get(f"/v1/images/{item['image_ids'][0]}").content)


def _wait(client: httpx.Client) -> None:
    """Until ``/ready`` says yes; :class:`ServiceError` with its reason after :data:`WAIT_SECONDS`."""
    end = time.monotonic() + WAIT_SECONDS
    why = "it did not answer"
    while time.monotonic() < end:
        try:
            answer = client.get("/ready")
            if answer.status_code == 200:
                return
            why = str(answer.json().get("refused"))
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise ServiceError(f"the service was not ready within {WAIT_SECONDS:.0f} s: {why}", action="run `moon doctor`")
