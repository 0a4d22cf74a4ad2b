"""The candidate beside the champion, to compare what they find: loaded when somebody asks, let go when nobody has for a while."""

from __future__ import annotations

import logging
import threading
import time

from moon_ops.registry.registry import CANDIDATE, Registry
from moon_ops.serving import fixed
from moon_ops.serving.champion import Champion, linked
from moon_ops.serving.peers import Peers
from moon_ops.serving.shelf import Shelf
from moon_ops.settings import Settings

log = logging.getLogger(__name__)
IDLE = 600.0  # seconds after which it is let go: it takes as much memory as the champion
ASKED = 5.0  # seconds between two looks at the alias


class Beside:
    """Keeps the candidate while it is asked for. It is never served to anybody else, and leaves no trace."""

    def __init__(self, settings: Settings, shelf: Shelf | None = None, peers: Peers | None = None) -> None:
        self.settings, self.shelf, self.peers = fixed.without_effect(settings), shelf, peers
        self._turn = threading.Lock()
        self._kept: Champion | None = None
        self._looked = -ASKED
        self._letting_go: threading.Timer | None = None

    def candidate(self) -> Champion | None:
        """The candidate, loaded if it is not yet, which takes seconds; None if there is none. Of many who ask at once one loads it.

        Raises :class:`~moon_ops.errors.MoonError` if it cannot be loaded, or the registry does not answer.
        """
        with self._turn:
            if time.monotonic() - self._looked > ASKED:
                release = Registry(self.settings).alias(CANDIDATE)
                if release is None or self._kept is None or self._kept.version != release:
                    self._kept = None  # first: two at a time are enough
                    self._kept = None if release is None else self._loaded(release)
                elif self._kept.places != linked(self.settings, self._kept.encoder, self._kept.dimensions):
                    self._kept = self._kept.refreshed()
                self._looked = time.monotonic()  # last: what failed is tried again by the next who asks
            self._wait()
            return self._kept

    def _loaded(self, release: int) -> Champion:
        made = Champion(self.settings, fixed.parts(self.settings, release), self.shelf, self.peers)
        log.info("release %d is loaded beside the champion, to be compared with it", release)
        return made

    def _wait(self) -> None:
        """Let it go when nobody has asked for a while."""
        if self._letting_go is not None:
            self._letting_go.cancel()
        self._letting_go = threading.Timer(IDLE, self._let_go)
        self._letting_go.daemon = True
        self._letting_go.start()

    def _let_go(self) -> None:
        with self._turn:
            self._kept, self._looked = None, -ASKED
