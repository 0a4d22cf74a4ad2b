"""Batch norm over the pictures of all processes, so that several learn what one learns from their batches together.

torch's SyncBatchNorm does the same on GPUs only, and is no BatchNorm2d, which is what towers look for. N pictures, C channels, S pixels,
W processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


class SpanningNorm(nn.BatchNorm2d):
    """Batch norm whose batch, in training, is that of all processes. Each may have another number of pictures, or none, but all must take
    part in every pass, forward and backward."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, S, S] → the same shape; outside of training as batch norm does it."""
        if not self.training:
            return super().forward(x)
        mean, variance, count = statistics(x.detach())
        self._remember(mean, variance, count)
        return _Normalized.apply(x, self.weight, self.bias, mean, variance, count, self.eps)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Take the batch into the running statistics, unless nobody had a picture."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        there = (count > 0).to(mean)  # a tensor, not a branch: a GPU would have to be waited for
        share = there * (self.momentum or 0.0)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)).to(variance), share)
        self.num_batches_tracked += there.to(self.num_batches_tracked)


@contextmanager
def spanning(model: nn.Module, processes: int) -> Iterator[None]:
    """Within it the batch norms of ``model`` are :class:`SpanningNorm`, if there are several processes: the same objects, so that weights,
    their names and whoever holds them stay as they are."""
    norms = [module for module in model.modules() if type(module) is nn.BatchNorm2d] if processes > 1 else []
    for norm in norms:
        norm.__class__ = SpanningNorm
    try:
        yield
    finally:
        for norm in norms:
            norm.__class__ = nn.BatchNorm2d


def spans(model: nn.Module) -> bool:
    """Whether a pass of ``model`` waits for other processes."""
    return any(isinstance(module, SpanningNorm) and module.training for module in model.modules())


@cache
def _group(world: Any) -> Any:
    """A group of its own: DistributedDataParallel sends gradients in another order in each process, and they would meet statistics."""
    return dist.new_group(dist.get_process_group_ranks(world))


def statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance [C] of the numbers of all processes, and how many there are of a channel []; zeros where there is none."""
    channels, count = x.shape[1], x.numel() // x.shape[1]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    own = x.new_zeros((2, channels), dtype=dtype)
    if count:  # running statistics that take up nothing: they say in which dtype to count
        own = torch.stack(torch.batch_norm_update_stats(x, own[0].clone(), own[1].clone(), 0.0))
    sent = torch.cat([own.double().flatten(), own.new_full((1,), count, dtype=torch.float64)])
    every = [torch.empty_like(sent) for _ in range(dist.get_world_size())]
    dist.all_gather(every, sent, group=_group(dist.group.WORLD))
    found = torch.stack(every)
    counts, means, variances = found[:, -1:], found[:, :channels], found[:, channels:-1]  # [W, 1], [W, C], [W, C]
    total = counts.sum()
    share = counts / total.clamp(min=1)
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean) ** 2)).sum(0)
    return mean.to(dtype), variance.to(dtype), total


class _Normalized(torch.autograd.Function):
    """``x`` normalised with given statistics, which are a function of the ``x`` of all processes when gradients go backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, count: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of ``x``, and this process's parts of those of weight and bias: DistributedDataParallel adds them up."""
        x, weight, mean, variance, count = ctx.saved_tensors
        (given,) = gradients
        fixed, of_weight, of_bias = torch.zeros_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
        if len(x):
            take = [True, True, True]
            fixed, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
                given, x, weight, mean, variance, None, None, False, ctx.eps, take
            )
        sums = torch.stack([of_bias, of_weight])
        dist.all_reduce(sums, group=_group(dist.group.WORLD))
        inverse = (variance + ctx.eps).rsqrt()
        level, slope = (weight * inverse * sums / count.clamp(min=1).to(sums))[:, :, None, None]
        of_x = fixed - (x - mean[:, None, None]) * (slope * inverse[:, None, None]) - level
        return of_x.to(x.dtype), of_weight, of_bias, None, None, None, None
