"""Tell somebody that a DAG has failed or is late: a line in the log, a webhook, a mail, as the settings say.

Airflow calls these functions (``on_failure_callback`` and deadline alerts of ``dags/``), in whichever process it likes, so nothing heavy
is imported here; and an alert that cannot be sent is logged and fails nothing.
"""

from __future__ import annotations

import html
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moon_ops.settings import Settings

log = logging.getLogger("moon_ops.alerts")
RUNBOOK = "docs/on-call.md of moon_ops"
SECONDS = 10.0  # that a webhook may take


def failed(context: Mapping[str, Any]) -> None:
    """For a task whose last attempt has failed: which one, of which run, and the first line of the reason."""
    task, fault = context["ti"], str(context.get("exception") or "no reason was given")
    reason = fault.splitlines()[0]
    tell(f"{task.dag_id} failed in task {task.task_id}, run {task.run_id}: {reason}", dag=task.dag_id, run=task.run_id, reason=reason)


async def late(*, dag: str, after: str, context: Mapping[str, Any] | None = None) -> None:
    """For a run that has not ended in time: ``after`` says in words how long it was given."""
    run = str(((context or {}).get("dag_run") or {}).get("dag_run_id", ""))
    tell(f"{dag} has not ended {after} after it was queued{f', run {run}' if run else ''}", dag=dag, run=run, reason=f"late: {after}")


def tell(line: str, *, dag: str, run: str, reason: str) -> None:
    """Say one line wherever the settings want it."""
    log.error("%s (runbook: %s)", line, RUNBOOK)
    try:
        from moon_ops.settings import Settings

        settings = Settings.from_environment(looking=True)
        _post(settings, {"text": line, "dag": dag, "run": run, "reason": reason, "runbook": RUNBOOK})
        _mail(settings, line)
    except Exception as fault:  # the run has failed already: its own reason must not be covered by this one
        log.error("the alert could not be sent: %s", str(fault).splitlines()[0])


def _post(settings: Settings, message: dict[str, str]) -> None:
    """As JSON; its ``text`` is what Slack, Mattermost and Google Chat show."""
    address = settings.alert_webhook.get_secret_value()
    if not address:
        return
    import httpx

    try:
        httpx.post(address, json=message, timeout=SECONDS).raise_for_status()
    except httpx.HTTPError as fault:  # its own words show the address, which is as good as a password
        status = getattr(getattr(fault, "response", None), "status_code", None)
        log.error("MOON_ALERT_WEBHOOK did not take the alert (%s)", f"status {status}" if status else type(fault).__name__)


def _mail(settings: Settings, line: str) -> None:
    """Through Airflow's connection ``smtp_default``."""
    if not settings.alert_email:
        return
    from airflow.providers.smtp.hooks.smtp import SmtpHook

    with SmtpHook() as server:
        body = f"<p>{html.escape(line)}</p><p>Runbook: {RUNBOOK}</p>"
        server.send_email_smtp(to=settings.alert_email, subject=f"moon_ops: {line[:80]}", html_content=body)
