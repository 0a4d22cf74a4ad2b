"""### moon_new_items

Every five minutes, and whenever new items are announced: take the directory `MOON_INBOX` (if there is one) into the lake, embed the
items that have no vector yet under the champion, and publish if the lake has changed since the last publication. What there is to do is
read from the lake, so a lost or doubled event does no harm. Without a champion there is nothing to embed with, and the run says so.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import Asset, AssetOrTimeSchedule, CronTriggerTimetable, dag, task

ITEMS = Asset(name="moon_items", uri="moon://lake/items", group="moon")
AS_OF = "{{ dag_run.run_after.isoformat() }}"  # set in every kind of run, unlike the data interval


@dag(
    schedule=AssetOrTimeSchedule(timetable=CronTriggerTimetable("*/5 * * * *", timezone="UTC"), assets=[ITEMS]),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={"owner": "moon", "retries": 3, "retry_delay": timedelta(seconds=10), "retry_exponential_backoff": 2.0},
    doc_md=__doc__,
    tags=["moon"],
)
def moon_new_items() -> None:
    """Ingest, embed for the champion, publish what has changed."""

    @task
    def ingest(as_of: str) -> int:
        from moon_ops import tasks as jobs

        return jobs.ingest_inbox(as_of)

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
