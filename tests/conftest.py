"""Fixtures: an isolated environment, the tiny simulated shop, a home in which the whole demo has run, and one to train a small encoder in.

Several processes may run the tests (pytest-xdist): each has a scratch directory of its own, and what none of them writes to is made once.
"""

from __future__ import annotations

import atexit
import datetime as dt
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import prometheus_client  # noqa: F401  # before Feast, as moon_ops.serving.app has it
import pytest
from filelock import FileLock

from moon_ops.startup import start

ROOT = Path(__file__).resolve().parents[1]
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if not WORKER:  # the first process; its workers inherit the variable
    os.environ["TESTS_SHARED"] = tempfile.mkdtemp(prefix="moon-tests-")
    atexit.register(shutil.rmtree, os.environ["TESTS_SHARED"], ignore_errors=True)
SHARED = Path(os.environ["TESTS_SHARED"])
SCRATCH = SHARED / (WORKER or "alone")
SCRATCH.mkdir()
if WORKER:
    os.environ["OMP_NUM_THREADS"] = "1"  # two workers on two cores: more threads would only wait for each other
for name in [n for n in os.environ if n.startswith(("AIRFLOW_", "_AIRFLOW_", "MOON_", "MLFLOW_", "FEAST_"))]:
    del os.environ[name]
os.environ.update(  # before Airflow, Lance and tqdm are first imported
    MOON_HOME=str(SCRATCH / "home"),
    LANCE_LOG="error",
    TQDM_DISABLE="1",
    AIRFLOW_HOME=str(SCRATCH / "airflow"),
    AIRFLOW__CORE__DAGS_FOLDER=str(ROOT / "dags"),
    AIRFLOW__CORE__LOAD_EXAMPLES="False",
    AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{SCRATCH}/airflow/airflow.db",
    AIRFLOW__LOGGING__LOGGING_LEVEL="ERROR",
    AIRFLOW__API_AUTH__JWT_SECRET="for-tests-only" * 4,
    AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS="True",
)
start()
(SCRATCH / "airflow").mkdir()

SHIPPED = ("moon_ops", "models", "dags", "feature_repo")  # in a wheel
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input")
NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
ENCODER = "moon-nano"
MINI = ROOT / "tests" / "mini.toml"  # a recipe of which all three stages take a second or two


def once(name: str, make: Callable[[Path], object]) -> Path:
    """A place that all workers share, and do not write into; the first one that asks has it made."""
    place, done = SHARED / name, SHARED / f"{name}.done"
    with FileLock(SHARED / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(place, ignore_errors=True)
            make(place)
            done.touch()
    return place


@pytest.fixture(autouse=True)
def heard() -> None:
    """Airflow and MLflow configure logging for their whole process, and so for the tests after theirs: it is as it was for each."""
    logging.getLogger().setLevel(logging.WARNING)
    for name, logger in logging.root.manager.loggerDict.copy().items():  # a thread that an earlier test left may import just now
        if name.startswith("moon_ops") and isinstance(logger, logging.Logger):
            logger.disabled = False


@pytest.fixture(scope="session")
def now() -> dt.datetime:
    """The time at which everything in the tests becomes known: after the simulated shop's events."""
    return NOW


@pytest.fixture(scope="session")
def shop() -> Path:
    """The tiny simulated shop in the ingest layout. Do not write into it."""
    from moon_ops.shops.simulate import simulate

    return once("shop", lambda out: simulate(out, size="tiny", seed=0))


@pytest.fixture(scope="session")
def lake(shop: Path) -> Any:
    """A lake with the tiny shop in it. Do not write into it."""
    from moon_ops.lake.ingest import ingest
    from moon_ops.lake.lake import Lake

    return Lake(str(once("lake", lambda out: ingest(shop, Lake(str(out)), now=NOW))))


@pytest.fixture(scope="session")
def released() -> Any:
    """The settings of a home in which ``moon demo`` has run on the tiny shop. Do not write into it; see ``copied``."""
    from moon_ops.cli.demo import Choices, run
    from moon_ops.settings import Settings

    def make(home: Path) -> None:
        settings = Settings.from_environment(home)
        run(settings, Choices(size="tiny", encoder=ENCODER), now=NOW)

    return Settings.from_environment(once("released", make))


def shop_id(kind: str, number: int) -> str:
    """What a shop of texts calls what the tiny shop calls by a number: SKUs with slashes, UUIDs, unsigned numbers, digits."""
    digits = (str(2**63 + number), f"00{number}", str(number))
    return (f"{kind}/{number}", str(uuid.UUID(int=number * 7919)), f"Größe {kind} {number} & co", *digits)[number % 6]


@pytest.fixture(scope="session")
def text_shop(shop: Path) -> Path:
    """The tiny shop with ids of texts, see :func:`shop_id`. Do not write into it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from moon_ops.lake.ids import KINDS

    def make(place: Path) -> None:
        shutil.copytree(shop, place)
        for name in ("items", "queries", "events"):
            table = pq.read_table(place / f"{name}.parquet")
            for column in [c for c in table.column_names if c in KINDS]:
                texts = [None if number is None else shop_id(KINDS[column], number) for number in table[column].to_pylist()]
                table = table.set_column(table.schema.get_field_index(column), column, pa.array(texts, pa.string()))
            pq.write_table(table, place / f"{name}.parquet")

    return once("text-shop", make)


@pytest.fixture(scope="session")
def text_home(released: Any, text_shop: Path, moved: Callable[[Any, Path], Any]) -> Any:
    """A home whose release serves the shop of texts: the released encoder over another lake. Do not write into it."""
    from moon_ops.lake.ingest import ingest
    from moon_ops.publication.publication import publish
    from moon_ops.release import stages

    def make(home: Path) -> None:
        settings = moved(released, home)
        for name in ("lake", "feature_store", "tables", "index"):
            shutil.rmtree(home / name)
        assert not ingest(text_shop, settings.lake, now=NOW).refused
        stages.embed(settings, 1, now=NOW)
        publish(settings, 1, now=NOW)

    return type(released).from_environment(once("text-home", make))


@pytest.fixture(scope="session")
def wheel() -> Path:
    """The package, built from a copy, so that nothing is left in the checkout."""

    def make(place: Path) -> None:
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *SHIPPED]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        for name in [*listed, "pyproject.toml", "setup.py", "README.md", "LICENSE"]:
            if (ROOT / name).is_file():
                (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, place / "source" / name)
        build = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(place), str(place / "source")]
        subprocess.run([*PIP, *build], check=True)

    return next(once("wheel", make).glob("*.whl"))


@pytest.fixture(scope="session")
def moved() -> Callable[[Any, Path], Any]:
    """Copy a home to another place, to change at will."""
    from moon_ops.lake.lake import Lake

    def move(settings: Any, home: Path) -> Any:
        shutil.copytree(settings.home, home, symlinks=True, ignore=shutil.ignore_patterns("shop-*", "checkpoints", "report"))
        return settings.replace(home=home, lake=Lake(str(home / "lake")), tracking_uri=f"sqlite:///{home / 'mlflow.db'}")

    return move


@pytest.fixture
def copied(released: Any, moved: Callable[[Any, Path], Any], tmp_path: Path) -> Any:
    """The released home at another place, to change at will."""
    return moved(released, tmp_path / "copied")


@pytest.fixture
def unrecorded(copied: Any) -> Any:
    """The copied home as one of before the record of moves: its aliases are all that is known."""
    database = sqlite3.connect(copied.home / "mlflow.db")
    for table in ("model_version_tags", "model_versions"):
        database.execute(f"DELETE FROM {table} WHERE name = 'moon-moves'")
    database.commit()
    database.close()
    return copied


@pytest.fixture
def registry(copied: Any) -> Any:
    """The registry of a home that may be changed."""
    from moon_ops.registry.registry import Registry

    return Registry(copied)


@pytest.fixture
def make_release(registry: Any, tmp_path: Path) -> Callable[..., int]:
    """Register a release of the parts of release 1, compared with it, with some of its manifest changed; its version."""

    import json

    from moon_ops.registry.registry import RELEASE, manifest_of

    def make(**changed: Any) -> int:
        directory = tmp_path / "manifest"
        directory.mkdir(exist_ok=True)
        (directory / "manifest.json").write_text(json.dumps({**manifest_of(registry, 1), "compared_with": {"release": 1}, **changed}))
        return registry.register(RELEASE, registry.start_run("by hand", {}), directory, {})

    return make


@pytest.fixture(scope="session")
def fresh_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database without a run: making one takes longer than a small training."""
    from moon_ops.registry.registry import Registry
    from moon_ops.settings import Settings

    settings = Settings.from_environment(tmp_path_factory.mktemp("mlflow"))
    Registry(settings)
    return settings.home / "mlflow.db"


@pytest.fixture
def workshop(lake: Any, fresh_mlflow: Path, tmp_path: Path) -> Any:
    """The settings of a home of its own over the tiny shop's lake, and of recipes only ``mini``: all three stages, in a second or two."""
    from moon_ops.settings import Settings

    models, home = tmp_path / "models", tmp_path / "home"
    models.mkdir()
    shutil.copy(MINI, models)
    home.mkdir()
    shutil.copy(fresh_mlflow, home)
    return Settings.from_environment(home).replace(lake=lake, models=models, workers=1)


@pytest.fixture(scope="session")
def airflow_db() -> None:
    """Airflow's database, made in this process."""
    from airflow.utils import db

    db.initdb()


@pytest.fixture(scope="session")
def dagbag(airflow_db: None) -> Any:
    """The DAGs of ``dags/``."""
    from airflow.dag_processing.dagbag import BundleDagBag

    return BundleDagBag(dag_folder=ROOT / "dags", bundle_path=ROOT / "dags", bundle_name="dags-folder")


@pytest.fixture
def make_shop(tmp_path: Path) -> Callable[..., Path]:
    """Write a small shop by hand: ``make_shop(items=[{…}], queries=[…], events=[…], pictures={path: colour or bytes})`` as JSON lines."""
    import json

    from PIL import Image

    def make(directory: str = "shop", pictures: dict[str, str | bytes] | None = None, **tables: list[dict[str, Any]]) -> Path:
        place = tmp_path / directory
        place.mkdir(parents=True, exist_ok=True)
        for path, content in (pictures or {}).items():
            target = place / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                target.write_bytes(content)
            else:
                Image.new("RGB", (40, 30), content).save(target)
        for name, rows in tables.items():
            (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return place

    return make
