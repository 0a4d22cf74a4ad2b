"""Pixels of the training pictures: decoded by the batch that needs them, and kept in a file within a limit.

The file is shared by all processes of a training on one machine. It is read by offset and not mapped, so what is read of it counts as the
kernel's cache and not as a process's memory. A picture counts as kept once the checksum of its pixels is noted beside them: of one that a
killed process, or a machine without power, has left half written there is none that fits, and it is decoded anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from moon_ops.encoder.encoded import PLACE, Pictures
from moon_ops.encoder.samples import some_at_a_time
from moon_ops.errors import StageError, in_a_line
from moon_ops.files import remembered, reserve, write, write_text
from moon_ops.inputs.images import PIXELS, decode
from moon_ops.inputs.regions import views
from moon_ops.lake.lake import Lake
from moon_ops.processor import cores

log = logging.getLogger(__name__)
DECODE_BATCH = 64  # encoded pictures in memory: photographs may have megabytes each
KEPT_BYTES = 20 * 10**9  # of decoded pictures on the disk, unless something else is said
Shape = tuple[int, int, int, int]  # of one picture: V, 3, S, S


class PixelStore:
    """uint8 [V, 3, S, S] of each picture in V views, looked up by image id.

    The pictures that come first in the list have a place in the file each, as many as ``kept`` bytes have room for. Threads decode; in a
    process that was forked from the one that opened the store, one at a time.
    """

    def __init__(self, pictures: Pictures, shape: Shape, path: Path, detector: str) -> None:
        self.pictures, self.shape, self.detector = pictures, shape, detector
        self.size = int(np.prod(shape))  # bytes of a picture
        self.file: BinaryIO = path.open("r+b", buffering=0)
        sums = path.with_suffix(".sums")
        slots = sums.stat().st_size // 4
        self.sums: NDArray[np.uint32] = np.zeros(0, np.uint32)
        if slots:
            self.sums = np.memmap(sums, np.uint32, "r+", shape=(slots,)).view(np.ndarray)  # whose single numbers are read quicker
        self.threads = min(cores(), 8)  # that decode
        self._pool: tuple[int, ThreadPoolExecutor | None] = (os.getpid(), None)  # by the process with that id

    @classmethod
    def over(cls, lake: Lake, image_ids: Sequence[str], size: int, path: Path, *, detector: str = "", kept: int = KEPT_BYTES) -> PixelStore:
        """The pictures ``image_ids`` of the lake at ``size`` pixels; :class:`StageError` for one that it does not have.

        What a killed run has decoded into ``path`` is used again. With a ``detector`` (:mod:`moon_ops.inputs.regions`) V is 2: the whole
        picture and the crop of its core region.
        """
        pictures = Pictures.find(lake, image_ids)
        shape = (2 if detector else 1, 3, size, size)
        slots = min(len(pictures), kept // int(np.prod(shape)))
        names = hashlib.sha256(np.ascontiguousarray(pictures.table[:3]).tobytes()).hexdigest()
        about = {"pixels": PIXELS, "shape": list(shape), "detector": detector, "slots": slots, "pictures": names}
        about |= {"version": pictures.version}  # the lake may have grown since a killed run began
        header = path.with_suffix(".json")
        known = remembered(header, "all pictures are decoded anew") or {}
        if {**known, "version": pictures.version} != about or not _whole(path, slots):
            header.unlink(missing_ok=True)
            _reserve(path, slots, int(np.prod(shape)))
        write(path.with_suffix(".rows"), lambda file: np.save(file, pictures.table))
        write_text(header, json.dumps(about))
        return cls(pictures, shape, path, detector)

    @classmethod
    def open(cls, lake: Lake, path: Path) -> PixelStore:
        """The store that another process has made there; both read and fill the same file."""
        about: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
        table = np.load(path.with_suffix(".rows"), mmap_mode="r")
        return cls(Pictures(lake, about["version"], table), tuple(about["shape"]), path, about["detector"])

    def take(self, image_ids: Sequence[str]) -> Tensor:
        """uint8 [N * V, 3, S, S] of the pictures, in the order asked for, the views of each one after another."""
        out = np.empty((len(image_ids), *self.shape), np.uint8)
        columns, there = self.pictures.columns(image_ids)
        if not there.all():
            raise StageError(f"picture {image_ids[int(there.argmin())]} is none of this training's", action="start it again")
        places = self.pictures.table[PLACE, columns]
        missing: dict[str, list[int]] = {}
        for number in np.flatnonzero(~self._read(places, out)).tolist():
            missing.setdefault(image_ids[number], []).append(number)
        for name, pixels in self._decoded(list(missing)):
            out[missing[name]] = pixels
            self._keep(int(places[missing[name][0]]), pixels)
        return torch.from_numpy(out.reshape(-1, *self.shape[1:]))

    def fill(self, image_ids: Sequence[str]) -> None:
        """Decode what has a place in the file and is not there yet."""
        scratch, bar = np.empty((1, *self.shape), np.uint8), tqdm(total=len(image_ids), desc="decode", unit="picture", delay=1)
        with bar:
            for some in some_at_a_time(image_ids):
                places = self.pictures.table[PLACE, self.pictures.columns(some)[0]]
                wanted = [n for n in np.flatnonzero(places < len(self.sums)).tolist() if not self._read(places[n : n + 1], scratch)]
                place_of = {some[n]: int(places[n]) for n in wanted}
                for name, pixels in self._decoded(list(place_of)):
                    self._keep(place_of[name], pixels)
                    bar.update()
                bar.update(len(some) - len(place_of))

    def _read(self, places: NDArray[np.int64], out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Read what is kept of those pictures into ``out`` [N, V, 3, S, S]; which they are [N]."""
        noted = np.zeros(len(places), np.uint32)
        noted[places < len(self.sums)] = self.sums[places[places < len(self.sums)]]
        found, file = noted > 0, self.file.fileno()
        for n in np.flatnonzero(found).tolist():
            whole = os.preadv(file, [out[n]], int(places[n]) * self.size) == self.size
            found[n] = whole and _sum(out[n]) == noted[n]
        return found

    def _keep(self, place: int, pixels: NDArray[np.uint8]) -> None:
        if place >= len(self.sums):
            return
        try:
            if os.pwrite(self.file.fileno(), pixels.data, place * self.size) == self.size:
                self.sums[place] = _sum(pixels)
        except OSError as full:
            log.warning("decoded pictures are no longer kept (%s): all others are decoded whenever they are needed", in_a_line(full))
            self.sums = self.sums[:0]

    def _decoded(self, image_ids: Sequence[str]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Pictures, each once, in any order."""
        if not len(image_ids):
            return
        pictures, pool = self.pictures.read(image_ids), self._own_pool()
        while some := list(islice(pictures, DECODE_BATCH)):  # a pool reads all of its input at once
            yield from map(self._views, some) if pool is None or len(some) == 1 else pool.map(self._views, some)

    def _views(self, picture: tuple[str, bytes]) -> tuple[str, NDArray[np.uint8]]:
        return picture[0], np.ascontiguousarray(views(decode(picture[1]), self.shape[-1], self.detector))

    def _own_pool(self) -> ThreadPoolExecutor | None:
        """This process's threads; none in one that was forked: others decode beside it."""
        opened, pool = self._pool
        if opened != os.getpid() or self.threads == 1:
            return None
        if pool is None:
            pool = ThreadPoolExecutor(self.threads)
            self._pool = opened, pool
        return pool


def _sum(pixels: NDArray[np.uint8]) -> int:
    """A checksum that is never 0: that stands for what is not there."""
    return zlib.crc32(pixels.data) or 1


def _whole(path: Path, slots: int) -> bool:
    """Whether the files of ``slots`` pictures are there."""
    sums = path.with_suffix(".sums")
    return path.is_file() and sums.is_file() and sums.stat().st_size == 4 * slots


def _reserve(path: Path, slots: int, size: int) -> None:
    """Make the files anew, for ``slots`` pictures of ``size`` bytes; the disk is taken as they come, but for the checksums."""
    for place, length in ((path, slots * size), (path.with_suffix(".sums"), slots * 4)):
        place.unlink(missing_ok=True)  # another process may still hold the old one
        with place.open("wb") as file:
            file.truncate(length)
    with path.with_suffix(".sums").open("r+b") as file:
        reserve(file, slots * 4)
