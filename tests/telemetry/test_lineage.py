"""Feast's lineage, where OpenLineage's own variables name a transport: what is defined is told to a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moon_ops.embeddings import features
from moon_ops.settings import Settings
from moon_ops.telemetry import lineage


def test_feast_tells_what_is_defined(copied: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert lineage.of_feast() == {}
    assert features.open_store(copied).openlineage_emitter is None
    events = tmp_path / "events"
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "file")
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__LOG_FILE_PATH", str(events))
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__APPEND", "true")
    store = features.open_store(copied)
    features.apply(store, copied.home, features.definitions(copied.lake, [1]))
    told = [json.loads(line) for line in events.read_text().splitlines()]
    made = {one["job"]["name"]: ({i["name"] for i in one["inputs"]}, {o["name"] for o in one["outputs"]}) for one in told}
    views = {"item_embedding_v1", "query_embedding_v1", "item_profile", "user_behavior"}
    assert any(views <= outputs and {"item_embedding_v1"} <= inputs for inputs, outputs in made.values())
    assert any("ctr_v1" in outputs and views <= inputs for inputs, outputs in made.values())
    assert {one["job"]["namespace"] for one in told} == {lineage.FEAST}
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "true")
    assert lineage.of_feast() == {}


def test_places_are_named_as_openlineage_names_them() -> None:
    def table(name: str) -> tuple[str, int | None]:
        return f"s3://moon/lake/{name}.lance", None if name == "query_embeddings/v3" else 12

    facts = {"encoder": 3, "ctr": None, "release": 5}
    reads, writes = (list(lineage._datasets(names, table, facts)) for names in lineage.FLOW["release"])
    assert [(one.namespace, one.name, one.facets["version"].datasetVersion) for one in reads] == [
        ("mlflow", "moon-encoder", "3"),
        ("s3://moon", "lake/embeddings/v3.lance", "12"),
        ("moon", "index/moon-encoder", "3"),
    ], "no click model, and no table that is not there"
    assert [(one.namespace, one.name, one.facets["version"].datasetVersion) for one in writes] == [("mlflow", "moon-release", "5")]
