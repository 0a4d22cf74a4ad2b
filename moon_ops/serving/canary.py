"""The canary: logged queries, replayed on the release that is served and on the one that is to take its place, before it does.

The queries are the newest of the lake, drawn with a fixed seed, and the last requests of this process. These are kept in memory alone, so
nothing outlives the process that an erasure would have to find.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moon_ops.errors import in_a_line
from moon_ops.lake.lake import Lake
from moon_ops.lake.tables import image_bytes
from moon_ops.serving.request import Asked
from moon_ops.settings import Settings

MOST = 32  # queries of the lake, and as many of requests
DRAWN_FROM = 512  # the newest rows of the lake that they are drawn from
MOST_BYTES = 256 * 2**10  # of a picture in a request that is kept: 8 MiB in all
SECONDS = 10.0  # that a replay may take, looked at between two queries
FIRST = 10  # results of a query that are compared, and scored
LEAST_MS = 50.0  # by which a candidate may always be slower


@dataclass(frozen=True)
class Logged:
    """A query as it was asked; ``user`` is somebody to score its results for."""

    text: str
    picture: bytes | None = None
    user: int | None = None


class Release(Protocol):
    """What a canary asks of a release: :class:`~moon_ops.serving.champion.Champion`."""

    version: int
    scorer: Any

    def embed(self, text: str, picture: bytes | None) -> NDArray[np.float32]:
        """The vector [D] of a query."""

    def search(self, vector: NDArray[np.float32], k: int) -> Sequence[Any]:
        """The nearest items."""

    def score(self, user_id: int, item_ids: Sequence[int], asked: Asked) -> list[float]:
        """Click probabilities."""


class Recent:
    """The last requests of this process: text and picture, and nothing else. May be used from many threads."""

    def __init__(self) -> None:
        self._kept: deque[Logged] = deque(maxlen=MOST)

    def keep(self, text: str, picture: bytes | None) -> None:
        """Remember a request; not one with a large picture."""
        if picture is None or len(picture) <= MOST_BYTES:
            self._kept.append(Logged(text, picture))

    def all(self) -> list[Logged]:
        """Those kept, oldest first."""
        return list(self._kept)


@dataclass(frozen=True)
class Queries:
    """What there is to replay, and why it is not more."""

    of_lake: list[Logged]
    of_requests: list[Logged]
    missing: str = ""


def draw(lake: Lake, recent: Recent) -> Queries:
    """Up to :data:`MOST` of the lake's newest queries, each with a user who was there lately, and the last requests.

    A lake that cannot be read is no reason to serve nothing new: ``missing`` says so.
    """
    try:
        return Queries(_of_lake(lake), recent.all())
    except Exception as fault:  # of Lance's many
        return Queries([], recent.all(), f"the lake's queries cannot be read ({in_a_line(fault)})")


def _of_lake(lake: Lake) -> list[Logged]:
    rows = newest_rows(lake, "queries", ["text", "image_id"], DRAWN_FROM)
    chosen = [rows[i] for i in np.sort(np.random.default_rng(0).permutation(len(rows))[:MOST])]
    pictures = dict(image_bytes(lake, [row["image_id"] for row in chosen if row["image_id"]])) if lake.exists("images") else {}
    seen = [row["user_id"] for row in newest_rows(lake, "events", ["user_id"], DRAWN_FROM)]
    users = list(dict.fromkeys(user for user in reversed(seen) if user is not None)) or [None]
    asked = [(row["text"] or "", pictures.get(row["image_id"])) for row in chosen]
    asked = [(text, picture) for text, picture in asked if text.strip() or picture]  # a picture may have been erased
    return [Logged(text, picture, users[n % len(users)]) for n, (text, picture) in enumerate(asked)]


def newest_rows(lake: Lake, table: str, columns: Sequence[str], most: int) -> list[dict[str, Any]]:
    """The rows written last, at most so many, oldest first; of a table of any size only they are read."""
    if not lake.exists(table):
        return []
    dataset = lake.open(table)
    rows: list[dict[str, Any]] = dataset.to_table(columns=list(columns), offset=max(0, dataset.count_rows() - most), limit=most).to_pylist()
    return rows


@dataclass(frozen=True)
class Side:
    """What one of the two did: milliseconds of a query, median and 95th percentile, and the share of answers without an item."""

    p50_ms: float
    p95_ms: float
    empty: float


@dataclass(frozen=True)
class Canary:
    """What a replay has shown. ``errors``: queries that the candidate alone could not answer; ``both``: that neither could.

    ``overlap``: of the champion's first ten, the share that is among the candidate's; None where nothing was found. ``missing`` says which
    queries there were not, ``cut`` how many the time did not suffice for.
    """

    candidate: int
    champion: int
    queries: int
    scored: int
    before: Side
    after: Side
    errors: int
    both: int
    not_finite: int
    overlap: float | None
    seconds: float
    cut: int = 0
    missing: str = ""
    first_fault: str = ""

    def told(self) -> str:
        """One line for the log."""
        overlap = "" if self.overlap is None else f", overlap@{FIRST} {self.overlap:.2f}"
        less = "".join(f"; {part}" for part in (self.missing, f"time for {self.cut} more was lacking" if self.cut else "") if part)
        ms = f"p50 {self.after.p50_ms:.1f} ms (before {self.before.p50_ms:.1f}), p95 {self.after.p95_ms:.1f} ms ({self.before.p95_ms:.1f})"
        done = f"{self.queries} queries, {self.scored} scored, {self.errors} errors, {self.not_finite} not finite{overlap}"
        empty = f"empty {self.after.empty:.0%} ({self.before.empty:.0%})"
        return f"canary of release {self.candidate} beside {self.champion}: {done}, {ms}, {empty}{less}"

    def shown(self) -> dict[str, Any]:
        """As ``/ready`` tells it."""
        return asdict(self)


@dataclass
class _Answers:
    """What one release has answered so far."""

    release: Release
    ms: list[float] = field(default_factory=list)
    empty: int = 0
    not_finite: int = 0

    def ask(self, query: Logged, others: Sequence[int] | None, scores: bool) -> list[int]:
        """The first items for a query, which are scored as well (``others`` in their place, if given); what it raises is the release's."""
        began = time.perf_counter()
        vector = self.release.embed(query.text, query.picture)
        hits = self.release.search(vector, FIRST)
        found, numbers = [hit.item_id for hit in hits], [hit.score for hit in hits]
        items = others or found
        if scores and query.user is not None and items:
            asked = Asked(None, query.text, is_image=query.picture is not None, vector=vector)
            numbers += self.release.score(query.user, items, asked)
        self.ms.append(1e3 * (time.perf_counter() - began))
        self.empty += not found
        self.not_finite += not (np.isfinite(vector).all() and np.isfinite(numbers).all())
        return found

    def side(self) -> Side:
        """Its figures."""
        ms = self.ms or [0.0]
        return Side(float(np.median(ms)), float(np.percentile(ms, 95)), self.empty / max(1, len(self.ms)))


@dataclass
class _Replay:
    """Both releases, and what their answers were like beside each other."""

    champion: _Answers
    candidate: _Answers
    scores: bool
    errors: int = 0
    both: int = 0
    scored: int = 0
    first_fault: str = ""
    overlaps: list[float] = field(default_factory=list)

    def ask(self, query: Logged) -> None:
        """Ask both. A query that neither can answer (a broken picture, an online store that is away) says nothing of the candidate."""
        before, fault_before = _tried(self.champion.ask, query, None, self.scores)
        after, fault = _tried(self.candidate.ask, query, before, self.scores)
        if fault is not None and fault_before is not None:
            self.both += 1
        elif fault is not None:
            self.errors += 1
            self.first_fault = self.first_fault or f"{type(fault).__name__}: {fault}"
        elif fault_before is None:
            self.overlaps += [len(set(before) & set(after)) / len(before)] if before else []
            self.scored += self.scores and query.user is not None


def replay(
    champion: Release, candidate: Release, queries: Queries, *, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic
) -> Canary:
    """Ask both the same, one query after the other, for at most so many seconds; nothing is changed."""
    began, asked, done = clock(), [*queries.of_requests, *queries.of_lake], 0
    seen = _Replay(_Answers(champion), _Answers(candidate), champion.scorer is not None and candidate.scorer is not None)
    for release in (champion, candidate):  # the first answer of each takes longer than the others
        _tried(release.embed, "warm up", None)
    while done < len(asked) and clock() - began <= seconds:
        seen.ask(asked[done])
        done += 1
    return Canary(
        candidate=candidate.version,
        champion=champion.version,
        queries=done,
        scored=seen.scored,
        before=seen.champion.side(),
        after=seen.candidate.side(),
        errors=seen.errors,
        both=seen.both,
        not_finite=seen.candidate.not_finite,
        overlap=float(np.mean(seen.overlaps)) if seen.overlaps else None,
        seconds=clock() - began,
        cut=len(asked) - done,
        missing=queries.missing or ("" if asked else "no query has been logged yet"),
        first_fault=seen.first_fault,
    )


def _tried(ask: Callable[..., Any], *given: Any) -> tuple[Any, Exception | None]:
    """The answer, or the fault."""
    try:
        return ask(*given), None
    except Exception as fault:  # whatever is wrong with a release, it must not end the one that is served
        return None, fault


def refusal(canary: Canary, settings: Settings, *, returning: bool) -> str:
    """Why the candidate is not to be served; empty if it may be. The text is the same each time, so that it is logged once.

    One that was served before (``returning``) is not refused for being slow or other: the way back must be open.
    """
    release = canary.champion
    if canary.errors:
        return f"a logged query that release {release} answers fails ({canary.first_fault})"
    if canary.not_finite:
        return "a logged query is answered with a number that is not finite"
    if canary.queries and canary.after.empty == 1.0 and canary.before.empty < 1.0:
        return f"no logged query finds an item, with release {release} they do"
    before, after = canary.before.p50_ms, canary.after.p50_ms
    if not returning and after > settings.canary_latency_ratio * before and after - before > LEAST_MS:
        times = f"{settings.canary_latency_ratio:g} times"
        return f"logged queries take more than {times} as long as with release {release} (MOON_CANARY_LATENCY_RATIO)"
    if not returning and canary.overlap is not None and canary.overlap < settings.canary_overlap:
        return f"less than {settings.canary_overlap:g} of what release {release} finds first is found (MOON_CANARY_OVERLAP)"
    return ""
