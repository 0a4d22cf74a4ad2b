"""A copy of the released home that a test may change."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from moon_ops.lake.tables import Lake
from moon_ops.settings import Settings

PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


@pytest.fixture
def copied(released: Settings, tmp_path: Path) -> Settings:
    """The released home at another place; MLflow's absolute paths are moved along."""
    home = tmp_path / "copied"
    shutil.copytree(released.home, home, symlinks=True, ignore=shutil.ignore_patterns("shop-*", "checkpoints", "report"))
    database = sqlite3.connect(home / "mlflow.db")
    for table, column in PLACES:
        database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(released.home), str(home)))
    database.commit()
    database.close()
    return replace(released, home=home, lake=Lake(str(home / "lake")), tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
