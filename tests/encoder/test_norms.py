"""Batch norm over several processes (gloo) is batch norm of their pictures together: forward, backward and what it remembers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from moon_ops.encoder.norms import SpanningNorm, spanning, spans

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from moon_ops.encoder.norms import spanning

rank, place = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{place}/met", rank=rank, world_size=3)
given = torch.load(f"{place}/given.pt")
model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)).to(given["dtype"])
with torch.no_grad():
    for module in (model[0], model[2]):
        module.weight.copy_(given["weight"])
        module.bias.copy_(given["bias"])
made = []
with spanning(model, 3):
    for part in given["parts"]:  # of each pass, as many pictures a process
        x = part[rank].clone().requires_grad_()
        y = model(x)
        (y * torch.sin(y) + y).sum().backward()
        made.append((y.detach(), x.grad))
weights = [p.grad for p in model.parameters()]
for gradient in weights:
    dist.all_reduce(gradient)
torch.save({"made": made, "weights": weights, "buffers": list(model.buffers())}, f"{place}/found-{rank}.pt")
"""


def test_three_processes_one_of_them_without_pictures_compute_what_one_does(tmp_path: Path) -> None:
    generator, dtype = torch.Generator().manual_seed(0), torch.float64
    counts = ((3, 0, 2), (0, 0, 4), (0, 0, 0))
    parts = [[torch.randn((n, 4, 3, 3), generator=generator, dtype=dtype) * 3 + 5 for n in some] for some in counts]
    parts = [[one.contiguous(memory_format=torch.channels_last) for one in some] for some in parts]
    weight, bias = (torch.randn(4, generator=generator, dtype=dtype) for _ in range(2))
    torch.save({"parts": parts, "weight": weight, "bias": bias, "dtype": dtype}, tmp_path / "given.pt")
    expected = alone(parts, weight, bias)
    started = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, str(rank), str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for rank in range(3)
    ]
    ended = [process.communicate(timeout=600)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], ended
    found = [torch.load(tmp_path / f"found-{rank}.pt") for rank in range(3)]
    for number, (y, gradient) in enumerate(expected["made"]):
        assert torch.allclose(torch.cat([one["made"][number][0] for one in found]), y, atol=1e-12)
        assert torch.allclose(torch.cat([one["made"][number][1] for one in found]), gradient, atol=1e-12)
    for one in found:
        assert all(map(close, one["weights"], expected["weights"]))
        assert all(map(close, one["buffers"], expected["buffers"]))


def alone(parts: list[list[torch.Tensor]], weight: torch.Tensor, bias: torch.Tensor) -> dict[str, list]:
    """The same by torch's own batch norm, which is not called where nobody has a picture."""
    model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)).double()
    with torch.no_grad():
        for module in (model[0], model[2]):
            module.weight.copy_(weight)
            module.bias.copy_(bias)
    made = []
    for part in parts:
        x = torch.cat(part).requires_grad_()
        y = model(x) if len(x) else x * 1
        (y * torch.sin(y) + y).sum().backward()
        made.append((y.detach(), x.grad))
    return {"made": made, "weights": [p.grad for p in model.parameters()], "buffers": list(model.buffers())}


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-12)


def test_norms_span_processes_within_only_and_stay_the_same_objects() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.LayerNorm(4))
    norm, names = model[1], list(model.state_dict())
    with pytest.raises(KeyboardInterrupt), spanning(model, 2):  # noqa: PT012 - what is looked at is the inside
        assert type(model[1]) is SpanningNorm
        assert model[1] is norm
        assert isinstance(norm, nn.BatchNorm2d)
        assert list(model.state_dict()) == names
        assert spans(model)
        assert not spans(model.eval())
        assert model(torch.ones(1, 3, 4, 4)).shape == (1, 4, 4, 4)  # out of training they wait for nobody
        raise KeyboardInterrupt
    assert type(norm) is nn.BatchNorm2d
    with spanning(model, 1):
        assert type(norm) is nn.BatchNorm2d
