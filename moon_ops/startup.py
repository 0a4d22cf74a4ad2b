"""What libraries read from the process they are in, set in one place: an entry point calls :func:`start` before it imports them.

Entry points are the command line, the tasks of the DAGs and a worker of a Ray cluster. Nothing else here changes a process: who imports
moon_ops into a notebook or a service finds it as it was.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from moon_ops.processor import bound, cores

QUIET = {  # read by each library once, when it is first imported; what is set already stays
    "LANCE_LOG": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "GIT_PYTHON_REFRESH": "quiet",
}
# Rounds for which a thread of GNU OpenMP waits awake. Its default, 300,000, takes the time that the thread it waits for needs, where both
# have one core and where somebody else has work, too.
SPINS = "3000"
HURRIED = {"OBJECT_STORE_CLIENT_MAX_RETRIES": "0", "OBJECT_STORE_CLIENT_RETRY_TIMEOUT": "3", "AWS_TIMEOUT": "3s"}  # of Lance's stores


def hurry() -> None:
    """From now on a lake's store has seconds to answer, as somebody looks: Lance asks one that hangs for minutes."""
    for name, value in HURRIED.items():
        os.environ.setdefault(name, value)


@contextmanager
def without(*packages: str) -> Iterator[None]:
    """While libraries are imported that would import these ``packages`` only because they are installed: they are told that none is."""
    absent = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: an import says that there is no such module
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def _bind_threads() -> None:
    """OpenMP's threads, as torch and FAISS have them: they wait for each other asleep, and are no more than a container's share of time."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    if (own := cores()) < bound():
        os.environ.setdefault("OMP_NUM_THREADS", str(own))


def start() -> None:
    """Fewer log lines, progress bars that a log can hold, no telemetry, threads that leave other work its cores. May be called again."""
    _bind_threads()
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    # of Feast, whose pandas some commands do without
    warnings.filterwarnings("ignore", "Failure attempting to register request header provider")
