"""### moon_new_items

Every five minutes, and whenever new items are announced: take the directory `MOON_INBOX` (if there is one) into the lake, embed the
items that have no vector yet under the champion, and publish if the lake has changed since the last publication. What there is to do is
read from the lake, so a lost or doubled event does no harm, and a file that was taken in before and not written since undoes nothing.
Started by hand with `full_feed`, it withdraws what the items file lacks, as `moon ingest --full-feed` does. Without a champion there is
nothing to embed with, and the run says so.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import Asset, AssetOrTimeSchedule, CronTriggerTimetable, Param, dag, task

ITEMS = Asset(name="moon_items", uri="moon://lake/items", group="moon")
AS_OF = "{{ dag_run.run_after.isoformat() }}"  # set in every kind of run, unlike the data interval


@dag(
    schedule=AssetOrTimeSchedule(timetable=CronTriggerTimetable("*/5 * * * *", timezone="UTC"), assets=[ITEMS]),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={"owner": "moon", "retries": 3, "retry_delay": timedelta(seconds=10), "retry_exponential_backoff": 2.0},
    params={
        "full_feed": Param(False, type="boolean", description="The items file is the whole catalogue: withdraw what it lacks."),
        "withdraw_at_most": Param(
            0.2, type="number", minimum=0, maximum=1, description="The share of items in sale that a full feed may withdraw."
        ),
    },
    doc_md=__doc__,
    tags=["moon"],
)
def moon_new_items() -> None:
    """Ingest, embed for the champion, publish what has changed."""

    @task
    def ingest(as_of: str, params: Any = None) -> int:
        from moon_ops import tasks as jobs

        return jobs.ingest_inbox(as_of, full_feed=params["full_feed"], withdraw_at_most=params["withdraw_at_most"])

    @task
    def embed(_arrived: int, as_of: str) -> int:
        from moon_ops import tasks as jobs

        return jobs.embed_for_champion(as_of)

    @task
    def publish(_embedded: int, as_of: str) -> bool:
        from moon_ops import tasks as jobs

        return jobs.publish_for_champion(as_of)

    publish(embed(ingest(AS_OF), AS_OF), AS_OF)  # type: ignore[arg-type]


moon_new_items()
