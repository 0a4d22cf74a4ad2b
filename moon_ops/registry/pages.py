"""Where people look at what is registered: addresses of MLflow's pages."""

from __future__ import annotations

from moon_ops.registry.registry import Registry
from moon_ops.settings import Settings


def page(settings: Settings, model: str, version: int, file: str = "") -> str:
    """The page of the run that made a version of ``model``, or of one of the run's files; empty if nobody said where MLflow's pages are.

    Raises :class:`~moon_ops.errors.StageError` for a version that is not there.
    """
    if not settings.mlflow_pages:
        return ""
    registry = Registry(settings)
    registry.tags(model, version)  # says what there is instead
    run = registry.client.get_model_version(model, str(version)).run_id
    where = f"{settings.mlflow_pages.rstrip('/')}/#/experiments/{registry.experiment_id}/runs/{run}"
    return f"{where}/artifacts/{file}" if file else where
