"""The DAGs: each of them really runs on the tiny shop."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def run_dag(dagbag: Any) -> Any:
    def run(dag_id: str, as_of: dt.datetime, conf: dict[str, Any] | None = None, *, ends: str = "success") -> dict[str, Any]:
        dag = dagbag.dags[dag_id]
        for task in dag.tasks:
            task.retries = 0  # a failing task would really wait before its retry
        dag.deadline = None  # in Airflow 3.3 `test` asks for the deadlines of a DAG that a scheduler has written down
        made = dag.test(run_after=as_of, logical_date=None, run_conf=conf)
        found = made.get_task_instances()
        run.links = {  # type: ignore[attr-defined]
            (ti.task_id, link.name): ti.xcom_pull(task_ids=ti.task_id, key=link.xcom_key)
            for ti in found
            for link in getattr(dag.task_dict[ti.task_id], "operator_extra_links", ())
        }
        states = {
            ti.task_id: str(ti.state) for ti in sorted(found, key=lambda ti: str(ti.state) == "failed")
        }  # of mapped ones, a failed one
        assert str(made.state) == ends, states
        return {ti.task_id: ti.xcom_pull(task_ids=ti.task_id, map_indexes=ti.map_index) for ti in found} if ends == "success" else states

    return run


@pytest.fixture
def two_people(dag_home: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Register a release like the first one; the shop's rules ask for a second person, who gives an answer when asked (none if empty)."""
    from fastapi.testclient import TestClient

    from moon_ops.registry.registry import RELEASE, Registry, manifest_of
    from moon_ops.release import registration
    from moon_ops.settings import ROOT

    shutil.copytree(ROOT / "models", tmp_path / "models")
    with (tmp_path / "models" / "gates.toml").open("a") as gates:
        gates.write("second_person = true\n")
    monkeypatch.setenv("MOON_MODELS", str(tmp_path / "models"))
    registry, threads = Registry(dag_home), list[threading.Thread]()

    def give(answer: str) -> None:
        from airflow.api_fastapi.app import create_app

        answered = False
        with TestClient(create_app(apps="core"), raise_server_exceptions=False) as client:
            while not answered:
                time.sleep(0.2)
                asked = client.get("/api/v2/dags/moon_promote/dagRuns/~/hitlDetails", params={"response_received": False})
                for waiting in asked.json()["hitl_details"] if asked.is_success else []:
                    run, state = waiting["task_instance"]["dag_run_id"], waiting["task_instance"]["state"]
                    if state != "awaiting_input":  # Airflow asks a moment before the task waits, and an answer in between wakes nobody
                        continue
                    path = f"/api/v2/dags/moon_promote/dagRuns/{run}/taskInstances/approve/-1/hitlDetails"
                    answered = client.patch(path, json={"chosen_options": [answer]}).is_success or answered

    def make(answer: str, **changed: Any) -> int:
        (tmp_path / "parts").mkdir()
        manifest = {**manifest_of(registry, 1), "compared_with": {"release": registry.alias("champion")}, **changed}
        (tmp_path / "parts" / "manifest.json").write_text(json.dumps(manifest))
        if answer:
            threads.append(threading.Thread(target=give, args=(answer,), daemon=True))
            threads[0].start()
        run_id = registry.start_run("by hand", {})
        version = registry.register(RELEASE, run_id, tmp_path / "parts", {})
        registration.keep_vectors(dag_home, version, manifest)
        registry.finish(run_id)
        return version

    yield make
    for thread in threads:
        thread.join(60)


@pytest.fixture(scope="module")
def dag_home(shop: Path, tmp_path_factory: pytest.TempPathFactory, now: dt.datetime) -> Any:
    """A home of the DAGs' own, with the tiny shop ingested and nothing trained."""
    from moon_ops.lake.ingest import ingest
    from moon_ops.settings import Settings

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOON_HOME", str(tmp_path_factory.mktemp("dags")))
        settings = Settings.from_environment()
        ingest(shop, settings.lake, now=now)
        yield settings


def test_new_items_without_a_champion_does_nothing(dag_home: Any, run_dag: Any, now: dt.datetime) -> None:
    assert run_dag("moon_new_items", now) == {"embed": 0, "publish": False}
    assert run_dag("moon_ingest", now) == {"ingest": None}, "there is no drop zone: skipped"
    assert set(run_dag("moon_ctr_train", now).values()) == {None}, "there is no champion: skipped"


def test_retrain_registers_and_promotes_a_release(dag_home: Any, run_dag: Any, now: dt.datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its tasks lead to MLflow."""
    from moon_ops.registry.registry import CTR, ENCODER, RELEASE, Registry
    from moon_ops.release.status import status

    monkeypatch.setenv("MOON_MLFLOW_PAGES", "https://mlflow.example.com/")
    found = run_dag("moon_retrain", now, {"encoder": "moon-nano", "seed": 0})
    assert (found["export"], found["embed"], found["publish"], found["ctr"], found["release"]) == (1, 1, 1, 1, 1)
    assert found["promote"] is True
    state = status(dag_home)
    assert state["champion"]["release"] == 1
    assert state["embedded"] == state["items"] == 115
    runs = {name: Registry(dag_home).client.get_model_version(name, "1").run_id for name in (ENCODER, CTR, RELEASE)}
    at = f"https://mlflow.example.com/#/experiments/{Registry(dag_home).experiment_id}/runs"
    assert run_dag.links == {
        ("export", "MLflow run"): f"{at}/{runs[ENCODER]}",
        ("ctr", "MLflow run"): f"{at}/{runs[CTR]}",
        ("release", "MLflow run"): f"{at}/{runs[RELEASE]}",
        ("release", "Report of the release"): f"{at}/{runs[RELEASE]}/artifacts/report/report.html",
        ("gates", "MLflow run"): f"{at}/{runs[RELEASE]}",
        ("gates", "Report of the release"): f"{at}/{runs[RELEASE]}/artifacts/report/report.html",
    }


def test_promotion_by_hand(dag_home: Any, run_dag: Any, now: dt.datetime) -> None:
    """The candidate is release 1, which is champion already; release 7 does not exist, and the first task says so."""
    found = run_dag("moon_promote", now, {"reason": "tried"})
    assert found["check"]["evidence"].startswith("**Release 1: ")
    assert (found["check"]["release"], found["approve"], found["promote"]) == (1, None, False), "nobody else was asked"
    states = run_dag("moon_promote", now + dt.timedelta(minutes=1), {"release": 7}, ends="failed")
    assert states == {"check": "failed", "second_person": "upstream_failed", "approve": "upstream_failed", "promote": "upstream_failed"}


@pytest.mark.parametrize(("answer", "promoted"), [("Approve", True), ("Reject", None)])
def test_a_second_person_is_asked(
    dag_home: Any, run_dag: Any, now: dt.datetime, two_people: Any, answer: str, promoted: bool | None
) -> None:
    """Somebody else answers through Airflow's API, as the page *Required Actions* does; the record names both."""
    from moon_ops.registry.moves import moves
    from moon_ops.registry.registry import Registry

    version = two_people(answer)
    found = run_dag("moon_promote", now + dt.timedelta(hours=version), {"release": version, "reason": "sofas"})
    assert found["promote"] is promoted
    last = moves(Registry(dag_home))[-1]
    assert (last.release == version) is bool(promoted)
    if promoted:
        assert (last.by, last.why) == ("dag_test, approved by Anonymous", "sofas")


def test_one_person_is_not_two(dag_home: Any, two_people: Any, now: dt.datetime) -> None:
    from moon_ops import tasks
    from moon_ops.errors import GateError

    version = two_people("")
    for approved_by in ("", "ana"):
        with pytest.raises(GateError, match=r"started by ana and approved by (nobody|ana), but two people must agree"):
            tasks.promote_by(version, now.isoformat(), by="ana", approved_by=approved_by)
    assert tasks.promote(version, now.isoformat()) is False, "moon_retrain does not promote alone either"


def test_a_release_that_failed_its_gates_ends_the_run_for_all_to_see(dag_home: Any, two_people: Any) -> None:
    from moon_ops import tasks
    from moon_ops.errors import GateError

    failed = two_people("", passed=False, evidence=[{"gate": "ctr/auc", "value": 0.4, "rule": "at least 0.5", "passed": False}])
    with pytest.raises(GateError, match=r"ctr/auc = 0.4000, it must be at least 0.5"):
        tasks.require_passed(failed)


def test_nightly_refresh_finds_everything_embedded(dag_home: Any, run_dag: Any, now: dt.datetime) -> None:
    rows = dag_home.lake.count("embeddings/v1")
    found = run_dag("moon_nightly_refresh", now + dt.timedelta(days=1))
    assert (found["served"], found["refresh"]) == (1, 1)
    assert found["check"] == {"encoders": 1, "items": 115}
    assert dag_home.lake.count("embeddings/v1") == rows


def test_a_broken_candidate_fails_its_own_task_and_the_champion_is_refreshed(
    dag_home: Any, run_dag: Any, now: dt.datetime, tmp_path: Path
) -> None:
    from moon_ops.registry.registry import CANDIDATE, RELEASE, Registry

    registry, later = Registry(dag_home), now + dt.timedelta(days=1)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text('{"encoder": {"ver')
    before = registry.alias(CANDIDATE)
    broken = registry.register(RELEASE, registry.start_run("by hand", {}), tmp_path / "broken", {})
    registry.point(CANDIDATE, broken)
    try:
        states = run_dag("moon_nightly_refresh", later, ends="failed")
        assert {name for name, state in states.items() if state == "failed"} == {"refresh_other"}
        assert [states[name] for name in ("served", "refresh", "check", "verify", "others")] == ["success"] * 5
        (tmp_path / "broken" / "manifest.json").write_text(json.dumps({"encoder": {"version": 99}}))
        registry.point(CANDIDATE, registry.register(RELEASE, registry.start_run("by hand", {}), tmp_path / "broken", {}))
        states = run_dag("moon_nightly_refresh", later, ends="failed")
        assert {name for name, state in states.items() if state == "failed"} == {"refresh_other"}, "an encoder that is not there"
    finally:
        registry.point(CANDIDATE, before or 1)


def test_new_items_from_the_inbox_can_be_found(
    dag_home: Any, run_dag: Any, make_shop: Any, monkeypatch: pytest.MonkeyPatch, now: dt.datetime
) -> None:
    from moon_ops.embeddings.index import ItemIndex
    from moon_ops.release import stages

    item = {"item_id": 900_001, "title": "one green lamp", "images": ["a.png"], "available_from": "2026-01-02T00:00:00Z"}
    inbox = make_shop(items=[item], pictures={"a.png": "green"})
    monkeypatch.setenv("MOON_INBOX", str(inbox))
    later = now + dt.timedelta(days=2)
    assert run_dag("moon_ingest", later) == {"ingest": {"directories": 1, "changed": 1, "refused": 0}}
    assert run_dag("moon_new_items", later) == {"embed": 1, "publish": True}
    assert run_dag("moon_ingest", later) == {"ingest": None}
    assert run_dag("moon_new_items", later) == {"embed": 0, "publish": False}
    from moon_ops.publication import places

    index = ItemIndex.open(places.index_place(dag_home, 1))
    encoder = stages.runtime(dag_home, 1)
    from moon_ops.embeddings.vector_tables import vectors_as_of

    ids, vectors = vectors_as_of(dag_home.lake, 1, later)
    found, cosines = index.search(vectors[ids == 900_001], 1, encoder.contract_id)
    assert found.tolist() == [[900_001]]
    assert cosines[0, 0] == pytest.approx(1.0, abs=1e-5)


def test_maintenance_merges_what_many_commits_left(dag_home: Any, run_dag: Any, now: dt.datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    from moon_ops.publication import maintenance

    monkeypatch.setattr(maintenance, "FRAGMENTS", 1)
    rows = dag_home.lake.count("embeddings/v1")
    assert len(dag_home.lake.open("embeddings/v1").get_fragments()) > 1
    found = run_dag("moon_maintenance", now + dt.timedelta(days=3), {"keep_days": 0})["maintain"]
    assert found["files"] >= 1
    assert found["versions"] >= 1
    assert len(dag_home.lake.open("embeddings/v1").get_fragments()) == 1
    assert dag_home.lake.count("embeddings/v1") == rows
    assert "release-1" in dag_home.lake.open("embeddings/v1").tags.list()


def test_what_lies_in_the_inbox_undoes_no_correction_and_no_erasure(
    dag_home: Any, run_dag: Any, make_shop: Any, monkeypatch: pytest.MonkeyPatch, now: dt.datetime
) -> None:
    from moon_ops.lake.tables import items_as_of
    from moon_ops.publication.erasure import erase
    from moon_ops.publication.traces import target
    from moon_ops.serving.follower import Follower
    from moon_ops.serving.live import Intake, NewItem

    day = dt.timedelta(days=1)
    monkeypatch.setenv("MOON_INBOX", str(make_shop(items=[{"item_id": 910_000 + n, "title": f"lamp {n}"} for n in range(3)])))
    assert run_dag("moon_ingest", now + 4 * day)["ingest"]["changed"] == 3
    Intake(dag_home, Follower(dag_home)).accept([NewItem(item_id=910_000, title="corrected")], now + 5 * day)
    erase(dag_home, target(dag_home.lake, "item", "910001"), now=now + 5 * day)
    for as_of in (now + 6 * day, now + 4.5 * day, now + 4 * day):  # the last two: runs that were cleared, and run again
        assert run_dag("moon_ingest", as_of)["ingest"] is None
        sold = {row["item_id"]: row["title"] for row in items_as_of(dag_home.lake, now + 7 * day).to_pylist()}
        assert {item: title for item, title in sold.items() if item >= 910_000} == {910_000: "corrected", 910_002: "lamp 2"}


def test_the_inbox_may_be_the_full_feed(
    dag_home: Any, dagbag: Any, run_dag: Any, make_shop: Any, monkeypatch: pytest.MonkeyPatch, now: dt.datetime
) -> None:
    from moon_ops import tasks
    from moon_ops.errors import InputError
    from moon_ops.release.status import active_items

    monkeypatch.setenv("MOON_INBOX", str(make_shop(items=[{"item_id": 910_002, "title": "lamp 2"}])))
    later, sold = now + dt.timedelta(days=8), active_items(dag_home.lake)
    assert run_dag("moon_ingest", later, {"full_feed": True}, ends="failed")["ingest"] == "failed"
    assert active_items(dag_home.lake) == sold
    with pytest.raises(InputError, match=r"is to be the full feed, but .* may be cut; nothing was ingested"):
        tasks.ingest_inbox(later.isoformat(), full_feed=True)
    for wrong in ({"full_feed": "yes"}, {"withdraw_at_most": 2}):
        with pytest.raises(ValueError, match="Invalid input for param"):
            run_dag("moon_ingest", later, wrong)
    assert run_dag("moon_ingest", later, {"full_feed": True, "withdraw_at_most": 1})["ingest"]["changed"] >= len(sold) - 1
    assert active_items(dag_home.lake) == {910_002}
