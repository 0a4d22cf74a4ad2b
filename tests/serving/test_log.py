"""The service's log, of a real process: each line has its time, and says what is served since when."""

from __future__ import annotations

import datetime as dt
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from moon_ops.settings import Settings


def test_the_log_says_what_is_served_and_each_line_when(copied: Settings, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    said, began = tmp_path / "said", dt.datetime.now(dt.UTC)
    words = [sys.executable, "-m", "moon_ops.cli", "serve", "--home", str(copied.home)]
    with said.open("w") as file:
        service = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=file, env={**os.environ, "MOON_PORT": str(port)})
    try:
        while "now serving" not in said.read_text() and dt.datetime.now(dt.UTC) - began < dt.timedelta(seconds=120):
            time.sleep(0.1)
        service.send_signal(signal.SIGINT)
        service.wait(30)
    finally:
        service.kill()
    line = next(line for line in said.read_text().splitlines() if "now serving" in line)
    found = re.fullmatch(r"(\S+) INFO moon_ops\.serving\.follower: now serving release 1 in place of none", line)
    assert found, line
    assert began - dt.timedelta(seconds=1) <= dt.datetime.fromisoformat(found[1]) <= dt.datetime.now(dt.UTC)
