"""Sharded over two and four processes (gloo) an encoder learns what it learns in one, and goes on after a kill in any number of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import datetime as dt, json, os, sys
from dataclasses import replace
from pathlib import Path
import torch
from moon_ops.encoder import fit, sharding, shards, train as module
from moon_ops.inputs.contract import Sample
from moon_ops.lake.lake import Lake
from moon_ops.encoder.validation import Validation
from moon_ops.recipes.encoder import EncoderRecipe
from pydantic import TypeAdapter

lake, out, acts = Lake(sys.argv[1]), Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text())
rank, world, fit.LOG_STEPS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)), 1
known, kept, given, recall = module.behaviour, shards.SharedCheckpoints.save, sharding._gather, Validation._recall


def behaviour(lake, until, caps, most, excepted, deal):  # a picture an item, so that none is drawn: each process draws for itself
    pairs = known(lake, until)
    return replace(pairs, items=[Sample(s.text, s.image_ids[:1]) for s in pairs.items])


def count(tensors):
    return sum(t.to_local().numel() if hasattr(t, "to_local") else t.numel() for t in tensors)


def save(self, state, model, optimizers):
    kept(self, state, model, optimizers)
    held[:] = [count(model.parameters()), count(v for o in optimizers for s in o.state.values() for v in s.values() if v.ndim)]
    if [state.stage, state.step] == act["kill"]:
        raise KeyboardInterrupt


def gather(sharded, plain, machine):
    given(sharded, plain, machine)
    assert all(p.is_meta == (rank > 0) for p in plain.parameters()), "the first process alone has all numbers"


module.behaviour, shards.SharedCheckpoints.save, sharding._gather = behaviour, save, gather
module.Material.rows = property(lambda self: [row | {"image_ids": row["image_ids"][:1]} for row in self.catalogue.to_pylist()])
for number, act in enumerate(acts):
    heard, held = [], []
    try:
        module.train(
            lake, out / act["name"], TypeAdapter(EncoderRecipe).validate_python(act["recipe"]),
            trained_until=dt.datetime(2026, 1, 16, tzinfo=dt.UTC), seed=0,
            on_step=lambda step, found: heard.extend([found["loss"]] if "loss" in found else []),
        )
    except KeyboardInterrupt:
        pass
    (out / f"{act['name']}-{world}-{rank}-{number}.json").write_text(json.dumps([heard, held]))
"""


CLEAN = {"least_entities": 0, "category_balance": False}
HELD = {"validate_steps": 2, "validate_share": 0.5, "validate_least": 5, "patience": 0}
KEPT = {"ema": 0.5, "checkpoint_steps": 1, "matrix_learning_rate": 2e-3, "sharding": "full"}
ALL = {  # three stages, two optimizers, in chunks over two batches, an average, best weights, a queue, and negatives of which one has none
    "stage1": {"steps": 1},
    "stage2a": {"steps": 2, "within_product": 0.5},
    "stage2b": {"steps": 2, "hard_negatives": 1, "queue": 8, **CLEAN},
    "training": {"chunk": 3, "accumulation": 2, **HELD, **KEPT},
}
QWEN = {  # its blocks are called by our own functions, and run twice
    "family": "qwen3_vl",
    "inputs": {"picture_size": 32, "max_pictures": 2, "max_text_tokens": 32},
    "vision": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8},
    "text": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2},
    "stage1": {"steps": 1},
    "stage2a": {"steps": 2},
    "training": {"sharding": "full", "activation_checkpointing": True},
}
CONVOLVED = {"tower": "conv", "vision": {"channels": [8, 8], "blocks": 0}}  # it has batch norm


def act(name: str, recipe: dict[str, Any], kill: tuple[str, int] | None = None) -> dict[str, Any]:
    return {"name": name, "recipe": recipe, "kill": list(kill) if kill else None}


def run(processes: int, lake: str, out: Path, acts: list[dict[str, Any]]) -> None:
    (out / "script.py").write_text(SCRIPT)
    (out / "acts.json").write_text(json.dumps(acts))
    place = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "LANCE_LOG": "error"}
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    command = [sys.executable, *many, str(out / "script.py"), lake, str(out), str(out / "acts.json")]
    done = subprocess.run(command, env={**os.environ, **place}, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-12000:]


def heard(out: Path, name: str, processes: int, rank: int = 0) -> Any:
    """What a process has heard of its last act of that name: losses, and how many numbers it held of weights and of their states."""
    return json.loads(max(out.glob(f"{name}-{processes}-{rank}-*.json")).read_text())


def differs(out: Path, one: str, other: str) -> float:
    a, b = (load_file(out / name / "model.safetensors") for name in (one, other))
    assert a.keys() == b.keys()
    return max(float((b[name] - value).abs().max()) for name, value in a.items() if value.is_floating_point())


@pytest.mark.slow
def test_many_processes_learn_what_one_learns_and_go_on_after_a_kill_however_many_there_are(lake: Any, least: Any, tmp_path: Path) -> None:
    """Float32 sums in another order: Adam and Muon give even the smallest gradient a step as long as the rate, 2e-3."""
    whole, qwen = asdict(least(**ALL)), asdict(least(**QWEN))
    conv = asdict(least(stage2a={"steps": 2}, training={"sharding": "full"})) | CONVOLVED
    acts = [act("one", whole), act("one-qwen", qwen), act("one-conv", conv), act("grown", whole, ("stage2a", 1))]
    run(1, lake.uri, tmp_path, acts)
    acts = [act("two", whole), act("two-qwen", qwen), act("two-conv", conv), act("grown", whole)]
    acts += [act("again", whole, ("stage2a", 1)), act("again", whole, ("stage2b", 1)), act("again", whole)]
    run(2, lake.uri, tmp_path, [*acts, act("shrunk", whole, ("stage2b", 1))])
    run(4, lake.uri, tmp_path, [act("four", whole)])
    run(1, lake.uri, tmp_path, [act("shrunk", whole)])
    assert differs(tmp_path, "two", "again") == 0.0, "killed twice and gone on is run through"
    for name in ("two", "four", "grown", "shrunk"):
        assert differs(tmp_path, "one", name) < 1e-3, name
    resumed = [json.loads((tmp_path / name / "training.json").read_text())["resumed_at"] for name in ("two", "again", "grown", "shrunk")]
    assert resumed == [0, 4, 2, 4]
    for name in ("qwen", "conv"):
        assert differs(tmp_path, f"one-{name}", f"two-{name}") < 1e-3, name
    losses, (weights, states) = heard(tmp_path, "one", 1)
    assert len(losses) == 5
    for name, processes in (("two", 2), ("four", 4)):
        assert heard(tmp_path, name, processes)[0] == pytest.approx(losses, rel=1e-4)
        parts = [heard(tmp_path, name, processes, rank)[1] for rank in range(processes)]
        assert [sum(part) for part in zip(*parts, strict=True)] == [weights, states]
        assert max(part[0] for part in parts) < 1.1 * weights / processes
    assert not list(tmp_path.glob("*.partial"))
