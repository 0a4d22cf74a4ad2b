"""Keep the memory of one training step for the next.

glibc gives every large block back to the kernel when it is freed and asks for it again a moment later; on a CPU the page faults of a
training step then cost up to half of its time. Other C libraries, and other systems, are left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # mallopt's names for them
KEPT = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1}
USUAL = {MMAP_MAX: 65536, TRIM_THRESHOLD: 128 * 1024, MMAP_THRESHOLD: 128 * 1024}


@contextlib.contextmanager
def memory_kept() -> Iterator[None]:
    """Within, freed memory stays with the process; afterwards it goes back to the kernel."""
    libc = _glibc()
    if libc is None:
        yield
        return
    _set(libc, KEPT)
    try:
        yield
    finally:
        _set(libc, USUAL)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "malloc_trim") else None


def _set(libc: ctypes.CDLL, values: dict[int, int]) -> None:
    for option, value in values.items():
        libc.mallopt(option, value)
