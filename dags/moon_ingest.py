"""### moon_ingest

Every five minutes: take what waits in the drop zone `MOON_INBOX` into the lake. The drop zone is a directory in the ingest layout, or a
directory of such directories. Each is taken in once, by its content: what lies there and has not been written to since undoes nothing
that came after it, and rows that could not be used are told once. If the lake has changed, the asset `moon_items` says so, and
`moon_new_items` embeds and publishes.

Started by hand with `full_feed`, it reads every directory again and withdraws what an items file lacks, as `moon ingest --full-feed` does.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Asset, Param, dag
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from moon_isolation import heavy

ITEMS = Asset(name="moon_items", uri="moon://lake/items", group="moon")
AS_OF = "{{ dag_run.run_after.isoformat() }}"  # set in every kind of run, unlike the data interval


def tell(context: Any) -> None:
    """Say that a task has failed for good, where the settings want it."""
    from moon_ops import alerts

    alerts.failed(context)


def ingest(as_of: str, full_feed: str, withdraw_at_most: str) -> dict[str, int | str]:
    """How much was taken in; ``broken`` says which directory was not, and why."""
    from moon_ops import tasks as jobs
    from moon_ops.errors import InputError

    try:
        return {**jobs.ingest_inbox(as_of, full_feed=full_feed == "True", withdraw_at_most=float(withdraw_at_most))}
    except InputError as broken:
        return {"broken": str(broken)}


def announce(context: Any, found: dict[str, int | str]) -> None:
    """Fail over a broken directory, with no other try: it would find nothing to do, and cover this one. Else say what has changed."""
    if "broken" in found:
        raise AirflowFailException(found["broken"])
    if not found["changed"]:
        raise AirflowSkipException("nothing has changed in the lake")  # and no event says that it has
    context["outlet_events"][ITEMS].extra = {**found, "as_of": context["dag_run"].run_after.isoformat()}


@dag(
    schedule="*/5 * * * *",
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

    heavy(ingest, reads_disk=True, outlets=[ITEMS], post_execute=announce)(AS_OF, "{{ params.full_feed }}", "{{ params.withdraw_at_most }}")


moon_ingest()
