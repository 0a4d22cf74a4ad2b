"""Where portions of work are embedded: on this machine, or on a Ray cluster. Both end with the same rows.

An engine takes portions and the due rows, and says what became of them as it goes.
"""

from __future__ import annotations

import logging
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from moon_ops import dealing, startup
from moon_ops.embeddings import portions as of
from moon_ops.embeddings.pipeline import embed_samples, embed_stream
from moon_ops.embeddings.portions import Count, Portions
from moon_ops.embeddings.runtime import Runtime
from moon_ops.inputs.contract import Sample
from moon_ops.lake.lake import Lake

Engine = Callable[[Lake, Portions, pa.Table, int], Iterator[Count]]
SHARE = 128  # rows of a portion at the least, when there are too few of them to keep all of a cluster busy


def local(runtime: Runtime) -> Engine:
    """This machine: pictures of the next portion are read, and rows of the last one written, while one is embedded."""

    def run(lake: Lake, portions: Portions, rows: pa.Table, workers: int) -> Iterator[Count]:
        waiting: deque[pa.Table] = deque()

        def samples() -> Iterator[Sample]:
            for start in range(0, rows.num_rows, of.SIZE):
                waiting.append(rows.slice(start, of.SIZE))
                yield from portions.samples(waiting[-1])

        for made in embed_stream(lake, runtime, samples(), workers=workers, chunk=of.SIZE):
            yield portions.commit(waiting.popleft(), made)

    return run


def on_ray(open_runtime: Callable[[], Runtime]) -> Engine:
    """The Ray cluster that ``RAY_ADDRESS`` names, else one on this machine: Ray Data maps portions over actors, a core or a GPU each.

    Every actor opens the encoder itself, reads from the lake and commits to it, so the lake and the registry must be reachable from all
    machines. Ray starts a killed actor again and gives its portion to another. Raises :class:`SettingsError` without the extra ``ray``.
    """

    def run(lake: Lake, portions: Portions, rows: pa.Table, workers: int) -> Iterator[Count]:
        if not rows.num_rows:
            return
        ray = _ray(workers)
        there = ray.cluster_resources()
        kind = "GPU" if there.get("GPU") else "CPU"
        most = max(int(there.get(kind, 1)), 1)
        size = min(of.SIZE, max(SHARE, -(-rows.num_rows // most)))
        blocks = [rows.slice(start, size).combine_chunks() for start in range(0, rows.num_rows, size)]
        actors = min(len(blocks), most)
        needs = {"num_gpus": 1} if kind == "GPU" else {"num_cpus": 1}
        dealt = ray.data.from_arrow(blocks).map_batches(
            _Actor,
            fn_constructor_args=(open_runtime, lake, portions),
            batch_size=None,  # a block is a portion
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=actors),
            **needs,
        )
        try:
            for count in dealt.iter_rows():
                yield Count(**count)
        except (ray.exceptions.RayError, ray.exceptions.UserCodeException) as fault:
            raise dealing.reason(fault) from fault

    return run


class _Actor:
    """One worker of a cluster: an opened encoder, which embeds portion after portion and commits each."""

    def __init__(self, open_runtime: Callable[[], Runtime], lake: Lake, portions: Portions) -> None:
        startup.start()
        self.runtime, self.lake, self.portions = open_runtime(), lake, portions

    def __call__(self, rows: pa.Table) -> pa.Table:
        made = embed_samples(self.lake, self.runtime, self.portions.samples(rows), workers=1)
        return pa.Table.from_pylist([vars(self.portions.commit(rows, made))])


def _ray(workers: int) -> Any:
    dealing.cluster(workers)
    import ray.data

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its own defaults
        context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # there is one of ours
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


def engine(name: str, runtime: Runtime, open_runtime: Callable[[], Runtime]) -> Engine:
    """The engine ``local``, with ``runtime``, or ``ray``, whose actors open theirs; :class:`InputError` for another name."""
    dealing.require_known(name)
    return local(runtime) if name == "local" else on_ray(open_runtime)
