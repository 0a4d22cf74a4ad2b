"""What becomes of a release after the switch: failures, latency, recall of known answers and drift of scores, each against a limit.

Past a limit there is an alert: in the log once, at ``/ready`` and for Prometheus. With ``MOON_AUTO_ROLLBACK`` a new release that fails or
finds less is left again, once, through the same record of moves as a person's rollback.
"""

from __future__ import annotations

import datetime as dt
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from moon_ops.errors import MoonError
from moon_ops.release import promotion, served
from moon_ops.serving import probe
from moon_ops.serving.behind import Behind
from moon_ops.serving.champion import Champion
from moon_ops.serving.follower import Follower
from moon_ops.serving.probe import Answer, Recall
from moon_ops.serving.rolling import Drift, Lately, Requests
from moon_ops.serving.stores import LAKE, ONLINE, reading
from moon_ops.settings import Settings

log = logging.getLogger(__name__)
CHECK_SECONDS = 5.0
LEAST_REQUESTS = 50  # of the last minutes, below which neither their failures nor their latency say anything
SOON_SECONDS = 60.0  # least time between two probes: after a publication, and while recall is too low
STANDING_SECONDS = 60.0  # that an alert must have stood before a service goes back
ANSWERS_SECONDS = 86_400.0  # until newer purchases are taken as known answers
KINDS = ("errors", "latency", "recall", "drift")
REASONS = ("errors", "recall")  # to go back
SCORES = ("search", "score")  # whose distributions are watched: the best cosine of a search, click probabilities
SCORED = 10  # of a request's click probabilities that are looked at


@dataclass(frozen=True)
class Alert:
    """Something past its limit. ``since``: seconds of the watch's clock; ``at``: ISO 8601."""

    kind: str
    release: int
    text: str
    since: float
    at: str


@dataclass
class _Served:
    """One release since it was switched to."""

    release: int
    since: float
    requests: Requests = field(default_factory=Requests)
    drift: dict[str, Drift] = field(default_factory=dict)
    recall: Recall | None = None
    probed_at: float | None = None
    places: list[str] = field(default_factory=list)  # of the publication that was probed
    alerts: dict[str, Alert] = field(default_factory=dict)
    left: bool = False  # an automatic rollback was tried


class Watch:
    """Watches what a follower serves. All its methods may be called from many threads."""

    def __init__(self, settings: Settings, follower: Follower, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings, self.follower, self.stores, self.clock = settings, follower, follower.stores, clock
        self.behind = Behind(settings, follower)
        self.expected: float | None = None  # recall of the known answers under the release before, or at the first look
        self._known, self._known_at = list[Answer](), 0.0
        self._served: _Served | None = None
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._fault = ""

    def served(self, release: int) -> _Served:
        """The figures of a release; they begin anew with each switch."""
        with self._lock:
            if self._served is None or self._served.release != release:
                now = self.clock()
                self._served = _Served(release, now, drift={kind: Drift(now) for kind in SCORES})
            return self._served

    def observe(self, release: int, seconds: float, *, failed: bool) -> None:
        """A search, embedding or scoring that ended now; one that a release before has answered no longer counts."""
        if self._is_current(release):
            self.served(release).requests.add(self.clock(), seconds, failed=failed)

    def saw(self, release: int, kind: str, scores: Sequence[float]) -> None:
        """Scores of an answer, of one of :data:`SCORES`."""
        if self._is_current(release):
            self.served(release).drift[kind].add(self.clock(), scores[:SCORED])

    def _is_current(self, release: int) -> bool:
        current = self.follower.current
        return current is not None and current.version == release

    def start(self) -> None:
        """Check in the background until :meth:`stop`."""
        self._thread = threading.Thread(target=self._loop, name="watch", daemon=True)
        self._thread.start()
        self.behind.start()

    def stop(self) -> None:
        """Stop after the present question."""
        self._stop.set()
        self.behind.stop()
        if self._thread is not None:
            self._thread.join(CHECK_SECONDS)

    def _loop(self) -> None:
        while not self._stop.wait(CHECK_SECONDS / 5 if self._served is None else CHECK_SECONDS):
            try:
                self.check(dt.datetime.now(dt.UTC))
                self._fault = ""
            except Exception as fault:  # watching must go on, and must not end what it watches
                if str(fault) != self._fault:
                    log.error("what is served could not be watched: %s", fault, exc_info=not isinstance(fault, MoonError))
                self._fault = str(fault)

    def check(self, now: dt.datetime) -> None:
        """One look: at the stores, at known answers if that is due, at the limits; and the way back, if it is to be taken."""
        champion = self.follower.current
        if champion is None:
            return
        seen = self.served(champion.version)
        self._ask_stores(champion)
        if LAKE not in self.stores.lost and self._probe_due(seen, champion):
            self._probe(seen, champion, now)
        self._judge(seen, now)
        self._go_back(seen, now)

    def _ask_stores(self, champion: Champion) -> None:
        """Whether the lake is there, which nobody may have asked; and the online store, where it was not."""
        try:
            with self.stores.asked(LAKE), reading(self.settings.lake):
                self.settings.lake.open("items")
            if ONLINE in self.stores.lost and champion.scorer is not None:
                with self.stores.asked(ONLINE):
                    champion.ask_store()
        except MoonError:
            return  # noted by `asked`

    def _probe_due(self, seen: _Served, champion: Champion) -> bool:
        if not champion.searches:  # it answers for some shards alone
            return False
        if seen.probed_at is None:
            return True
        passed = self.clock() - seen.probed_at
        soon = seen.places != champion.places or "recall" in seen.alerts
        return passed >= (SOON_SECONDS if soon else 60 * self.settings.probe_minutes)

    def _probe(self, seen: _Served, champion: Champion, now: dt.datetime) -> None:
        old = not self._known or self.clock() - self._known_at > ANSWERS_SECONDS
        if old and not seen.alerts:  # else what is expected would be forgotten
            self._known, self._known_at, self.expected = probe.answers(self.settings.lake), self.clock(), None
        seen.places = champion.places
        found = probe.measure(champion, self.settings.lake, self._known, now, self._stop.is_set)
        seen.probed_at = self.clock()
        if found is not None:
            first = seen.recall is None
            seen.recall = found
            self.expected = max(self.expected or 0.0, found.recall) if first else self.expected or found.recall

    def _judge(self, seen: _Served, now: dt.datetime) -> None:
        """Raise the alerts that are due, and end those that are over."""
        past = self._past(seen)
        for kind in KINDS:
            if kind in past and kind not in seen.alerts:
                log.error("alert %s: release %d: %s", kind, seen.release, past[kind])
            if kind in past:
                before = seen.alerts.get(kind)
                since, at = (before.since, before.at) if before else (self.clock(), now.isoformat(timespec="seconds"))
                seen.alerts[kind] = Alert(kind, seen.release, past[kind], since, at)
            elif seen.alerts.pop(kind, None) is not None:
                log.warning("alert %s is over: release %d", kind, seen.release)

    def _past(self, seen: _Served) -> dict[str, str]:
        """What is past its limit, and by how much."""
        limits, found = self.settings, dict[str, str]()
        lately = seen.requests.lately(self.clock())
        if lately.requests >= LEAST_REQUESTS and lately.failed > limits.alert_errors:
            found["errors"] = f"{lately.failed:.1%} of {lately.requests} requests failed in five minutes, above {limits.alert_errors:.1%}"
        if lately.requests >= LEAST_REQUESTS and lately.p95 is not None and 1e3 * lately.p95 > limits.alert_slow_ms:
            found["latency"] = f"95 % of requests take up to {1e3 * lately.p95:,.0f} ms, above {limits.alert_slow_ms:,.0f}"
        recall, expected = seen.recall, self.expected
        if recall is not None and expected is not None and recall.recall < expected - limits.alert_recall_drop:
            told = f"recall@10 of {recall.asked} known answers is {recall.recall:.2f}"
            found["recall"] = f"{told}, more than {limits.alert_recall_drop:g} below {expected:.2f}"
        drifts = {kind: value for kind, drift in seen.drift.items() if (value := drift.value()) is not None}
        if drifts and max(drifts.values()) > limits.alert_drift:
            kind = max(drifts, key=lambda name: drifts[name])
            found["drift"] = f"scores of /v1/{kind} have drifted from the first hour's: {drifts[kind]:.2f}, above {limits.alert_drift:g}"
        return found

    def _go_back(self, seen: _Served, now: dt.datetime) -> None:
        """Roll back, once, if the setting says so: a new release has failed or found less for a while, and nothing else is to blame."""
        standing = [a for kind, a in seen.alerts.items() if kind in REASONS and self.clock() - a.since >= STANDING_SECONDS]
        window = dt.timedelta(minutes=self.settings.rollback_minutes)
        if not self.settings.auto_rollback or seen.left or not standing or self.stores.lost:
            return
        if self.follower.state().asked != seen.release or now - self._switched(seen, now) > window:
            return
        seen.left = True
        wish = promotion.Wish(f"moon serve on {socket.gethostname()}", now.isoformat(timespec="seconds"), f"automatic: {standing[0].text}")
        try:
            moved = promotion.rollback(self.settings, wish, leaving=seen.release)
            log.error("rolled back from release %d to %d: %s", seen.release, moved.after, standing[0].text)
        except MoonError as fault:
            log.error("release %d is not left, although %s: %s", seen.release, standing[0].text, fault)

    def _switched(self, seen: _Served, now: dt.datetime) -> dt.datetime:
        """When a service of this home began to serve the release: a restart does not make it new."""
        release, since = served.since(self.settings)
        return dt.datetime.fromisoformat(since) if release == seen.release and since else now

    def alerts(self) -> list[Alert]:
        """Those that stand."""
        return [] if self._served is None else list(self._served.alerts.values())

    def lately(self) -> Lately | None:
        """The last minutes of what is served."""
        return None if self._served is None else self._served.requests.lately(self.clock())

    def shown(self) -> dict[str, Any]:
        """As ``/ready`` tells it."""
        seen, lately = self._served, self.lately()
        if seen is None or lately is None:
            return {}
        recall = None if seen.recall is None else seen.recall.recall
        told: dict[str, Any] = {"release": seen.release, "requests_5m": lately.requests, "failed_5m": lately.failed}
        told |= {f"{name}_ms": None if value is None else 1e3 * value for name, value in (("p50", lately.p50), ("p95", lately.p95))}
        told |= {"recall_at_10": recall, "recall_expected": self.expected}
        return told | {"drift": {kind: drift.value() for kind, drift in seen.drift.items()}}
