"""Faults of the machine in one sentence: a full disk, a place that may not be written, a database that others hold.

They come in the classes of whatever library was writing. What they have in common is the error number, or SQLite's own words.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from collections.abc import Iterator

from moon_ops import files
from moon_ops.errors import ServiceError

KEPT = "what was finished before is kept, nothing is lost"
FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
WORDS = {  # of libraries that pass the operating system's or SQLite's message on, in classes of their own
    r"database is locked|database table is locked": errno.EAGAIN,
    r"attempt to write a readonly database|Read-only file system|os error 30|Permission denied|os error 13|No usable temporary dir": CLOSED[
        0
    ],
}
FULL_WORDS = re.compile(  # which nothing else is told by: also of Lance and safetensors, SQLite, and two of torch
    rf"{files.FULL.pattern}|os error 28|Disk quota exceeded|database or disk is full"
    r"|PytorchStreamWriter failed writing|inline_container\.cc:\d+\] \. unexpected pos"
)
OF_THE_MACHINE = ("sqlalchemy", "mlflow", "feast", "duckdb", "_duckdb", "safetensors")  # whose faults may be the machine's


def told(fault: BaseException, command: str) -> ServiceError | None:
    """A fault of the machine as an error that says what was not written and what to do; None for any other."""
    for cause in _causes(fault):
        kind, place = _kind(cause), _place(cause)
        if kind in FULL:
            return ServiceError(f"the disk is full{place}: `{command}` did not end; {KEPT}", action="make room, and run it again")
        if kind in CLOSED:
            action = "check its owner and how it is mounted, and run it again"
            return ServiceError(f"a file cannot be written or read{place}: `{command}` did not end; {KEPT}", action=action)
        if kind == errno.EAGAIN:
            problem = f"the database is locked: another process has been writing to it for too long; `{command}` did not end; {KEPT}"
            return ServiceError(problem, action="end that process, or wait for it, and run it again")
    return None


def _causes(fault: BaseException | None) -> Iterator[BaseException]:
    """A fault and what it was raised from, each once."""
    seen = set[int]()
    while fault is not None and id(fault) not in seen:
        seen.add(id(fault))
        yield fault
        fault = fault.__cause__ or fault.__context__


def _kind(fault: BaseException) -> int | None:
    if isinstance(fault, OSError) and fault.errno in (*FULL, *CLOSED):
        return fault.errno
    if FULL_WORDS.search(str(fault)):
        return FULL[0]
    if isinstance(fault, (OSError, sqlite3.Error)) or type(fault).__module__.partition(".")[0] in OF_THE_MACHINE:
        return next((number for words, number in WORDS.items() if re.search(words, str(fault))), None)
    return None


def _place(fault: BaseException) -> str:
    named = fault.filename if isinstance(fault, OSError) and isinstance(fault.filename, (str, bytes)) else ""
    return f" ({os.fsdecode(named)})" if named else ""
