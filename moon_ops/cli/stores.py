"""Each store that the stages need, for ``moon doctor``: lake, Feast's registry, online store, and whether their clocks agree with ours."""

from __future__ import annotations

import contextlib
import datetime as dt
import email.utils
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from moon_ops.cli import terminal
from moon_ops.errors import MoonError
from moon_ops.settings import Settings, shown

LISTPACK = 8192  # bytes of the longest value that Redis should keep without an entry of its own: a vector of 2,048 numbers
SECONDS = 5.0  # that a server may take to answer
SKEW = dt.timedelta(minutes=2)  # by which a server's clock may differ from ours

Check = tuple[str, bool, str]


def examine(settings: Settings, now: dt.datetime) -> Iterator[Check]:
    """Every store in turn, then the clocks; what needs a package that is not installed is left out."""
    for check in (_lake, _feast, _online, _configuration):
        try:
            yield check(settings)
        except MoonError as fault:
            yield check.__name__.strip("_"), False, str(fault)
        except ImportError as missing:
            yield check.__name__.strip("_"), True, f"{missing.name} is not installed"
    yield from _clocks(settings, now)


def _lake(settings: Settings) -> Check:
    counts = {name: settings.lake.count(name) for name in ("items", "queries", "events")}
    return "lake", True, f"{settings.lake.uri}: {', '.join(f'{count:,} {name}' for name, count in counts.items())}"


def _feast(settings: Settings) -> Check:
    """Feast's registry: a file in the home, which reads this lake, or a database that answers."""
    address = settings.feast_registry.get_secret_value()
    if address:
        import sqlalchemy

        try:
            with sqlalchemy.create_engine(address).connect():
                return "feast", True, f"{shown(settings.feast_registry)} answers"
        except Exception as fault:  # each driver has classes of its own
            problem = f"MOON_FEAST_REGISTRY = {shown(settings.feast_registry)} does not answer ({type(fault).__name__})"
            if isinstance(fault, ImportError):
                problem, action = f"the driver for {shown(settings.feast_registry)} is not installed ({fault})", "install it with pip"
            elif isinstance(fault, sqlalchemy.exc.OperationalError):
                action = "start it"
            else:
                action = "correct the address"
            return "feast", False, f"{problem} → {action}"
    from moon_ops.embeddings import features

    place = settings.home / "feature_store" / "registry.db"
    if not place.is_file():
        return "feast", True, "no registry yet: the first `moon publish` makes it"
    if not _sound(place):
        return "feast", False, f"{place} is broken → remove it, and run `moon publish --full` for every encoder"
    if features.elsewhere(settings):
        return "feast", True, f"{place} names the tables of another lake: the next command that opens it mends that"
    return "feast", True, f"{place} reads this lake"


def _online(settings: Settings) -> Check:
    client = _redis(settings)
    if client is not None:
        import redis

        try:
            client.ping()
        except redis.RedisError as fault:
            return "online", False, f"MOON_REDIS = {shown(settings.redis)} does not answer ({fault}) → start it, or correct the address"
        return "online", True, f"Redis at {shown(settings.redis)} answers{_roomy(client)}"
    place = settings.home / "feature_store" / "online.db"
    if place.is_file() and not _sound(place):
        return "online", False, f"{place} is broken → remove it, and run `moon publish --full` for every encoder"
    return "online", True, str(place) if place.is_file() else "no online store yet: the first `moon publish` makes it"


def _roomy(client: Any) -> str:
    """That a server keeps each vector as a table entry of its own, where it does and tells so."""
    import redis

    with contextlib.suppress(redis.RedisError, KeyError, ValueError):  # a managed one may forbid the question
        most = int(client.config_get("hash-max-listpack-value")["hash-max-listpack-value"])
        if most < LISTPACK:
            return f"; with `hash-max-listpack-value {LISTPACK}` (now {most}) it would take less memory (docs/operations.md)"
    return ""


def _configuration(settings: Settings) -> Check:
    place = settings.home / "feature_store" / "feature_store.yaml"
    if place.is_file() or not place.parent.is_dir():
        return "feature_store", True, f"{place}" if place.is_file() else "not written yet"
    return "feature_store", False, f"{place} is missing: notebooks cannot open the store → run `moon doctor --repair`"


def _clocks(settings: Settings, now: dt.datetime) -> Iterator[Check]:
    """Our clock against what the lake has learned, and against the servers'."""
    from moon_ops.lake import clocks

    with contextlib.suppress(MoonError):  # a lake that cannot be read is said above
        ahead = clocks.warning(settings.lake, now)
        yield "clock", not ahead, f"{ahead} → set the clock (`timedatectl`)" if ahead else "nothing in the lake lies ahead of it"
    for name, off in _servers(settings):
        told = f"differs by {off.total_seconds():.0f} s from ours"
        yield f"clock of {name}", off <= SKEW, told if off <= SKEW else f"{told} → set both by NTP"


def _servers(settings: Settings) -> Iterator[tuple[str, dt.timedelta]]:
    """How far the clock of each server that answers is from ours, as it is asked: a look at all stores may take a minute."""
    address = settings.tracking_uri.get_secret_value()
    if address.startswith("http"):
        with contextlib.suppress(httpx.HTTPError, httpx.InvalidURL, LookupError, ValueError):
            said = httpx.get(address, timeout=SECONDS).headers.get_list("date")[0]  # an MLflow behind uvicorn has two
            found = email.utils.parsedate_to_datetime(said)
            yield "MLflow", abs((found if found.tzinfo else found.replace(tzinfo=dt.UTC)) - terminal.now())  # HTTP's dates are in UTC
    client = _redis(settings)
    if client is not None:
        with contextlib.suppress(Exception):  # one that does not answer is said above
            seconds, micros = client.time()
            yield "Redis", abs(dt.datetime.fromtimestamp(seconds + micros / 1e6, dt.UTC) - terminal.now())


def _redis(settings: Settings) -> Any:
    """A client of the first server named; None if the online store is a file."""
    parts = settings.redis.get_secret_value().split(",")
    if not parts[0]:
        return None
    import redis

    host, _, port = next(part for part in parts if "=" not in part).rpartition(":")
    options = dict(part.split("=", 1) for part in parts if "=" in part)
    named: dict[str, Any] = {name: options[name] for name in ("username", "password") if name in options}
    named |= {"ssl": options.get("ssl", "").lower() == "true", "socket_connect_timeout": SECONDS, "socket_timeout": SECONDS}
    return redis.Redis(host=host, port=int(port), **named)


def _sound(place: Path) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(f"{place.absolute().as_uri()}?mode=ro", uri=True, timeout=SECONDS)) as tables:
            return bool(tables.execute("PRAGMA quick_check").fetchone()[0] == "ok")
    except sqlite3.DatabaseError as fault:
        return "locked" in str(fault)
