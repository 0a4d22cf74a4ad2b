"""Places and secrets from the environment.

Everything that an embedded run writes lies under ``MOON_HOME``. In production the same variables name an object store, Redis and an
MLflow server.
"""

from __future__ import annotations

import datetime as dt
import os
import re
from dataclasses import dataclass
from pathlib import Path

from moon_ops.errors import InputError, SettingsError
from moon_ops.lake.lake import Lake

BEHAVIORS = 100  # of a user's last clicks that the features show by default; a click model may read fewer
VARIANTS = ("fp32", "int8", "fp16")  # of an encoder's graphs
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Settings:
    """Where things are. Made by :meth:`from_environment`; beside it only Feast's own configuration names variables."""

    home: Path
    lake: Lake
    tracking_uri: str  # MLflow: sqlite:///… or http(s)://…
    redis: str = ""  # host:port of the online store; empty: SQLite
    models: Path = ROOT / "models"
    inbox: Path | None = None  # a directory in the ingest layout that moon_new_items looks into
    workers: int = 2
    host: str = "127.0.0.1"
    port: int = 8321
    variant: str = "fp32"  # of an encoder's graphs
    behaviors: int = BEHAVIORS  # how many of a user's last clicks the features show
    items_token: str = ""  # who may send new items to the service; empty: nobody

    @classmethod
    def from_environment(cls, home: Path | None = None) -> Settings:
        """Read ``MOON_HOME``, ``MOON_LAKE``, ``MOON_TRACKING_URI``, ``MOON_REDIS``, ``MOON_MODELS``, ``MOON_INBOX``, ``MOON_WORKERS``,
        ``MOON_HOST``, ``MOON_PORT``, ``MOON_ITEMS_TOKEN``, ``MOON_VARIANT``, ``MOON_BEHAVIORS``; :class:`SettingsError` names the one
        that is wrong.
        """
        at = (home or Path(os.environ.get("MOON_HOME") or ".moon")).absolute()
        if at.exists() and not at.is_dir():
            raise SettingsError(f"MOON_HOME = {at} is a file, so nothing can be kept there", action="name a directory")
        nearest = next(p for p in (at, *at.parents) if p.exists())
        if not os.access(nearest, os.W_OK):
            raise SettingsError(f"MOON_HOME = {at} cannot be written to", action="name a directory that you may write to")
        lake = os.environ.get("MOON_LAKE") or str(at / "lake")
        return cls(
            home=at,
            lake=Lake(lake if "://" in lake else str(Path(lake).absolute())),
            tracking_uri=os.environ.get("MOON_TRACKING_URI") or f"sqlite:///{at / 'mlflow.db'}",
            redis=_address("MOON_REDIS"),
            models=Path(os.environ.get("MOON_MODELS") or ROOT / "models"),
            inbox=Path(inbox) if (inbox := os.environ.get("MOON_INBOX")) else None,
            workers=whole("MOON_WORKERS", min(os.cpu_count() or 1, 8)),
            host=os.environ.get("MOON_HOST") or "127.0.0.1",
            port=whole("MOON_PORT", 8321, most=65535),
            variant=_one_of("MOON_VARIANT", VARIANTS),
            behaviors=whole("MOON_BEHAVIORS", BEHAVIORS, most=10_000),
            items_token=os.environ.get("MOON_ITEMS_TOKEN", ""),
        )


def whole(name: str, default: int, most: int | None = None) -> int:
    """The environment variable ``name`` as a whole number from 1 to ``most``; :class:`SettingsError` if it is something else."""
    value = os.environ.get(name) or str(default)
    if not value.isdecimal() or int(value) < 1:
        raise SettingsError(f"{name} = {value!r} is not a whole number from 1", action=f"set {name} to e.g. {default}")
    if most is not None and int(value) > most:
        raise SettingsError(f"{name} = {value!r} is above {most}", action=f"set {name} to e.g. {default}")
    return int(value)


def _address(name: str) -> str:
    """The environment variable as Feast wants a Redis: ``host:port``, several with commas, and options such as ``password=…``."""
    value = os.environ.get(name, "")
    parts = [part for part in value.split(",") if "=" not in part]
    if value and not (parts and all(re.fullmatch(r"[\w.-]+:\d{1,5}", part) and int(part.rpartition(":")[2]) <= 65535 for part in parts)):
        raise SettingsError(f"{name} = {value.partition(',')[0]!r} is not host:port", action=f"set {name} to e.g. localhost:6379")
    return value


def _one_of(name: str, known: tuple[str, ...]) -> str:
    value = os.environ.get(name) or known[0]
    if value not in known:
        raise SettingsError(f"{name} = {value!r} is not one of {', '.join(known)}", action=f"set {name} to one of these")
    return value


def moment(text: str | None) -> dt.datetime | None:
    """A time as people write it on the command line, ISO 8601; without a zone it is UTC."""
    if text is None:
        return None
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError as wrong:
        raise InputError(f"{text!r} is not a time", action="write ISO 8601, e.g. 2026-02-15 or 2026-02-15T12:00:00Z") from wrong
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)
