"""### moon_promote

Started by hand: make a release the champion. `release` is its number; 0 means the candidate. `reason` goes into the record of moves.

The first task says whether it may be promoted: a release that failed its gates, or was judged against another champion, ends the run
with the reason. If `second_person` in `models/gates.toml` is true, somebody else is asked to approve (Airflow's *Required Actions*);
whoever started the run can't. A rejection skips the promotion. Without an answer the run fails after twelve hours, and nothing is moved.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Param, dag, task

AS_OF = "{{ dag_run.run_after.isoformat() }}"  # set in every kind of run, unlike the data interval
STARTED_BY = "{{ dag_run.triggering_user_name or 'moon_promote' }}"


def tell(context: Any) -> None:
    """Say that a task has failed for good, where the settings want it."""
    from moon_ops import alerts

    alerts.failed(context)


@dag(
    schedule=None,
    catchup=False,
    max_active_runs=1,
    default_args={
        "owner": "moon",
        "retries": 0,
        "execution_timeout": timedelta(minutes=30),
        "on_failure_callback": tell,
    },
    params={
        "release": Param(0, type="integer", minimum=0, description="The release to promote; 0: the candidate."),
        "reason": Param("", type="string", description="Why; kept in the record of moves."),
    },
    doc_md=__doc__,
    tags=["moon"],
)
def moon_promote() -> None:
    """Check, ask a second person where the shop's rules say so, promote."""

    @task
    def check(as_of: str, params: Any = None) -> dict[str, Any]:
        from moon_ops import tasks as jobs

        return jobs.promotable(params["release"], as_of)

    @task.branch
    def second_person() -> str:
        from moon_ops import tasks as jobs

        return "approve" if jobs.needs_second_person() else "promote"

    approve = ApprovalOperator(
        task_id="approve",
        subject="Promote release {{ ti.xcom_pull(task_ids='check')['release'] }}?",
        body="{{ ti.xcom_pull(task_ids='check')['evidence'] }}",
        response_timeout=timedelta(hours=12),
        execution_timeout=timedelta(hours=13),
    )

    @task(trigger_rule="none_failed_min_one_success")
    def promote(checked: dict[str, Any], started_by: str, as_of: str, params: Any = None, ti: Any = None) -> bool:
        from moon_ops import tasks as jobs

        answer = ti.xcom_pull(task_ids="approve") or {}
        approved_by = (answer.get("responded_by_user") or {}).get("name", "")
        return jobs.promote_by(checked["release"], as_of, by=started_by, approved_by=approved_by, why=params["reason"])

    checked = check(AS_OF)
    asked, promoted = second_person(), promote(checked, STARTED_BY, AS_OF)  # type: ignore[arg-type]
    checked >> asked >> [approve, promoted]
    approve >> promoted


moon_promote()
