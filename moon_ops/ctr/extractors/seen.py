"""What every extractor reads, and the activation unit that several share.

Letters: B rows, S behaviours of a user, W = 2E the width of a behaviour's ID embedding, D vector dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

ITEMS = ("target_vector", "behavior_vector")  # what a model on the items' contents reads
QUERIES = ("query_vector", "behavior_query_vector")


@dataclass(frozen=True)
class Seen:
    """A batch after embedding: e_t, {e_b} of items and of queries, and the vectors that the extractor has asked for, by name."""

    target: Tensor  # [B, W]
    behaviors: Tensor  # [B, S, W]
    queries: Tensor  # [B, S, W] that led to those clicks
    present: Tensor  # [B, S]
    asked: Tensor  # [B, S] whether a query led to the click
    vectors: dict[str, Tensor]  # target_vector, query_vector [B, D]; behavior_vector, behavior_query_vector [B, S, D]; zeros: none

    def similarity(self) -> tuple[Tensor, Tensor]:
        """s_b = cos(r_b, r_t) [B, S], 0 where one of them has no vector, and where both have."""
        return similarity(self.vectors["behavior_vector"], self.vectors["target_vector"], self.present)


def similarity(vectors: Tensor, target: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines [B, S] of unit vectors [B, S, D] with the target's [B, D], and which of them mean something."""
    there = present & (vectors != 0).any(-1) & (target != 0).any(-1, keepdim=True)
    return torch.einsum("bsd,bd->bs", vectors, target) * there, there


class Extractor(nn.Module):
    """Behaviours and target → features [B, ``width``] for the predictor; ``vectors`` names the inputs that it needs, and ``asks`` says
    whether it reads the queries of behaviours by ID."""

    vectors: tuple[str, ...] = ()
    asks: bool = False
    width: int

    def forward(self, seen: Seen) -> Tensor:
        """Features [B, width]."""
        raise NotImplementedError


class TargetAttention(nn.Module):
    """DIN's activation unit: each behaviour is weighed by a small network on (behaviour, target, difference, product)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.unit = nn.Sequential(nn.Linear(4 * width, hidden), nn.PReLU(), nn.Linear(hidden, 1))

    def logits(self, target: Tensor, behaviors: Tensor) -> Tensor:
        """How much each of the behaviours [B, S, W] says about the target [B, W]: [B, S]."""
        beside = target[:, None, :].expand_as(behaviors)
        return self.unit(torch.cat([behaviors, beside, behaviors - beside, behaviors * beside], -1)).squeeze(-1)

    def forward(self, target: Tensor, behaviors: Tensor, present: Tensor) -> Tensor:
        """Interest [B, W] from target [B, W], behaviours [B, S, W], and which of them are there [B, S]."""
        return pooled(self.logits(target, behaviors), behaviors, present)


def pooled(logits: Tensor, behaviors: Tensor, present: Tensor) -> Tensor:
    """The behaviours' weighted sum [B, W]. As in DIN weights are not normalised: how much interest there is counts, too."""
    weights = torch.sigmoid(logits) * present
    return torch.einsum("bs,bsw->bw", weights, behaviors) / present.shape[1] ** 0.5
