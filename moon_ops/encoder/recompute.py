"""Activation checkpointing (Chen et al., 2016): a block keeps its input alone, and is run once more when gradients come back.

For about a third more computing the memory of a step holds what is inside of one block and no longer of all. The second run repeats the
first one's operations, so gradients stay as they were. Towers of convolutions are left as they are: their norms would count twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from moon_ops.recipes.encoder import Training


@contextmanager
def recomputed(model: nn.Module, training: Training) -> Iterator[None]:
    """Within it the transformer blocks of ``model`` are run twice in training, if the recipe says so."""
    every: Iterable[Any] = model.modules() if training.activation_checkpointing else ()
    found: list[Any] = [module for module in every if isinstance(module, GradientCheckpointingLayer)]
    for block in found:
        block.gradient_checkpointing, block._gradient_checkpointing_func = True, partial(checkpoint, use_reentrant=False)
    try:
        yield
    finally:
        for block in found:
            block.gradient_checkpointing = False
            del block._gradient_checkpointing_func
