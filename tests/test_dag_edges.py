"""The DAGs as Airflow reads them: they load, have exactly these edges, and every task has its limits."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

EDGES = {
    "moon_retrain": {
        "train": {"export"},
        "export": {"embed"},
        "embed": {"publish"},
        "publish": {"ctr", "release"},
        "ctr": {"release"},
        "release": {"gates"},
        "gates": {"promote"},
        "promote": set(),
    },
    "moon_promote": {
        "check": {"second_person", "promote"},
        "second_person": {"approve", "promote"},
        "approve": {"promote"},
        "promote": set(),
    },
    "moon_nightly_refresh": {
        "served": {"refresh"},
        "refresh": {"check"},
        "check": {"verify"},
        "verify": set(),
        "others": {"refresh_other"},
        "refresh_other": set(),
    },
    "moon_ingest": {"ingest": set()},
    "moon_new_items": {"embed": {"publish"}, "publish": set()},
    "moon_ctr_train": {"served": {"ctr", "release"}, "ctr": {"release"}, "release": {"gates"}, "gates": {"promote"}, "promote": set()},
    "moon_maintenance": {"maintain": set()},
}


def test_dags_load_without_import_errors(dagbag: Any) -> None:
    assert dagbag.import_errors == {}
    assert set(dagbag.dags) == set(EDGES)


@pytest.mark.parametrize("dag_id", EDGES)
def test_edges(dagbag: Any, dag_id: str) -> None:
    dag = dagbag.dags[dag_id]
    assert {name: task.downstream_task_ids for name, task in dag.task_dict.items()} == EDGES[dag_id]
    assert dag.max_active_runs == 1
    assert not dag.catchup
    assert dag.doc_md.strip().startswith(f"### {dag_id}")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "dags").glob("*.py")), ids=lambda p: p.stem)
def test_dag_files_import_nothing_heavy(path: Path) -> None:
    top = [line for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
    light = {"__future__", "collections", "datetime", "os", "typing", "urllib", "airflow", "moon_isolation", "moon_links"}
    assert {line.split()[1].split(".")[0] for line in top} <= light


@pytest.mark.parametrize("dag_id", EDGES)
def test_every_task_has_its_limits(dagbag: Any, dag_id: str) -> None:
    """A task that hangs is ended and told of, a late run as well; trainings wait for each other."""
    dag = dagbag.dags[dag_id]
    for task in dag.tasks:
        assert task.execution_timeout, task.task_id
        told = task.on_failure_callback if isinstance(task.on_failure_callback, list | tuple) else [task.on_failure_callback]
        assert [callback.__name__ for callback in told] == ["tell"], task.task_id
        assert task.pool == ("moon_training" if task.task_id in ("train", "ctr") else "default_pool")
        assert task.owner == "moon"
    longest = max(task.execution_timeout for task in dag.tasks)
    late = list(dag.deadline or [])
    assert [alert.interval > longest for alert in late] == ([] if dag_id == "moon_promote" else [True])
    assert [alert.callback.path for alert in late] == ["moon_ops.alerts.late"] * len(late)
    assert all(alert.callback.kwargs["dag"] == dag_id for alert in late)


def test_new_items_is_woken_by_an_asset_and_by_the_clock(dagbag: Any) -> None:
    timetable = dagbag.dags["moon_new_items"].timetable
    assert timetable.timetable.expression == "*/5 * * * *"
    assert [a.uri for a in timetable.asset_condition.objects] == ["moon://lake/items"]


@pytest.mark.parametrize("minutes", [1, 15])
@pytest.mark.parametrize("dag_id", sorted(EDGES.keys() - {"moon_promote", "moon_ingest", "moon_new_items"}))
def test_a_dag_that_is_switched_on_waits_for_its_next_time(dagbag: Any, dag_id: str, minutes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's hour of training is started by a click that was to let the next one happen, however soon after a time."""
    from airflow.serialization.encoders import coerce_to_core_timetable
    from airflow.timetables import trigger
    from airflow.timetables.base import TimeRestriction

    dag = dagbag.dags[dag_id]
    timetable = coerce_to_core_timetable(dag.timetable)
    now = timetable._align_to_prev(trigger.coerce_datetime(trigger.utcnow())) + dt.timedelta(minutes=minutes)
    monkeypatch.setattr(trigger, "utcnow", lambda: now)
    first = timetable.next_dagrun_info(last_automated_data_interval=None, restriction=TimeRestriction(dag.start_date, None, catchup=False))
    assert first is not None
    assert first.run_after > now
