"""The visual search page, which loads nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Response

from moon_ops.serving.answers import absent
from moon_ops.serving.service import Service

WEB = Path(__file__).parents[1] / "web"
KINDS = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}


def add(app: FastAPI, _: Service) -> None:
    """``/`` and the files that it needs, read once."""
    files = {path.name: (path.read_bytes(), KINDS[path.suffix]) for path in WEB.iterdir() if path.suffix in KINDS}

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        """The page."""
        return _answer(*files["index.html"])

    @app.get("/web/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        """Its style and its scripts."""
        if name not in files:
            return absent(f"there is no file {name!r}", "load the page again")
        return _answer(*files[name])


def _answer(content: bytes, kind: str) -> Response:
    return Response(content, media_type=kind, headers={"cache-control": "no-cache"})
