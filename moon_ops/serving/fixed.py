"""One release, to look at before it is promoted: whatever the alias says, and without a trace of it for services, jobs or people."""

from __future__ import annotations

import datetime as dt
import logging

from moon_ops.errors import GateError, MoonError
from moon_ops.registry.registry import Registry, manifest_of
from moon_ops.release import served, verification
from moon_ops.release.verification import Parts
from moon_ops.serving.champion import Champion
from moon_ops.serving.follower import Follower
from moon_ops.settings import Settings

log = logging.getLogger(__name__)


def without_effect(settings: Settings) -> Settings:
    """The same, but a service with them moves no alias, takes no items in and hears of no alias."""
    return settings.replace(repair=False, auto_rollback=False, items_token="", webhook_secret="")


def parts(settings: Settings, release: int) -> Parts:
    """The parts of any registered release; one that failed its gates is told in the log.

    Raises :class:`MoonError` if there is no such release, or a part of it is missing or is not what its manifest says.
    """
    registry = Registry(settings)
    try:
        verification.require_passed(manifest_of(registry, release))
    except GateError as failed:
        log.warning("release %d is served to be looked at, although %s", release, failed.problem)
    return served.parts_of(settings, registry, release, forced=True)


class Fixed(Follower):
    """Keeps one release, and opens its new publications; follows no alias, writes down nothing and refuses nothing."""

    fixed = True

    def __init__(self, settings: Settings, release: int) -> None:
        super().__init__(settings)
        self.asked = release

    def follow(self) -> None:
        """Load the release, if it is not loaded yet."""
        assert self.asked is not None
        if self.current is not None:
            return
        try:
            self._serve(self._champion(parts(self.settings, self.asked)))
            self._why = self._said = ""
        except Exception as fault:  # told at /ready, and tried again
            self._refuse(f"release {self.asked} cannot be served: {fault}", fault, known=isinstance(fault, MoonError))

    def _remembered(self) -> None:
        """What was served last is another release."""

    def _keep(self, champion: Champion, since: dt.datetime) -> None:
        """A restart of the service proper must not find this one."""
