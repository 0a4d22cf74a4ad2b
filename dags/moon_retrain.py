"""### moon_retrain

Every week: train an encoder on the purchases known by then, embed the catalogue with it, train a click model on its vectors, and
register a release with its evidence. A release that did not pass its gates ends the run as failed, with the reason; it stays registered.
One that passed becomes `candidate`; it is promoted if `promote` is true and `models/gates.toml` asks for no second person, and otherwise
waits for `moon_promote`, `moon promote` or the MLflow UI.

A killed run is run again: what is committed (a registered encoder, embedded items) stays, and every stage repeats safely.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import Asset, Param, dag, task
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference

RELEASE = Asset(name="moon_release", uri="moon://release", group="moon")
TRAINING = "moon_training"  # a pool of one slot: two trainings at once would take twice as long
AS_OF = "{{ dag_run.run_after.isoformat() }}"  # set in every kind of run, unlike the data interval


def tell(context: Any) -> None:
    """Say that a task has failed for good, where the settings want it."""
    from moon_ops import alerts

    alerts.failed(context)


@dag(
    schedule="0 2 * * 0",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={
        "owner": "moon",
        "retries": 2,
        "retry_delay": timedelta(minutes=1),
        "retry_exponential_backoff": 2.0,
        "execution_timeout": timedelta(hours=1),
        "on_failure_callback": tell,
    },
    params={
        "encoder": Param("moon-tiny", type="string", description="Encoder recipe in models/."),
        "click_model": Param("ctr-cube", type="string", description="Click recipe in models/."),
        "seed": Param(0, type="integer", minimum=0),
        "promote": Param(True, type="boolean", description="Promote the release if its gates pass."),
    },
    deadline=DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(hours=48),
        callback=AsyncCallback("moon_ops.alerts.late", kwargs={"dag": "moon_retrain", "after": "48 hours"}),
    ),
    doc_md=__doc__,
    tags=["moon"],
)
def moon_retrain() -> None:
    """Train, export, embed, publish, ctr, release, gates, promote."""

    @task(pool=TRAINING, execution_timeout=timedelta(hours=24))
    def train(as_of: str, params: Any = None) -> str:
        from moon_ops import tasks as jobs

        return jobs.train(as_of, params["encoder"], params["seed"])

    @task
    def export(checkpoint: str) -> int:
        from moon_ops import tasks as jobs

        return jobs.export(checkpoint)

    @task(execution_timeout=timedelta(hours=12))
    def embed(encoder: int, as_of: str) -> int:
        from moon_ops import tasks as jobs

        return jobs.embed(encoder, as_of)

    @task
    def publish(encoder: int, as_of: str) -> int:
        from moon_ops import tasks as jobs

        return jobs.publish(encoder, as_of)

    @task(pool=TRAINING, execution_timeout=timedelta(hours=6))
    def ctr(encoder: int, as_of: str, params: Any = None) -> int | None:
        from moon_ops import tasks as jobs

        return jobs.ctr(encoder, as_of, params["click_model"], params["seed"])

    @task(outlets=[RELEASE], execution_timeout=timedelta(hours=2))
    def release(encoder: int, ctr: int | None, as_of: str, outlet_events: Any = None) -> int:
        from moon_ops import tasks as jobs

        version = jobs.release(encoder, ctr, as_of)
        outlet_events[RELEASE].extra = {"release": version, "encoder": encoder, "click_model": ctr}
        return version

    @task(retries=0)  # the figures stay what they are
    def gates(version: int) -> int:
        from moon_ops import tasks as jobs

        return jobs.require_passed(version)

    @task
    def promote(version: int, as_of: str, params: Any = None) -> bool:
        from moon_ops import tasks as jobs

        return jobs.promote(version, as_of) if params["promote"] else False

    encoder = export(train(AS_OF))  # type: ignore[arg-type]
    embedded = embed(encoder, AS_OF)  # type: ignore[arg-type]
    published = publish(embedded, AS_OF)  # type: ignore[arg-type]
    promote(gates(release(published, ctr(published, AS_OF), AS_OF)), AS_OF)  # type: ignore[arg-type]


moon_retrain()
