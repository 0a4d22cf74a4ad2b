"""How far the vectors that a service searches lie behind the lake: asked in the background, and told to Prometheus from memory.

An item that is new or changed waits until it is embedded and published. How many wait, and since when the first of them, says whether
the jobs that do this are alive: the service itself misses nothing.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily

from moon_ops.release import freshness
from moon_ops.release.freshness import Freshness
from moon_ops.serving.follower import Follower
from moon_ops.settings import Settings

log = logging.getLogger(__name__)
LOOK_SECONDS = 30.0  # between two looks at the lake, each of which reads what has been written since the last publication


class Behind:
    """The last look's figures; None before the first one, and while the lake does not answer."""

    def __init__(self, settings: Settings, follower: Follower) -> None:
        self.settings, self.follower = settings, follower
        self.found: Freshness | None = None
        self._stop = threading.Event()
        self._said = ""

    def start(self) -> None:
        """Look in the background until :meth:`stop`."""
        threading.Thread(target=self._loop, name="look-behind", daemon=True).start()

    def stop(self) -> None:
        """Look no more; a look that is under way is left to itself."""
        self._stop.set()

    def _loop(self) -> None:
        while not self._stop.wait(1.0 if self.follower.current is None or self.found is None else LOOK_SECONDS):
            self.look(dt.datetime.now(dt.UTC))

    def look(self, now: dt.datetime) -> None:
        """Ask the lake, if something is served; a fault is logged once and ends nothing."""
        champion = self.follower.current
        if champion is None:
            return
        found = freshness.of(self.settings, champion.encoder, now)
        if found.unknown and found.unknown != self._said:
            log.warning("%s", found.told())
        self._said, self.found = found.unknown, None if found.unknown else found

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges; none for what is not known."""
        found, champion = self.found, self.follower.current
        if found is None or champion is None or champion.encoder != found.encoder:
            return
        searchable, waiting = champion.index.header.items, found.without_vector
        share = searchable / (searchable + waiting) if searchable + waiting else 1.0
        yield GaugeMetricFamily("moon_items_without_vector", "Items on sale that have no vector of what they say now.", value=waiting)
        unpublished = "Further items that have changed, or were embedded, since the last publication."
        yield GaugeMetricFamily("moon_items_unpublished", unpublished, value=found.unpublished)
        lag = "Since when the first item waits to be found as it is now, in seconds; 0 if none waits."
        yield GaugeMetricFamily("moon_vector_lag_seconds", lag, value=found.waiting.total_seconds())
        yield GaugeMetricFamily(
            "moon_catalogue_coverage", "Share of items that can be found among these and those without a vector.", value=share
        )
        if found.index_age is not None:
            age = "Since when the index was last brought up to date, in seconds."
            yield GaugeMetricFamily("moon_index_age_seconds", age, value=max(0.0, found.index_age.total_seconds()))
