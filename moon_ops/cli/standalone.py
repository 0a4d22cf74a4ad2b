"""``make airflow``: Airflow in one process tree with our DAGs, at home in ``MOON_HOME/airflow``, and a clean stop on Ctrl-C."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

from moon_ops.errors import InstallError, MoonError, ServiceError
from moon_ops.serving.sockets import require_free
from moon_ops.settings import PACKAGE, ROOT, Settings, whole
from moon_ops.startup import QUIET

STOP_SECONDS = 15
POOL = ("moon_training", "1", "One training at a time")


def environment(settings: Settings, port: int) -> dict[str, str]:
    """The variables of an Airflow that runs our DAGs, on SQLite, for one user on this machine (everyone is admin)."""
    home = settings.home / "airflow"
    return {
        **QUIET,
        **os.environ,
        "MOON_HOME": str(settings.home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # standalone starts a bare `airflow`
        "PYTHONPATH": os.pathsep.join(p for p in (str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")) if p),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}?timeout=30",  # without: "database is locked"
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "2",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": f"http://localhost:{port}",
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "15",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        "TQDM_MININTERVAL": "10",
    }


def run(settings: Settings, port: int) -> int:
    """Run until interrupted; Airflow's exit code. :class:`ServiceError` if the port is in use, :class:`InstallError` without Airflow."""
    _require_airflow()
    require_free("127.0.0.1", port, variable="AIRFLOW_PORT")
    (settings.home / "airflow").mkdir(parents=True, exist_ok=True)
    print(f"Airflow: http://localhost:{port} in about half a minute. DAGs start paused: switch on the ones you want.", flush=True)
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, _interrupt)
    command = [sys.executable, "-m", "airflow", "standalone"]
    process = None
    try:
        make_pool(settings, port)
        process = subprocess.Popen(command, env=environment(settings, port), start_new_session=True)
        return process.wait()
    except KeyboardInterrupt:
        if process is None:
            return 1
        process.send_signal(signal.SIGINT)  # to the parent alone: a signal to the whole group leaves the scheduler hanging
        with suppress(subprocess.TimeoutExpired):
            return process.wait(STOP_SECONDS)
        return 1
    finally:
        with suppress(ProcessLookupError):
            if process is not None:
                os.killpg(process.pid, signal.SIGKILL)  # what is left of our own session


def make_pool(settings: Settings, port: int) -> None:
    """The pool in which one training runs at a time, once; without it Airflow never starts a task that is in it."""
    done = settings.home / "airflow" / f".pool-{POOL[0]}"
    if done.exists():
        return
    airflow = [sys.executable, "-m", "airflow"]
    for command in ([*airflow, "db", "migrate"], [*airflow, "pools", "set", *POOL]):
        made = subprocess.run(command, env=environment(settings, port), capture_output=True, text=True)
        if made.returncode:
            said = (made.stderr or made.stdout).strip().splitlines()[-1:]
            raise ServiceError(
                f"Airflow's database could not be made ready ({' '.join(said)})", action="run `airflow db migrate` to see all of it"
            )
    done.touch()


def _require_airflow() -> None:
    if importlib.util.find_spec("airflow") is None:
        raise InstallError("Airflow is not installed", action='pip install "moon_ops[airflow,serve,train]"')


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        sys.exit(run(Settings.from_environment(), whole("AIRFLOW_PORT", os.environ.get("AIRFLOW_PORT") or 8080, 8080)))
    except MoonError as fault:
        print(f"moon: {fault}", file=sys.stderr)
        sys.exit(1)
