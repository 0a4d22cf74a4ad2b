"""Activation checkpointing (Chen et al., 2016): a block keeps its input alone, and is run once more when gradients come back.

For about a third more computing the memory of a step no longer holds what is inside of all blocks, but of one. Gradients are the same to the
bit where the operations are. Towers of convolutions keep what they keep: a second run would count their batch norms twice.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    found: list[Any] = (
        [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)] if training.activation_checkpointing else []
    )
    for block in found:
        block.gradient_checkpointing, block._gradient_checkpointing_func = True, partial(checkpoint, use_reentrant=False)
    try:
        yield
    finally:
        for block in found:
            block.gradient_checkpointing = False
            del block._gradient_checkpointing_func
