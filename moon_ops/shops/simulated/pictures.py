"""Draws and writes the pictures that are missing. Which process draws a picture changes nothing in it."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from moon_ops.errors import StageError
from moon_ops.processor import cores
from moon_ops.shops.simulated import camera
from moon_ops.shops.simulated.drawing import Look, cutout, studio_picture
from moon_ops.shops.simulated.parameters import STUDIO
from moon_ops.shops.simulated.photograph import photograph
from moon_ops.shops.simulated.products import Item
from moon_ops.shops.simulated.randomness import Stream, generator

ITEMS_FOLDER = "images/items"
QUERIES_FOLDER = "images/queries"
PHOTOGRAPHERS: dict[str, tuple[Callable[[Image.Image, np.random.Generator], tuple[Image.Image, int]], Stream]] = {
    "known": (photograph, Stream.PHOTOGRAPH),  # does much what the encoder's augmentation practises
    "unknown": (camera.photograph, Stream.CAMERA),  # does other things
}
SPAWN = multiprocessing.get_context("spawn")
FEW = 1000  # pictures that are drawn sooner than other processes start


@dataclass(frozen=True)
class Order:
    """The pictures wanted of one item: studio ``views``, and photographs for the ids in ``queries``."""

    item_id: int
    look: Look
    views: tuple[int, ...]
    queries: tuple[int, ...]
    seed: int
    out: Path
    photographer: str = "known"  # of PHOTOGRAPHERS

    def __len__(self) -> int:
        return len(self.views) + len(self.queries)


def item_picture(item_id: int, view: int) -> str:
    """The path of a studio picture inside the ingest directory."""
    return f"{ITEMS_FOLDER}/{item_id}_{view}.jpg"


def query_picture(query_id: int) -> str:
    """The path of a user's photograph inside the ingest directory."""
    return f"{QUERIES_FOLDER}/{query_id}.jpg"


def draw_missing(
    items: Sequence[Item],
    photographs: Mapping[int, Sequence[int]],
    out: Path,
    *,
    seed: int,
    workers: int | None,
    photographer: str = "known",
) -> int:
    """Draw every picture that ``out`` does not hold yet and return how many it holds now.

    ``photographs`` lists the query ids for each photographed item id. ``workers=None`` takes one process per core, or
    none for a few pictures; 1 stays in this process.
    """
    for folder in (ITEMS_FOLDER, QUERIES_FOLDER):
        (out / folder).mkdir(parents=True, exist_ok=True)
    orders = [order for order in _orders(items, photographs, out, (seed, photographer)) if len(order)]
    missing = sum(map(len, orders))
    if workers is None:
        workers = 1 if missing < FEW else cores()
    with tqdm(total=missing, unit="picture", desc="pictures") as bar:
        for count in drawn(orders, workers):
            bar.update(count)
    return sum(item.views for item in items) + sum(map(len, photographs.values()))


def _orders(items: Sequence[Item], photographs: Mapping[int, Sequence[int]], out: Path, who: tuple[int, str]) -> Iterator[Order]:
    """What is missing of each item; a directory is listed once, not asked for each file."""
    studio, taken = ({file.name for file in (out / folder).iterdir()} for folder in (ITEMS_FOLDER, QUERIES_FOLDER))
    for item in items:
        views = tuple(view for view in range(item.views) if f"{item.item_id}_{view}.jpg" not in studio)
        queries = tuple(query for query in photographs.get(item.item_id, ()) if f"{query}.jpg" not in taken)
        yield Order(item.item_id, item.look, views, queries, who[0], out, who[1])


def drawn(orders: Sequence[Order], workers: int) -> Iterable[int]:
    """Draw the pictures of orders, in this process or in several; how many there were of each order."""
    return map(draw, orders) if workers == 1 else _draw_in_pool(orders, workers)


def _draw_in_pool(orders: Sequence[Order], workers: int) -> Iterator[int]:
    """Each process draws every so-manieth order, and says after each how many pictures it had. Spawned, not forked: the caller may have
    threads (Arrow has), and a fork would copy their locks. No executor: one that is stopped leaves semaphores, of which Python complains.
    """
    started = [_started(orders[share::workers]) for share in range(min(workers, len(orders)))]
    told: list[Any] = [connection for _, connection in started]
    try:
        while told:
            for connection in wait(told):
                said = _heard(connection)
                if said:
                    yield said
                else:
                    told.remove(connection)
    finally:
        for process, _ in started:
            process.terminate()
            process.join()


def _started(share: Sequence[Order]) -> tuple[SpawnProcess, Connection]:
    """A process that draws its share, and what it is heard by. It knows nothing of the stop key, and ends with this one."""
    ours, theirs = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=_draw_share, args=(share, theirs), daemon=True)
    resource_tracker.ensure_running()  # the first time it unblocks the key
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # which the new process has as well
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return process, ours


def _heard(connection: Any) -> int:
    """Pictures of the order that was drawn, 0 after the last one; its error, or :class:`StageError` for a process that was killed."""
    try:
        said = connection.recv()
    except EOFError:
        problem = "a process that draws pictures was killed; those that it has drawn are kept"
        raise StageError(problem, action="run it again, with MOON_WORKERS=1 where memory is short") from None
    if isinstance(said, Exception):
        raise said
    return int(said)


def _draw_share(share: Sequence[Order], connection: Connection) -> None:
    with contextlib.suppress(BrokenPipeError):  # the parent was killed: nobody listens
        try:
            for order in share:
                connection.send(draw(order))
            connection.send(0)
        except BrokenPipeError:
            raise
        except Exception as fault:
            connection.send(fault)


def draw(order: Order) -> int:
    """Draw and write the pictures of one order; one cut-out serves them all. How many these were."""
    product = cutout(order.look)
    for view in order.views:
        picture = studio_picture(product, view, generator(order.seed, Stream.STUDIO, order.item_id, view))
        _write(picture, order.out / item_picture(order.item_id, view), STUDIO.quality)
    for query in order.queries:
        take, stream = PHOTOGRAPHERS[order.photographer]
        picture, quality = take(product, generator(order.seed, stream, query))
        _write(picture, order.out / query_picture(query), quality)
    return len(order)


def _write(picture: Image.Image, path: Path, quality: int) -> None:
    """Under another name first: a picture that exists is whole, even after a killed run."""
    partial = path.with_suffix(".partial")
    picture.save(partial, format="JPEG", quality=quality)
    partial.replace(path)
