"""### moon_ctr_train

Every day: train a click model anew on the vectors of the encoder that is served, and register a release of the two with its evidence. The
encoder, its vectors and the index stay as they are. A release that did not pass its gates ends the run as failed, with the reason; one
that passed becomes `candidate`, and is promoted if `promote` is true and `models/gates.toml` asks for no second person. A shop without a
champion, or without clicks of known users, has nothing to train: the run says so and skips the rest.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import Asset, Param, dag, task
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from airflow.sdk.exceptions import AirflowSkipException

RELEASE = Asset(name="moon_release", uri="moon://release", group="moon")
TRAINING = "moon_training"  # a pool of one slot: two trainings at once would take twice as long
AS_OF = "{{ dag_run.run_after.isoformat() }}"  # set in every kind of run, unlike the data interval


def tell(context: Any) -> None:
    """Say that a task has failed for good, where the settings want it."""
    from moon_ops import alerts

    alerts.failed(context)


@dag(
    schedule="30 4 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={
        "owner": "moon",
        "retries": 2,
        "retry_delay": timedelta(minutes=1),
        "retry_exponential_backoff": 2.0,
        "execution_timeout": timedelta(hours=2),
        "on_failure_callback": tell,
    },
    params={
        "click_model": Param("ctr-cube", type="string", description="Click recipe in models/."),
        "seed": Param(0, type="integer", minimum=0),
        "promote": Param(True, type="boolean", description="Promote the release if its gates pass."),
    },
    deadline=DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(hours=12),
        callback=AsyncCallback("moon_ops.alerts.late", kwargs={"dag": "moon_ctr_train", "after": "12 hours"}),
    ),
    doc_md=__doc__,
    tags=["moon"],
)
def moon_ctr_train() -> None:
    """Served encoder, ctr, release, gates, promote."""

    @task
    def served() -> int:
        from moon_ops import tasks as jobs

        encoder = jobs.served_encoder()
        if encoder is None:
            raise AirflowSkipException("there is no champion whose vectors a click model could read")
        return encoder

    @task(pool=TRAINING, execution_timeout=timedelta(hours=6))
    def ctr(encoder: int, as_of: str, params: Any = None) -> int:
        from moon_ops import tasks as jobs

        version = jobs.ctr(encoder, as_of, params["click_model"], params["seed"])
        if version is None:
            raise AirflowSkipException("the shop has no click sequences of known users")
        return version

    @task(outlets=[RELEASE])
    def release(encoder: int, ctr: int, as_of: str, outlet_events: Any = None) -> int:
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

    encoder = served()
    promote(gates(release(encoder, ctr(encoder, AS_OF), AS_OF)), AS_OF)  # type: ignore[arg-type]


moon_ctr_train()
