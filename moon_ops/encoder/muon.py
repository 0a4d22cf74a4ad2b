"""Muon with its Newton–Schulz iteration in the dtype that the machine multiplies.

``torch.optim.Muon`` iterates in bfloat16 whatever the machine; a processor without hardware for it then spends more than half of a
training step there. This one iterates in float32, and on the small side of a matrix only. Sharded matrices are gathered for it, some at
a time, and every process computes all of them: what is saved by sharding is memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

GATHERED = 2**26  # numbers of sharded matrices that are whole at a time
LONG = 3  # a matrix that is so many times longer than wide is iterated by its Gram matrix: fewer multiplications


def orthogonal(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Newton–Schulz's approximation of UVᵀ, for USVᵀ = each of ``matrices`` [K, R, C], in their own dtype (Jordan 2024)."""
    wide = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices  # [K, m, n], m <= n
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=eps)  # no singular value above 1
    iterate = _by_gram if wide.shape[2] >= LONG * wide.shape[1] else _directly
    out = iterate(wide, coefficients, steps)
    return out.mT if matrices.shape[1] > matrices.shape[2] else out


def _directly(x: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """X ← aX + (bA + cA²)X with A = XXᵀ, ``steps`` times; x [K, m, n]."""
    a, b, c = coefficients
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _by_gram(x: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """The same with Q and A [K, m, m] in place of X: P = aI + bA + cA², Q ← PQ, A ← PAP, and QX at last."""
    a, b, c = coefficients
    gram, product = x @ x.mT, None
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else factor @ product
        if step < steps - 1:
            gram = factor @ gram @ factor
    return x if product is None else product @ x


class Muon(torch.optim.Muon):
    """torch's Muon, but that :func:`orthogonal` takes all matrices of one shape at once, in float32."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step for all matrices that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    shapes.setdefault(matrix.shape, []).append(matrix)
            for matrices in shapes.values():
                count = max(GATHERED // matrices[0].numel(), 1) if isinstance(matrices[0], DTensor) else len(matrices)
                for start in range(0, len(matrices), count):
                    self._move(matrices[start : start + count], group)
        return loss

    def _move(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """Move matrices [R, C] of one shape along their orthogonal updates."""
        updates = []
        for matrix in matrices:
            state, gradient = self.state[matrix], matrix.grad
            assert gradient is not None
            if not state:
                state["momentum_buffer"] = torch.zeros_like(matrix)
            momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
            updates.append(gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum)
        whole = torch.stack([_full(update) for update in updates]).float()
        made = orthogonal(whole, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rows, columns = matrices[0].shape
        rate = group["lr"] * max(1.0, rows / columns) ** 0.5
        for matrix, direction in zip(matrices, made, strict=True):
            update = _part(direction, matrix) if isinstance(matrix, DTensor) else direction
            matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)


def _full(update: Tensor) -> Tensor:
    """A matrix whole: of rows in several processes nobody could say which directions they have in common."""
    return update.full_tensor() if isinstance(update, DTensor) else update


def _part(whole: Tensor, like: DTensor) -> Tensor:
    """This process's part of what all have computed alike."""
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
