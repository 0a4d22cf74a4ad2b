"""Which releases a service of this home has refused to serve, and why: ``MOON_HOME/refused.json``, for whoever else has to know.

A service tries a refused release again each minute, and writes the refusal down each time. So one that nobody has written down for ten
minutes is of a service that runs no more, and counts for nothing.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from moon_ops.files import locked, write_text
from moon_ops.settings import Settings

COUNTS = dt.timedelta(minutes=10)  # ten attempts of a service
LONGEST = 500  # characters of a reason that are kept


@dataclass(frozen=True)
class Refusal:
    """Service ``by`` (host:port) could not serve ``release``, or it did badly on logged queries; last at ``at`` (ISO 8601)."""

    release: int
    reason: str
    at: str
    by: str

    def told(self) -> str:
        """One line for people."""
        return f"release {self.release} is not served: the service on {self.by} has refused it, {self.at}: {self.reason}"


def note(settings: Settings, refusal: Refusal) -> None:
    """Write a refusal down in place of the same service's last one."""
    with _changing(settings) as known:
        known[refusal.by] = Refusal(refusal.release, refusal.reason[:LONGEST], refusal.at, refusal.by)


def forget(settings: Settings, *, by: str = "", release: int | None = None) -> None:
    """Strike out what one service has refused, because it serves what is asked for; or a ``release``, because somebody insists on it."""
    gone = [kept.by for kept in all_of(settings) if kept.by == by or kept.release == release]
    if gone:
        with _changing(settings) as known:
            for service in gone:
                known.pop(service, None)


def standing(settings: Settings, now: dt.datetime) -> list[Refusal]:
    """The refusals that count at ``now``, one of a service at most."""
    return [refusal for refusal in all_of(settings) if now - dt.datetime.fromisoformat(refusal.at) < COUNTS]


def all_of(settings: Settings) -> list[Refusal]:
    """All that is written down; nothing where the file is not there or was written by somebody else."""
    return list(_read(_place(settings)).values())


def _place(settings: Settings) -> Path:
    return settings.home / "refused.json"


def _read(place: Path) -> dict[str, Refusal]:
    try:
        kept = [Refusal(int(one["release"]), str(one["reason"]), str(one["at"]), str(one["by"])) for one in json.loads(place.read_text())]
        if any(dt.datetime.fromisoformat(refusal.at).tzinfo is None for refusal in kept):
            return {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {refusal.by: refusal for refusal in kept}


@contextlib.contextmanager
def _changing(settings: Settings) -> Iterator[dict[str, Refusal]]:
    """What is written down, to be changed; services that share a home take turns."""
    with locked(settings.home / "refused.lock"):
        known = _read(_place(settings))
        yield known
        write_text(_place(settings), json.dumps([asdict(refusal) for refusal in known.values()], indent=2) + "\n")
