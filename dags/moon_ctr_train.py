"""### moon_ctr_train

Every day: train a click model anew on the vectors of the encoder that is served, and register a release of the two with its evidence. The
encoder, its vectors and the index stay as they are. A release that did not pass its gates ends the run as failed, with the reason; one
that passed becomes `candidate`, and is promoted if `promote` is true and `models/gates.toml` asks for no second person. A shop without a
champion, or without clicks of known users, has nothing to train: the run says so and skips the rest.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Asset, CronTriggerTimetable, Param, dag, task
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from airflow.sdk.exceptions import AirflowSkipException
from moon_isolation import heavy
from moon_links import linked

RELEASE = Asset(name="moon_release", uri="moon://release", group="moon")
TRAINING = "moon_training"  # a pool of one slot: two trainings at once would take twice as long
AS_OF = "{{ dag_run.run_after.isoformat() }}"  # set in every kind of run, unlike the data interval


def tell(context: Any) -> None:
    """Say that a task has failed for good, where the settings want it."""
    from moon_ops import alerts

    alerts.failed(context)


def ctr(encoder: int, as_of: str, recipe: str, seed: str) -> int | None:
    """The click model's version; None for a shop without click sequences."""
    from moon_ops import tasks as jobs

    return jobs.ctr(encoder, as_of, recipe, int(seed))


def skip_without(_context: Any, version: int | None) -> None:
    """A shop without clicks has no click model, and so no release."""
    if version is None:
        raise AirflowSkipException("the shop has no click sequences of known users")


def release(encoder: int, ctr: int, as_of: str) -> int:
    """The release's version, whether it passed or not."""
    from moon_ops import tasks as jobs

    return jobs.release(encoder, ctr, as_of)


def announce(context: Any, version: int) -> None:
    """What the event of a release says."""
    encoder, click_model = (context["ti"].xcom_pull(task_ids=task) for task in ("served", "ctr"))
    context["outlet_events"][RELEASE].extra = {"release": version, "encoder": encoder, "click_model": click_model}


@dag(
    schedule=CronTriggerTimetable("30 4 * * *", timezone="UTC", run_immediately=timedelta(0)),  # the first run: at its next time
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

    @task(retries=0)  # the figures stay what they are
    def gates(version: int) -> int:
        from moon_ops import tasks as jobs

        return jobs.require_passed(version)

    @task
    def promote(version: int, as_of: str, params: Any = None) -> bool:
        from moon_ops import tasks as jobs

        return jobs.promote(version, as_of) if params["promote"] else False

    encoder = served()
    training = heavy(ctr, pool=TRAINING, execution_timeout=timedelta(hours=6), post_execute=skip_without)
    clicks = linked(training(encoder, AS_OF, "{{ params.click_model }}", "{{ params.seed }}"), "moon-ctr")
    made = linked(heavy(release, outlets=[RELEASE], post_execute=announce)(encoder, clicks, AS_OF), "moon-release")
    promote(linked(gates(made), "moon-release", of="release"), AS_OF)


moon_ctr_train()
