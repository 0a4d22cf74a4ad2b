"""Where heavy tasks run is one setting: under each, Airflow reads the same DAGs, and what is made of their tasks is what was asked for."""

from __future__ import annotations

import builtins
import datetime as dt
import dis
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_dag_edges import EDGES

ROOT = Path(__file__).parents[1]
HEAVY = {
    "moon_ctr_train": {"ctr", "release"},
    "moon_ingest": {"ingest"},
    "moon_maintenance": {"maintain"},
    "moon_new_items": {"embed", "publish"},
    "moon_nightly_refresh": {"refresh", "check", "verify", "refresh_other"},
    "moon_promote": set(),
    "moon_retrain": {"train", "export", "embed", "publish", "ctr", "release"},
}
NEEDS = {"docker": "airflow.providers.docker", "pod": "airflow.providers.cncf.kubernetes"}
SETTINGS = {
    "here": "",
    "python": f"python:{sys.executable}",
    "docker": "docker:moon-train:1?network=moon_default&volume=worker",
    "pod": "pod:moon-train:1?memory=32Gi&namespace=moon",
}
KINDS = {
    "here": "_PythonDecoratedOperator",
    "python": "_PythonExternalDecoratedOperator",
    "docker": "_DockerDecoratedOperator",
    "pod": "_KubernetesDecoratedOperator",
}


@pytest.fixture
def read(airflow_db: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    from airflow.dag_processing.dagbag import BundleDagBag

    monkeypatch.setenv("AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT", "300")  # the pods' provider is large, and the machine may be busy

    def under(setting: str) -> Any:
        monkeypatch.setenv("MOON_TASKS", setting)
        return BundleDagBag(dag_folder=ROOT / "dags", bundle_path=ROOT / "dags", bundle_name="dags-folder")

    return under


def made(task: Any) -> str:
    return getattr(task, "operator_class", type(task)).__name__


@pytest.mark.parametrize("how", SETTINGS)
def test_the_same_dags_under_each_setting(read: Callable[[str], Any], how: str) -> None:
    if how in NEEDS:
        pytest.importorskip(NEEDS[how])
    bag = read(SETTINGS[how])
    assert bag.import_errors == {}
    edges = {name: {task.task_id: task.downstream_task_ids for task in dag.tasks} for name, dag in bag.dags.items()}
    assert edges == EDGES
    kinds = {name: {task.task_id: made(task) for task in dag.tasks} for name, dag in bag.dags.items()}
    for name, tasks in kinds.items():
        there = HEAVY[name] - ({"ingest"} if how in NEEDS else set())  # the drop zone is a directory of the worker
        assert {task for task, kind in tasks.items() if kind == KINDS[how]} == (there if how != "here" else set(tasks) - BY_HAND), name


BY_HAND = {"approve", "second_person"}


def test_what_is_sent_elsewhere_stands_alone(read: Callable[[str], Any]) -> None:
    """Its text is run without its file: neither its names nor its annotations may need that."""
    bag = read(SETTINGS["python"])
    for name, tasks in HEAVY.items():
        for task in tasks:
            found = bag.dags[name].task_dict[task]
            function = found.python_callable
            named = {step.argval for step in dis.get_instructions(function) if step.opname == "LOAD_GLOBAL"}
            assert named <= set(dir(builtins)), f"{name}.{task}"
            exec(inspect.getsource(function), {})


def test_a_pod_has_its_image_its_limits_and_its_secret(read: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(NEEDS["pod"])
    from airflow.serialization.serialized_objects import DagSerialization

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    bag = read(SETTINGS["pod"])
    train = bag.dags["moon_retrain"].task_dict["train"]
    assert (train.image, train.namespace, train.pool) == ("moon-train:1", "moon", "moon_training")
    assert train.container_resources.limits == train.container_resources.requests == {"cpu": "4", "memory": "32Gi"}
    assert [source.secret_ref.name for source in train.env_from] == ["moon"]
    assert (train.container_security_context.run_as_user, train.container_security_context.run_as_non_root) == (10001, True)
    for dag in bag.dags.values():
        assert "very-secret" not in json.dumps(DagSerialization.to_dict(dag), default=str)


def test_a_container_is_told_what_its_worker_knows_and_shows_none_of_it(
    read: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(NEEDS["docker"])
    from airflow.serialization.serialized_objects import DagSerialization

    monkeypatch.setenv("MOON_REDIS", "redis:6379,password=very-secret")
    bag = read(SETTINGS["docker"])
    train = bag.dags["moon_retrain"].task_dict["train"]
    assert (train.image, train.network_mode, train.cpus, train.mem_limit) == ("moon-train:1", "moon_default", 4.0, "8g")
    assert [(mount["Source"], mount["Target"]) for mount in train.mounts] == [("worker", "/var/lib/moon")]
    assert train._private_environment == {}, "which the operator adds to the variables of its container"
    train._pre_execute_hook({"task": train})
    told = train._private_environment
    assert told["MOON_REDIS"] == "redis:6379,password=very-secret"
    assert not {"MOON_HOME", "MOON_TASKS", "MOON_INBOX", "MOON_MODELS"} & set(told)
    for dag in bag.dags.values():
        assert "very-secret" not in json.dumps(DagSerialization.to_dict(dag), default=str)


def test_limits_are_those_of_the_worker(read: Callable[[str], Any]) -> None:
    """Of docker-compose.yml and of the chart's values."""
    read("")
    import moon_isolation

    worker = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["airflow-worker"]
    options = moon_isolation.OPTIONS["docker"]
    assert (options["cpu"], options["memory"]) == (str(worker["cpus"]), worker["mem_limit"])
    values = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "airflow-values.yaml").read_text())["workers"]["resources"]
    options = moon_isolation.OPTIONS["pod"]
    assert values["limits"] == {"cpu": options["cpu"], "memory": options["memory"]}


@pytest.mark.parametrize("wrong", ["nonsense", "python", "docker:", "here:there", "pod:image?colour=red"])
def test_a_setting_that_makes_no_sense_is_shown_by_airflow(read: Callable[[str], Any], wrong: str) -> None:
    bag = read(wrong)
    assert set(bag.dags) == {"moon_promote"}, "which has no heavy task"
    broken = [error for path, error in bag.import_errors.items() if "moon_retrain" in path]
    assert len(broken) == 1
    assert f"MOON_TASKS = {wrong!r} says not where tasks run → set it to here, python:/path/to/python" in broken[0]


@pytest.mark.slow
def test_a_dag_runs_in_another_interpreter(
    read: Callable[[str], Any], make_shop: Callable[..., Path], now: dt.datetime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters reach it, and numbers come back."""
    from moon_ops.lake.ingest import ingest
    from moon_ops.settings import Settings

    monkeypatch.setenv("MOON_HOME", str(tmp_path / "home"))
    lake = Settings.from_environment().lake
    for number in range(3):
        ingest(make_shop(f"shop-{number}", items=[{"item_id": number, "title": f"lamp {number}"}]), lake, now=now)
    versions = len(lake.open("items").versions())
    dag = read(SETTINGS["python"]).dags["moon_maintenance"]
    dag.deadline = None  # in Airflow 3.3 `test` asks for the deadlines of a DAG that a scheduler has written down
    for task in dag.tasks:
        task.retries = 0
    run = dag.test(run_after=now + dt.timedelta(days=1), logical_date=None, run_conf={"keep_days": 0})
    (ran,) = run.get_task_instances()
    found = ran.xcom_pull(task_ids="maintain")
    assert (str(run.state), set(found)) == ("success", {"files", "versions", "checkpoints"})
    assert found["versions"] >= versions - len(lake.open("items").versions()) > 0
