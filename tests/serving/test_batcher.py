"""Queries of different requests go through the encoder together, and each gets the vector that it would have had alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from moon_ops.embeddings.runtime import CPU, Runtime
from moon_ops.errors import ServiceError
from moon_ops.lake.tables import image_bytes
from moon_ops.release import stages
from moon_ops.serving import engine
from moon_ops.serving.batcher import Batcher, Done, Query
from moon_ops.settings import Settings


@pytest.fixture(scope="module")
def runtime(released: Settings) -> Runtime:
    return stages.runtime(released, 1)


def test_batches_give_the_vectors_of_one_at_a_time(runtime: Runtime, released: Settings) -> None:
    """Texts, pictures and both, in batches of whatever waits."""
    ids = [i for row in released.lake.read("items", ["image_ids"])["image_ids"].to_pylist() for i in row][:12]
    pictures = [content for _, content in image_bytes(released.lake, ids)]
    asked = [("red lamp", None), *(("", p) for p in pictures), ("a mug", None), *((f"item {n}", p) for n, p in enumerate(pictures))]
    queries = [engine.read(runtime, text, picture) for text, picture in asked]
    sizes: list[int] = []

    async def run() -> list[Done]:
        batcher = Batcher(lanes=1, patience=60, seen=lambda size, _: sizes.append(size))
        try:
            return await asyncio.gather(*(batcher.embed(runtime, query) for query in queries))
        finally:
            batcher.stop()

    found = asyncio.run(run())
    for query, done in zip(queries, found, strict=True):
        alone = runtime.forward(runtime.batch([query.tokens], [query.pictures]))[0]
        np.testing.assert_allclose(done.vector, alone, atol=1e-5)
        assert np.linalg.norm(done.vector) == pytest.approx(1, abs=1e-5)
    assert sum(sizes) == len(queries)
    assert max(sizes) == CPU.samples, "the first goes alone, the others together, as many as fit"


class Slow:
    """A runtime whose forwards wait until they are let go; its vectors are the first token of each query."""

    shape = CPU

    def __init__(self) -> None:
        self.go, self.seen = threading.Event(), list[list[int]]()

    def batch(self, texts: Sequence[Sequence[int]], pictures: Sequence[Any]) -> list[int]:
        return [text[0] for text in texts]

    def forward(self, batch: list[int]) -> np.ndarray:
        self.seen.append(batch)
        assert self.go.wait(30)
        if 13 in batch:
            raise ValueError("thirteen")
        return np.array(batch, np.float32)[:, None]


def asking(batcher: Batcher, runtime: Slow, *tokens: int) -> list[asyncio.Task[Done]]:
    return [asyncio.ensure_future(batcher.embed(runtime, Query([token], []))) for token in tokens]  # type: ignore[arg-type]


def test_a_query_that_fails_takes_no_other_with_it() -> None:
    async def run() -> list[Any]:
        batcher, slow = Batcher(lanes=1, patience=60), Slow()
        waiting = asking(batcher, slow, 1, 2, 13, 3)
        await asyncio.sleep(0.05)
        slow.go.set()
        return await asyncio.gather(*waiting, return_exceptions=True)

    first, second, bad, third = asyncio.run(run())
    assert [float(done.vector[0]) for done in (first, second, third)] == [1, 2, 3]
    assert isinstance(bad, ValueError)


def test_releases_are_not_mixed_and_what_was_asked_of_the_old_one_is_answered_by_it() -> None:
    async def run() -> tuple[Slow, Slow, list[Done]]:
        batcher, old, new = Batcher(lanes=1, patience=60), Slow(), Slow()
        waiting = [*asking(batcher, old, 1, 2), *asking(batcher, new, 3), *asking(batcher, old, 4), *asking(batcher, new, 5)]
        await asyncio.sleep(0.05)
        assert batcher.depth == 4, "one is in the encoder"
        old.go.set(), new.go.set()
        return old, new, await asyncio.gather(*waiting)

    old, new, done = asyncio.run(run())
    assert (old.seen, new.seen) == ([[1], [2, 4]], [[3, 5]])
    assert [float(one.vector[0]) for one in done] == [1, 2, 3, 4, 5]


def test_who_is_gone_or_has_waited_too_long_is_not_computed() -> None:
    async def run() -> tuple[Slow, list[Any]]:
        batcher, slow = Batcher(lanes=1, patience=0.2), Slow()
        waiting = asking(batcher, slow, 1, 2, 3)
        await asyncio.sleep(0.05)
        waiting[1].cancel()
        await asyncio.sleep(0.3)
        last = asking(batcher, slow, 4)
        slow.go.set()
        return slow, await asyncio.gather(*waiting, *last, return_exceptions=True)

    slow, (first, gone, late, last) = asyncio.run(run())
    assert slow.seen == [[1], [4]]
    assert (float(first.vector[0]), float(last.vector[0])) == (1, 4)
    assert isinstance(gone, asyncio.CancelledError)
    assert isinstance(late, ServiceError)
    assert "did not come to this request within 0.2 seconds" in late.problem
