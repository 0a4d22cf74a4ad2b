"""Pictures and requests that nobody should send: each gets an answer, and none a 5xx. Many more of them with `pytest -m slow`."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from moon_ops.cli.trial import running
from moon_ops.settings import Settings

Random = np.random.Generator
KINDS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF")
MODES = {"JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"), "GIF": ("P", "L"), "WEBP": ("RGB", "RGBA")}


@pytest.fixture(scope="module")
def client(released: Settings, moved: Callable[..., Settings], tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with running(moved(released, tmp_path_factory.mktemp("hostile") / "home")) as opened:
        yield opened


def sound(rng: Random, kind: str) -> bytes:
    """A small picture of a kind in one of its modes, at times with frames."""
    mode = str(rng.choice(MODES.get(kind, ("RGB",))))
    width, height = (int(n) for n in rng.integers(1, 90, 2))
    drawn = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    shown = Image.fromarray(rng.integers(0, 65536, (height, width), dtype=np.uint16)) if mode == "I;16" else drawn.convert(mode)
    more = {"save_all": True, "append_images": [shown] * 3} if kind in ("GIF", "WEBP") and rng.random() < 0.5 else {}
    shown.save(content := io.BytesIO(), kind, **more)
    return content.getvalue()


def truncated(rng: Random, content: bytes) -> bytes:
    return content[: int(rng.integers(0, len(content)))]


def flipped(rng: Random, content: bytes) -> bytes:
    broken = bytearray(content)
    for place in rng.integers(0, len(broken), 8):
        broken[place] ^= int(rng.integers(1, 256))
    return bytes(broken)


def longer(rng: Random, content: bytes) -> bytes:
    return content + rng.bytes(500)


def misnamed(rng: Random, content: bytes) -> bytes:
    """The first bytes of another kind."""
    other = sound(rng, str(rng.choice(KINDS)))
    return other[:16] + content[16:]


def bomb(rng: Random, _: bytes) -> bytes:
    """A PNG that says it has up to four thousand million pixels, of zeros that compress a thousandfold."""
    width, height = (int(n) for n in rng.choice([1, 9_000, 30_000, 65_535, 2**31 - 1], 2))
    header = struct.pack(">IIBBBBB", width, height, int(rng.choice([1, 8, 16])), int(rng.choice([0, 2, 3, 6])), 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100_000), 9)), (b"IEND", b""))
    parts = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def noise(rng: Random, _: bytes) -> bytes:
    return rng.bytes(int(rng.integers(0, 3000)))


SPOILS = (lambda _, content: content, truncated, flipped, longer, misnamed, bomb, noise)
NAMES = ("p.jpg", "p.exe", "../../etc/passwd", "ü" * 40, "a\x00b", '"; drop', "")


def ask_with(client: httpx.Client, rng: Random, picture: bytes) -> httpx.Response:
    """One of the ways in which a service is shown a picture."""
    files = {"image": (str(rng.choice(NAMES)) or "x", picture, str(rng.choice(["image/png", "text/html", "", "a/b/c"])))}
    way = int(rng.integers(0, 3))
    if way == 0:
        return client.post("/v1/search", files=files, data={"k": "2"})
    if way == 1:
        return client.post("/v1/embed", files=files)
    body = {"user_id": 1, "item_ids": [1], "image": base64.b64encode(picture).decode()}
    return client.post("/v1/score", json=body)


def hostile_pictures(client: httpx.Client, count: int, seed: int) -> dict[int, int]:
    rng, seen = np.random.default_rng(seed), dict[int, int]()
    for number in range(count):
        spoil = SPOILS[number % len(SPOILS)]
        picture = spoil(rng, sound(rng, KINDS[number % len(KINDS)]))  # type: ignore[no-untyped-call]
        status = ask_with(client, rng, picture).status_code
        assert status in (200, 422), (number, status, picture[:40])
        seen[status] = seen.get(status, 0) + 1
    return seen


def odd(rng: Random, depth: int = 0) -> object:
    """Any JSON, mostly not what is asked for."""
    plain = [None, True, -1, 0, 2**63, 1e308, "", "red lamp", "\x00", "\ud800", "ü" * 300, "9" * 400, "2026-01-01", [], {}]
    choice = int(rng.integers(0, len(plain) + (2 if depth < 2 else 0)))
    if choice < len(plain):
        return plain[choice]
    several = [odd(rng, depth + 1) for _ in range(int(rng.integers(0, 4)))]
    return several if choice == len(plain) else {str(key): value for key, value in enumerate(several)}


def fuzzed_requests(client: httpx.Client, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    paths = ("/v1/search", "/v1/embed", "/v1/score", "/v1/items", "/v1/images/x", "/health", "/ready", "/nowhere", "/v1/%ff%00")
    kinds = (
        "application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "multipart/form-data; boundary=x",
        "text/plain",
        "",
    )
    names = ("user_id", "item_ids", "text", "image", "k", "group", "context", "item_contexts", "query_id", "items", "other")
    part = '--x\r\ncontent-disposition: form-data; name="k"\r\n\r\n'
    for number in range(count):
        body = {str(name): odd(rng) for name in rng.choice(names, int(rng.integers(0, 6)))}
        forms = (json.dumps(body), json.dumps(odd(rng)), "&".join(f"{n}={v!r}" for n, v in body.items()), part)
        content = forms[number % 4].encode("utf-8", "surrogatepass") if rng.random() < 0.9 else rng.bytes(200)
        headers = {"content-type": str(rng.choice(kinds)), "x-request-id": "fuzz"}
        path, method = str(rng.choice(paths)), str(rng.choice(["POST", "POST", "POST", "GET", "PUT", "DELETE", "OPTIONS"]))
        answer = client.request(method, path, content=content, headers=headers)
        assert answer.status_code < 500 or (path == "/ready" and answer.status_code == 503), (number, method, path, headers, content)
        assert answer.headers["x-request-id"] == "fuzz"


def test_hostile_pictures_are_refused_and_nothing_breaks(client: httpx.Client) -> None:
    seen = hostile_pictures(client, 280, seed=0)
    assert seen[422] > 60
    assert seen[200] > 60, "some are whole, or read as far as they go"


def test_fuzzed_requests_are_refused_and_nothing_breaks(client: httpx.Client) -> None:
    fuzzed_requests(client, 400, seed=0)
    assert client.post("/v1/search", data={"text": "mug"}).status_code == 200


@pytest.mark.slow
def test_a_thousand_hostile_pictures_and_ten_thousand_fuzzed_requests(client: httpx.Client) -> None:
    """Open files and memory are as before at the end."""
    hostile_pictures(client, 100, seed=2)
    files = len(list(Path("/proc/self/fd").iterdir()))
    hostile_pictures(client, 1000, seed=1)
    fuzzed_requests(client, 10_000, seed=1)
    assert len(list(Path("/proc/self/fd").iterdir())) <= files + 5
    assert client.post("/v1/search", data={"text": "mug"}).status_code == 200
