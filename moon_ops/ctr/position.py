"""The place in the list as an input of training alone: a bias per place, added to the logit, and left out when a model scores.

An item at the top is clicked more because it is seen. A ranker puts there what matches the query, so a model that does not know the place
takes the effect of the place for that of the match. The bias explains that part away (a shallow tower for position, as in Zhao et al.,
RecSys 2019); what is scored has no place yet. B rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from moon_ops.ctr.dataset import PLACES
from moon_ops.recipes.ctr import CtrRecipe

FASTER = 10.0  # times the learning rate: an epoch is too short for a bias to become what it should be otherwise


class PositionBias(nn.Module):
    """A number per place."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(PLACES + 2))

    def forward(self, codes: Tensor) -> Tensor:
        """What the places [B] add to the logit: [B]."""
        return self.weight[codes]


def of_places(position: PositionBias | None, recipe: CtrRecipe) -> list[dict[str, Any]]:
    """What an optimizer needs to know of the places, if they take part."""
    return [] if position is None else [{"params": [position.weight], "lr": FASTER * recipe.learning_rate, "weight_decay": 0.0}]
