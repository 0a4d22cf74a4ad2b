"""Geometry of a silhouette: parts, curves and the few shapes that every product is put together from.

Coordinates are in the unit square, x to the right and y down; a product fills about 0.1 to 0.9 of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Points: TypeAlias = NDArray[np.float64]  # [N, 2]
Pairs: TypeAlias = Sequence[tuple[float, float]]


class Role(IntEnum):
    """What a part is made of, which decides its colour."""

    PRIMARY = 0  # the fabric: primary colour, pattern and texture
    SECONDARY = 1  # trim in the second colour
    METAL = 2
    DARK = 3
    LIGHT = 4
    PRINT = 5  # whatever stands out on the second colour


@dataclass(frozen=True)
class Part:
    """One filled outline, or a stroke where ``width`` is given. ``shade`` multiplies the colour's brightness."""

    role: Role
    outline: Points
    shade: float = 1.0
    width: float | None = None


@dataclass(frozen=True)
class Silhouette:
    """Parts from back to front, and where motif and brand mark go as (x, y, radius)."""

    parts: tuple[Part, ...]
    motif_at: tuple[float, float, float]
    mark_at: tuple[float, float, float]


def between(low: float, high: float, t: float) -> float:
    """The point at fraction ``t`` of the way from ``low`` to ``high``."""
    return low + (high - low) * t


def polygon(points: Pairs) -> Points:
    """Straight edges through ``points``."""
    return np.asarray(points, dtype=np.float64)


def curve(points: Pairs, *, closed: bool = True, samples: int = 7) -> Points:
    """A smooth (Catmull-Rom) line through ``points``; a point given twice becomes a corner. Returns [N, 2]."""
    p1 = np.asarray(points, dtype=np.float64)
    if closed:
        p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
    else:
        padded = np.concatenate([p1[:1], p1, p1[-1:]])
        p0, p1, p2, p3 = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    t = np.linspace(0, 1, samples + 1)[:, None, None]  # [T, 1, 1] against [P, 2]
    spline = 0.5 * (2 * p1 + t * (p2 - p0) + t**2 * (2 * p0 - 5 * p1 + 4 * p2 - p3) + t**3 * (3 * (p1 - p2) + p3 - p0))
    corner = (p1 == p2).all(axis=1)  # the segment between twins would be a small loop
    return spline.transpose(1, 0, 2)[~corner].reshape(-1, 2)


def both_sides(profile: Pairs, *, centre: float = 0.5) -> list[tuple[float, float]]:
    """Mirror ``profile``, (distance from the centre line, y) of the right half from the top, into a closed outline."""
    right = [(centre + dx, y) for dx, y in profile]
    left = [(centre - dx, y) for dx, y in reversed(profile) if dx > 0]
    return right + left


def rounded(x: float, y: float, half_width: float, half_height: float, *, power: float = 4.0) -> Points:
    """A superellipse: ``power`` 2 is an ellipse, 4 a rounded rectangle, 10 almost a rectangle. Returns [48, 2]."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    c, s = np.cos(angle), np.sin(angle)
    xs = x + half_width * np.sign(c) * np.abs(c) ** (2 / power)
    ys = y + half_height * np.sign(s) * np.abs(s) ** (2 / power)
    return np.stack([xs, ys], axis=1)


def arch(x: float, y: float, half_width: float, height: float, *, power: float = 2.0) -> Points:
    """The upper half of a superellipse standing on ``y``, from left to right, as an open line. Returns [25, 2]."""
    angle = np.linspace(np.pi, 0, 25)
    c, s = np.cos(angle), np.sin(angle)
    xs = x + half_width * np.sign(c) * np.abs(c) ** (2 / power)
    ys = y - height * np.abs(s) ** (2 / power)
    return np.stack([xs, ys], axis=1)
