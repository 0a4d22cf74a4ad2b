"""What a run of a DAG tells, in a process of its own, of real Airflow: its spans, its metrics by OTLP, its lineage and Feast's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moon_ops.lake.ingest import ingest
from moon_ops.settings import Settings

RUN = """
import datetime as dt, os, sys
from opentelemetry import trace
from airflow.dag_processing.dagbag import BundleDagBag
from airflow.sdk._shared.observability.metrics import stats
from airflow.sdk.configuration import conf
from airflow.sdk.observability.metrics import stats_utils
stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=False)  # as Airflow's runner of a task does
folder = os.environ["AIRFLOW__CORE__DAGS_FOLDER"]
dag = BundleDagBag(dag_folder=folder, bundle_path=folder, bundle_name="dags-folder").dags["moon_new_items"]
dag.deadline = None
with trace.get_tracer("of a caller").start_as_current_span("worker"):
    made = dag.test(run_after=dt.datetime.fromisoformat(sys.argv[1]), logical_date=None)
assert str(made.state) == "success", made.state
trace.get_tracer_provider().force_flush()
from opentelemetry import metrics
metrics.get_meter_provider().force_flush()
"""


@pytest.fixture
def told(copied: Settings, make_shop: Callable[..., Path], collector: Any, airflow_db: None, now: Any, tmp_path: Path) -> list[Any]:
    """The events of OpenLineage after a run that has embedded and published one new item."""
    ingest(make_shop(items=[{"item_id": 900_001, "title": "red lamp"}]), copied.lake, now=now)
    events = tmp_path / "events"
    more = {
        "MOON_HOME": str(copied.home),
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_TRACES_EXPORTER": "otlp_proto_http",
        "AIRFLOW__TRACES__OTEL_ON": "True",
        "AIRFLOW__METRICS__OTEL_ON": "True",
        "OPENLINEAGE__TRANSPORT__TYPE": "file",
        "OPENLINEAGE__TRANSPORT__LOG_FILE_PATH": str(events),
        "OPENLINEAGE__TRANSPORT__APPEND": "true",
    }
    done = subprocess.run([sys.executable, "-c", RUN, now.isoformat()], env={**os.environ, **more}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in events.read_text().splitlines()]


@pytest.mark.slow
def test_what_a_run_tells(told: list[Any], copied: Settings, collector: Any) -> None:
    lake = copied.lake.address("").removesuffix(".lance")

    def datasets(task: str, side: str) -> dict[str, str]:
        of_task = [event for event in told if event["job"]["name"] == f"moon_new_items.{task}" and event[side]]
        found = {one["name"]: one["facets"].get("version", {}).get("datasetVersion", "") for event in of_task for one in event[side]}
        return {name.removeprefix(lake): version for name, version in found.items()}

    def version(table: str) -> str:
        return str(copied.lake.open(table).version)

    assert datasets("embed", "inputs").items() >= {("items.lance", version("items")), ("moon-encoder", "1")}
    assert datasets("embed", "outputs").items() >= {("embeddings/v1.lance", version("embeddings/v1"))}
    assert datasets("publish", "inputs").items() >= {("embeddings/v1.lance", version("embeddings/v1"))}
    assert datasets("publish", "outputs").keys() >= {"index/moon-encoder", "item_embedding_v1"}
    spans = {span["name"]: span for span in collector.spans}
    assert spans["moon.embed"]["facts"]["moon.dag_id"] == "moon_new_items"
    assert {spans["moon.embed"]["trace"], spans["moon.publish"]["trace"]} == {spans["worker"]["trace"]}, "Airflow's span is their parent"
    counted = {name.removeprefix("airflow."): values[-1] for name, values in collector.metrics.items() if ".moon." in name}
    assert counted.items() >= {("moon.items_embedded", 1.0), ("moon.items_without_vector.1", 0.0), ("moon.vector_lag_seconds.1", 0.0)}
