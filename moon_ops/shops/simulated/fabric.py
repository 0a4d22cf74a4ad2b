"""What covers a silhouette: pattern fields, texture fields, motifs and brand marks.

A field is a float32 array [H, W]. Patterns say how much of the second colour shows (0 to 1); textures multiply
brightness.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from moon_ops.shops.simulated.outline import Points, curve

Field: TypeAlias = NDArray[np.floating]

PATTERNS = ("plain", "stripes", "dots", "checks", "gradient", "zigzag", "diamonds", "speckle")
TEXTURES = ("smooth", "knit", "ribbed", "woven", "grain", "sheen")
MOTIFS = ("none", "star", "heart", "flower", "moon", "leaf", "bolt", "cross", "drop")
MARKS = ("disc", "ring", "triangle", "square", "bar", "chevron", "diamond", "pair")


@cache
def _grid(size: int) -> tuple[Field, Field]:
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    return x, y


def _step(wave: Field, sharpness: float = 6.0) -> Field:
    """A soft threshold at 0, so that edges of a pattern are not jagged."""
    return np.clip(wave * sharpness * 0.5 + 0.5, 0, 1)


def _wave(u: Field) -> Field:
    """A triangle wave of period 1 between -1 and 1: as good as a sine here and several times cheaper."""
    return np.abs(4 * (u - np.floor(u)) - 2) - 1


def _stripes(u: Field, _v: Field) -> Field:
    return _step(_wave(u))


def _dots(u: Field, v: Field) -> Field:
    du, dv = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5
    return _step(0.31 - np.sqrt(du * du + dv * dv), 20.0)


def _checks(u: Field, v: Field) -> Field:
    return 0.5 * (_step(_wave(u)) + _step(_wave(v)))


def _gradient(_u: Field, v: Field) -> Field:
    return np.clip((v - v.min()) / (v.max() - v.min()) * 1.7 - 0.35, 0, 1)


def _zigzag(u: Field, v: Field) -> Field:
    return _step(_wave(v + 0.28 * _wave(u)))


def _diamonds(u: Field, v: Field) -> Field:
    return _step(_wave(u + v) * 0.5 + _wave(u - v) * 0.5 - 0.15)


def _speckle(u: Field, v: Field) -> Field:
    fleck = np.sin(u * 9.1 + 3 * np.sin(v * 5.3)) + np.sin(v * 8.3 + 3 * np.sin(u * 4.7))
    return _step(fleck - 0.9, 3.0)


_PATTERN_FIELDS: dict[str, Callable[[Field, Field], Field]] = {
    "stripes": _stripes,
    "dots": _dots,
    "checks": _checks,
    "gradient": _gradient,
    "zigzag": _zigzag,
    "diamonds": _diamonds,
    "speckle": _speckle,
}


def pattern_field(pattern: str, size: int, *, repeats: float, angle: float) -> Field:
    """How much of the second colour shows at each point, [size, size] in 0..1.

    ``repeats`` is how often the pattern repeats across the canvas, ``angle`` its rotation in radians.
    """
    x, y = _grid(size)
    if pattern == "plain":
        return np.zeros_like(x)
    c, s = np.float32(np.cos(angle) * repeats), np.float32(np.sin(angle) * repeats)
    return _PATTERN_FIELDS[pattern](x * c + y * s, y * c - x * s)


@cache
def texture_field(texture: str, size: int) -> Field:
    """Brightness around 1, [size, size]; periods are a few pixels of the final picture, or they would vanish."""
    x, y = _grid(size)
    noise = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    fields: dict[str, Field] = {
        "smooth": np.ones_like(x),
        "knit": 1 + 0.18 * _wave(x * 16) * _wave(y * 18 + 0.5 * _wave(x * 16)),
        "ribbed": 1 + 0.16 * _wave(x * 22),
        "woven": 1 + 0.14 * np.sign(np.sin(x * 75)) * np.sign(np.sin(y * 75)),
        "grain": 1 + 0.36 * _smoothed(noise, 3),
        "sheen": 1 + 0.34 * np.exp(-(((x - 0.62 * y - 0.1) / 0.07) ** 2)) - 0.04,
    }
    return fields[texture].astype(np.float32)


def _smoothed(field: Field, times: int) -> Field:
    """Average with the four neighbours, ``times`` over."""
    for _ in range(times):
        field = (field + np.roll(field, 1, 0) + np.roll(field, -1, 0) + np.roll(field, 1, 1) + np.roll(field, -1, 1)) / 5
    return field


def _radial(radii: list[float], turn: float = 0.0) -> Points:
    """A closed outline with the given radii at equal angles, the first pointing up."""
    angle = np.arange(len(radii)) / len(radii) * 2 * np.pi + turn
    return np.stack([np.sin(angle), -np.cos(angle)], axis=1) * np.asarray(radii)[:, None]


@cache
def motif_outline(motif: str) -> Points:
    """The outline of a motif around the origin with radius about 1, [N, 2]."""
    outlines: dict[str, Points] = {
        "star": _radial([1.0, 0.42] * 5),
        "heart": curve([(0, 0.95), (0, 0.95), (-0.95, -0.1), (-0.55, -0.8), (0, -0.4), (0, -0.4), (0.55, -0.8), (0.95, -0.1)]),
        "flower": curve([(float(x), float(y)) for x, y in _radial([1.05, 0.45] * 6)]),
        "moon": curve(
            [
                (0.35, -0.95),
                (0.35, -0.95),
                (-0.75, -0.5),
                (-0.75, 0.5),
                (0.35, 0.95),
                (0.35, 0.95),
                (-0.15, 0.3),
                (-0.15, -0.3),
            ]
        ),
        "leaf": curve([(0.8, -0.9), (0.8, -0.9), (0.65, 0.4), (-0.8, 0.9), (-0.8, 0.9), (-0.55, -0.45)]),
        "bolt": np.array([(0.25, -1), (-0.6, 0.15), (-0.05, 0.15), (-0.3, 1), (0.6, -0.25), (0.05, -0.25)], dtype=float),
        "cross": _radial([0.45, 1, 1, 0.45, 1, 1, 0.45, 1, 1, 0.45, 1, 1], np.pi / 12 * 3),
        "drop": curve([(0, -1), (0, -1), (0.62, 0.25), (0.4, 0.8), (-0.4, 0.8), (-0.62, 0.25)]),
    }
    return outlines[motif]


@cache
def mark_outlines(mark: str) -> tuple[Points, ...]:
    """The outlines of a brand mark around the origin with radius about 1: one or two of [N, 2]."""
    disc = _radial([0.85] * 20)
    outlines: dict[str, tuple[Points, ...]] = {
        "disc": (disc,),
        "ring": (np.concatenate([disc, disc[:1], 0.5 * disc[:1], 0.5 * disc[::-1]]),),
        "triangle": (_radial([1.0] * 3),),
        "square": (_radial([1.2] * 4, np.pi / 4),),
        "bar": (np.array([(-1.2, -0.35), (1.2, -0.35), (1.2, 0.35), (-1.2, 0.35)]),),
        "chevron": (np.array([(-1, 0.2), (0, -0.8), (1, 0.2), (1, 0.8), (0, -0.2), (-1, 0.8)]),),
        "diamond": (_radial([1.1, 0.6] * 2),),
        "pair": (0.55 * disc + np.array([-0.6, 0]), 0.55 * disc + np.array([0.6, 0])),
    }
    return outlines[mark]
