"""Pixels of the training pictures: decoded once into a memory-mapped array."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from moon_ops.errors import StageError
from moon_ops.files import write_text
from moon_ops.inputs.images import decode
from moon_ops.inputs.regions import views
from moon_ops.lake.lake import Lake
from moon_ops.lake.tables import image_bytes

DECODE_BATCH = 64  # encoded pictures in memory: photographs may have megabytes each


class PixelStore:
    """uint8 [P, V, 3, S, S] of P pictures in V views in a file, looked up by image id. The file may be larger than memory."""

    def __init__(self, rows: dict[str, int], array: NDArray[np.uint8]) -> None:
        self.rows = rows
        self.array = array

    @classmethod
    def fill(cls, lake: Lake, image_ids: Sequence[str], size: int, path: Path, workers: int = 2, detector: str = "") -> PixelStore:
        """Decode the pictures from the lake into ``path``; :class:`StageError` for an id that the lake does not have.

        With a ``detector`` (:mod:`moon_ops.inputs.regions`) V is 2: the whole picture and the crop of its core region.
        """
        rows: dict[str, int] = {}
        shape = (max(len(image_ids), 1), 2 if detector else 1, 3, size, size)
        array = np.memmap(path, np.uint8, "w+", shape=shape)
        with ThreadPoolExecutor(workers) as pool, tqdm(total=len(image_ids), desc="decode", unit="picture") as bar:
            pictures = image_bytes(lake, image_ids)
            while some := list(islice(pictures, DECODE_BATCH)):  # a pool reads all of its input at once
                for name, pixels in pool.map(lambda pair: (pair[0], views(decode(pair[1]), size, detector)), some):
                    array[len(rows)] = pixels
                    rows[name] = len(rows)
                    bar.update()
        missing = set(image_ids) - set(rows)
        if missing:
            raise StageError(f"the lake has no picture {min(missing)} that an item names", action="ingest the catalogue again")
        return cls(rows, array)

    def note(self, path: Path) -> None:
        """Write beside the pixels in ``path`` which picture is where, so that another process can :meth:`open` them."""
        if isinstance(self.array, np.memmap):
            self.array.flush()
        write_text(path.with_suffix(".json"), json.dumps({"shape": self.array.shape, "image_ids": list(self.rows)}))

    @classmethod
    def open(cls, path: Path) -> PixelStore:
        """The pixels that another process has decoded and noted; both read the same pages."""
        about = json.loads(path.with_suffix(".json").read_text())
        rows = {name: row for row, name in enumerate(about["image_ids"])}
        return cls(rows, np.memmap(path, np.uint8, "r", shape=tuple(about["shape"])))

    def take(self, image_ids: Sequence[str]) -> Tensor:
        """uint8 [N * V, 3, S, S] of the pictures, in the order asked for, the views of each one after another."""
        taken = self.array[[self.rows[i] for i in image_ids]]  # [N, V, 3, S, S]
        return torch.from_numpy(np.ascontiguousarray(taken.reshape(-1, *taken.shape[2:])))
