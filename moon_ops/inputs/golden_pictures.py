"""A tiny picture of each kind that shops send, and the pixels that it becomes: what a contract keeps, so that no decoder changes unnoticed.

Each shows four colours, the last of which is half transparent where the kind can be. What Pillow need not encode is drawn here; the others
are kept as bytes, since another version of an encoder would write others. S: the side of what is compared.
"""

from __future__ import annotations

import base64
import importlib.util
import struct
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moon_ops.inputs.images import decode, pixels

SIZE = 4  # S: a pixel for a quarter of each colour
SAME = 2  # of 255: decoders round otherwise on other processors; anything that a vector would show moves pixels further
BLOCK = 8
COLOURS = ((200, 40, 40, 255), (40, 160, 60, 255), (50, 60, 190, 255), (128, 128, 128, 64))
KEPT = {  # base64
    "jpeg turned": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/4QAiRXhpZgAATU0AKgAAAAgAAQESAAMAAAABAAYAAAAAAAD/2wBDAAUDBAQEAwUEBAQFBQUGBwwIBwcHBw8LCwkMEQ8SEhEPERET"
        "FhwXExQaFRERGCEYGh0dHx8fExciJCIeJBweHx7/2wBDAQUFBQcGBw4ICA4eFBEUHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4e"
        "Hh7/wAARCAAQABADASIAAhEBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAABwb/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/8QAFAEBAAAAAAAAAAAAAAAAAAAAA//EACQRAAEB"
        "BgYDAAAAAAAAAAAAABESAAUGEzFhAQIVFiIjQUJR/9oADAMBAAIRAxEAPwA/VA9LRHzCWmo7lKPqKC+P1lip4bplcZctXlRULZQE3q3/2Q=="
    ),
    "jpeg cmyk": (
        "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwAFAwQEBAMFBAQEBQUFBgcMCAcHBwcPCwsJDBEPEhIRDxERExYcFxMUGhURERghGBodHR8fHxMXIiQiHiQcHh8e/8AAFAgAEAAQ"
        "BEMRAE0RAFkRAEsRAP/EABkAAAMAAwAAAAAAAAAAAAAAAAAHCAUGCf/EABQQAQAAAAAAAAAAAAAAAAAAAAD/2gAOBEMATQBZAEsAAD8Aeack5LLc/wBYDYAyCX1oA/Tt"
        "JwP/2Q=="
    ),
    "webp": (
        "UklGRmgAAABXRUJQVlA4WAoAAAAQAAAADwAADwAAQUxQSBIAAAABINK2sTb/poYGfxwRE+CN5B5WUDggMAAAAJABAJ0BKhAAEAABQCYloAJ0ugADmAD+7h///d4r/+G8"
        "7/ceVr/n/P/7nA/6MLgAAA=="
    ),
    "gif": (
        "R0lGODlhEAAQAIEAAICAgCigPDI8vsgoKCH5BAEAAAAALAAAAAAQABAAQAhGAAcIHCgwgMGDBgUoXKgQgMOHDgkSRIiQIUOIECUOpHhQY0GOASwuxPhQZEOSADwOABlA"
        "JUuXIGFyNCkAJQCaNnGi1EkyIAA7"
    ),
    "avif": (
        "AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUIAAAGGbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAAAAAAAAAAAAAAAAAAAOcGl0bQAAAAAAAQAAACxp"
        "bG9jAAAAAEQAAAIAAQAAAAEAAAHFAAAANAACAAAAAQAAAa4AAAAXAAAAQmlpbmYAAAAAAAIAAAAaaW5mZQIAAAAAAQAAYXYwMUNvbG9yAAAAABppbmZlAgAAAAACAABh"
        "djAxQWxwaGEAAAAAGmlyZWYAAAAAAAAADmF1eGwAAgABAAEAAADDaXBycAAAAJ1pcGNvAAAAFGlzcGUAAAAAAAAAEAAAABAAAAAQcGl4aQAAAAADCAgIAAAADGF2MUOB"
        "AAwAAAAAE2NvbHJuY2x4AAEADQAGgAAAAA5waXhpAAAAAAEIAAAADGF2MUOBABwAAAAAOGF1eEMAAAAAdXJuOm1wZWc6bXBlZ0I6Y2ljcDpzeXN0ZW1zOmF1eGlsaWFy"
        "eTphbHBoYQAAAAAeaXBtYQAAAAAAAAACAAEEAQKDBAACBAEFhgcAAABTbWRhdBIACgUYDP/5VDIMRZAAAEQ2o40BUgAgEgAKCRgM/9sgIaDQgDIlReHh4YhgABlAAAAA"
        "gI4RzO2ge+JIuueEtgWRm9DqX3aIbOkLgA=="
    ),
    "heic": (
        "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAmttZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRpbG9jAAAAAERAAAIAAQAAAAAC"
        "jwABAAAAAAAAAEwAAgAAAAAC2wABAAAAAAAAACYAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVpbmZlAgAAAAACAABodmMxAAAAAA5waXRtAAAA"
        "AAABAAABqmlwcnAAAAGCaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AAAAMAkAAA"
        "AwAAAwAeoCCBBZbqrprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFwAAAAEAAAAAEA"
        "AAAQAAAAAf///9AAAAAC////0AAAAAIAAAAQcGl4aQAAAAADCAgIAAAAcWh2Y0MBBAgAAACf+AAAAAAe8AD8/Pj4AAAPA2AAAQAXQAEMAf//BAgAAAMAn/gAAAMAAB66"
        "AkBhAAEAJkIBAQQIAAADAJ/4AAADAAAewIIEFluqumubAgAAAwAyAAADAAIQYgABAAZEAcFzwYkAAAAOcGl4aQAAAAABCAAAACdhdXhDAAAAAHVybjptcGVnOmhldmM6"
        "MjAxNTphdXhpZDoxAAAAACBpcG1hAAAAAAAAAAIAAQWBAgMFhAACBYYDB4iEAAAAGmlyZWYAAAAAAAAADmF1eGwAAgABAAEAAAB6bWRhdAAAAEgoAa8JyGnKGiObUf8X"
        "9/oXoa8TJ96QW/8VTSPVEhcpj2g7Oz0WVzw1iH0IGJSLzcT+lt83jQC4BUCn9v4/9GdgGqjfWBEE2y8AAAAiKAGuE5CYiXRJk8Zzag/2RVqlsNVeVbBkCjhESnygQOGL"
        "Tw=="
    ),
}


def golden_pictures() -> dict[str, bytes]:
    """The files by kind; without ``heic`` where the package that decodes it is not installed."""
    picture = np.array(COLOURS, np.uint8).reshape(2, 2, 4).repeat(BLOCK, 0).repeat(BLOCK, 1)  # [H, W, 4]
    grey, clear = picture[..., 1:2], picture[..., 3:]
    index = np.arange(4, dtype=np.uint8).reshape(2, 2, 1).repeat(BLOCK, 0).repeat(BLOCK, 1)
    palette = _chunk(b"PLTE", bytes(level for colour in COLOURS for level in colour[:3])) + _chunk(b"tRNS", bytes(c[3] for c in COLOURS))
    drawn = {
        "png": _png(picture[..., :3], 2),
        "png transparent": _png(picture, 6),
        "png grey transparent": _png(np.concatenate([grey, clear], -1), 4),
        "png palette": _png(index, 3, palette),
        "png grey 16": _png(grey.astype(">u2") * 257, 0),
        "png rgb 16": _png(picture[..., :3].astype(">u2") * 257, 2),
        "png display p3": _png(picture[..., :3], 2, _chunk(b"iCCP", b"P3\0\0" + zlib.compress(display_p3()))),
    }
    kept = {kind: base64.b64decode(content) for kind, content in KEPT.items() if kind != "heic" or importlib.util.find_spec("pillow_heif")}
    return drawn | kept


def golden_kinds() -> dict[str, str]:
    """The pixels [3, S, S] that each file becomes, in hex, by kind."""
    return {kind: pixels(decode(content, source=kind), SIZE).tobytes().hex() for kind, content in golden_pictures().items()}


def changed_kinds(known: Mapping[str, str]) -> list[str]:
    """The kinds of which the ``known`` pixels are not those that are made here, or not known; HEIC only where it is decoded."""
    made = golden_kinds()
    asked = [kind for kind in known if kind in made or kind not in KEPT]
    return [kind for kind in asked if kind not in made or not _same(made[kind], known[kind])]


def _same(made: str, known: str) -> bool:
    if len(made) != len(known):
        return False
    left, right = (np.frombuffer(bytes.fromhex(side), np.uint8).astype(np.int16) for side in (made, known))
    return bool((abs(left - right) <= SAME).all())


def _png(values: NDArray[np.generic], colour: int, more: bytes = b"") -> bytes:
    """A PNG of [H, W, C], uint8 or big-endian uint16, of PNG's ``colour`` type, with ``more`` chunks before the pixels."""
    height, width = values.shape[:2]
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, values.dtype.itemsize * 8, colour, 0, 0, 0))
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + head + more + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def display_p3() -> bytes:
    """An ICC profile of Display P3's colours: its primaries adapted to D50, and a gamma of 2.2 for all three."""
    return matrix_profile(((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)), 2.2)


def matrix_profile(primaries: tuple[tuple[float, float, float], ...], gamma: float) -> bytes:
    """An ICC profile (version 2) of a display with the XYZ of red, green and blue, adapted to D50."""
    white = (0.96420, 1.0, 0.82491)

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    def xyz(values: tuple[float, ...]) -> bytes:
        return b"XYZ \0\0\0\0" + fixed(*values)

    curve = b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(gamma * 256))
    tags = {b"wtpt": xyz(white), **dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(xyz, primaries), strict=True))}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    text = b"moon\0"
    tags[b"desc"] = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78 + 3)
    tags[b"cprt"] = b"text\0\0\0\0" + b"none\0\0\0\0"
    table, content, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", at + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    size = at + len(content)
    head = struct.pack(">I4sI4s4s4s12x4s", size, bytes(4), 0x02100000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    return head.ljust(68, b"\0") + fixed(*white) + bytes(128 - 80) + table + content
