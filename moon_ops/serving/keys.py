"""API keys: who may ask a service for what, and how often.

A key is shown once, when it is made; kept is its sha256, which is enough, since a key is 32 random bytes and cannot be guessed. The file
(``MOON_API_KEYS``) is replaced in one step, and services see that it has changed, so a key that is revoked opens nothing a moment later.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import hashlib
import json
import logging
import os
import secrets
import struct
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from moon_ops.errors import InputError, StageError
from moon_ops.files import locked, write_text
from moon_ops.settings import Settings

log = logging.getLogger(__name__)
SEARCH, SCORE, WRITE, ADMIN = SCOPES = ("search", "score", "write", "admin")
PREFIX = "moon"  # of a key: moon_<id>_<secret>
USUAL_RATE = 100.0  # requests a second
BURST_SECONDS = 2.0  # of the rate that may come at once
MOST_NAME = 100  # characters


@dataclass(frozen=True)
class Key:
    """A key as it is kept; ``per_second`` requests are let through, ``revoked`` is the time (ISO 8601) or empty."""

    id: str
    name: str
    scopes: tuple[str, ...]
    sha256: str
    per_second: float
    created: str
    revoked: str = ""

    def shown(self) -> dict[str, object]:
        """What may be shown of it: all but the hash."""
        return {name: value for name, value in asdict(self).items() if name != "sha256"}

    def told(self) -> str:
        """One line for a list."""
        state = f"revoked {self.revoked}" if self.revoked else f"{self.per_second:g} a second"
        return f"{self.id}  {','.join(self.scopes)}  {self.name}  made {self.created}  {state}"


def place_of(settings: Settings) -> Path:
    """The file in which the keys are kept."""
    return settings.api_keys or settings.home / "keys.json"


def create(place: Path, name: str, scopes: Sequence[str], *, per_second: float, now: dt.datetime) -> tuple[Key, str]:
    """Make a key and keep its hash in the file ``place``; the key as it is kept, and what its owner sends: it is nowhere else.

    :class:`InputError` for an unknown scope, no name, or a rate that is not above zero.
    """
    if unknown := sorted(set(scopes) - set(SCOPES)):
        raise InputError(f"scope {unknown[0]!r} is none of {', '.join(SCOPES)}", action="name one of these")
    if not scopes:
        raise InputError("a key without a scope opens nothing", action=f"name at least one of {', '.join(SCOPES)}")
    if not name.strip() or len(name) > MOST_NAME or not name.isprintable():
        raise InputError(f"a key's name has 1 to {MOST_NAME} characters, in one line", action="say whose key it is")
    if not 0 < per_second < float("inf"):
        raise InputError(f"rate = {per_second:g} lets nothing through", action=f"give requests a second, e.g. {USUAL_RATE:g}")
    made, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    key = Key(made, name.strip(), tuple(s for s in SCOPES if s in scopes), _hash(secret), per_second, now.isoformat(timespec="seconds"))
    with _changing(place):
        _write(place, [*read(place), key])
    return key, f"{PREFIX}_{made}_{secret}"


def revoke(place: Path, key_id: str, *, now: dt.datetime) -> Key:
    """Let a key open nothing any more; it stays in the list. :class:`InputError` if there is none of this id."""
    with _changing(place):
        known = read(place)
        found = next((key for key in known if key.id == key_id), None)
        if found is None:
            raise InputError(f"there is no key {key_id!r} in {place}", action="look at `moon keys list`")
        gone = found if found.revoked else replace(found, revoked=now.isoformat(timespec="seconds"))
        _write(place, [gone if key.id == key_id else key for key in known])
    return gone


def read(place: Path) -> list[Key]:
    """The keys in the file, oldest first; none if there is no file. :class:`StageError` for a file that cannot be read."""
    try:
        return [Key(**{**row, "scopes": tuple(row["scopes"])}) for row in json.loads(place.read_text())["keys"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as damaged:
        raise StageError(
            f"{place} is no file of keys ({damaged})", action="bring it back, or remove it and make the keys anew"
        ) from damaged


def _write(place: Path, keys: Sequence[Key]) -> None:
    write_text(place, json.dumps({"keys": [asdict(key) for key in keys]}, indent=2) + "\n", mode=0o600)


def _changing(place: Path) -> contextlib.AbstractContextManager[None]:
    place.parent.mkdir(parents=True, exist_ok=True)
    return locked(place.with_name(f"{place.name}.lock"), patience=10.0)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class _Bucket:
    """What is left to a key at a moment, in requests; of all processes of a service, if it is in a ``file``."""

    form = struct.Struct("dd")  # what is left, and when that was so [s]

    def __init__(self, file: Path | None) -> None:
        self.kept = b""
        self.file = None if file is None else os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self, most: float, per_second: float, clock: float) -> float:
        """Take one out; the seconds until there is one, or 0."""
        if self.file is None:
            self.kept, wait = self._after(self.kept, most, per_second, clock)
            return wait
        fcntl.flock(self.file, fcntl.LOCK_EX)
        try:
            left, wait = self._after(os.pread(self.file, self.form.size, 0), most, per_second, clock)
            os.pwrite(self.file, left, 0)
        finally:
            fcntl.flock(self.file, fcntl.LOCK_UN)
        return wait

    def _after(self, kept: bytes, most: float, per_second: float, clock: float) -> tuple[bytes, float]:
        left, at = self.form.unpack(kept) if len(kept) == self.form.size else (most, clock)
        left = min(most, left + max(0.0, clock - at) * per_second)
        return (self.form.pack(left - 1, clock), 0.0) if left >= 1 else (self.form.pack(left, clock), (1 - left) / per_second)


@dataclass
class Keyring:
    """The keys of a file, as a service asks for them. May be used from many threads.

    ``together``: a directory by which the processes of a service on one machine share the rates of keys.
    """

    place: Path
    together: Path | None = None
    fault: str = ""  # why the file cannot be read; nobody is let in by a key then
    _seen: tuple[int, ...] = ()
    _keys: dict[str, Key] = field(default_factory=dict)
    _buckets: dict[str, _Bucket] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def any(self) -> bool:
        """Whether there has ever been a key: also a revoked one says that keys are wanted."""
        self._look()
        return bool(self._keys) or bool(self.fault)

    def all(self) -> list[Key]:
        """The keys, oldest first."""
        self._look()
        return list(self._keys.values())

    def find(self, token: str) -> Key | None:
        """The key that a request shows; None for none, a wrong or a revoked one."""
        self._look()
        prefix, _, rest = token.partition("_")
        key_id, _, secret = rest.partition("_")
        key = self._keys.get(key_id)
        known = key is not None and secrets.compare_digest(key.sha256, _hash(secret))
        return key if known and key is not None and prefix == PREFIX and not key.revoked else None

    def wait(self, key: Key, clock: float) -> float:
        """Count a request at ``clock`` [s], the machine's monotonic one; 0 if it is let through, or the seconds until one will be.

        The rate is that of the service.
        """
        most = max(1.0, key.per_second * BURST_SECONDS)
        with self._lock:
            bucket = self._buckets.get(key.id)
            if bucket is None:
                file = None if self.together is None else self.together / f"{_hash(key.id)[:32]}.rate"
                bucket = self._buckets[key.id] = _Bucket(file)
            return bucket.take(most, key.per_second, clock)

    def _look(self) -> None:
        """Read the file again if it is another one than the last time."""
        try:
            found = self.place.stat()
            seen: tuple[int, ...] = (found.st_mtime_ns, found.st_size, found.st_ino)
        except OSError:
            seen = ()
        if seen == self._seen:
            return
        with self._lock:
            try:
                self._keys, self.fault = {key.id: key for key in read(self.place)}, ""
            except StageError as damaged:
                self._keys, self.fault = {}, damaged.problem
                log.error("no key opens anything: %s", damaged)
            self._seen = seen
