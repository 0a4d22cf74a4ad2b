"""### moon_ingest

Every five minutes: take what waits in the drop zone `MOON_INBOX` into the lake. The drop zone is a directory in the ingest layout, or a
directory of such directories. Each is taken in once, by its content: what lies there and has not been written to since undoes nothing
that came after it, and rows that could not be used are told once. If the lake has changed, the asset `moon_items` says so, and
`moon_new_items` embeds and publishes.

Started by hand with `full_feed`, it reads every directory again and withdraws what an items file lacks, as `moon ingest --full-feed` does.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import Asset, Param, dag, task
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

ITEMS = Asset(name="moon_items", uri="moon://lake/items", group="moon")
AS_OF = "{{ dag_run.run_after.isoformat() }}"  # set in every kind of run, unlike the data interval


def tell(context: Any) -> None:
    """Say that a task has failed for good, where the settings want it."""
    from moon_ops import alerts

    alerts.failed(context)


@dag(
    schedule="*/5 * * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={
        "owner": "moon",
        "retries": 3,
        "retry_delay": timedelta(seconds=10),
        "retry_exponential_backoff": 2.0,
        "execution_timeout": timedelta(hours=6),
        "on_failure_callback": tell,
    },
    params={
        "full_feed": Param(False, type="boolean", description="An items file is the whole catalogue: withdraw what it lacks."),
        "withdraw_at_most": Param(
            0.2, type="number", minimum=0, maximum=1, description="The share of items on sale that a full feed may withdraw."
        ),
    },
    deadline=DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(hours=8),
        callback=AsyncCallback("moon_ops.alerts.late", kwargs={"dag": "moon_ingest", "after": "8 hours"}),
    ),
    doc_md=__doc__,
    tags=["moon"],
)
def moon_ingest() -> None:
    """Take in what waits."""

    @task(outlets=[ITEMS])
    def ingest(as_of: str, params: Any = None, outlet_events: Any = None) -> dict[str, int]:
        from moon_ops import tasks as jobs
        from moon_ops.errors import InputError

        try:
            found = jobs.ingest_inbox(as_of, full_feed=params["full_feed"], withdraw_at_most=params["withdraw_at_most"])
        except InputError as broken:  # another try would find nothing to do, and cover this one
            raise AirflowFailException(str(broken)) from broken
        if not found["changed"]:
            raise AirflowSkipException("nothing has changed in the lake")  # and no event says that it has
        outlet_events[ITEMS].extra = {**found, "as_of": as_of}
        return found

    ingest(AS_OF)


moon_ingest()
