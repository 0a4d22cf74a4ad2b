"""Which pictures a cell names, and where each lies: lists and texts as shops, feeds and programs write them."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

ENDING = r"\.(?:jpe?g|png|webp|gif|heic|heif|avif|bmp|tiff?)(?:\?[^\s,;|]*)?"
APART = re.compile(r"\s*[|\n\r]\s*")
NAME = re.compile(rf"(?i).+?(?:{ENDING}(?=\s*[,;]|\s+|$)|(?=\s*[,;]\s*(?:https?:)?//|\s+(?:https?:)?//|$))")


def references(cell: Any) -> list[str]:
    """The pictures that a cell names, in order.

    A list; or a text with ``|``, lines, commas, semicolons or spaces between names; or a JSON or Python list as text. A comma or a space is
    between two names only where a name ends as pictures do, or an address begins: both occur in names and addresses.
    """
    if isinstance(cell, str):
        found: list[str] = []
        for part in _listed(cell) if cell.strip()[:1] in "[(" else [cell]:
            found += [name for piece in APART.split(part) for name in _names(piece)]
    elif isinstance(cell, (list, tuple)):
        found = [str(part).strip() for part in cell if part is not None]
    else:
        found = [] if cell is None else [str(cell).strip()]
    return [f"https:{name}" if name.startswith("//") else name for name in found if name]


def _names(piece: str) -> list[str]:
    found, rest = [], piece.strip(" \t,;")
    while rest:
        match = NAME.match(rest)
        name = match[0] if match else rest
        found.append(name.strip())
        rest = rest[len(name) :].strip(" \t,;")
    return found


def _listed(cell: str) -> list[str]:
    """The texts of a JSON or Python list; the cell itself if it is none."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, (list, tuple)):
            return [str(part) for part in value if part is not None]
    return [cell]


def place(source: Path, reference: str) -> Path:
    """The file that a reference means: as it stands, or with ``\\`` as ``/``, ``%20`` as a space, without ``?v=1``; as it stands if none of
    them is there. ValueError for what cannot be a path.
    """
    plain = reference.replace("\\", "/")
    bare = plain.partition("?")[0].partition("#")[0]
    tried = [reference, *dict.fromkeys((plain, unquote(plain), bare, unquote(bare)))]
    for name in tried:
        path = (source / name).resolve()
        if path.is_relative_to(source) and path.is_file():
            return path
    under = (source / unquote(bare).lstrip("/")).resolve()  # an address of the shop's own server
    return under if bare.startswith("/") and under.is_relative_to(source) and under.is_file() else (source / reference).resolve()
