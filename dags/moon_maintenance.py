"""### moon_maintenance

Every Saturday night: merge the small files that many commits leave in the lake, and remove versions of tables that are older than
`keep_days`, and checkpoints in the lake's object store. Versions that a release has tagged stay, and so does everything that is current.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import CronTriggerTimetable, Param, dag
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from moon_isolation import heavy

AS_OF = "{{ dag_run.run_after.isoformat() }}"  # set in every kind of run, unlike the data interval


def tell(context: Any) -> None:
    """Say that a task has failed for good, where the settings want it."""
    from moon_ops import alerts

    alerts.failed(context)


def maintain(keep_days: str, as_of: str) -> dict[str, int]:
    """How many files and versions are gone."""
    from moon_ops import tasks as jobs

    return jobs.maintain(float(keep_days), as_of)


@dag(
    schedule=CronTriggerTimetable("0 1 * * 6", timezone="UTC", run_immediately=timedelta(0)),  # the first run: at its next time
    catchup=False,
    max_active_runs=1,
    default_args={
        "owner": "moon",
        "retries": 2,
        "retry_delay": timedelta(minutes=5),
        "retry_exponential_backoff": 2.0,
        "execution_timeout": timedelta(hours=6),
        "on_failure_callback": tell,
    },
    params={"keep_days": Param(7, type="number", minimum=0, description="Versions of tables that are younger stay.")},
    deadline=DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(hours=8),
        callback=AsyncCallback("moon_ops.alerts.late", kwargs={"dag": "moon_maintenance", "after": "8 hours"}),
    ),
    doc_md=__doc__,
    tags=["moon"],
)
def moon_maintenance() -> None:
    """Compaction and retention."""

    heavy(maintain)("{{ params.keep_days }}", AS_OF)


moon_maintenance()
