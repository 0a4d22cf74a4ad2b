"""### moon_nightly_refresh

Every night: embed what is new or changed for every live release (champion, candidate, previous), so that rolling back recomputes
nothing, and hand it over: Feast, representation tables, index. Then it checks against the lake that every item has its vector, and that
what is served is whole, as `moon verify` does.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Asset, CronTriggerTimetable, dag, task
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from moon_isolation import heavy

VECTORS = Asset(name="moon_vectors", uri="moon://lake/embeddings", group="moon")
AS_OF = "{{ dag_run.run_after.isoformat() }}"  # set in every kind of run, unlike the data interval


def tell(context: Any) -> None:
    """Say that a task has failed for good, where the settings want it."""
    from moon_ops import alerts

    alerts.failed(context)


def refresh(encoder: int | None, as_of: str) -> int | None:
    """The encoder again."""
    from moon_ops import tasks as jobs

    return jobs.refresh(encoder, as_of)


def check(encoder: int | None, as_of: str) -> dict[str, int]:
    """How many encoders and items were looked at."""
    from moon_ops import tasks as jobs

    return jobs.require_complete([encoder], as_of)


def announce(context: Any, found: dict[str, int]) -> None:
    """What the event of new vectors says."""
    context["outlet_events"][VECTORS].extra = {**found, "encoder": context["ti"].xcom_pull(task_ids="refresh")}


def verify(as_of: str) -> int:
    """How many smaller findings there are."""
    from moon_ops import tasks as jobs

    return jobs.verify(as_of)


def refresh_other(release: int, as_of: str) -> int:
    """The release's encoder."""
    from moon_ops import tasks as jobs

    return jobs.refresh_release(release, as_of)


@dag(
    schedule=CronTriggerTimetable("0 3 * * *", timezone="UTC", run_immediately=timedelta(0)),  # the first run: at its next time
    catchup=False,
    max_active_runs=1,
    default_args={
        "owner": "moon",
        "retries": 3,
        "retry_delay": timedelta(minutes=1),
        "retry_exponential_backoff": 2.0,
        "execution_timeout": timedelta(hours=12),
        "on_failure_callback": tell,
    },
    deadline=DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(hours=20),
        callback=AsyncCallback("moon_ops.alerts.late", kwargs={"dag": "moon_nightly_refresh", "after": "20 hours"}),
    ),
    doc_md=__doc__,
    tags=["moon"],
)
def moon_nightly_refresh() -> None:
    """Live encoders, embed and publish each, check completeness, verify."""

    @task
    def served() -> int | None:
        from moon_ops import tasks as jobs

        return jobs.served_encoder()

    @task
    def others() -> list[int]:
        from moon_ops import tasks as jobs

        return jobs.other_releases()

    checked = heavy(check, outlets=[VECTORS], post_execute=announce)(heavy(refresh)(served(), AS_OF), AS_OF)
    checked >> heavy(verify)(AS_OF)
    # a broken candidate fails here, and stops nothing above
    heavy(refresh_other).partial(as_of=AS_OF).expand(release=others())


moon_nightly_refresh()
