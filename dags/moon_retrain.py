"""### moon_retrain

Every week: train an encoder on the purchases known by then, embed the catalogue with it, train a click model on its vectors, and
register a release with its evidence. A release that did not pass its gates ends the run as failed, with the reason; it stays registered.
One that passed becomes `candidate`; it is promoted if `promote` is true and `models/gates.toml` asks for no second person, and otherwise
waits for `moon_promote`, `moon promote` or the MLflow UI.

A killed run is run again: what is committed (a registered encoder, embedded items) stays, and every stage repeats safely.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Asset, CronTriggerTimetable, Param, dag, task
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from moon_isolation import heavy
from moon_links import linked

RELEASE = Asset(name="moon_release", uri="moon://release", group="moon")
TRAINING = "moon_training"  # a pool of one slot: two trainings at once would take twice as long
AS_OF = "{{ dag_run.run_after.isoformat() }}"  # set in every kind of run, unlike the data interval


def tell(context: Any) -> None:
    """Say that a task has failed for good, where the settings want it."""
    from moon_ops import alerts

    alerts.failed(context)


def train(as_of: str, recipe: str, seed: str) -> str:
    """The checkpoint's name."""
    from moon_ops import tasks as jobs

    return jobs.train(as_of, recipe, int(seed))


def export(checkpoint: str) -> int:
    """The encoder's version."""
    from moon_ops import tasks as jobs

    return jobs.export(checkpoint)


def embed(encoder: int, as_of: str) -> int:
    """The encoder's version."""
    from moon_ops import tasks as jobs

    return jobs.embed(encoder, as_of)


def publish(encoder: int, as_of: str) -> int:
    """The encoder's version."""
    from moon_ops import tasks as jobs

    return jobs.publish(encoder, as_of)


def ctr(encoder: int, as_of: str, recipe: str, seed: str) -> int | None:
    """The click model's version; None for a shop without click sequences."""
    from moon_ops import tasks as jobs

    return jobs.ctr(encoder, as_of, recipe, int(seed))


def release(encoder: int, ctr: int | None, as_of: str) -> int:
    """The release's version, whether it passed or not."""
    from moon_ops import tasks as jobs

    return jobs.release(encoder, ctr, as_of)


def announce(context: Any, version: int) -> None:
    """What the event of a release says."""
    encoder, click_model = (context["ti"].xcom_pull(task_ids=task) for task in ("publish", "ctr"))
    context["outlet_events"][RELEASE].extra = {"release": version, "encoder": encoder, "click_model": click_model}


@dag(
    schedule=CronTriggerTimetable("0 2 * * 0", timezone="UTC", run_immediately=timedelta(0)),  # the first run: at its next time
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

    @task(retries=0)  # the figures stay what they are
    def gates(version: int) -> int:
        from moon_ops import tasks as jobs

        return jobs.require_passed(version)

    @task
    def promote(version: int, as_of: str, params: Any = None) -> bool:
        from moon_ops import tasks as jobs

        return jobs.promote(version, as_of) if params["promote"] else False

    seed, hours = "{{ params.seed }}", {n: timedelta(hours=n) for n in (2, 6, 12, 24)}
    trained = heavy(train, pool=TRAINING, execution_timeout=hours[24])(AS_OF, "{{ params.encoder }}", seed)
    encoder = linked(heavy(export)(trained), "moon-encoder")
    published = heavy(publish)(heavy(embed, execution_timeout=hours[12])(encoder, AS_OF), AS_OF)
    clicks = heavy(ctr, pool=TRAINING, execution_timeout=hours[6])(published, AS_OF, "{{ params.click_model }}", seed)
    made = heavy(release, outlets=[RELEASE], post_execute=announce, execution_timeout=hours[2])(
        published, linked(clicks, "moon-ctr"), AS_OF
    )
    passed = linked(gates(linked(made, "moon-release")), "moon-release", of="release")
    promote(passed, AS_OF)


moon_retrain()
