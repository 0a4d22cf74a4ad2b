"""The services of docker-compose.yml from local packages: PostgreSQL, redis-server, an S3 in memory (moto), MLflow's server.

``environment`` reads deploy/local.env, as a machine without containers does, and puts in free ports and passwords of this run.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from string import Template

import httpx

ROOT = Path(__file__).resolve().parents[2]
POSTGRES = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:], *(Path(found).parent for found in [shutil.which("pg_ctl")] if found)]
MISSING = [name for name, there in {"postgresql": POSTGRES, "redis-server": shutil.which("redis-server")}.items() if not there]
PORTS = {"postgres": 5432, "redis": 6379, "mlflow": 5000, "s3": 8333}  # in deploy/local.env
PASSWORDS = ("REDIS_PASSWORD", "FEAST_DB_PASSWORD", "MLFLOW_DB_PASSWORD", "AIRFLOW_DB_PASSWORD", "POSTGRES_PASSWORD")
PATIENCE = 120.0  # seconds until a service must answer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(ports: dict[str, int], given: dict[str, str]) -> dict[str, str]:
    """The variables of deploy/local.env. An address of Postgres names no port there, so its usual one is meant."""
    lines = (ROOT / "deploy" / "local.env").read_text().splitlines()
    said = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    for name, port in PORTS.items():
        said = {key: value.replace(f"127.0.0.1:{port}", f"127.0.0.1:{ports[name]}") for key, value in said.items()}
    said = {key: value.replace("@127.0.0.1/", f"@127.0.0.1:{ports['postgres']}/") for key, value in said.items()}
    optional = dict.fromkeys(re.findall(r"\$(STACK_[A-Z]+)", "".join(said.values())), "")  # off, as in docker-compose.yml
    return {key: found for key, value in said.items() if (found := Template(value).substitute({**optional, **given}))}


class Door:
    """A port that leads to another one, and may be shut: what is behind it is away, and has forgotten nothing when it is back."""

    def __init__(self, port: int, behind: int) -> None:
        self.port, self.behind = port, behind
        self.open()

    def open(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self.passing: list[socket.socket] = []
        threading.Thread(target=self._accept, args=(self.listening,), daemon=True).start()

    def shut(self) -> None:
        for one in [self.listening, *self.passing]:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                here, _ = listening.accept()
                there = socket.create_connection(("127.0.0.1", self.behind))
                self.passing += [here, there]
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=_pass, args=pair, daemon=True).start()


def _pass(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


class Services:
    """All four, started one after another; ``stop`` and ``start`` take one away, and bring it back with what it had."""

    def __init__(self) -> None:
        self.place = place = Path(tempfile.mkdtemp(prefix="moon-services-"))  # pytest shuts its own directories to others
        self.ports = {name: free_port() for name in PORTS}
        self.given = {name: secrets.token_hex(8) for name in (*PASSWORDS, "S3_ACCESS_KEY", "S3_SECRET_KEY")}
        nobody = {"PWD": str(place), "MOON_ALERT_WEBHOOK": "", "MOON_ALERT_EMAIL": ""}
        self.environment = environment(self.ports, {**self.given, **nobody})
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.door = Door(self.ports["s3"], free_port())

    def __enter__(self) -> Services:
        try:
            self._make_postgres()
            for name in PORTS:
                self.start(name)
                {"postgres": self._make_databases, "s3": self._make_bucket}.get(name, lambda: None)()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.door.shut()
        for name in list(self.running):
            self._end(name)
        shutil.rmtree(self.place, ignore_errors=True)

    def start(self, name: str) -> None:
        """:class:`AssertionError` with the end of its log if it does not answer in time."""
        if name == "s3" and name in self.running:
            return self.door.open()
        command, answers = {"postgres": self._postgres, "redis": self._redis, "s3": self._s3, "mlflow": self._mlflow}[name]()
        log = self.place / f"{name}.log"
        with log.open("a") as out:
            self.running[name] = subprocess.Popen(
                command, stdout=out, stderr=out, cwd=self.place, env=self._known(), start_new_session=True
            )
        until = time.monotonic() + PATIENCE
        while not answers():
            assert self.running[name].poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < until, f"{name} does not answer: {log.read_text()[-4000:]}"
            time.sleep(0.1)
        return None

    def stop(self, name: str) -> None:
        if name == "s3":  # it keeps all in memory
            return self.door.shut()
        return self._end(name)

    def _end(self, name: str) -> None:
        process = self.running.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 2 if name == "postgres" else 9)
        process.wait(60)

    def _known(self) -> dict[str, str]:
        """What the services read of docker-compose.yml: S3's keys and the region."""
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        return {**os.environ, **self.environment, **quiet, "AWS_DEFAULT_REGION": "us-east-1"}

    def _postgres(self) -> tuple[list[str], Callable[[], bool]]:
        options = ["-p", str(self.ports["postgres"]), "-k", str(self.place), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        return [*_as_nobody(), str(POSTGRES[0] / "postgres"), "-D", str(self.place / "data"), *options], self._takes_queries

    def _redis(self) -> tuple[list[str], Callable[[], bool]]:
        import redis

        def answers() -> bool:
            with suppress(redis.exceptions.RedisError):
                return bool(redis.Redis(port=self.ports["redis"], password=self.given["REDIS_PASSWORD"]).ping())
            return False

        kept = [
            "--dir",
            str(self.place),
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
            "--hash-max-listpack-value",
            "8192",
        ]  # compose: every second
        return ["redis-server", "--port", str(self.ports["redis"]), "--requirepass", self.given["REDIS_PASSWORD"], *kept], answers

    def _s3(self) -> tuple[list[str], Callable[[], bool]]:
        return [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(self.door.behind)], _asks(
            f"http://127.0.0.1:{self.door.behind}/moto-api/"
        )

    def _mlflow(self) -> tuple[list[str], Callable[[], bool]]:
        address = f"postgresql+psycopg://mlflow:{self.given['MLFLOW_DB_PASSWORD']}@127.0.0.1:{self.ports['postgres']}/mlflow"
        port = ["--host", "127.0.0.1", "--port", str(self.ports["mlflow"]), "--workers", "1"]
        stores = ["--backend-store-uri", address, "--artifacts-destination", "s3://moon/mlflow"]
        return [sys.executable, "-m", "mlflow", "server", *port, *stores], _asks(f"{self.environment['MOON_TRACKING_URI']}/health")

    def _make_postgres(self) -> None:
        """It does not run as root."""
        if _as_nobody():
            shutil.chown(self.place, "nobody", "nogroup")
        password = self.place / "password"
        password.write_text(self.given["POSTGRES_PASSWORD"])
        command = [str(POSTGRES[0] / "initdb"), "-D", str(self.place / "data"), "-A", "scram-sha-256", "-U", "postgres", "-E", "UTF8"]
        command += ["--pwfile", str(password), "--no-sync"]
        subprocess.run([*_as_nobody(), *command], check=True, capture_output=True, cwd=self.place)

    def _takes_queries(self) -> bool:
        return not subprocess.run(["psql", "-c", "SELECT 1", "postgres"], env=self._client(), capture_output=True, check=False).returncode

    def _make_databases(self) -> None:
        """With the script of the container, as it is."""
        script = str(ROOT / "deploy" / "postgres" / "databases.sh")
        subprocess.run(["sh", script], check=True, env={**self._client(), **self.given, "POSTGRES_USER": "postgres"}, capture_output=True)

    def _client(self) -> dict[str, str]:
        where = {"PGHOST": "127.0.0.1", "PGPORT": str(self.ports["postgres"]), "PGUSER": "postgres"}
        found = {"PATH": f"{POSTGRES[0]}{os.pathsep}{os.environ['PATH']}", "PGPASSWORD": self.given["POSTGRES_PASSWORD"]}
        return {**os.environ, **where, **found}

    def _make_bucket(self) -> None:
        keys = {"aws_access_key_id": self.given["S3_ACCESS_KEY"], "aws_secret_access_key": self.given["S3_SECRET_KEY"]}
        import boto3

        store = boto3.client("s3", endpoint_url=self.environment["AWS_ENDPOINT_URL"], region_name="us-east-1", **keys)
        store.create_bucket(Bucket="moon")


def _as_nobody() -> list[str]:
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []


def _asks(address: str) -> Callable[[], bool]:
    def answers() -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(address, trust_env=False).status_code == 200
        return False

    return answers
