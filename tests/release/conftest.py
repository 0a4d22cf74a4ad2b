"""A real MLflow server over a copied home."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import free_port, process

from moon_ops.settings import Settings

HOOKS = {"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"}  # to this machine, without a certificate


@pytest.fixture
def through_server(copied: Settings, tmp_path: Path) -> Iterator[Settings]:
    """The copied home with its MLflow behind a server of its own."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{copied.home}/mlflow.db", "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--default-artifact-root", str(copied.home / "mlartifacts")]
    with process(command, f"{address}/health", tmp_path / "server.log", {"MLFLOW_DISABLE_TELEMETRY": "true", **HOOKS}):
        yield copied.replace(tracking_uri=address)
