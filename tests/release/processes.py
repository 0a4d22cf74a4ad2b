"""Servers as processes of their own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

WAIT_SECONDS = 90.0


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process(command: list[str], alive: str, log: Path, environment: dict[str, str]) -> Iterator[None]:
    """A process with its children, once it answers 200 at ``alive``; ended at the end."""
    with log.open("a") as out:
        started = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, env={**os.environ, **environment})
    try:
        began = time.monotonic()
        while time.monotonic() - began < WAIT_SECONDS:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(alive, trust_env=False).status_code == 200:
                    break
            assert started.poll() is None, log.read_text()
            time.sleep(0.2)
        else:
            raise AssertionError(log.read_text())
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, 9)
        started.wait(30)
