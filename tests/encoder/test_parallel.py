"""Two processes on one machine (gloo) train as one process does on the same batches."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from collections import Counter
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
from moon_ops.encoder import fit, train as module
from moon_ops.inputs.contract import Sample
from moon_ops.lake.lake import Lake
from moon_ops.recipes.encoder import EncoderRecipe
from pydantic import TypeAdapter

lake, out, recipes = Lake(sys.argv[1]), Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text())
fit.LOG_STEPS = 1
known = module.behaviour


def behaviour(lake, until, caps, most, excepted, deal):  # a picture an item, so that none is drawn: each process draws for itself
    pairs = known(lake, until)
    return replace(pairs, items=[Sample(s.text, s.image_ids[:1]) for s in pairs.items])


def counted(work):
    def calling(*given, **more):
        made.append(work.__name__)
        return work(*given, **more)

    return calling


def refinement(encoder, purchases, store, recipe, seed, prepared, tensors):
    counts = [float(buffer.double().sum()) for buffer in encoder.buffers()]
    seen = [counts, prepared.kept.tolist(), prepared.hard.tolist()]
    (out / f"refined-{rank}.json").write_text(json.dumps(seen))
    return refined(encoder, purchases, store, recipe, seed, prepared, tensors)


made, rank = [], os.environ.get("RANK", 0)
module.behaviour = behaviour
module.behaviour, module.prepare = counted(behaviour), counted(module.prepare)
module.PixelStore.over = counted(module.PixelStore.over)
refined, module.Refinement = module.Refinement, refinement
for name, recipe in recipes.items():
    heard = []
    module.train(
        lake, out / name, TypeAdapter(EncoderRecipe).validate_python(recipe), trained_until=dt.datetime(2026, 1, 16, tzinfo=dt.UTC), seed=0,
        on_step=lambda step, found: heard.extend([found["loss"]] if "loss" in found else []),
    )
    if heard:
        (out / f"{name}.json").write_text(json.dumps(heard))
    (out / f"made-{rank}.json").write_text(json.dumps(made))
"""
CLEAN = {"least_entities": 0, "category_balance": False}
RECIPES: dict[str, dict[str, Any]] = {
    "2a": {"stage2a": {"steps": 3, "within_product": 0.5}, "training": {"prefixes": [8]}},
    "2a in chunks, over two batches": {"stage2a": {"steps": 3}, "training": {"chunk": 3, "accumulation": 2}},
    "2b": {"stage2b": {"steps": 3, **CLEAN}},
    "2b, hard": {"stage2b": {"steps": 3, "hard_negatives": 3, **CLEAN}},
    "both": {"stage2a": {"steps": 2}, "stage2b": {"steps": 2, **CLEAN}, "training": {"ema": 0.9}},
}
CONVOLVED: dict[str, Any] = {"tower": "conv", "vision": {"channels": [8, 8], "blocks": 0}}  # it has batch norm
UNEVEN = {  # hard negatives are more in one process than in the other, so it runs the model more often
    "stage2a": {"steps": 2},
    "stage2b": {"steps": 6, "hard_negatives": 4, "queue": 8, **CLEAN},
    "training": {"chunk": 1, "augment": True, "synthetic": 0.5, "text_dropout": 0.3},
}
FAULTS = """
import datetime as dt, json, os, sys
from pathlib import Path
import torch, torch.distributed as dist
from moon_ops.encoder import together, train as module
from moon_ops.errors import InputError, StageError
from moon_ops.lake.lake import Lake
from moon_ops.recipes.encoder import EncoderRecipe
from pydantic import TypeAdapter

lake, out, recipes = Lake(sys.argv[1]), Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text())
rank, recipe, told = int(os.environ["RANK"]), TypeAdapter(EncoderRecipe).validate_python(recipes["both"]), {}


def train(name):
    module.train(lake, out / name, recipe, trained_until=dt.datetime(2026, 1, 16, tzinfo=dt.UTC), seed=0)


def spoilt(owner, name, where, error):
    honest = getattr(owner, name)

    def work(*given, **more):
        if rank == where:
            raise error
        return honest(*given, **more)

    setattr(owner, name, work)
    try:
        train(name)
    except Exception as fault:
        told[name] = [type(fault).__name__, str(fault)]
    setattr(owner, name, honest)


spoilt(module, "behaviour", 0, InputError("no pairs", action="ingest some"))
spoilt(module, "build", 1, InputError("no checkpoint", action="name one"))
spoilt(module.PixelStore, "over", 0, StageError("no pictures", action="ingest them"))
spoilt(module.PixelStore, "open", 1, FileNotFoundError(2, "not there", "pixels-0.u8"))
spoilt(module, "prepare", 0, ValueError("a fault of ours"))
spoilt(module, "_save", 0, OSError(28, "No space left on device"))
waits = together.waiting(dist.group.WORLD)._get_backend(torch.device("cpu")).options._timeout
(out / f"told-{rank}.json").write_text(json.dumps([told, waits.total_seconds()]))
train("whole")
module._pairs = None if rank == 0 else module._pairs
train("behaviour")
"""


def start(processes: int, lake: str, out: Path, recipes: dict[str, Any], *, script: str = SCRIPT) -> Path:
    out.mkdir()
    (out / "script.py").write_text(script)
    (out / "recipes.json").write_text(json.dumps(recipes))
    place = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "LANCE_LOG": "error"}
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    command = [sys.executable, *many, str(out / "script.py"), lake, str(out), str(out / "recipes.json")]
    done = subprocess.run(command, env={**os.environ, **place}, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-12000:]
    return out


def merged(least: Any, tables: dict[str, Any]) -> dict[str, Any]:
    return asdict(least(**tables))


@pytest.mark.slow
def test_two_processes_have_the_losses_and_the_weights_of_one(lake: Any, least: Any, tmp_path: Path) -> None:
    recipes = {name: merged(least, tables) for name, tables in RECIPES.items()}
    recipes |= {f"{name}, convolved": recipes[name] | CONVOLVED for name in ("2a", "both")}
    one = start(1, lake.uri, tmp_path / "one", recipes)
    two = start(2, lake.uri, tmp_path / "two", recipes | {"uneven": merged(least, UNEVEN) | CONVOLVED})
    for name in recipes:
        expected, found = (json.loads((place / f"{name}.json").read_text()) for place in (one, two))
        assert found == pytest.approx(expected, rel=1e-4), name
        a, b = (load_file(place / name / "model.safetensors") for place in (one, two))
        assert a.keys() == b.keys()
        for weight, value in a.items():
            assert torch.allclose(b[weight], value, atol=1e-4), f"{name}: {weight}"
    assert len(json.loads((two / "uneven.json").read_text())) == 8
    refined = [json.loads((two / f"refined-{rank}.json").read_text()) for rank in (0, 1)]
    assert refined[0] == refined[1]  # of the last recipe: with what batch norm counted, and the same pairs and hard negatives
    made = [json.loads((two / f"made-{rank}.json").read_text()) for rank in (0, 1)]
    refining = sum("2b" in name or name.startswith("both") for name in recipes) + 1
    assert Counter(made[0]) == {"behaviour": len(recipes) + 1, "over": len(recipes) + 1, "prepare": refining}
    assert made[1] == [], "the first process prepares for both"
    assert not list(two.glob("*.partial"))


HELD = SCRIPT.replace(
    "module.behaviour = behaviour",
    """
from moon_ops.encoder.validation import Validation


def recall(self):
    assert os.environ.get("RANK", "0") == "0", "the first process measures"
    return [0.2, 0.5, 0.1, 0.1][len(self.record.measured)]


Validation._recall = recall
module.behaviour = behaviour""",
)


@pytest.mark.slow
def test_two_processes_end_a_stage_together_with_the_best_weights_of_one(lake: Any, least: Any, tmp_path: Path) -> None:
    held = {"validate_steps": 1, "validate_share": 0.5, "validate_least": 5, "patience": 2, "ema": 0.5}
    recipes = {"2a": merged(least, {"stage2a": {"steps": 6}, "training": held}) | CONVOLVED}
    places = [start(processes, lake.uri, tmp_path / str(processes), recipes, script=HELD) for processes in (1, 2)]
    expected, found = (json.loads((place / "2a.json").read_text()) for place in places)
    assert len(expected) == 4
    assert found == pytest.approx(expected, rel=1e-4)
    a, b = (load_file(place / "2a" / "model.safetensors") for place in places)
    for weight, value in a.items():
        assert torch.allclose(b[weight], value, atol=1e-4), weight


SPOILT = SCRIPT.replace(
    "module.behaviour = behaviour",
    """
from dataclasses import replace as with_
from moon_ops.encoder import stage2
honest = stage2.behaviour_loss


def spoilt(*given):
    found = honest(*given)
    return with_(found, loss=found.loss * float("nan")) if os.environ["RANK"] == "1" else found


stage2.behaviour_loss = spoilt
module.behaviour = behaviour""",
)


@pytest.mark.slow
def test_a_loss_that_is_no_number_in_one_process_ends_both(lake: Any, least: Any, tmp_path: Path) -> None:
    """The other one waited for it until it was killed."""
    with pytest.raises(AssertionError) as ended:
        start(2, lake.uri, tmp_path / "two", {"2a": merged(least, {"stage2a": {"steps": 2}})}, script=SPOILT)
    assert "the loss is nan at step 0 of stage2a" in str(ended.value)
    assert "the loss of another process is no number at step 0 of stage2a" in str(ended.value)


@pytest.mark.slow
def test_what_fails_in_one_process_fails_in_both_and_leaves_none_waiting(lake: Any, least: Any, tmp_path: Path) -> None:
    """Each failure in turn, in the same two processes: they are in step after it, and train together at the end."""
    out = tmp_path / "two"
    with pytest.raises(AssertionError, match="'NoneType' object is not callable"):  # the last one, which nobody catches
        start(2, lake.uri, out, {"both": merged(least, RECIPES["both"])}, script=FAULTS)
    (first, waits), (second, _) = (json.loads((out / f"told-{rank}.json").read_text()) for rank in (0, 1))
    for name, told in {
        "behaviour": ["InputError", "no pairs → ingest some"],
        "build": ["InputError", "no checkpoint → name one"],
        "over": ["StageError", "no pictures → ingest them"],
    }.items():
        assert first.pop(name) == second.pop(name) == told
    unseen = "process 1 does not see pixels-0.u8, which the first process has written → give all processes the same disk"
    assert first["open"][1] == second["open"][1]
    assert second["open"][1].startswith(unseen)
    assert first["prepare"] == ["ValueError", "a fault of ours"]
    look = "→ look at what that process says"
    assert second["prepare"] == ["InputError", f"process 0 has ended with ValueError: a fault of ours {look}"]
    assert second["_save"] == ["InputError", f"process 0 has ended with OSError: [Errno 28] No space left on device {look}"]
    assert waits > dt.timedelta(days=1).total_seconds(), "a large shop's pictures take hours"
    assert (out / "whole" / "model.safetensors").is_file()
