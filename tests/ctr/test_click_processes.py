"""Several processes on one machine (gloo) train a click model as one process does on the same batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from moon_ops.ctr.prefetch import Part
from moon_ops.ctr.sharded import DRAWN, ShardedEmbedding

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, os, sys
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
sys.path[:0] = [sys.argv[1]]
from conftest import as_joined
from toy_clicks import ITEMS, MAY, QUERIES, impressions, unit
from moon_ops.ctr import fit as fitting, table_log, train
from moon_ops.ctr.kept import Kept
from moon_ops.ctr.prepared import InFiles
from moon_ops.ctr.vectors import Tables
from moon_ops.embeddings.table import RepresentationTable
from moon_ops.errors import MoonError
from moon_ops.recipes.ctr import CtrRecipe

out, trainings, rank = Path(sys.argv[2]), json.loads(sys.argv[3]), os.environ.get("RANK", "0")
torch.set_num_threads(1)
tables = Tables(*(RepresentationTable(np.arange(n), unit(n, seed), "c-one") for n, seed in ((ITEMS, 0), (QUERIES, 1))))
drawn = np.random.default_rng(0)
items = drawn.integers(0, 90, 403)
joined = as_joined(impressions(items, items % QUERIES, drawn.random(403) < 0.2 + 0.6 * (items % 2)))
train._export, train._parity = lambda *_: None, lambda *_: 0.0
small = {"embedding_dim": 4, "hidden": (16,), "behaviors": 3, "batch": 50, "learning_rate": 1e-2, "name": "toy", "epochs": 2}
honest, joins = fitting._Fit._one, []


def join():
    joins.append(rank)
    return joined, {"clicks": 3}


for name, changed in trainings:
    table_log.SHARE = 0.5 if name == "cube" else 9.0  # else hardly any file is of changed rows alone
    fitting.SAVED, killed_at, spoilt = 3, changed.pop("killed_at", None), changed.pop("spoilt", None)

    def one(self, columns, labels):
        if self.step == killed_at:
            raise KeyboardInterrupt
        if spoilt and rank == "1":
            labels = labels * float("nan")
        honest(self, columns, labels)

    fitting._Fit._one = one
    heard = []
    hear = (lambda step, found: heard.append(found["validation_auc"]) if "validation_auc" in found else None) if rank == "0" else None
    recipe = CtrRecipe(**{**small, **changed})
    try:
        source = InFiles(join, tables, Kept(out / "prepared", 10**9), lambda: "rows")
        report = train.train_on(source, out / name, recipe, origin=train.Origin("ctr_v1", MAY, MAY), seed=0, on_step=hear)
        told = [report.last_loss, report.epochs, report.validation_auc, report.parameters, heard]
    except (MoonError, KeyboardInterrupt) as fault:
        told = str(fault)
    (out / f"{name}-{rank}.json").write_text(json.dumps(told))
    (out / f"joins-{rank}.json").write_text(json.dumps(len(joins)))
"""
CUBE: dict[str, Any] = {"extractor": "cube", "validation": 0.2, "patience": 4}
DROPPED: dict[str, Any] = {"extractor": "din", "validation": 0.2, "dropout": 0.3}
SHARDED = {"embedding_sharding": "rows"}
TRAININGS: dict[str, dict[str, Any]] = {
    "cube": CUBE,
    "make": {"extractor": "simtier+make", "validation": 0.2, "pretrain_epochs": 1},
    "refit": {"extractor": "sata", "validation": 0.2, "refit": True},
    "all": {"extractor": "raw", "validation": 0.0, "batch": 201},  # the last batch is one row, so that others have none
}


def start(processes: int, out: Path, trainings: list[tuple[str, dict[str, Any]]]) -> Path:
    """Run trainings, one after the other, in so many processes."""
    out.mkdir(exist_ok=True)
    (out / "script.py").write_text(SCRIPT)
    place = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "LANCE_LOG": "error"}
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    command = [sys.executable, *many, str(out / "script.py"), str(Path(__file__).parent), str(out), json.dumps(trainings)]
    done = subprocess.run(command, env={**os.environ, **place}, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-12000:]
    return out


def weights(place: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(place / name / "model.safetensors")


def told(place: Path, name: str, rank: int = 0) -> Any:
    return json.loads((place / f"{name}-{rank}.json").read_text())


def require_same(one: tuple[Path, str], other: tuple[Path, str]) -> None:
    """The same losses, looks and weights, but for rounding."""
    (loss, epochs, auc, count, heard), found = told(*one), told(*other)
    assert found[0] == pytest.approx(loss, rel=1e-4), other
    assert found[1:4] == [epochs, pytest.approx(auc, abs=1e-3, nan_ok=True), count], other
    assert found[4] == pytest.approx(heard[len(heard) - len(found[4]) :], abs=1e-3), other  # one that goes on has heard the last ones
    expected, values = weights(*one), weights(*other)
    assert expected.keys() == values.keys()
    for name, value in expected.items():
        assert torch.allclose(values[name], value, atol=2e-4), (other, name)


@pytest.mark.slow
def test_two_and_four_processes_learn_what_one_does(tmp_path: Path) -> None:
    """Also with the table shared out, and when another number of processes goes on with what a killed one has left."""
    shared = {f"{name}, shared": given | SHARDED for name, given in TRAININGS.items()}
    one = start(1, tmp_path / "one", [*TRAININGS.items()])
    cut = ("cut", CUBE | SHARDED | {"killed_at": 8})
    kept = [("kept", DROPPED | SHARDED), ("again", DROPPED | SHARDED | {"killed_at": 7}), ("again", DROPPED | SHARDED)]
    spoilt = ("spoilt", CUBE | {"spoilt": True})
    two = start(2, tmp_path / "two", [*TRAININGS.items(), *shared.items(), cut, *kept, spoilt])
    for name in (*TRAININGS, *shared):
        require_same((one, name.removesuffix(", shared")), (two, name))
        assert not (two / f"{name}.partial").exists()
    whole, again = weights(two, "kept"), weights(two, "again")
    assert all(torch.equal(whole[name], value) for name, value in again.items()), "a killed training ends with the same weights"
    assert told(two, "spoilt", 0) == told(two, "spoilt", 1) == "the click model's loss is nan at step 0 → lower learning_rate"
    files = {file.name for file in (two / "cut.partial").glob("table-*")}
    assert files == {f"table-{step}-of-2.{rank}.safetensors" for step in (0, 3, 6) for rank in (0, 1)}
    (tmp_path / "four").mkdir()
    (two / "cut.partial").rename(tmp_path / "four" / "cut.partial")
    four = start(4, tmp_path / "four", [("cube", CUBE), ("cut", CUBE | SHARDED)])
    for name in ("cube", "cut"):
        require_same((one, "cube"), (four, name))
    assert [told(two, "joins", rank) for rank in (0, 1)] == [2, 0], "the first makes rows for both: with a share of validation, and without"


@pytest.mark.parametrize("rows", [1, 3, 7 + 2 * DRAWN, DRAWN - 1])
def test_processes_draw_the_rows_of_one_table(rows: int) -> None:
    torch.manual_seed(3)
    whole = nn.init.normal_(torch.empty(rows, 4), std=0.5)
    after = torch.rand(1)
    for number in range(3):
        torch.manual_seed(3)
        part = ShardedEmbedding(rows, 4, Part(number, 3))
        part.draw(0.5)
        assert torch.equal(part.weight, whole[number::3])
        assert torch.equal(torch.rand(1), after)


def test_each_row_of_a_batch_is_of_one_process() -> None:
    batch = np.arange(10, 17)
    assert sorted(np.concatenate([Part(number, 4).rows(batch) for number in range(4)])) == batch.tolist()
    assert [len(Part(number, 4).rows(batch[:2])) for number in range(4)] == [1, 1, 0, 0]
