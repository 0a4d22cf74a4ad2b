"""Draws and writes the pictures that are missing. Which process draws a picture changes nothing in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import numpy as np
from PIL import Image
from tqdm import tqdm

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
        for order, _ in zip(orders, _draw_all(orders, workers), strict=True):
            bar.update(len(order))
    return sum(item.views for item in items) + sum(map(len, photographs.values()))


def _orders(items: Sequence[Item], photographs: Mapping[int, Sequence[int]], out: Path, who: tuple[int, str]) -> Iterator[Order]:
    """What is missing of each item; a directory is listed once, not asked for each file."""
    studio, taken = ({file.name for file in (out / folder).iterdir()} for folder in (ITEMS_FOLDER, QUERIES_FOLDER))
    for item in items:
        views = tuple(view for view in range(item.views) if f"{item.item_id}_{view}.jpg" not in studio)
        queries = tuple(query for query in photographs.get(item.item_id, ()) if f"{query}.jpg" not in taken)
        yield Order(item.item_id, item.look, views, queries, who[0], out, who[1])


def _draw_all(orders: Sequence[Order], workers: int) -> Iterable[None]:
    if workers == 1:
        return map(draw, orders)
    return _draw_in_pool(orders, workers)


def _draw_in_pool(orders: Sequence[Order], workers: int) -> Iterator[None]:
    # Spawned, not forked: the caller may have threads (Arrow has), and a fork would copy their locks.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
        yield from pool.map(draw, orders, chunksize=16)


def _end_with_parent() -> None:
    """A pool outlives a killed parent and waits for ever: let a thread watch for that."""

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True).start()


def draw(order: Order) -> None:
    """Draw and write the pictures of one order; one cut-out serves them all."""
    product = cutout(order.look)
    for view in order.views:
        picture = studio_picture(product, view, generator(order.seed, Stream.STUDIO, order.item_id, view))
        _write(picture, order.out / item_picture(order.item_id, view), STUDIO.quality)
    for query in order.queries:
        take, stream = PHOTOGRAPHERS[order.photographer]
        picture, quality = take(product, generator(order.seed, stream, query))
        _write(picture, order.out / query_picture(query), quality)


def _write(picture: Image.Image, path: Path, quality: int) -> None:
    """Under another name first: a picture that exists is whole, even after a killed run."""
    partial = path.with_suffix(".partial")
    picture.save(partial, format="JPEG", quality=quality)
    partial.replace(path)
