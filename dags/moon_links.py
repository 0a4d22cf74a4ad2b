"""Links from a task of Airflow to MLflow: the run of what it has made, and the report of a release. They are stored as it ends."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseOperatorLink


class Run(BaseOperatorLink):
    """The MLflow run of a version of ``model``, whose number the task ``of`` returns; without it, the task that has the link."""

    name = "MLflow run"
    file = ""

    def __init__(self, model: str, of: str = "") -> None:
        self.model, self.of = model, of

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Its address; empty for a task that has made nothing, or where nobody knows the address of MLflow's pages."""
        from moon_ops import tasks as jobs

        version = ti_key.xcom_pull(task_ids=self.of or operator.task_id)
        return "" if version is None else jobs.page(self.model, int(version), self.file)


class Report(Run):
    """The report of a release, passed or refused."""

    name = "Report of the release"
    file = "report/report.html"


def linked(made: Any, model: str, of: str = "") -> Any:
    """The same task, whose page in Airflow leads to what it has made, or judged."""
    made.operator.operator_extra_links = (Run(model, of), *([Report(model, of)] if model == "moon-release" else []))
    return made
