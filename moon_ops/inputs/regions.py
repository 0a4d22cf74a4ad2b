"""The core region: beside the whole picture an encoder may read the crop in which a frozen detector sees the product.

MOON (arXiv 2508.11999) finds it with a detector that is trained for products. The detector here is a seam: what it is called stands in
the encoder's contract, so vectors made with another one are never compared. ``saliency``, the one that comes with the package, learns
nothing and downloads nothing. This module knows nothing of encoders.

V views of a picture, S pixels, G cells of the detector's grid.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from moon_ops.errors import InputError
from moon_ops.inputs import images

Box = tuple[int, int, int, int]  # left, upper, right, lower, as Pillow crops


class Detector(Protocol):
    """Finds the product in a picture. It must be frozen: the same picture, the same box."""

    name: str

    def box(self, picture: Image.Image) -> Box:
        """The core region in the picture's own pixels."""


class Saliency:
    """What stands out: from the backdrop of a studio picture, else from the colours along the border of a photograph."""

    name = "saliency"
    grid = 64  # G: the picture is read at this size
    coarse = 16  # cells per side in which a photograph's box is searched: each box of them is tried
    backdrop = 24.0  # of 255: the largest difference in a channel that is still backdrop, with JPEG's noise and a soft vignette
    plain = 0.7  # share of the border that must be backdrop for a studio picture; a product may touch one side
    most = 0.85  # share of the picture: a larger box, drawn by the floor's joints or a shadow, would only repeat the whole
    mass = 0.9  # share of the saliency that the box of a photograph holds
    padding = 0.05  # of the box's side, on each side
    least = 0.3  # of the picture's side

    def box(self, picture: Image.Image) -> Box:
        """The core region; the whole picture where nothing stands out."""
        small = picture.resize((self.grid, self.grid), Image.Resampling.BOX, reducing_gap=2.0)
        values = np.asarray(small, np.float32)  # [G, G, 3]
        found = self._studio(values)
        x0, y0, x1, y1 = self._photograph(values) if found is None else found
        (left, right), (upper, lower) = self._side(x0, x1, picture.width), self._side(y0, y1, picture.height)
        return left, upper, right, lower

    def _studio(self, values: NDArray[np.float32]) -> tuple[float, float, float, float] | None:
        """The bounding box, in shares of the side, of what is not backdrop; None without a plain one, or if that is all."""
        border = _border(values)  # [K, 3]
        colour = np.median(border, axis=0)
        if (np.abs(border - colour).max(1) <= self.backdrop).mean() < self.plain:
            return None
        differs = np.abs(values - colour).max(2) > self.backdrop  # [G, G]
        columns, rows = (np.flatnonzero(differs.sum(axis) >= 2) for axis in (0, 1))  # a single cell is a speck
        if not len(columns) or not len(rows):
            return 0.0, 0.0, 1.0, 1.0
        x0, y0, x1, y1 = columns[0] / self.grid, rows[0] / self.grid, (columns[-1] + 1) / self.grid, (rows[-1] + 1) / self.grid
        return (x0, y0, x1, y1) if (x1 - x0) * (y1 - y0) <= self.most else None

    def _photograph(self, values: NDArray[np.float32]) -> tuple[float, float, float, float]:
        """The smallest box of coarse cells that holds ``mass`` of the saliency, in shares of the side."""
        fold = self.grid // self.coarse
        saliency = _saliency(values).reshape(self.coarse, fold, self.coarse, fold).sum((1, 3))
        saliency = np.maximum(saliency - 0.7 * saliency.mean(), 0.0)  # what hardly stands out does not count
        if not saliency.sum() > 0:
            return 0.0, 0.0, 1.0, 1.0
        y0, y1, x0, x1 = _smallest(saliency, self.mass)
        return x0 / self.coarse, y0 / self.coarse, x1 / self.coarse, y1 / self.coarse

    def _side(self, start: float, end: float, length: int) -> tuple[int, int]:
        """A side in pixels: padded, not too short, and inside the picture."""
        pad = self.padding * (end - start)
        start, end = max(start - pad, 0.0), min(end + pad, 1.0)
        if end - start < self.least:
            start = min(max((start + end - self.least) / 2, 0.0), 1 - self.least)
            end = start + self.least
        first = min(round(start * length), length - 1)
        return first, max(round(end * length), first + 1)


def _border(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The colours [K, 3] along the border, two cells wide, of [G, G, 3]."""
    sides = (values[:2], values[-2:], values[2:-2, :2], values[2:-2, -2:])
    return np.concatenate([side.reshape(-1, 3) for side in sides])


def _saliency(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Saliency [G, G] of [G, G, 3]: how unlike the border's colours (Mahalanobis), where the product of a photograph mostly is."""
    border = _border(values).astype(np.float64)
    spread = np.cov(border.T) + 25.0 * np.eye(3)  # 5 of 255: the noise of a camera
    away = values - border.mean(0)
    distance = np.sqrt(np.maximum(((away @ np.linalg.inv(spread)) * away).sum(2), 0.0))
    place = np.linspace(-1, 1, len(values))
    centre = np.exp(-(place[:, None] ** 2 + place[None, :] ** 2) / (2 * 0.6**2))
    return distance * centre


def _smallest(mass: NDArray[np.float64], share: float) -> tuple[int, int, int, int]:
    """Rows y0 … y1 and columns x0 … x1 of the smallest box that holds ``share`` of [C, C]; the first of several."""
    cells = len(mass)
    total = np.zeros((cells + 1, cells + 1))
    total[1:, 1:] = mass.cumsum(0).cumsum(1)
    start, end = np.triu_indices(cells + 1, 1)  # all ranges of rows, and of columns
    rows = total[end] - total[start]  # [R, C + 1]
    inside = rows[:, end] - rows[:, start]  # [R, R]
    area = (end - start)[:, None] * (end - start)[None, :]
    best = int(np.where(inside >= share * total[-1, -1], area, cells**2 + 1).argmin())
    y, x = divmod(best, len(start))
    return int(start[y]), int(end[y]), int(start[x]), int(end[x])


DETECTORS: dict[str, Detector] = {detector.name: detector for detector in (Saliency(),)}


def detector_named(name: str) -> Detector:
    """The detector; :class:`InputError` for a name that is not known here."""
    if name not in DETECTORS:
        raise InputError(f"core_region = {name!r} is no detector (there are: {', '.join(sorted(DETECTORS))})", action="name one of these")
    return DETECTORS[name]


def views(picture: Image.Image, size: int, detector: str) -> NDArray[np.uint8]:
    """uint8 [V, 3, S, S]: the whole picture, and with a detector the crop of its core region."""
    whole = images.pixels(picture, size)
    if not detector:
        return whole[None]
    return np.stack([whole, images.pixels(picture.crop(detector_named(detector).box(picture)), size)])


def golden_views(size: int, detector: str) -> str:
    """:func:`~moon_ops.inputs.images.golden_pixels`, and with a detector the views of two drawn pictures: a box that moved shows."""
    whole = images.golden_pixels(size)
    if not detector:
        return whole
    y, x = np.mgrid[0:150, 0:113]
    inside = (abs(x - 60) < 30) & (abs(y - 90) < 40)
    backdrops = (np.full_like(x, 250), (x * 3 + y * 5) % 200)  # a studio, and a place
    drawn = [np.stack([np.where(inside, 200, b), np.where(inside, 30, b), b], -1).astype(np.uint8) for b in backdrops]
    content = b"".join(views(Image.fromarray(picture), size, detector).tobytes() for picture in drawn)
    return hashlib.sha256(whole.encode() + content).hexdigest()
