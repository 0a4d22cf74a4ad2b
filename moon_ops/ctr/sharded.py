"""An embedding table of which each process holds every so many-th row: rows are asked for and sent, and so are their gradients.

TorchRec and torch's own RowwiseParallel were tried. The first has no Adam on a CPU, so a table would be trained differently by one process
and by two; the second makes a gradient of the whole table in each process. So: two exchanges of torch.distributed around a plain look-up,
whose gradients stay as sparse as the batch. N rows in all, E numbers each, W processes; row i lies in process i mod W, at i div W.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from moon_ops import pieces
from moon_ops.ctr.prefetch import Part

DRAWN = 1 << 16  # rows that are drawn at a time: whole blocks of sixteen numbers, in which torch draws


class _Exchange(torch.autograd.Function):
    """Rows [R, E], so many for each process, and so many from each; gradients go the other way."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, given: list[int], taken: list[int]) -> Tensor:
        """What the others have for this process, in their order."""
        ctx.counts = given, taken
        return _exchanged(rows, given, taken)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """To whom the rows are."""
        given, taken = ctx.counts
        return _exchanged(gradient, taken, given), None, None


def _exchanged(rows: Tensor, given: list[int], taken: list[int]) -> Tensor:
    found = rows.new_empty(sum(taken), *rows.shape[1:])
    dist.all_to_all_single(found, rows.contiguous(), taken, given)
    return found


class ShardedEmbedding(nn.Module):
    """Looks up like :class:`torch.nn.Embedding`, in all processes at the same time."""

    def __init__(self, rows: int, dim: int, part: Part) -> None:
        super().__init__()
        self.rows, self.part = rows, part
        self.weight = nn.Parameter(torch.empty(len(range(part.number, rows, part.of)), dim))

    def forward(self, places: Tensor) -> Tensor:
        """Rows [..., E] of the numbers ``places``, any shape; there may be none."""
        wanted, inverse = torch.unique(places, return_inverse=True)
        owner = wanted % self.part.of
        order = torch.argsort(owner, stable=True)
        counts = torch.bincount(owner, minlength=self.part.of)
        others = torch.empty_like(counts)
        dist.all_to_all_single(others, counts)
        sent, received = counts.tolist(), others.tolist()
        asked = _exchanged(wanted[order], sent, received)
        own = F.embedding(asked // self.part.of, self.weight, sparse=True)
        found = _Exchange.apply(own, received, sent)
        return F.embedding(torch.argsort(order)[inverse], found)

    @torch.no_grad()
    def draw(self, std: float) -> None:
        """Draw the numbers that a whole table would have, a piece at a time, and keep this process's rows."""
        count, dim = self.rows, self.weight.shape[1]
        starts = range(0, max(1, count // DRAWN) * DRAWN, DRAWN)  # the last piece takes the rest: one of less than a block differs
        for start in starts:
            stop = count if start == starts[-1] else start + DRAWN
            drawn = torch.empty(stop - start, dim).normal_(std=std)
            own = torch.arange(start, stop) % self.part.of == self.part.number
            first = -(-(start - self.part.number) // self.part.of)
            self.weight[first : first + int(own.sum())] = drawn[own]

    @torch.no_grad()
    def whole(self) -> nn.Embedding | None:
        """All rows as one table in the first process, on the CPU. All processes call it; a piece of rows is sent at a time."""
        dim = self.weight.shape[1]
        made = nn.Embedding(self.rows, dim, sparse=True, _weight=torch.empty(self.rows, dim)) if not self.part.number else None
        for some in pieces.spans(-(-self.rows // self.part.of)):
            mine, own = torch.zeros(some.stop - some.start, dim), self.weight[some].cpu()
            mine[: len(own)] = own
            sent = [torch.empty_like(mine) for _ in range(self.part.of)] if made is not None else None
            dist.gather(mine, sent)
            for number, piece in enumerate(sent or ()):
                assert made is not None
                its = made.weight[number :: self.part.of][some]
                its.copy_(piece[: len(its)])
        return made
