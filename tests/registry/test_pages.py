"""Addresses of MLflow's pages: only where somebody said where they are, and only of what there is."""

from __future__ import annotations

import pytest

from moon_ops.errors import StageError
from moon_ops.registry.pages import page
from moon_ops.registry.registry import RELEASE, Registry
from moon_ops.settings import Settings


def test_the_run_of_a_version_and_a_file_of_it(released: Settings) -> None:
    assert page(released, RELEASE, 1) == "", "nobody said where MLflow's pages are"
    known, registry = released.replace(mlflow_pages="http://localhost:5000/"), Registry(released)
    run = registry.client.get_model_version(RELEASE, "1").run_id
    at = f"http://localhost:5000/#/experiments/{registry.experiment_id}/runs/{run}"
    assert page(known, RELEASE, 1) == at
    assert page(known, RELEASE, 1, "report/report.html") == f"{at}/artifacts/report/report.html"
    assert "report.html" in [file.path.split("/")[-1] for file in registry.client.list_artifacts(run, "report")]
    with pytest.raises(StageError, match="moon-release has no version 99"):
        page(known, RELEASE, 99)
