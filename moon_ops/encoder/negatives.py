"""Where negatives come from beside the batch itself (MOON, stage 2b): other processes (spatial), earlier steps (temporal).

B pairs, W processes, Q queued vectors, D dimensions. Hard ones are mined: see :mod:`moon_ops.encoder.mining`.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.nn
from torch import Tensor


def gathered(vectors: Tensor) -> Tensor:
    """The vectors of all processes [W·B, D], in the order of their ranks; gradients flow back to the process they came from."""
    if not (dist.is_available() and dist.is_initialized()):
        return vectors
    return torch.cat(torch.distributed.nn.functional.all_gather(vectors))


def gathered_numbers(numbers: Tensor) -> Tensor:
    """The same for item and product numbers [B], without gradients."""
    if not (dist.is_available() and dist.is_initialized()):
        return numbers
    parts = [torch.empty_like(numbers) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, numbers)
    return torch.cat(parts)


def own_rows(count: int, device: torch.device) -> tuple[Tensor, int]:
    """Where this process's ``count`` vectors stand among those that :func:`gathered` gives [B], and how many processes there are."""
    if not (dist.is_available() and dist.is_initialized()):
        return torch.arange(count, device=device), 1
    return torch.arange(count, device=device) + dist.get_rank() * count, dist.get_world_size()


def gathered_uneven(vectors: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """The vectors [K, D] and numbers [K] of all processes, each of which may have another K; gradients as of :func:`gathered`."""
    counts = gathered_numbers(torch.tensor([len(vectors)], device=vectors.device))
    most = int(counts.max())
    if len(counts) == 1 or not most:
        return vectors, numbers
    there = (torch.arange(most, device=vectors.device)[None, :] < counts[:, None]).flatten()
    short = most - len(vectors)
    padded = torch.cat([vectors, vectors.new_zeros(short, vectors.shape[1])]), torch.cat([numbers, numbers.new_full((short,), -1)])
    return gathered(padded[0])[there], gathered_numbers(padded[1])[there]


class Queue:
    """The last ``size`` item vectors and their products: temporal negatives (MOON; MoCo). Vectors carry no gradient."""

    def __init__(self, size: int, dim: int) -> None:
        self.size = size
        self.vectors = torch.empty((0, dim))
        self.product = torch.empty(0, dtype=torch.int64)

    def push(self, vectors: Tensor, product: Tensor) -> None:
        """Add [B, D]; the oldest fall out."""
        self.vectors = torch.cat([self.vectors.to(vectors), vectors.detach()])[-self.size :]
        self.product = torch.cat([self.product.to(product), product])[-self.size :]

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs."""
        return {"queue.vectors": self.vectors.contiguous(), "queue.product": self.product.contiguous()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up a checkpoint's state."""
        self.vectors, self.product = state["queue.vectors"], state["queue.product"]
