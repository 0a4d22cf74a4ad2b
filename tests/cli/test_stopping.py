"""The stop key: one line and no traceback, and the same command goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def stopped_at(moment: str, said: Path, home: Path) -> str:
    """What a demo says that is stopped as a terminal does it: the key's signal goes to the command and all that it has started."""
    words = [sys.executable, "-m", "moon_ops.cli", "demo", "--size", "tiny", "--encoder", "moon-nano", "--home", str(home)]
    with said.open("w") as file:
        running = subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        for _ in range(600):
            if moment in said.read_text() or running.poll() is not None:
                break
            time.sleep(0.1)
        assert running.poll() is None, said.read_text()
        os.killpg(running.pid, signal.SIGINT)
        assert running.wait(timeout=30) == 130
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
    return said.read_text()


def test_the_stop_key_ends_a_command_with_one_line_and_it_goes_on(tmp_path: Path) -> None:
    for moment in ("[1/10] shop", "[2/10] ingest", "training takes about"):  # the same home: each goes on where the one before was
        told = stopped_at(moment, tmp_path / "said", tmp_path / "home")
        assert moment in told
        assert told.splitlines()[-1] == (
            "moon: stopped; what is finished is kept, and the same command does the rest; "
            "a training goes on from its last checkpoint, if it has made one"
        )
        assert told.count("moon: stopped") == 1
        assert "Traceback" not in told
