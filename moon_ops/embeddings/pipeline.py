"""From samples to vectors: read pictures from the lake, decode them and run the model, all at the same time and within bounded memory.

Every worker takes a batch, decodes its pictures and runs it through the model on one core; meanwhile the pictures of later batches are
read. Large ones are decoded while they are read, so that few wait as they are. A picture that cannot be read does not stop a run: its
sample is embedded from what is left of it, and where nothing is left the sample is excused, with the reason. This module does not know
what samples are of, nor where vectors go.
B samples, D dimensions.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from moon_ops.embeddings.runtime import Pixels, Runtime
from moon_ops.errors import InputError
from moon_ops.inputs.contract import Sample
from moon_ops.inputs.images import decode
from moon_ops.inputs.regions import views
from moon_ops.lake.lake import Lake
from moon_ops.lake.tables import image_bytes

CHUNK = 1024  # samples sorted by length together, and handed over together
READ = 512  # encoded pictures read at a time
READ_BYTES = 32 * 2**20  # and bytes of them: pictures beyond it are decoded while the others are read
PIXELS_BYTES = 64 * 2**20  # what the pictures read at a time may have when they are decoded
AHEAD = 2  # readings whose batches may wait or run while the next is read: with it, at most three are in memory

Found: TypeAlias = "bytes | Future[Pixels | str]"  # a picture: encoded, or being decoded: its pixels, or why there are none


@dataclass(frozen=True)
class Embedded:
    """Vectors [B, D] in the order of the samples. A row in ``excused`` has none: it is not a number."""

    vectors: NDArray[np.float32]
    excused: dict[int, str] = field(default_factory=dict)  # row → why nothing of the sample could be read
    unread: dict[str, str] = field(default_factory=dict)  # image id → why this picture could not be read

    def kept(self) -> NDArray[np.int64]:
        """The rows that have a vector, ascending."""
        return np.array([row for row in range(len(self.vectors)) if row not in self.excused], np.int64)


@dataclass
class _Chunk:
    """Samples on their way: what the workers read, and where they write."""

    texts: list[list[int]]
    shown: list[tuple[str, ...]]  # image ids, of as many pictures as the encoder reads
    made: Embedded
    left: int  # readings that are not yet embedded


@dataclass
class _Reading:
    """Batches whose pictures are read together."""

    chunk: _Chunk
    batches: list[NDArray[np.int64]]
    running: list[Future[None]] = field(default_factory=list)


def embed_samples(lake: Lake, runtime: Runtime, samples: Sequence[Sample], *, workers: int) -> Embedded:
    """Vectors of ``samples``, whose pictures are in the lake, on ``workers`` threads; see :func:`embed_stream`."""
    made = list(embed_stream(lake, runtime, samples, workers=workers, chunk=max(len(samples), 1)))
    return made[0] if made else Embedded(np.empty((0, runtime.dim), np.float32))


def embed_stream(lake: Lake, runtime: Runtime, samples: Iterable[Sample], *, workers: int, chunk: int = CHUNK) -> Iterator[Embedded]:
    """Vectors of ``samples``, ``chunk`` at a time, in the order given; while the caller handles one the next is being made.

    A picture that is missing or cannot be decoded is left out, and listed. Of each sample the first ``max_pictures`` are tried, no others.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="embed")
    flight: deque[_Reading] = deque()
    try:
        for reading in _readings(runtime, samples, chunk):
            content = _read(lake, runtime, reading, pool)
            reading.running = [pool.submit(_embed, runtime, reading.chunk, rows, content) for rows in reading.batches]
            flight.append(reading)
            if len(flight) > AHEAD:
                yield from _finished(flight.popleft())
        while flight:
            yield from _finished(flight.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _readings(runtime: Runtime, samples: Iterable[Sample], size: int) -> Iterator[_Reading]:
    """The samples in chunks, each sorted into batches of similar length, a few batches at a time."""
    remaining = iter(samples)
    while part := list(itertools.islice(remaining, size)):
        shown = [sample.image_ids[: runtime.contract.layout.max_pictures] for sample in part]
        texts = runtime.tokenize([sample.text for sample in part])
        batches = runtime.plan(texts, [len(ids) for ids in shown])
        groups = _groups(batches, shown, _most(runtime))
        chunk = _Chunk(texts, shown, Embedded(np.full((len(part), runtime.dim), np.nan, np.float32)), left=len(groups))
        yield from (_Reading(chunk, group) for group in groups)


def _most(runtime: Runtime) -> int:
    """How many pictures are read at a time: ``READ``, or as many as ``PIXELS_BYTES`` hold of decoded ones."""
    layout = runtime.contract.layout
    return min(READ, PIXELS_BYTES // (layout.views * 3 * layout.picture_size**2))


def _groups(batches: list[NDArray[np.int64]], shown: list[tuple[str, ...]], most: int) -> list[list[NDArray[np.int64]]]:
    """Neighbouring batches that together show at most ``most`` pictures; one batch at the least."""
    groups: list[list[NDArray[np.int64]]] = []
    count = most + 1
    for rows in batches:
        more = sum(len(shown[row]) for row in rows)
        if count + more > most:
            groups.append([])
            count = 0
        groups[-1].append(rows)
        count += more
    return groups


def _read(lake: Lake, runtime: Runtime, reading: _Reading, pool: ThreadPoolExecutor) -> dict[str, Found]:
    """The pictures of all its batches. Beyond ``READ_BYTES`` the workers decode them, and the next is read when half of it is done."""
    wanted = {i for rows in reading.batches for row in rows for i in reading.chunk.shown[row]}
    found: dict[str, Found] = {}
    busy: deque[tuple[Future[Pixels | str], int]] = deque()
    weight = 0  # of the encoded ones
    for image_id, content in image_bytes(lake, sorted(wanted)):
        found[image_id], weight = content, weight + len(content)
        if weight > READ_BYTES:
            for name, one in found.items():
                if isinstance(one, bytes):
                    found[name] = decoding = pool.submit(_decoded, runtime, one)
                    busy.append((decoding, len(one)))
        while busy and weight > READ_BYTES // 2:
            done, size = busy.popleft()
            done.result()
            weight -= size
    return found


def _embed(runtime: Runtime, chunk: _Chunk, rows: NDArray[np.int64], content: dict[str, Found]) -> None:
    """One worker's work: decode the pictures of one batch, run it, and write its rows."""
    read = {i: _pixels(runtime, content.get(i)) for i in {i for row in rows for i in chunk.shown[row]}}
    chunk.made.unread.update({i: found for i, found in read.items() if isinstance(found, str)})
    pictures = {int(row): [found for i in chunk.shown[row] if not isinstance(found := read[i], str)] for row in rows}
    kept = [row for row, several in pictures.items() if several or chunk.texts[row]]
    for row in pictures.keys() - kept:
        reasons = [f"{i}: {read[i]}" for i in chunk.shown[row]]
        chunk.made.excused[row] = "; ".join(["it has no text", *reasons]) if reasons else "it has neither text nor a picture"
    if kept:
        batch = runtime.batch([chunk.texts[row] for row in kept], [pictures[row] for row in kept])
        chunk.made.vectors[kept] = runtime.forward(batch, bulk=True)


def _pixels(runtime: Runtime, found: Found | None) -> Pixels | str:
    """The picture's pixels [V, 3, S, S], or why there are none."""
    if found is None:
        return "the lake has no such picture"
    return found.result() if isinstance(found, Future) else _decoded(runtime, found)


def _decoded(runtime: Runtime, content: bytes) -> Pixels | str:
    layout = runtime.contract.layout
    try:
        return views(decode(content), layout.picture_size, layout.core_region)
    except InputError as fault:
        return fault.problem


def _finished(reading: _Reading) -> Iterator[Embedded]:
    """Wait for its batches; the chunk's vectors, if it was the chunk's last."""
    for future in reading.running:
        future.result()
    reading.chunk.left -= 1
    if not reading.chunk.left:
        yield reading.chunk.made
