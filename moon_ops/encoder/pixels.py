"""Pixels of the training pictures: decoded once into a memory-mapped array, augmented on the fly."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from moon_ops.errors import StageError
from moon_ops.lake import images
from moon_ops.lake.tables import Lake, image_bytes

DECODE_BATCH = 512


class PixelStore:
    """uint8 [P, 3, S, S] of P pictures in a file, looked up by image id. The file may be larger than memory."""

    def __init__(self, rows: dict[str, int], array: NDArray[np.uint8]) -> None:
        self.rows = rows
        self.array = array

    @classmethod
    def fill(cls, lake: Lake, image_ids: Sequence[str], size: int, path: Path, workers: int = 2) -> PixelStore:
        """Decode the pictures from the lake into ``path``; :class:`StageError` for an id that the lake does not have."""
        rows: dict[str, int] = {}
        shape = (max(len(image_ids), 1), 3, size, size)
        array = np.memmap(path, np.uint8, "w+", shape=shape)
        with ThreadPoolExecutor(workers) as pool, tqdm(total=len(image_ids), desc="decode", unit="picture") as bar:
            pictures = image_bytes(lake, image_ids)
            while some := list(islice(pictures, DECODE_BATCH)):  # a pool reads all of its input at once
                for name, pixels in pool.map(lambda pair: (pair[0], _pixels(pair[1], size)), some):
                    array[len(rows)] = pixels
                    rows[name] = len(rows)
                    bar.update()
        missing = set(image_ids) - set(rows)
        if missing:
            raise StageError(f"the lake has no picture {min(missing)} that an item names", action="ingest the catalogue again")
        return cls(rows, array)

    def take(self, image_ids: Sequence[str]) -> Tensor:
        """uint8 [N, 3, S, S] of the pictures, in the order asked for."""
        return torch.from_numpy(np.ascontiguousarray(self.array[[self.rows[i] for i in image_ids]]))


def _pixels(content: bytes, size: int) -> NDArray[np.uint8]:
    return images.pixels(images.decode(content), size)


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Random turn, crop, flip and light, one draw per picture: uint8 [N, 3, S, S] → float [N, 3, S, S] in 0..255.

    Turns up to 15°, crops down to 60 % of the side, light and white balance by up to ±20 %.
    """
    count = pixels.shape[0]
    draw = torch.rand((count, 10), generator=generator) * 2 - 1  # uniform in [-1, 1]
    angle, scale = draw[:, 0] * 0.26, 0.8 + draw[:, 1] * 0.2
    flip = torch.where(draw[:, 2] < 0, -1.0, 1.0)
    shift = draw[:, 3:5] * (1 - scale)[:, None]
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack([torch.stack([cos * flip, -sin, shift[:, 0]], 1), torch.stack([sin * flip, cos, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    turned = F.grid_sample(pixels.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    gain = (1 + 0.2 * draw[:, 5:6]) * (1 + 0.1 * draw[:, 6:9])
    offset = 16 * draw[:, 9:10]
    return (turned * gain[..., None, None] + offset[..., None, None]).clamp(0, 255)
