"""A photographer that the encoder's augmentation does not know: what it does to pictures is done nowhere else in this project.

``moon train`` makes photographs of item pictures (``encoder/augment.py``) with much what :mod:`~moon_ops.shops.simulated.photograph`
does: an encoder is then judged on what it practised. Here are other operations, and where one is of the same kind (where the thing lies,
how far it is tilted, how large it is) its range begins where the augmentation's has ended; ``tests/shops/test_camera.py`` holds that.

A thing is photographed in a room with other things, or its picture is, on a screen or on paper. Set once, before any encoder was
trained on it, and not tuned afterwards.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from moon_ops.shops.simulated.drawing import CANVAS, CORNERS, PICTURE, SILHOUETTES, Look, Rgb, cutout, warp
from moon_ops.shops.simulated.fabric import MARKS, PATTERNS, TEXTURES
from moon_ops.shops.simulated.randomness import Stream, generator

Range: TypeAlias = tuple[float, float]
Field: TypeAlias = NDArray[np.float32]  # [PICTURE, PICTURE, 3] in 0–255


@dataclass(frozen=True)
class CameraParameters:
    """Why each is as it is. Fractions are of the picture's side; where the augmentation has a range of the kind, it is named."""

    tilt: Range = (0.16, 0.34)  # of the camera, in depth across half the side; augmentation: up to 0.1. A table seen by who sits at it
    size: Range = (0.66, 0.74)  # of the thing; augmentation: 0.75 to 1.3. Other things stand beside it
    shift: Range = (0.13, 0.18)  # from the middle, along one axis; augmentation: up to 0.12
    rolled: float = 0.3  # of things lie on their side ...
    roll: Range = (0.6, 1.0)  # ... by so many radians; augmentation: up to 0.5
    shown: tuple[float, float] = (0.16, 0.16)  # of pictures: on a screen, on paper. Screenshots and leaflets are usual in visual search
    page: float = 1.35  # a page is larger than the thing on it
    others: tuple[int, int] = (1, 3)  # other things of a shop in view
    other_size: Range = (0.3, 0.5)
    troubles: tuple[int, int] = (1, 2)  # of the five below, in one picture: more, and people could not tell the thing either
    finger: Range = (0.07, 0.1)  # width
    warm: Range = (0.16, 0.28)  # red up and blue down by this under the one lamp, the other way under the other
    dark: Range = (0.45, 0.65)  # what is left of the light in a shadow with an edge; augmentation: slopes alone
    glare: Range = (0.08, 0.16)  # half the width of a mirrored lamp, of half the side
    path: tuple[int, int] = (3, 5)  # pixels that the hand moved along one direction; augmentation: blurs all directions alike
    damage: tuple[int, int] = (20, 38)  # JPEG quality on the way, in blocks of another grid; photograph.py: 45 to 82, and no way
    shrunk: Range = (0.7, 0.9)  # on the way, of the side
    quality: tuple[int, int] = (86, 94)  # as it arrives: what is lost is lost


CAMERA = CameraParameters()
TROUBLES = ("hand", "lamps", "shadow", "glare", "moved")  # two lamps: a window and a bulb; augmentation: one gain for the whole picture
SKIN: tuple[Rgb, ...] = ((236, 196, 170), (201, 152, 118), (150, 104, 74), (92, 62, 46))


def photograph(product: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, int]:
    """Photograph a cut-out. Returns the picture (RGB, 96 × 96) and the JPEG quality it was sent with."""
    scene = _ground(rng)
    for _ in range(rng.integers(*CAMERA.others, endpoint=True)):
        _beside(scene, rng)
    kind = rng.random()
    screen, paper = CAMERA.shown
    if kind < screen + paper:
        page = (_screen if kind < screen else _paper)(product, rng)
        placed = warp(page, _pose(rng, CAMERA.page))
    else:
        placed = warp(product, _pose(rng, 1.0))
    scene.paste(placed, (0, 0), placed)
    troubles = rng.choice(TROUBLES, int(rng.integers(*CAMERA.troubles, endpoint=True)), replace=False).tolist()
    if "hand" in troubles:
        _hand(scene, rng)
    lit = _light(np.asarray(scene, dtype=np.float32), troubles, rng)
    if "moved" in troubles:
        lit = _moved(lit, rng)
    finished = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8), "RGB")
    return _sent(finished, rng), int(rng.integers(*CAMERA.quality, endpoint=True))


def _pose(rng: np.random.Generator, larger: float) -> NDArray[np.float64]:
    """Where the corners of what is photographed fall, [4, 2] in canvas pixels: a plane before a pinhole, tilted about any axis in it."""
    corners = 2 * (CORNERS / CANVAS - 0.5)
    if rng.random() < CAMERA.rolled:
        angle = rng.uniform(*CAMERA.roll) * rng.choice((-1.0, 1.0))
        corners = corners @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    axis, tilt = rng.uniform(0, 2 * np.pi), rng.uniform(*CAMERA.tilt)
    away = corners @ np.array([np.cos(axis), np.sin(axis)])
    corners = corners * rng.uniform(*CAMERA.size) * larger / (1 + tilt * away)[:, None]
    shift = rng.uniform(*CAMERA.shift) * 2 * rng.choice((-1.0, 1.0))
    corners[:, rng.integers(2)] += shift / larger  # a page fills the frame: it is held into the middle
    return (corners / 2 + 0.5) * CANVAS


@cache
def _stock() -> tuple[Image.Image, ...]:
    """What else stands about: two things of every kind, of no product that is sold."""
    made = []
    for number, kind in enumerate(sorted(SILHOUETTES) * 2):
        rng = generator(0, Stream.CAMERA, number, 1)  # no query's
        shape = tuple(rng.random(6).tolist())
        primary, secondary = (_colour(rng) for _ in range(2))
        pattern, texture, mark = (names[rng.integers(len(names))] for names in (PATTERNS, TEXTURES, MARKS))
        made.append(cutout(Look(kind, number % 2, shape, primary, secondary, pattern, 7.0, 0.0, texture, "none", 1.0, mark)))
    return tuple(made)


def _beside(scene: Image.Image, rng: np.random.Generator) -> None:
    """Another thing, at the edge of the picture."""
    stock = _stock()
    angle = rng.uniform(0, 2 * np.pi)
    middle = 0.5 + 0.48 * np.array([np.cos(angle), np.sin(angle)])
    corners = ((CORNERS / CANVAS - 0.5) * rng.uniform(*CAMERA.other_size) + middle) * CANVAS
    placed = warp(stock[rng.integers(len(stock))], corners)
    scene.paste(placed, (0, 0), placed)


def _colour(rng: np.random.Generator) -> Rgb:
    red, green, blue = rng.integers(40, 230, 3).tolist()
    return red, green, blue


def _muted(rng: np.random.Generator) -> NDArray[np.float32]:
    """A colour of rooms and gardens: mostly grey [3]."""
    colour = np.array(_colour(rng), np.float32)
    return colour.mean() + (colour - colour.mean()) * np.float32(rng.uniform(0.1, 0.5))


def _clouds(rng: np.random.Generator, sides: tuple[int, ...]) -> Field:
    """Noise of several sizes, one brightness for the three channels, about 0 with a deviation near 1."""
    total = np.zeros((PICTURE, PICTURE), np.float32)
    for number, side in enumerate(sides):
        small = Image.fromarray(rng.standard_normal((side, side)).astype(np.float32), "F")
        total += np.asarray(small.resize((PICTURE, PICTURE), Image.Resampling.BILINEAR)) * np.float32(0.7**number)
    return np.repeat(total[:, :, None], 3, axis=2)


def _ground(rng: np.random.Generator) -> Image.Image:
    """Grass or carpet, a checked blanket, shelves, or stone."""
    y, x = np.mgrid[0:PICTURE, 0:PICTURE].astype(np.float32) / PICTURE
    first, second = (_muted(rng) for _ in range(2))
    kind = rng.integers(4)
    if kind == 0:
        share = 0.5 + 0.25 * _clouds(rng, (24, 48, 96))
    elif kind == 1:
        rows = rng.uniform(3, 7)
        share = ((x * rows % 1 < 0.5).astype(np.float32) + (y * rows % 1 < 0.5))[:, :, None] / 2
    elif kind == 2:
        share = (y * rng.uniform(2, 3.5) % 1)[:, :, None] ** 4 + 0.05 * _clouds(rng, (96,))
    else:
        share = np.clip(np.abs(_clouds(rng, (5, 11, 23))) * 0.6, 0, 1)
    return Image.fromarray(np.clip(first + (second - first) * share, 0, 255).astype(np.uint8), "RGB")


def _screen(product: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The thing's picture on a screen: a dark rim, rows and columns of dots that beat with the camera's, a blue cast."""
    page = Image.new("RGBA", (CANVAS, CANVAS), (18, 18, 22, 255))
    shown = Image.new("RGBA", (CANVAS, CANVAS), (250, 250, 252, 255))
    shown.alpha_composite(product)
    rim = int(CANVAS * 0.07)
    page.paste(shown.resize((CANVAS - 2 * rim, CANVAS - 3 * rim), Image.Resampling.BILINEAR), (rim, rim))
    values = np.asarray(page, dtype=np.float32).copy()
    step = rng.uniform(2.1, 2.9)
    columns = np.arange(CANVAS, dtype=np.float32) * np.float32(2 * np.pi / step)
    dots = 1 - 0.16 * (1 + np.sin(columns))[None, :, None] * np.ones((CANVAS, 1, 3), np.float32)
    dots *= 1 - 0.1 * (1 + np.sin(columns))[:, None, None]
    values[:, :, :3] *= dots * np.array([0.98, 1.06, 1.22], np.float32)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8), "RGBA")


def _paper(product: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The thing's picture in a leaflet: a screen of printed dots, ink that is paler, a fold, lines of text."""
    page = Image.new("RGBA", (CANVAS, CANVAS), (238, 234, 222, 255))
    page.alpha_composite(product)
    values = np.asarray(page, dtype=np.float32).copy()
    y, x = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32)
    step = np.float32(2 * np.pi / rng.uniform(3.2, 4.4))
    dots = (np.sin((x + y) * step) * np.sin((x - y) * step))[:, :, None]
    ink = 238 - values[:, :, :3]
    values[:, :, :3] = 238 - ink * (0.78 + 0.22 * dots)
    at = rng.uniform(0.25, 0.75) * CANVAS
    values[:, :, :3] *= (1 - 0.3 * np.exp(-(((x - at) / 2.5) ** 2)) + 0.06 * (x > at))[:, :, None]
    printed = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8), "RGBA")
    pen = ImageDraw.Draw(printed)
    for row in range(3):
        top = CANVAS - 8 - 6 * row
        pen.rectangle((8, top, rng.uniform(0.3, 0.9) * CANVAS, top + 2), fill=(60, 58, 60, 255))
    return printed


def _hand(scene: Image.Image, rng: np.random.Generator) -> None:
    """Two to four fingers that reach in from one side."""
    tone = SKIN[rng.integers(len(SKIN))]
    width = rng.uniform(*CAMERA.finger) * PICTURE
    side, along, reach = rng.integers(4), rng.uniform(0.3, 0.6) * PICTURE, rng.uniform(0.18, 0.3) * PICTURE
    pen = ImageDraw.Draw(scene)
    for finger in range(rng.integers(2, 5)):
        place, end = along + finger * width * 1.05, reach * rng.uniform(0.8, 1.1)
        shade = tuple(int(c * rng.uniform(0.9, 1.0)) for c in tone)
        left, top, right, bottom = -width, place, end, place + width  # from the left; other sides are mirrored or turned
        if side % 2:
            left, right = PICTURE - right, PICTURE - left
        box = (left, top, right, bottom) if side < 2 else (top, left, bottom, right)
        pen.rounded_rectangle(box, radius=width / 2, fill=shade, outline=tuple(int(c * 0.8) for c in shade))


def _light(picture: Field, troubles: Sequence[str], rng: np.random.Generator) -> Field:
    """Two lamps, a shadow with an edge, a mirrored lamp: those that ``troubles`` names."""
    y, x = np.mgrid[-1 : 1 : PICTURE * 1j, -1 : 1 : PICTURE * 1j].astype(np.float32)
    if "lamps" in troubles:
        angle, warm = rng.uniform(0, 2 * np.pi), np.float32(rng.uniform(*CAMERA.warm))
        side = np.tanh(2 * (x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))))[:, :, None]
        picture = picture * (1 + side * warm * np.array([1, 0, -1], np.float32))
    if "shadow" in troubles:
        picture = picture * np.where(_shaded(x, y, rng), np.float32(rng.uniform(*CAMERA.dark)), np.float32(1))[:, :, None]
    if "glare" in troubles:
        at, wide = rng.uniform(-0.5, 0.5, 2), rng.uniform(*CAMERA.glare)
        spot = np.exp(-(((x - at[0]) / wide) ** 2 + ((y - at[1]) / (wide * 1.8)) ** 2)).astype(np.float32)
        picture = picture + 170 * spot[:, :, None]
    return picture


def _shaded(x: NDArray[np.float32], y: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Where the shadow lies: blinds, or somebody who stands on one side."""
    angle = rng.uniform(0, 2 * np.pi)
    across, along = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    if rng.random() < 0.4:
        shaded: NDArray[np.bool_] = across * rng.uniform(1.2, 2.2) % 1 < 0.4
    else:
        shaded = across + 0.15 * np.sin(along * rng.uniform(2, 5)) > rng.uniform(-0.3, 0.4)
    return shaded


def _moved(picture: Field, rng: np.random.Generator) -> Field:
    """The mean of the picture along a short straight path."""
    length, angle = int(rng.integers(*CAMERA.path, endpoint=True)), rng.uniform(0, np.pi)
    wide = np.pad(picture, ((length, length), (length, length), (0, 0)), mode="edge")
    total = np.zeros_like(picture)
    steps = np.arange(length) - (length - 1) / 2
    for down, right in zip(np.rint(steps * np.sin(angle)).astype(int), np.rint(steps * np.cos(angle)).astype(int), strict=True):
        total += wide[length + down : length + down + PICTURE, length + right : length + right + PICTURE]
    return total / np.float32(length)


def _sent(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """As it arrives after a messenger has made it small and packed it hard."""
    side = round(PICTURE * rng.uniform(*CAMERA.shrunk))
    packed = io.BytesIO()
    picture.resize((side, side), Image.Resampling.BILINEAR).save(
        packed, format="JPEG", quality=int(rng.integers(*CAMERA.damage, endpoint=True))
    )
    return Image.open(packed).resize((PICTURE, PICTURE), Image.Resampling.BILINEAR)
