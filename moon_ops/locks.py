"""Turns among machines: session locks of a Postgres server (``MOON_LOCKS``), by name.

They end with the connection, so a holder that dies leaves none; the server is set to notice a dead machine within half a minute. On
one machine the locks of :mod:`moon_ops.files` are enough, and an empty address takes none here.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from moon_ops.errors import InstallError, ServiceError
from moon_ops.files import TakenError

if TYPE_CHECKING:
    import psycopg

CONNECT_SECONDS = 10
SERVER = "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"


@contextlib.contextmanager
def among_machines(server: str, name: str, *, shared: bool = False, patience: float | None = None) -> Iterator[None]:
    """Hold the lock ``name`` of ``server``, an address like ``postgresql://user:password@host/database``; nothing is held for an empty one.

    ``shared`` with others that share it. Waits for ``patience`` seconds, for ever without it; then raises :class:`TakenError`. Raises
    :class:`ServiceError` if the server does not answer, and if the lock was lost while it was held.
    """
    if not server:
        yield
        return
    connection = _connected(server)
    try:
        _take(connection, _number(name), shared=shared, patience=patience)
        yield
        _require_held(connection, name)
    finally:
        connection.close()


def _connected(server: str) -> psycopg.Connection:
    try:
        import psycopg
    except ImportError:
        raise InstallError(
            "MOON_LOCKS names a Postgres server, and psycopg is not installed", action='pip install "psycopg[binary]"'
        ) from None
    address = re.sub(r"^(postgres(?:ql)?)\+\w+:", r"\1:", server)  # SQLAlchemy's addresses name the driver
    try:
        return psycopg.connect(
            address,
            autocommit=True,
            connect_timeout=CONNECT_SECONDS,
            options=SERVER,
            keepalives=1,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
        )
    except psycopg.Error as fault:
        problem = f"the server of locks (MOON_LOCKS) does not answer ({type(fault).__name__})"  # its message may show the password
        raise ServiceError(problem, action="start it, or correct MOON_LOCKS") from fault


def _take(connection: psycopg.Connection, number: int, *, shared: bool, patience: float | None) -> None:
    import psycopg

    kind = "_shared" if shared else ""
    try:
        if patience == 0:
            taken = connection.execute(f"SELECT pg_try_advisory_lock{kind}(%s)".encode(), [number]).fetchone()
            if not (taken and taken[0]):
                raise TakenError("somebody else holds a lock", action="try again later")
            return
        if patience is not None:
            connection.execute("SELECT set_config('lock_timeout', %s, false)", [f"{round(patience * 1000)}ms"])
        connection.execute(f"SELECT pg_advisory_lock{kind}(%s)".encode(), [number])
    except psycopg.errors.LockNotAvailable:
        raise TakenError(f"somebody else has held a lock for {patience:g} seconds", action="try again later") from None
    except psycopg.Error as fault:
        raise ServiceError(f"the server of locks (MOON_LOCKS) does not answer ({type(fault).__name__})", action="run it again") from fault


def _require_held(connection: psycopg.Connection, name: str) -> None:
    """The connection still being there means that nobody else has had the lock meanwhile."""
    import psycopg

    try:
        connection.execute("SELECT 1")
    except psycopg.Error as fault:
        problem = f"the lock '{name}' was lost before the work was done: another machine may have worked at the same time"
        raise ServiceError(problem, action="run it again; then `moon verify`") from fault


def _number(name: str) -> int:
    """Postgres knows locks by 64-bit numbers."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
