"""From a look to a cut-out product (RGBA) and to a shop's studio pictures. It knows nothing of prices or users."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from moon_ops.shops.simulated import fabric, goods, wear
from moon_ops.shops.simulated.fabric import Field
from moon_ops.shops.simulated.outline import Part, Points, Role, Silhouette
from moon_ops.shops.simulated.parameters import STUDIO

PICTURE = 96  # pixels a side of a finished picture
CANVAS = 2 * PICTURE  # of a cut-out, which is shrunk last
DRAFT = 2 * CANVAS  # of the outlines, so that edges are smooth

Rgb = tuple[int, int, int]
_FIXED: dict[Role, Rgb] = {Role.METAL: (193, 188, 178), Role.DARK: (52, 49, 54), Role.LIGHT: (247, 242, 228)}

SILHOUETTES: dict[str, Callable[[int, Sequence[float]], Silhouette]] = {
    "dress": wear.dress,
    "t-shirt": wear.t_shirt,
    "trousers": wear.trousers,
    "hat": wear.hat,
    "sneaker": wear.sneaker,
    "boot": wear.boot,
    "handbag": goods.handbag,
    "backpack": goods.backpack,
    "watch": goods.watch,
    "mug": goods.mug,
    "lamp": goods.lamp,
    "chair": goods.chair,
}


@dataclass(frozen=True)
class Look:
    """All that a picture of an item shows. ``shape`` holds six proportions in [0, 1]; colours are 0–255."""

    category: str
    variant: int
    shape: tuple[float, ...]
    primary: Rgb
    secondary: Rgb
    pattern: str
    pattern_repeats: float
    pattern_angle: float
    texture: str
    motif: str
    motif_scale: float
    mark: str


def cutout(look: Look) -> Image.Image:
    """The product alone, seen from the front: RGBA, ``CANVAS`` pixels a side, colour defined under transparency too."""
    silhouette = SILHOUETTES[look.category](look.variant, look.shape)
    draft = _draft(silhouette.parts)
    flat = _flat_colours(draft, silhouette.parts, look)
    alpha = draft.point([0] + [255] * 255, "L").reduce(2)
    rgb = _decorate(flat, draft, silhouette, look)
    rgb *= (_volume(alpha) * _seams(draft))[:, :, None]
    solid = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8), "RGB")
    solid.putalpha(alpha)
    return solid


def _draft(parts: Sequence[Part]) -> Image.Image:
    """Part numbers (1 for the backmost, 0 for none) as a palette image of ``DRAFT`` pixels a side."""
    draft = Image.new("P", (DRAFT, DRAFT), 0)
    pen = ImageDraw.Draw(draft)
    for number, part in enumerate(parts, 1):
        points = (part.outline * DRAFT).ravel().tolist()
        if part.width is None:
            pen.polygon(points, fill=number)
        else:
            pen.line(points, fill=number, width=round(part.width * DRAFT), joint="curve")
    return draft


def _flat_colours(draft: Image.Image, parts: Sequence[Part], look: Look) -> Field:
    """Each part in its plain colour, [CANVAS, CANVAS, 3] in 0–255."""
    colours = {**_FIXED, Role.PRIMARY: look.primary, Role.SECONDARY: look.secondary}
    colours[Role.PRINT] = _contrast(look.secondary)
    palette = list(look.primary)
    for part in parts:
        palette += [min(255, round(channel * part.shade)) for channel in colours[part.role]]
    draft.putpalette(palette)
    return np.asarray(draft.convert("RGB").reduce(2), dtype=np.float32)


def _decorate(rgb: Field, draft: Image.Image, silhouette: Silhouette, look: Look) -> Field:
    """Add pattern, texture, motif and brand mark to flat colours [CANVAS, CANVAS, 3]."""
    fabric_parts = [0] + [255 * (part.role == Role.PRIMARY) for part in silhouette.parts]
    cloth = np.asarray(draft.point(fabric_parts + [0] * (256 - len(fabric_parts)), "L").reduce(2)) / np.float32(255)
    if look.pattern != "plain":
        field = fabric.pattern_field(look.pattern, CANVAS, repeats=look.pattern_repeats, angle=look.pattern_angle)
        rgb = _blend(rgb, look.secondary, cloth * field)
    if look.texture != "smooth":
        rgb = rgb * (1 + cloth * (fabric.texture_field(look.texture, CANVAS) - 1))[:, :, None]
    ink = _contrast(look.primary)
    if look.motif != "none":
        x, y, radius = silhouette.motif_at
        outline = fabric.motif_outline(look.motif)
        rim = outline * STUDIO.motif_rim  # plain cloth around it, or it would drown in a pattern
        for shape, colour in ((rim, look.primary), (outline, ink)):
            rgb = _stamp(rgb, (shape,), (x, y, radius * look.motif_scale), colour)
    return _stamp(rgb, fabric.mark_outlines(look.mark), silhouette.mark_at, _contrast(look.secondary))


def _blend(rgb: Field, colour: Rgb, amount: Field) -> Field:
    return rgb + amount[:, :, None] * (np.asarray(colour, dtype=np.float32) - rgb)


def _stamp(rgb: Field, outlines: Sequence[Points], at: tuple[float, float, float], ink: Rgb) -> Field:
    """Print ``outlines`` at (x, y, radius); only the square around them is touched."""
    x, y, radius = (value * CANVAS for value in at)
    half = int(radius * 1.5) + 2
    left, top = max(0, int(x) - half), max(0, int(y) - half)
    tile = Image.new("L", (8 * half, 8 * half))
    pen = ImageDraw.Draw(tile)
    for outline in outlines:
        pen.polygon(((outline * radius + (x - left, y - top)) * 4).ravel().tolist(), fill=255)
    amount = np.asarray(tile.reduce(4), dtype=np.float32) / 255
    window = rgb[top : top + 2 * half, left : left + 2 * half]
    rgb[top : top + 2 * half, left : left + 2 * half] = _blend(window, ink, amount[: window.shape[0], : window.shape[1]])
    return rgb


def _contrast(colour: Rgb) -> Rgb:
    """Cream on dark colours, ink on light ones: what a printer would choose to be seen."""
    luminance = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]
    return (250, 244, 226) if luminance < STUDIO.contrast_luminance else (43, 38, 52)


def _volume(alpha: Image.Image) -> Field:
    """Light from the upper left on a padded body, as brightness [CANVAS, CANVAS] around 1."""
    soft = np.asarray(alpha.filter(ImageFilter.GaussianBlur(STUDIO.relief_radius)), dtype=np.float32) / 255
    shift = STUDIO.relief_shift
    slope = np.roll(soft, (-shift, -shift), (0, 1)) - np.roll(soft, (shift, shift), (0, 1))
    return 1 + STUDIO.relief_light * slope - STUDIO.relief_edge * (1 - soft)


def _seams(draft: Image.Image) -> Field:
    """A darker line where one part meets another, as brightness [CANVAS, CANVAS]."""
    numbers = np.asarray(draft)[::2, ::2]
    edge = np.zeros(numbers.shape, dtype=np.float32)
    edge[:, 1:] += numbers[:, 1:] != numbers[:, :-1]
    edge[1:] += numbers[1:] != numbers[:-1]
    return 1 - STUDIO.seam_darkness * np.minimum(edge, 1)


def homography(source: NDArray[np.float64], target: NDArray[np.float64]) -> tuple[float, ...]:
    """The eight coefficients of Pillow's PERSPECTIVE transform that carry corners ``source`` [4, 2] to ``target``."""
    rows, values = [], []
    for (u, v), (x, y) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return tuple(np.linalg.solve(np.array(rows), np.array(values)).tolist())


CORNERS = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], dtype=np.float64) * CANVAS


def warp(product: Image.Image, target: NDArray[np.float64]) -> Image.Image:
    """``product`` with its corners moved to ``target`` [4, 2] (canvas pixels), shrunk to ``PICTURE`` pixels a side."""
    coefficients = homography(CORNERS, target)
    moved = product.transform((CANVAS, CANVAS), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
    return moved.reduce(2)


def studio_picture(product: Image.Image, view: int, rng: np.random.Generator) -> Image.Image:
    """A studio picture (RGB, 96 × 96) of a cut-out: view 0 the front, 1 turned, 2 a detail."""
    corners = (_front, _turned, _detail)[view](rng)
    placed = warp(product, corners)
    scene = _backdrop().copy()
    shadow = placed.getchannel("A").filter(ImageFilter.BoxBlur(STUDIO.shadow_blur)).point(lambda a: a * STUDIO.shadow)
    scene.paste((70, 66, 80), STUDIO.shadow_offset, shadow)
    scene.paste(placed, (0, 0), placed)
    return scene


def _around(scale_x: float, scale_y: float, shift: NDArray[np.float64]) -> NDArray[np.float64]:
    return (CORNERS - CANVAS / 2) * (scale_x, scale_y) + CANVAS / 2 + shift * CANVAS


def _front(rng: np.random.Generator) -> NDArray[np.float64]:
    scale = rng.uniform(*STUDIO.front_scale)
    return _around(scale, scale, rng.uniform(-1, 1, 2) * STUDIO.front_shift)


def _turned(rng: np.random.Generator) -> NDArray[np.float64]:
    """Turned about the vertical axis: narrower, the far side shorter, and mirrored half of the time."""
    corners = _around(rng.uniform(*STUDIO.turned_width), STUDIO.turned_height, np.zeros(2))
    far = rng.uniform(*STUDIO.turned_depth) * CANVAS
    corners[:, 1] += np.array([0, far, -far, 0]) if rng.random() < 0.5 else np.array([far, 0, 0, -far])
    return corners[[1, 0, 3, 2]] if rng.random() < 0.5 else corners


def _detail(rng: np.random.Generator) -> NDArray[np.float64]:
    scale = rng.uniform(*STUDIO.detail_scale)
    return _around(scale, scale, rng.uniform(-1, 1, 2) * STUDIO.detail_shift)


@cache
def _backdrop() -> Image.Image:
    """Paper that falls from white to a faint grey."""
    y, x = np.mgrid[0:PICTURE, 0:PICTURE] / PICTURE
    light = 253 - 16 * np.clip(y - 0.55, 0, 1) - 14 * ((x - 0.45) ** 2 + (y - 0.4) ** 2)
    return Image.fromarray(np.stack([light, light, light + 1], axis=2).astype(np.uint8), "RGB")
