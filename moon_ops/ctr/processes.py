"""What several processes of a click model's training do together in each step: every batch is shared out, gradients and scores are joined.

Batches are a function of seed and step, whatever the number of processes, and so is what is learned, but for rounding. ``torchrun`` says
how many there are; :mod:`moon_ops.encoder.together` has what they do once. No DistributedDataParallel: it has no sparse gradients on GPUs,
and of a click model all but the embedding table is one small message.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from moon_ops.ctr.prefetch import WHOLE, Part
from moon_ops.encoder.together import alone, waiting
from moon_ops.errors import InputError


def first() -> bool:
    """Whether this process speaks and writes for all that have met."""
    return alone() or dist.get_rank() == 0


def torch_device(named: str) -> torch.device:
    """The device of a recipe: ``auto`` is a GPU where there is one, each process of a machine's its own. :class:`InputError` for ``cuda``
    where there is none."""
    there = torch.cuda.is_available()
    if named == "cuda" and not there:
        raise InputError('device = "cuda", but torch finds no such GPU', action='set device = "cpu" or "auto", or install torch for CUDA')
    if not there or named == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if "LOCAL_RANK" in os.environ else torch.device("cuda")


def join(device: torch.device) -> Part:
    """Meet the other processes, if ``torchrun`` has started some; which part of each batch is this one's."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return WHOLE if alone() else Part(dist.get_rank(), dist.get_world_size())


def loss_of(logits: Tensor, labels: Tensor, size: int) -> Tensor:
    """What these rows add to the mean loss over a batch of ``size``, of which others may have some, and these may be none."""
    if len(labels) == size:
        return F.binary_cross_entropy_with_logits(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / size


def bar() -> dict[str, Any]:
    """What tqdm has to know: of several processes the first shows how far it is."""
    return {} if first() else {"disable": True}


def summed(parameters: Iterable[nn.Parameter], loss: Tensor) -> float:
    """Add up the gradients of all processes, in place, and the ``loss`` of their parts of a batch, which it returns."""
    if alone():
        return loss.item()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    message = torch.cat([loss.detach().reshape(1), *(gradient.flatten() for gradient in gradients)])
    dist.all_reduce(message)
    parts = message.split([1, *(gradient.numel() for gradient in gradients)])
    for gradient, part in zip(gradients, parts[1:], strict=True):
        gradient.copy_(part.view_as(gradient))
    return float(parts[0])


def summed_rows(gradient: Tensor) -> Tensor:
    """The sum over all processes of a sparse gradient of the whole table; gloo adds up sparse tensors and NCCL does not."""
    if alone():
        return gradient
    found = gradient.coalesce().cpu()
    dist.all_reduce(found)
    return found.to(gradient.device)


def collected(own: NDArray[Any], places: NDArray[np.int64], count: int) -> NDArray[Any]:
    """The values [``count``] of all processes, each having its ``own`` at its ``places``."""
    if alone():
        return own
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, (places, own), group=waiting(dist.group.WORLD))
    out = np.empty(count, own.dtype)
    for where, values in found:
        out[where] = values
    return out


def total(number: int) -> int:
    """The sum over all processes."""
    if alone():
        return number
    found = torch.tensor([number])
    dist.all_reduce(found)
    return int(found)
