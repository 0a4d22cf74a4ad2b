"""Turns among machines: a real Postgres server, whose locks end with the connection that holds them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from moon_ops.errors import ServiceError, SettingsError
from moon_ops.files import TakenError
from moon_ops.locks import among_machines
from moon_ops.settings import Settings

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:] or [Path(found).parent for found in [shutil.which("pg_ctl")] if found]
psycopg = pytest.importorskip("psycopg")
pytestmark = pytest.mark.skipif(not BINARIES, reason="no Postgres server is installed")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Postgres server of its own; it does not run as root."""
    place = tmp_path_factory.mktemp("postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []
    if user:
        for parent in [place, *place.parents[:3]]:
            parent.chmod(0o755)
        shutil.chown(place, "nobody", "nogroup")
    data, binaries = str(place / "data"), BINARIES[0]
    quiet = {"check": True, "capture_output": True, "cwd": place}
    subprocess.run([*user, str(binaries / "initdb"), "-D", data, "-A", "trust", "-U", "moon", "--no-sync"], **quiet)  # type: ignore[call-overload]
    options = f"-p {port} -k {place} -c listen_addresses=127.0.0.1 -c fsync=off"
    start = [*user, str(binaries / "pg_ctl"), "-D", data, "-w", "-o", options, "-l", str(place / "log"), "start"]
    subprocess.run(start, **{**quiet, "capture_output": False, "stdout": subprocess.DEVNULL})  # type: ignore[call-overload]
    yield f"postgresql://moon@127.0.0.1:{port}/postgres"
    subprocess.run([*user, str(binaries / "pg_ctl"), "-D", data, "-m", "immediate", "stop"], **quiet)  # type: ignore[call-overload]


def test_one_holds_it_and_others_are_told(server: str) -> None:
    with among_machines(server, "publish"):
        with pytest.raises(TakenError, match="somebody else holds a lock"), among_machines(server, "publish", patience=0):
            pass
        with pytest.raises(TakenError, match="has held a lock for"), among_machines(server, "publish", patience=0.2):
            pass
        with among_machines(server, "moves", patience=0):
            pass
    with among_machines(server, "publish", patience=0):
        pass


def test_readers_share_it(server: str) -> None:
    with among_machines(server, "erasure", shared=True), among_machines(server, "erasure", shared=True, patience=0):
        refused = pytest.raises(TakenError)
        with refused, among_machines(server, "erasure", patience=0):
            pass


def test_a_killed_holder_leaves_none(server: str) -> None:
    hold = "from moon_ops.locks import among_machines\nimport sys, time\n"
    hold += "with among_machines(sys.argv[1], 'ingest'):\n    print('held', flush=True)\n    time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", hold, server], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(TakenError), among_machines(server, "ingest", patience=0):
        pass
    holder.kill()
    holder.wait()
    began = time.monotonic()
    with among_machines(server, "ingest", patience=60):
        assert time.monotonic() - began < 60


def test_a_lock_that_was_lost_is_an_error(server: str) -> None:
    lost = pytest.raises(ServiceError, match="the lock 'publish' was lost")
    with psycopg.connect(server, autocommit=True) as other, lost, among_machines(server, "publish"):
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")


def test_the_lake_and_its_settings_take_turns_there(server: str, tmp_path: Path) -> None:
    first, second = (Settings(home=tmp_path / name, locks=server, lake=f"file://{tmp_path}/lake") for name in ("first", "second"))
    with (
        first.lake.one_writer(),
        pytest.raises(ServiceError, match="somebody else has been writing to the lake"),
        second.lake.one_writer(0.1),
    ):
        pass
    with first.lake.erasing(shared=True), second.lake.erasing(shared=True):
        pass
    other = Settings(home=tmp_path / "third", locks=server, lake=f"file://{tmp_path}/another")
    with first.lake.one_writer(), other.lake.one_writer(0.1):
        pass


def test_a_server_that_is_away_is_said_to_be_away() -> None:
    address = "postgresql+psycopg://moon:geheim@127.0.0.1:1/moon"
    with (
        pytest.raises(ServiceError, match=r"the server of locks \(MOON_LOCKS\) does not answer") as fault,
        among_machines(address, "publish"),
    ):
        pass
    assert "geheim" not in str(fault.value)


def test_an_address_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"MOON_LOCKS = 'redis://\*\*\*@host' is no address of a Postgres server"):
        Settings(home=tmp_path, locks="redis://moon:geheim@host")


def test_without_a_server_nothing_is_held() -> None:
    with among_machines("", "publish"), among_machines("", "publish", patience=0):
        pass
