"""Engines: a Ray cluster ends with the rows of one machine, and a worker killed in the middle loses none."""

from __future__ import annotations

import datetime as dt
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from moon_ops.embeddings import engines, portions, produce
from moon_ops.embeddings.runtime import Runtime
from moon_ops.errors import ContractError, InputError, ServiceError, SettingsError
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake

MAY = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
COLOURS = ("red", "blue", "green", "pink")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Two workers on this machine."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}})
    yield
    ray.shutdown()


@pytest.fixture
def lake(make_shop: Callable[..., Path], tmp_path: Path) -> Lake:
    """Forty items, one of which cannot be read, and three queries."""
    filled = Lake(str(tmp_path / "lake"))
    items = [{"item_id": n, "title": f"{COLOURS[n % 4]} thing {n}", "images": f"{COLOURS[n % 4]}.png"} for n in range(1, 41)]
    queries = [{"query_id": n, "timestamp": "2026-05-01T10:00:00", "text": f"thing {n}"} for n in (1, 2, 3)]
    ingest(make_shop("shop", items=items, queries=queries, pictures={f"{c}.png": c for c in COLOURS}), filled, now=MAY)
    return filled


@pytest.fixture(autouse=True)
def several_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "SHARE", 8)


def embed(lake: Lake, runtime: Runtime, version: int, engine: engines.Engine | None = None) -> Any:
    items = produce.embed(lake, runtime, version, now=MAY, workers=2, engine=engine)
    return items, produce.embed_queries(lake, runtime, version, now=MAY, workers=2, engine=engine)


def same_rows(lake: Lake) -> None:
    """Both encoders' tables hold the same rows, each once; vectors agree to float32's rounding."""
    for name, key in (("embeddings", "item_id"), ("query_embeddings", "query_id")):
        here, there = (lake.read(f"{name}/v{n}").sort_by(key) for n in (1, 2))
        assert here.num_rows == {"item_id": 40, "query_id": 3}[key]
        assert here.drop_columns("embedding").equals(there.drop_columns("embedding"))
        vectors = [np.stack(table["embedding"].to_numpy()) for table in (here, there)]
        np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)


class Deadly(Runtime):
    """An encoder whose process is killed at the first forward, wherever that is."""

    def __init__(self, directory: Path, mark: Path) -> None:
        super().__init__(directory, threads=1)
        self.mark = mark

    def forward(self, *args: Any, **options: Any) -> Any:
        try:
            self.mark.touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        except FileExistsError:
            pass
        return super().forward(*args, **options)


def test_a_cluster_writes_the_rows_of_one_machine(lake: Lake, runtime: Runtime, encoder_directory: Path) -> None:
    reports = [embed(lake, runtime, 1), embed(lake, runtime, 2, engines.on_ray(partial(Runtime, encoder_directory, threads=1)))]
    assert [(a.embedded, a.excused, b.embedded) for a, b in reports] == [(40, 0, 3)] * 2
    same_rows(lake)


def test_a_killed_worker_loses_nothing(lake: Lake, runtime: Runtime, encoder_directory: Path, tmp_path: Path) -> None:
    embed(lake, runtime, 1)
    mark = tmp_path / "killed"
    items, _ = embed(lake, runtime, 2, engines.on_ray(partial(Deadly, encoder_directory, mark)))
    assert mark.exists()
    assert items.embedded == 40
    same_rows(lake)


def refuse() -> Runtime:
    raise ContractError("tower.onnx is another one", action="export the encoder again")


def test_what_an_actor_refuses_is_said_in_one_line(lake: Lake, runtime: Runtime) -> None:
    with pytest.raises(ServiceError, match=r"gave up \(.*ContractError: tower\.onnx is another one → export the encoder again\)") as said:
        embed(lake, runtime, 1, engines.on_ray(refuse))
    assert "Traceback" not in str(said.value)


def test_an_unknown_engine_is_refused(runtime: Runtime) -> None:
    with pytest.raises(InputError, match="engine 'spark' is not known → choose local or ray"):
        engines.engine("spark", runtime, lambda: runtime)


def test_without_the_extra_the_error_names_it(lake: Lake, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(SettingsError, match=r"moon_ops\[ray\]"):
        embed(lake, runtime, 1, engines.on_ray(lambda: runtime))
    assert portions.SIZE == 1024
