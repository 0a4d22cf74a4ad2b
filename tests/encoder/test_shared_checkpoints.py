"""Checkpoints in parts: everything comes back as it was, there is always a whole one, and only of processes that all have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from torch import nn

from moon_ops.encoder import checkpoints, shards
from moon_ops.encoder.checkpoints import Checkpoints, State
from moon_ops.encoder.optimizers import build
from moon_ops.encoder.sharding import _sharded, refuse_foreign
from moon_ops.encoder.shards import SharedCheckpoints
from moon_ops.errors import InputError
from moon_ops.recipes.encoder import Training

TRAINING = Training(batch=2, learning_rate=0.01, matrix_learning_rate=0.02)


class Small(nn.Module):
    """A matrix for Muon, biases, and a buffer that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 4))
        self.log_scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.log_scale


def step(model: nn.Module, optimizers: list[torch.optim.Optimizer], seed: int) -> None:
    model(torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture
def run() -> tuple[Small, list[torch.optim.Optimizer]]:
    torch.manual_seed(0)
    model = Small()
    optimizers = build(model, TRAINING)
    for seed in range(3):
        step(model, optimizers, seed)
    return model, optimizers


def test_which_checkpoints_a_training_keeps(tmp_path: Path) -> None:
    assert type(shards.checkpoints(TRAINING, tmp_path)) is Checkpoints
    assert type(shards.checkpoints(Training(batch=2, learning_rate=0.1, sharding="full"), tmp_path)) is SharedCheckpoints


def test_a_run_goes_on_from_its_parts_as_if_it_had_not_stopped(run: Any, tmp_path: Path) -> None:
    model, optimizers = run
    large = {f"{prefix}inner.0.weight": torch.rand(6, 4) for prefix in ("average.", "best.")}
    tensors = {"queue.vectors": torch.rand(3, 2), "kept": torch.tensor([2, 7])}
    state = State("stage2b", 3, [0.5, 1 / 3], tensors | large, {"scale": 1024.0}, {"best": 0.5})
    SharedCheckpoints(tmp_path).save(state, model, optimizers)
    torch.manual_seed(9)
    other = Small()
    again, kept = build(other, TRAINING), SharedCheckpoints(tmp_path)
    found = kept.read()
    assert found is not None
    assert (found.stage, found.step, found.losses, found.scaler, found.validation) == (
        "stage2b",
        3,
        [0.5, 1 / 3],
        {"scale": 1024.0},
        {"best": 0.5},
    )
    assert {name: value.tolist() for name, value in found.tensors.items()} == {n: v.tolist() for n, v in tensors.items()}
    assert {name: value.tolist() for name, value in kept.shards(other).items()} == {n: v.tolist() for n, v in large.items()}
    kept.restore(other)
    kept.restore_optimizers(again)
    for seed in (3, 4):
        step(model, optimizers, seed)
        step(other, again, seed)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_only_safetensors_and_json_are_written(run: Any, tmp_path: Path) -> None:
    SharedCheckpoints(tmp_path).save(State("stage1", 2, [0.0], {"kept": torch.tensor([1])}), *run)
    assert {place.suffix for place in (tmp_path / "stage1-2").iterdir()} == {".safetensors", ".json"}


@pytest.mark.parametrize("killed_at", ["write_data", "finish", "put", "newest"])
def test_killed_while_saving_leaves_the_checkpoint_before(
    run: Any, tmp_path: Path, killed_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While parts are written, once they are, before the directory has its name, and before it is called the newest."""
    model, optimizers = run
    kept = SharedCheckpoints(tmp_path)
    kept.save(State("stage1", 1, [1.0]), model, optimizers)
    before = model.inner[0].weight.detach().clone()
    step(model, optimizers, 5)

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    writer = shards.dcp.HuggingFaceStorageWriter
    owner, name = {"put": (checkpoints, "put"), "newest": (checkpoints, "write_text")}.get(killed_at, (writer, killed_at))
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, die)
        with pytest.raises(KeyboardInterrupt):
            kept.save(State("stage1", 2, [1.0, 2.0]), model, optimizers)
    state = SharedCheckpoints(tmp_path).read()
    assert state is not None
    assert (state.step, state.losses) == (1, [1.0])
    other = Small()
    kept.restore(other)
    assert torch.equal(other.inner[0].weight, before)
    kept.save(State("stage1", 2, [1.0, 2.0]), model, optimizers)  # what the killed one left is no hindrance
    again = SharedCheckpoints(tmp_path).read()
    assert again is not None
    assert again.step == 2
    assert not list(tmp_path.glob("*.partial"))


def test_a_part_that_cannot_be_written_is_named_in_a_line(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.dcp.HuggingFaceStorageWriter, "write_data", full)
    with pytest.raises(InputError, match=r"process 0 could not write its part of the checkpoint stage1-1: .*No space left.* → make room"):
        SharedCheckpoints(tmp_path).save(State("stage1", 1, [1.0]), *run)


@pytest.mark.parametrize("harm", [lambda place: place.unlink(), lambda place: place.write_bytes(place.read_bytes()[:-9])])
def test_a_checkpoint_that_lacks_a_part_is_none(run: Any, tmp_path: Path, harm: Any, caplog: pytest.LogCaptureFixture) -> None:
    kept = SharedCheckpoints(tmp_path)
    kept.save(State("stage1", 1, [1.0]), *run)
    (part,) = (tmp_path / "stage1-1").glob("*.safetensors")
    harm(part)
    assert kept.read() is None
    assert part.name in caplog.text
    assert "the training begins anew" in caplog.text


def test_frozen_weights_are_known_and_must_be_the_same(run: Any, tmp_path: Path) -> None:
    model, optimizers = run
    model.inner[2].requires_grad_(False)
    kept = SharedCheckpoints(tmp_path, brought=True)
    kept.save(State("stage1", 1, [1.0]), model, optimizers)
    assert not [name for name in shards._kept(tmp_path / "stage1-1", "model.") if name.startswith("inner.2")]
    kept.restore(model)
    with torch.no_grad():
        model.inner[2].weight += 1
    with pytest.raises(InputError, match="the frozen weights are not those with which the killed run began"):
        kept.restore(model)


def test_weights_under_two_names_cannot_be_sharded() -> None:
    model = Small()
    model.head = nn.Linear(6, 4)
    model.head.weight = model.inner[2].weight
    with pytest.raises(InputError, match=r'head.weight is the weight of another layer, too.* → set training.sharding = "none"'):
        _sharded(model, None)  # type: ignore[arg-type]


def test_a_launch_that_divides_models_by_itself_is_refused() -> None:
    class Machine:
        distributed_type = DistributedType.FSDP

    with pytest.raises(InputError, match=r'accelerate was launched with FSDP, .* set training.sharding = "full"'):
        refuse_foreign(Machine())  # type: ignore[arg-type]
