"""What a release costs on the serving path: milliseconds of one query's vector and of one list of items to score, and bytes.

A machine is never as busy as it was a minute ago, so candidate and champion take turns, call by call, in one process and on the same
queries. The figure is a median over calls, each of which is the median over its rounds; one slow moment moves neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from moon_ops.ctr.evaluate import Scored
from moon_ops.ctr.score import GRAPH, Scorer
from moon_ops.embeddings.runtime import Pixels, Runtime
from moon_ops.errors import InputError
from moon_ops.inputs.contract import Sample
from moon_ops.inputs.images import decode
from moon_ops.inputs.regions import views
from moon_ops.lake.lake import Lake
from moon_ops.lake.tables import image_bytes
from moon_ops.metric_names import serving
from moon_ops.publication import places
from moon_ops.registry.registry import CTR, ENCODER, Registry
from moon_ops.release.comparison import Measured
from moon_ops.release.recall import Queries
from moon_ops.release.stages import runtime
from moon_ops.settings import VARIANTS, Settings

EACH = 8  # queries with a photograph, and as many without
LISTED = 100  # items of one request to score
ROUNDS = 5
SECONDS = 20.0  # after which no further round begins
EMBED, SCORE = "embed", "score"

Call = Callable[[], object]
Made = tuple[int, int | None, Measured]  # a release: encoder, click model, and what was measured of it


@dataclass(frozen=True)
class Served:
    """A release as a service would open it: what it is asked, by kind, and its bytes by name."""

    calls: Mapping[str, Sequence[Call]]
    sizes: Mapping[str, float]


def with_costs(settings: Settings, releases: Sequence[Made]) -> list[Measured]:
    """What was measured of releases, with what each of them costs; all take turns, on the same queries.

    Recorded costs are dropped: they are of another hour, and perhaps of another machine.
    """
    asked = next((measured.searches.queries for _, _, measured in releases if measured.searches is not None), None)
    found = timed([_opened(settings, *release, _some(asked) if asked is not None else []) for release in releases])
    known = [{name: value for name, value in measured.metrics.items() if not name.startswith(serving(""))} for _, _, measured in releases]
    return [replace(release[2], metrics={**old, **new}) for release, old, new in zip(releases, known, found, strict=True)]


def timed(
    releases: Sequence[Served], *, rounds: int = ROUNDS, seconds: float = SECONDS, clock: Callable[[], float] = time.perf_counter
) -> list[dict[str, float]]:
    """``serving/embed_ms``, ``serving/embed_p95_ms``, the same of ``score``, and the sizes, of each release. The first call of each is not
    counted; after ``seconds`` no further round begins, but one is made."""
    for release in releases:
        for calls in release.calls.values():
            for call in calls:
                call()
    took: dict[tuple[int, str, int], list[float]] = {}
    began = clock()
    for number in range(rounds):
        order = list(range(len(releases)))[:: 1 if number % 2 == 0 else -1]  # nobody is always the first
        for kind in (EMBED, SCORE):
            for place in range(max(len(release.calls.get(kind, ())) for release in releases)):
                for which in order:
                    if place < len(calls := releases[which].calls.get(kind, ())):
                        start = clock()
                        calls[place]()
                        took.setdefault((which, kind, place), []).append(1000 * (clock() - start))
        if clock() - began > seconds:
            break
    return [_figures(release, {key[1:]: times for key, times in took.items() if key[0] == n}) for n, release in enumerate(releases)]


def _figures(release: Served, took: Mapping[tuple[str, int], Sequence[float]]) -> dict[str, float]:
    found = {serving(name): size for name, size in release.sizes.items()}
    for kind in release.calls:
        calls = [times for (what, _), times in took.items() if what == kind]
        if calls:
            found[serving(f"{kind}_ms")] = float(np.median([np.median(times) for times in calls]))
            found[serving(f"{kind}_p95_ms")] = float(np.percentile(np.concatenate(calls), 95))
    return found


def _opened(settings: Settings, encoder: int, ctr: int | None, measured: Measured, asked: Sequence[Sample]) -> Served:
    registry, opened = Registry(settings), runtime(settings, encoder)
    pixels = _pixels(settings.lake, opened, asked)
    readable = [sample for sample in asked if all(i in pixels for i in sample.image_ids[: opened.contract.layout.max_pictures])]
    calls: dict[str, Sequence[Call]] = {EMBED: [partial(opened.embed, [sample], pixels) for sample in readable]}
    middle = "" if settings.variant == VARIANTS[0] else f".{settings.variant}"
    models = _bytes(registry.fetch(ENCODER, encoder), *(f"{part}{middle}.onnx*" for part in ("tower", "trunk")))
    if ctr is not None:
        directory = registry.fetch(CTR, ctr)
        models += _bytes(directory, GRAPH)
        if measured.clicks is not None:
            calls[SCORE] = [_scoring(Scorer(directory, threads=settings.workers), measured.clicks)]
    index = _bytes(places.index_place(settings, encoder, measured.dimensions).resolve(), "**/*")
    return Served(calls, {"model_bytes": models, "index_bytes": index, "bytes": models + index})


def _scoring(scorer: Scorer, clicks: Scored) -> Call:
    return partial(scorer.score, clicks.rows, np.arange(min(LISTED, len(clicks.rows))))


def _some(asked: Queries) -> list[Sample]:
    """The first queries of each kind, in their order."""
    rows = [np.flatnonzero(asked.is_image == pictured)[:EACH] for pictured in (True, False)]
    return [asked.samples[row] for row in np.concatenate(rows)]


def _pixels(lake: Lake, opened: Runtime, asked: Sequence[Sample]) -> dict[str, Pixels]:
    """What the encoder reads of the queries' pictures; those that cannot be decoded are left out."""
    layout, found = opened.contract.layout, {}
    for name, content in image_bytes(lake, [i for sample in asked for i in sample.image_ids[: layout.max_pictures]]):
        try:
            found[name] = views(decode(content), layout.picture_size, layout.core_region)
        except InputError:
            continue
    return found


def _bytes(directory: Path, *patterns: str) -> float:
    return float(sum(file.stat().st_size for pattern in patterns for file in directory.glob(pattern) if file.is_file()))
