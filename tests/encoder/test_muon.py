"""Muon in float32 against torch's own, and against the definition of what it approximates."""

from __future__ import annotations

import pytest
import torch

from moon_ops.encoder.muon import Muon, orthogonal

COEFFICIENTS, STEPS, EPS = (3.4445, -4.775, 2.0315), 5, 1e-7  # torch's defaults
SHAPES = [(16, 16), (16, 24), (24, 16), (16, 144), (144, 16), (32, 27)]


def direct(matrix: torch.Tensor) -> torch.Tensor:
    """The iteration as it is defined, on the whole matrix in float64."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).double()
    x = x / x.norm()
    for _ in range(STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gram_matrix_gives_what_the_whole_matrix_gives(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -5, shape[1])
    found = orthogonal(matrix[None], COEFFICIENTS, STEPS, EPS)[0]
    torch.testing.assert_close(found.double(), direct(matrix), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_result_is_nearly_orthogonal(shape: tuple[int, int]) -> None:
    matrices = torch.randn((3, *shape), generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonal(matrices, COEFFICIENTS, STEPS, EPS))
    assert values.max() < 1.25
    assert values[:, : min(shape) // 2].min() > 0.6


def test_no_gradient_is_no_number_gone_wrong() -> None:
    assert torch.equal(orthogonal(torch.zeros(1, 4, 20), COEFFICIENTS, STEPS, EPS), torch.zeros(1, 4, 20))


@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_are_those_of_torch_but_for_bfloat16(nesterov: bool) -> None:
    """Two matrices of one shape and one of another: torch takes them one by one in bfloat16, we take them together in float32."""
    generator = torch.Generator().manual_seed(2)
    start = [torch.randn(shape, generator=generator) for shape in ((8, 40), (8, 40), (24, 8))]
    ours, theirs = ([torch.nn.Parameter(m.clone()) for m in start] for _ in range(2))
    settings = {"lr": 0.02, "weight_decay": 0.05, "nesterov": nesterov}
    optimizers = [Muon(ours, **settings), torch.optim.Muon(theirs, **settings)]
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b, before in zip(ours, theirs, start, strict=True):
        moved = (b - before).norm()
        assert (a - b).norm() < 0.02 * moved
        assert moved > 0.01


def test_its_state_is_torchs() -> None:
    """So that a checkpoint of either is read by the other."""
    matrix = torch.nn.Parameter(torch.randn(4, 12))
    matrix.grad = torch.ones(4, 12)
    made = Muon([matrix], lr=0.1)
    made.step()
    other = torch.optim.Muon([matrix], lr=0.1)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.state[matrix]["momentum_buffer"], made.state[matrix]["momentum_buffer"])
