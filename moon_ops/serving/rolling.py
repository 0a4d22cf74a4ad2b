"""Figures of the last minutes in little memory: requests, failures and latencies by minute, and how far scores have drifted.

A latency costs one counter of about eighty, so that its percentile is known to a tenth whatever the traffic.
"""

from __future__ import annotations

import bisect
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MINUTES = 5  # that are looked back
EDGES = tuple(1e-4 * 1.2**n for n in range(80))  # seconds, from 0.1 ms to three minutes
BASELINE_SECONDS, BASELINE_LEAST, BASELINE_MOST = 3600.0, 500, 4096  # of the scores that later ones are compared with
WINDOW, BINS = 2000, 10  # the last scores, and the baseline's deciles


@dataclass
class _Minute:
    number: int = -1
    requests: int = 0
    failed: int = 0
    latencies: list[int] = field(default_factory=lambda: [0] * (len(EDGES) + 1))


@dataclass(frozen=True)
class Lately:
    """The last minutes: requests, the share that failed, and seconds (median, 95th percentile; None without a request)."""

    requests: int
    failed: float
    p50: float | None
    p95: float | None


class Requests:
    """Requests of one release. May be used from many threads."""

    def __init__(self) -> None:
        self._minutes = [_Minute() for _ in range(MINUTES)]
        self._lock = threading.Lock()

    def add(self, now: float, seconds: float, *, failed: bool) -> None:
        """A request that ended at ``now`` (seconds, of any clock that only rises) and took ``seconds``."""
        number, at = int(now // 60), bisect.bisect_left(EDGES, seconds)
        with self._lock:
            minute = self._minutes[number % MINUTES]
            if minute.number != number:
                minute = self._minutes[number % MINUTES] = _Minute(number)
            minute.requests += 1
            minute.failed += failed
            minute.latencies[at] += 1

    def lately(self, now: float) -> Lately:
        """What the last :data:`MINUTES` were like."""
        with self._lock:
            kept = [m for m in self._minutes if now // 60 - MINUTES < m.number <= now // 60]
            requests, failed = sum(m.requests for m in kept), sum(m.failed for m in kept)
            counts = [sum(column) for column in zip(*(m.latencies for m in kept), strict=True)]
        if not requests:
            return Lately(0, 0.0, None, None)
        until = np.cumsum(counts)
        p50, p95 = (EDGES[min(int(np.searchsorted(until, share * requests)), len(EDGES) - 1)] for share in (0.5, 0.95))
        return Lately(requests, failed / requests, p50, p95)


class Drift:
    """How far the last scores lie from those of a release's first hour. May be used from many threads."""

    def __init__(self, now: float) -> None:
        self._since, self._baseline = now, list[float]()
        self._edges: NDArray[np.float64] | None = None
        self._last = deque[int](maxlen=WINDOW)
        self._lock = threading.Lock()

    def add(self, now: float, scores: Sequence[float]) -> None:
        """Scores of a request."""
        with self._lock:
            if self._edges is not None:
                self._last.extend(np.searchsorted(self._edges, scores).tolist())
                return
            self._baseline += list(scores)[: BASELINE_MOST - len(self._baseline)]
            if now - self._since >= BASELINE_SECONDS and len(self._baseline) >= BASELINE_LEAST:
                self._edges = np.quantile(self._baseline, np.linspace(0, 1, BINS + 1)[1:-1])

    def value(self) -> float | None:
        """Population stability index; None as long as the first hour, or enough scores after it, are lacking.

        Below .1 is no change, above .25 a great one, by the rule of thumb of credit scoring.
        """
        with self._lock:
            if self._edges is None or len(self._last) < BASELINE_LEAST:
                return None
            sides = (np.searchsorted(self._edges, self._baseline), np.fromiter(self._last, np.int64))
        before, after = ((np.bincount(bins, minlength=BINS) + 0.5) / (len(bins) + 0.5 * BINS) for bins in sides)
        return float(((after - before) * np.log(after / before)).sum())
