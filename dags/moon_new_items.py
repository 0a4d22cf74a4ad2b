"""### moon_new_items

Whenever the asset `moon_items` says that items have changed, and every five minutes: embed the items that have no vector yet under the
champion, and publish if the lake has changed since the last publication. What there is to do is read from the lake, so a lost or doubled
event does no harm, and items that were pushed to a service are found, too. Without a champion there is nothing to embed with, and the
run says so.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Asset, AssetOrTimeSchedule, CronTriggerTimetable, dag
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from moon_isolation import heavy

ITEMS = Asset(name="moon_items", uri="moon://lake/items", group="moon")
AS_OF = "{{ dag_run.run_after.isoformat() }}"  # set in every kind of run, unlike the data interval


def tell(context: Any) -> None:
    """Say that a task has failed for good, where the settings want it."""
    from moon_ops import alerts

    alerts.failed(context)


def embed(as_of: str) -> int:
    """How many items were embedded."""
    from moon_ops import tasks as jobs

    return jobs.embed_for_champion(as_of)


def publish(_embedded: int, as_of: str) -> bool:
    """Whether anything had changed."""
    from moon_ops import tasks as jobs

    return jobs.publish_for_champion(as_of)


@dag(
    schedule=AssetOrTimeSchedule(timetable=CronTriggerTimetable("*/5 * * * *", timezone="UTC"), assets=[ITEMS]),
    catchup=False,
    max_active_runs=1,
    default_args={
        "owner": "moon",
        "retries": 3,
        "retry_delay": timedelta(seconds=10),
        "retry_exponential_backoff": 2.0,
        "execution_timeout": timedelta(hours=2),
        "on_failure_callback": tell,
    },
    deadline=DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(hours=3),
        callback=AsyncCallback("moon_ops.alerts.late", kwargs={"dag": "moon_new_items", "after": "3 hours"}),
    ),
    doc_md=__doc__,
    tags=["moon"],
)
def moon_new_items() -> None:
    """Embed for the champion, publish what has changed."""

    heavy(publish)(heavy(embed)(AS_OF), AS_OF)


moon_new_items()
