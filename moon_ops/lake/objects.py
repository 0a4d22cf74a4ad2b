"""Files beside the tables in the lake's object store: written once, never changed, fetched whole and checked.

Arrow's file systems speak to the stores that Lance speaks to, with the same variables (``AWS_ENDPOINT_URL``, …), and are installed anyway.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moon_ops.errors import ContractError, ServiceError
from moon_ops.lake.lake import Lake

CHUNK = 8 << 20  # bytes in memory at a time


def put(lake: Lake, key: str, source: Path) -> str:
    """Copy a file to ``key``; its sha256. Raises :class:`ServiceError` if the store does not take it."""
    digest = hashlib.sha256()
    files, at = _store(lake)
    try:
        if files.type_name == "local":  # object stores know no directories
            files.create_dir(f"{at}/{key}".rpartition("/")[0], recursive=True)
        with source.open("rb") as read, files.open_output_stream(f"{at}/{key}") as written:
            while part := read.read(CHUNK):
                digest.update(part)
                written.write(part)
    except OSError as fault:
        raise _away(lake, fault) from fault
    return digest.hexdigest()


def get(lake: Lake, key: str, target: Path, sha256: str | None) -> None:
    """Copy ``key`` to a new file; :class:`FileNotFoundError` if it is gone, :class:`ContractError` if it is not what was put there.

    Without a ``sha256`` that is not looked at.
    """
    digest = hashlib.sha256()
    files, at = _store(lake)
    try:
        with files.open_input_stream(f"{at}/{key}") as read, target.open("xb") as written:
            while part := read.read(CHUNK):
                digest.update(part)
                written.write(part)
    except FileNotFoundError:
        raise
    except OSError as fault:
        raise _away(lake, fault) from fault
    if sha256 is not None and digest.hexdigest() != sha256:
        problem = f"{lake.uri}/{key} has sha256 {digest.hexdigest()[:12]}, and {sha256[:12]} was put there"
        raise ContractError(problem, action="run `moon publish --full`, which puts it there anew")


def keys(lake: Lake, directory: str) -> Iterator[str]:
    """The keys under a directory; none if there is none."""
    import pyarrow.fs as fs

    files, at = _store(lake)
    try:
        found = files.get_file_info(fs.FileSelector(f"{at}/{directory}", recursive=True, allow_not_found=True))
    except OSError as fault:
        raise _away(lake, fault) from fault
    yield from (info.path.removeprefix(f"{at}/") for info in found if info.is_file)


def newest(lake: Lake, directory: str) -> dict[str, dt.datetime]:
    """Of each directory in ``directory`` the time at which the store last took a file of it."""
    import pyarrow.fs as fs

    files, at = _store(lake)
    try:
        found = files.get_file_info(fs.FileSelector(f"{at}/{directory}", recursive=True, allow_not_found=True))
    except OSError as fault:
        raise _away(lake, fault) from fault
    times: dict[str, dt.datetime] = {}
    for info in (info for info in found if info.is_file):
        inner = info.path.removeprefix(f"{at}/{directory}/").partition("/")[0]
        times[inner] = max(times.get(inner, info.mtime), info.mtime)
    return times


def remove(lake: Lake, key: str) -> None:
    """Delete what lies at ``key``; nothing happens if it is gone."""
    files, at = _store(lake)
    try:
        files.delete_file(f"{at}/{key}")
    except FileNotFoundError:
        return
    except OSError as fault:
        raise _away(lake, fault) from fault


def _store(lake: Lake) -> tuple[Any, str]:
    """Arrow's file system, and where in it the lake lies."""
    import pyarrow.fs as fs

    files, at = fs.FileSystem.from_uri(lake.uri)
    return files, at.rstrip("/")


def _away(lake: Lake, fault: OSError) -> ServiceError:
    return ServiceError(f"the store of the lake at {lake.uri} does not answer ({str(fault).splitlines()[0]})", action="check the store")
