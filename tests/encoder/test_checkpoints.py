"""Checkpoints: everything comes back as it was, and there is always a whole one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from moon_ops.encoder import checkpoints as module
from moon_ops.encoder.checkpoints import Checkpoints, State
from moon_ops.encoder.optimizers import build
from moon_ops.recipes.encoder import Training

TRAINING = Training(batch=2, learning_rate=0.01, matrix_learning_rate=0.02)


class Small(nn.Module):
    """A matrix for Muon, a bias, shared weights and a buffer that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 4))
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(x))


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
    assert len(optimizers) == 2
    for seed in range(3):
        step(model, optimizers, seed)
    return model, optimizers


def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(run: Any, tmp_path: Path) -> None:
    model, optimizers = run
    kept = Checkpoints(tmp_path)
    tensors = {"queue.vectors": torch.rand(3, 2), "kept": torch.tensor([2, 7])}
    kept.save(State("stage2b", 3, [0.5, 0.25, 1 / 3], tensors, {"scale": 1024.0}), model, optimizers)

    torch.manual_seed(9)
    other = Small()
    again = build(other, TRAINING)
    state = Checkpoints(tmp_path).read()
    assert state is not None
    assert (state.stage, state.step, state.losses, state.scaler) == ("stage2b", 3, [0.5, 0.25, 1 / 3], {"scale": 1024.0})
    assert {name: value.tolist() for name, value in state.tensors.items()} == {n: v.tolist() for n, v in tensors.items()}
    Checkpoints(tmp_path).restore(other)
    Checkpoints(tmp_path).restore_optimizers(again)
    for seed in (3, 4):
        step(model, optimizers, seed)
        step(other, again, seed)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert other.head.weight is other.embed.weight


def test_only_safetensors_and_json_are_written_and_only_the_newest_is_kept(run: Any, tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    assert kept.read() is None
    for number in (1, 2):
        kept.save(State("stage1", number, [0.0]), *run)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["newest", "stage1-2"]
    names = sorted(p.name for p in (tmp_path / "stage1-2").iterdir())
    assert names == ["model.safetensors", "optimizer-0.safetensors", "optimizer-1.safetensors", "stage.safetensors", "state.json"]


WRITES = 4  # files of tensors


@pytest.mark.parametrize("killed_at", range(WRITES + 3))
def test_killed_while_saving_leaves_the_checkpoint_before(
    run: Any, tmp_path: Path, killed_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of each file, before the directory has its name, and before it is called the newest."""
    model, optimizers = run
    kept = Checkpoints(tmp_path)
    kept.save(State("stage1", 1, [1.0]), model, optimizers)
    before = copy.deepcopy(model)
    step(model, optimizers, 5)
    with monkeypatch.context() as patched:
        writes = 0

        def save_half(tensors: Any, path: Path) -> None:
            nonlocal writes
            real_save(tensors, path)
            if writes == killed_at:
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
                raise KeyboardInterrupt
            writes += 1

        def die(*_: Any) -> None:
            raise KeyboardInterrupt

        real_save = module.save_file
        patched.setattr(module, "save_file", save_half)
        late: dict[int, tuple[Any, str]] = {WRITES: (Path, "write_text"), WRITES + 1: (module, "put"), WRITES + 2: (module, "write_text")}
        if killed_at in late:
            patched.setattr(*late[killed_at], die)
        with pytest.raises(KeyboardInterrupt):
            kept.save(State("stage1", 2, [1.0, 2.0]), model, optimizers)
    state = Checkpoints(tmp_path).read()
    assert state is not None
    assert (state.step, state.losses) == (1, [1.0])
    torch.manual_seed(9)
    other = Small()
    Checkpoints(tmp_path).restore(other)
    assert torch.equal(other.head.weight, before.head.weight)
    kept.save(State("stage1", 2, [1.0, 2.0]), model, optimizers)  # what the killed one left is no hindrance
    again = Checkpoints(tmp_path).read()
    assert again is not None
    assert again.step == 2
    assert not list(tmp_path.glob("*.partial"))


def test_killed_while_a_checkpoint_of_the_same_name_is_replaced_there_is_none(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a training begins anew: the one that is called the newest is gone, and the next run begins anew, too."""
    model, optimizers = run
    kept = Checkpoints(tmp_path)
    kept.save(State("ctr", 0, []), model, optimizers)
    with monkeypatch.context() as patched:
        patched.setattr(module, "put", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            kept.save(State("ctr", 0, [1.0]), model, optimizers)
    assert kept.read() is None
    kept.save(State("ctr", 0, [2.0]), model, optimizers)
    again = kept.read()
    assert again is not None
    assert again.losses == [2.0]


def test_weights_that_the_next_stage_has_not_are_left_out(run: Any, tmp_path: Path) -> None:
    model, optimizers = run
    Checkpoints(tmp_path).save(State("stage1", 1, []), model, optimizers)
    part = nn.Module()
    part.inner = Small().inner
    part.log_scale = nn.Parameter(torch.tensor(2.0))
    Checkpoints(tmp_path).restore(part)
    assert torch.equal(part.inner[0].weight, model.inner[0].weight)  # type: ignore[index, union-attr]
    assert float(part.log_scale) == 2.0  # type: ignore[arg-type]
