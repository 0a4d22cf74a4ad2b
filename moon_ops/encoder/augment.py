"""Pictures as they might have been: turned, cropped, lit otherwise, or a studio picture as if a user had photographed the thing.

All functions take and give float values in 0..255, one draw per picture from the generator that is passed: same draw, same picture.
N pictures, S pixels a side.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

PLAIN = 12.0  # a backdrop's pixels differ from its median by less, in 0..255
MIN_SHARE, MAX_SHARE = 0.05, 0.92  # of a picture that a plain backdrop covers; outside, it is no cut-out of a product


def product_mask(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Where the product is [S, S], 0..255, in a picture [3, S, S] before a plain backdrop; all 255 where there is no such backdrop.

    The backdrop is what has the border's median colour and is connected to the border: white soles stay part of a shoe.
    """
    values = pixels.astype(np.int16)
    border = np.concatenate([values[:, 0], values[:, -1], values[:, :, 0], values[:, :, -1]], axis=1)
    middle = np.median(border, axis=1)
    near = np.abs(values - middle[:, None, None]).max(axis=0) < PLAIN
    whole = np.full(near.shape, 255, np.uint8)
    if (np.abs(border - middle[:, None]).max(axis=0) < PLAIN).mean() < 0.7:
        return whole
    parts, _ = ndimage.label(near)
    outside = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    backdrop = np.isin(parts, outside[outside > 0])
    if not MIN_SHARE < backdrop.mean() < MAX_SHARE:
        return whole
    return (255 * (1 - ndimage.uniform_filter(backdrop.astype(np.float32), 3))).astype(np.uint8)


def shaken(pixels: Tensor, generator: torch.Generator, zoom: float = 1.4) -> Tensor:
    """A real photograph [N, 3, S, S], once more: light, then a turn of up to 17°, a crop of down to 1 / ``zoom`` of the side, a flip."""
    grid = _grid(pixels, generator, turn=0.3, scale=(0.75, zoom), tilt=0.08, shift=0.12)
    return F.grid_sample(_light(pixels.float(), generator), grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def studio(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """An item's picture [N, 3, S, S], framed a little differently."""
    grid = _grid(pixels, generator, turn=0.1, scale=(0.9, 1.1), tilt=0.02, shift=0.04)
    return F.grid_sample(pixels.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


def photograph(pixels: Tensor, masks: Tensor, scenery: Tensor, generator: torch.Generator) -> Tensor:
    """An item's picture [N, 3, S, S] as a user would photograph it: before other scenery, turned, partly hidden, badly lit.

    ``masks`` [N, 1, S, S] 0..255 say where the product is; ``scenery`` [N, 3, S, S] are other photographs, of which a corner fills the
    backdrop. A picture whose mask is all 255 keeps its own backdrop.
    """
    grid = _grid(pixels, generator, turn=0.5, scale=(0.75, 1.3), tilt=0.1, shift=0.12)
    moved = F.grid_sample(torch.cat([pixels.float(), masks.float()], 1), grid, padding_mode="border", align_corners=False)
    product, mask = moved[:, :3], moved[:, 3:] / 255
    seen = product * mask + _scenery(scenery, generator) * (1 - mask)
    return _light(_hidden(seen, generator), generator)


def _uniform(count: int, low: float, high: float, generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand((count, *shape), generator=generator) * (high - low) + low


def _grid(pixels: Tensor, generator: torch.Generator, *, turn: float, scale: tuple[float, float], tilt: float, shift: float) -> Tensor:
    """Sampling grid [N, S, S, 2]: turn [rad], scale of the thing, tilt of the camera, shift as a share of the side."""
    count = pixels.shape[0]

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return _uniform(count, low, high, generator, *shape)

    angle, zoom, aspect = draw(-turn, turn), 1 / draw(*scale), draw(0.9, 1.1)
    mirror = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    across = torch.stack([cos * mirror, -sin * aspect, 2 * draw(-shift, shift)], 1)
    down = torch.stack([sin * mirror, cos * aspect, 2 * draw(-shift, shift)], 1)
    grid = F.affine_grid(torch.stack([across, down], 1), list(pixels.shape), align_corners=False)
    depth = 1 + (grid * draw(-tilt, tilt, 2)[:, None, None, :]).sum(-1, keepdim=True)
    return grid / depth


def _light(values: Tensor, generator: torch.Generator) -> Tensor:
    """Contrast, exposure, white balance, a window on one side, blur and noise."""
    count, side = values.shape[0], values.shape[-1]

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        return _uniform(count, low, high, generator, channels, 1, 1)

    values = ((values - 128) * draw(0.8, 1.15) + 128) * draw(0.75, 1.25) * draw(0.87, 1.13, 3)
    ramp = torch.linspace(-1, 1, side)
    values = values * (1 + draw(-0.2, 0.2) * ramp + draw(-0.2, 0.2) * ramp[:, None])
    values = values.lerp(_blurred(values), draw(0, 1).expand_as(values))
    noise = torch.randn(values.shape, generator=generator) * draw(1, 9)
    return (values + noise).clamp(0, 255)


def _blurred(values: Tensor) -> Tensor:
    """The mean of each pixel [N, 3, S, S] and the eight around it."""
    wide = F.pad(values, (1, 1, 1, 1), mode="replicate")
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9


def _scenery(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """An enlarged, turned corner of each picture with its colours exchanged; for three in ten a plain colour."""
    count = pictures.shape[0]
    grid = _grid(pictures, generator, turn=math.pi, scale=(1.5, 3.0), tilt=0.0, shift=0.35)
    corner = F.grid_sample(pictures.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    corner = corner[:, torch.randperm(3, generator=generator)]
    plain = _uniform(count, 30, 230, generator, 3, 1, 1)
    return torch.where(_uniform(count, 0, 1, generator, 1, 1, 1) < 0.3, plain, corner)


def _hidden(values: Tensor, generator: torch.Generator) -> Tensor:
    """For four in ten a disc of one colour in front, of up to a sixth of the side."""
    count, side = values.shape[0], values.shape[-1]
    line = torch.linspace(0, 1, side)
    y, x, radius = (_uniform(count, low, high, generator, 1, 1) for low, high in ((0, 1), (0, 1), (0.02, 0.16)))
    disc = ((line[:, None] - y) ** 2 + (line - x) ** 2 < radius**2) & (_uniform(count, 0, 1, generator, 1, 1) < 0.4)
    return torch.where(disc[:, None], _uniform(count, 0, 255, generator, 3, 1, 1), values)
