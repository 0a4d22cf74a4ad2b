"""Sharded over two and four processes (gloo), an encoder learns what it learns in one, and goes on after a kill, also with another number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
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
from moon_ops.recipes.encoder import EncoderRecipe
from pydantic import TypeAdapter

lake, out, asked = Lake(sys.argv[1]), Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text())
rank, fit.LOG_STEPS, known, kept = int(os.environ.get("RANK", 0)), 1, module.behaviour, shards.SharedCheckpoints.save


def behaviour(lake, until, caps, most, excepted):  # a picture an item, so that none is drawn: each process draws for itself
    pairs = known(lake, until)
    return replace(pairs, items=[Sample(s.text, s.image_ids[:1]) for s in pairs.items])


def save(self, state, model, optimizers):
    kept(self, state, model, optimizers)
    held.update({n: p.to_local().numel() if hasattr(p, "to_local") else p.numel() for n, p in model.named_parameters()})
    held["states"] = sum(
        v.to_local().numel() if hasattr(v, "to_local") else v.numel() for o in optimizers for s in o.state.values() for v in s.values()
    )
    if [state.stage, state.step] == asked["kill"]:
        raise KeyboardInterrupt


module.behaviour, shards.SharedCheckpoints.save = behaviour, save
module.Material.rows = property(lambda self: [row | {"image_ids": row["image_ids"][:1]} for row in self.catalogue.to_pylist()])
for name, recipe in asked["recipes"].items():
    heard, held = [], {}
    try:
        module.train(
            lake, out / name, TypeAdapter(EncoderRecipe).validate_python(recipe), trained_until=dt.datetime(2026, 1, 16, tzinfo=dt.UTC),
            seed=0, on_step=lambda step, found: heard.extend([found["loss"]] if "loss" in found else []),
        )
    except KeyboardInterrupt:
        pass
    (out / f"{name}-{rank}.json").write_text(json.dumps([heard, held]))
"""


def run(processes: int, lake: str, out: Path, recipes: dict[str, Any], kill: tuple[str, int] | None = None) -> Path:
    out.mkdir(exist_ok=True)
    (out / "script.py").write_text(SCRIPT)
    (out / "asked.json").write_text(json.dumps({"recipes": recipes, "kill": list(kill or ())}))
    place = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "LANCE_LOG": "error"}
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    command = [sys.executable, *many, str(out / "script.py"), lake, str(out), str(out / "asked.json")]
    done = subprocess.run(command, env={**os.environ, **place}, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-12000:]
    return out
