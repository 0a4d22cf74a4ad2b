"""The same product as a user would photograph it: at an angle, among other things, in the light there is."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from moon_ops.shops.simulated.drawing import CANVAS, CORNERS, PICTURE, Rgb, warp
from moon_ops.shops.simulated.parameters import PHOTOGRAPH

Picture: TypeAlias = NDArray[np.floating]  # [PICTURE, PICTURE, 3] in 0–255


def photograph(product: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, int]:
    """Photograph a cut-out. Returns the picture (RGB, 96 × 96) and the JPEG quality it was sent with."""
    scene = _background(rng)
    placed = warp(product, _pose(rng))
    shadow = placed.getchannel("A").filter(ImageFilter.BoxBlur(3)).point(lambda a: a * 0.45)
    dx, dy = rng.integers(-5, 6, 2).tolist()
    scene.paste((32, 28, 30), (dx, dy), shadow)
    scene.paste(placed, (0, 0), placed)
    if rng.random() < PHOTOGRAPH.occluded:
        _occlude(scene, rng)
    scene = scene.filter(ImageFilter.GaussianBlur(rng.uniform(*PHOTOGRAPH.blur)))
    lit = _light(np.asarray(scene, dtype=np.float32), rng)
    finished = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8), "RGB")
    return finished, int(rng.integers(*PHOTOGRAPH.quality, endpoint=True))


def _pose(rng: np.random.Generator) -> NDArray[np.float64]:
    """Where the product's corners fall in the photograph, [4, 2] in canvas pixels."""
    angle = np.radians(rng.uniform(-PHOTOGRAPH.rotation_degrees, PHOTOGRAPH.rotation_degrees))
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    scale = rng.uniform(*PHOTOGRAPH.scale) * np.array([1.0, rng.uniform(*PHOTOGRAPH.aspect)])
    corners = (CORNERS / CANVAS - 0.5) * scale @ rotation + 0.5
    corners += rng.uniform(-1, 1, (4, 2)) * PHOTOGRAPH.perspective
    corners += rng.uniform(-1, 1, 2) * PHOTOGRAPH.shift
    return corners * CANVAS


def _background(rng: np.random.Generator) -> Image.Image:
    """A table, floor, wall or cloth with a few other things on it."""
    surface = np.asarray(PHOTOGRAPH.surfaces[rng.integers(len(PHOTOGRAPH.surfaces))], dtype=np.float32)
    surface += rng.normal(0, PHOTOGRAPH.surface_jitter, 3)
    kind = (_planks, _tiles, _cloth, _wall)[rng.integers(4)]
    ground = np.clip(kind(surface, rng), 0, 255).astype(np.uint8)
    scene = Image.fromarray(ground, "RGB")
    pen = ImageDraw.Draw(scene)
    for _ in range(rng.integers(*PHOTOGRAPH.clutter, endpoint=True)):
        _thing(pen, rng)
    return scene.filter(ImageFilter.BoxBlur(rng.uniform(*PHOTOGRAPH.background_blur)))


def _coordinates(rng: np.random.Generator) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Rotated coordinates of a surface that is not parallel to the picture's edges, each [PICTURE, PICTURE]."""
    y, x = np.mgrid[0:PICTURE, 0:PICTURE].astype(np.float32) / PICTURE
    angle = rng.uniform(-0.5, 0.5)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * c + y * s, y * c - x * s


def _planks(surface: NDArray[np.floating], rng: np.random.Generator) -> Picture:
    u, v = _coordinates(rng)
    row = v * rng.uniform(3, 6)
    tone = rng.normal(0, 9, 32).astype(np.float32)[np.floor(row).astype(int) % 32]
    grain = 5 * np.sin(v * 160 + 5 * np.sin(u * 7))
    gap = (row - np.floor(row) < 0.05) * np.float32(-45)
    return surface + (tone + grain + gap)[:, :, None]


def _tiles(surface: NDArray[np.floating], rng: np.random.Generator) -> Picture:
    u, v = (field * np.float32(rng.uniform(2.5, 6)) for field in _coordinates(rng))
    joint = (u - np.floor(u) < 0.06) | (v - np.floor(v) < 0.06)
    tone = ((np.floor(u) * 7 + np.floor(v) * 13) % 5) * 3
    return surface + (tone - 38 * joint)[:, :, None].astype(np.float32)


def _cloth(surface: NDArray[np.floating], rng: np.random.Generator) -> Picture:
    u, v = _coordinates(rng)
    folds = np.sin(u * rng.uniform(6, 16) + 2 * np.sin(v * rng.uniform(3, 9))) * rng.uniform(6, 18)
    return surface + folds[:, :, None].astype(np.float32)


def _wall(surface: NDArray[np.floating], rng: np.random.Generator) -> Picture:
    """A wall above a floor, each with its own tone."""
    u, v = _coordinates(rng)
    below = np.clip((v - rng.uniform(0.45, 0.8)) * 30, 0, 1)[:, :, None]
    return surface + below * rng.normal(0, 45, 3).astype(np.float32) - 18 * u[:, :, None]


def _thing(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Something else that happens to be in view: a book, a cup from above, a cable."""
    x, y = rng.uniform(-0.1, 1.1, 2) * PICTURE
    width, height = rng.uniform(0.08, 0.45, 2) * PICTURE
    colour = _any_colour(rng)
    kind = rng.integers(4)
    if kind == 0:
        pen.ellipse((x, y, x + width, y + width), fill=colour)
    elif kind == 1:
        pen.rectangle((x, y, x + width, y + height), fill=colour)
    elif kind == 2:
        corners = rng.uniform(-0.25, 0.25, (4, 2)) * PICTURE + (x, y)
        pen.polygon(corners.ravel().tolist(), fill=colour)
    else:
        path = np.cumsum(rng.normal(0, 0.2, (5, 2)), axis=0) * PICTURE + (x, y)
        pen.line(path.ravel().tolist(), fill=colour, width=int(rng.integers(1, 5)), joint="curve")


def _any_colour(rng: np.random.Generator) -> Rgb:
    """Mostly greyish: rooms hold few pure colours."""
    colour = rng.uniform(20, 235, 3)
    grey = colour.mean()
    red, green, blue = (grey + (colour - grey) * rng.uniform(0.2, 1.0)).astype(int).tolist()
    return red, green, blue


def _occlude(scene: Image.Image, rng: np.random.Generator) -> None:
    """Cover a little of the product from one side."""
    radius = rng.uniform(*PHOTOGRAPH.occluder_radius) * PICTURE
    angle = rng.uniform(0, 2 * np.pi)
    x, y = PICTURE / 2 + np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(0.26, 0.44) * PICTURE
    ImageDraw.Draw(scene).ellipse((x - radius, y - radius * 1.3, x + radius, y + radius), fill=_any_colour(rng))


def _light(picture: Picture, rng: np.random.Generator) -> Picture:
    """White balance, exposure, contrast, a window on one side, a vignette and the sensor's noise."""
    warmth = rng.uniform(-1, 1) * PHOTOGRAPH.white_balance
    gain = np.array([1 + warmth, 1.0, 1 - warmth], dtype=np.float32) * np.float32(rng.uniform(*PHOTOGRAPH.exposure))
    y, x = np.mgrid[-1 : 1 : PICTURE * 1j, -1 : 1 : PICTURE * 1j].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    slope = PHOTOGRAPH.slope_light * rng.random() * (x * np.cos(angle) + y * np.sin(angle))
    field = (1 + slope - rng.uniform(*PHOTOGRAPH.vignette) * 0.5 * (x * x + y * y)).astype(np.float32)
    contrast = np.float32(rng.uniform(*PHOTOGRAPH.contrast))
    noise = rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(rng.uniform(*PHOTOGRAPH.noise))
    return ((picture - 128) * contrast + 128) * gain * field[:, :, None] + noise
