"""Activation checkpointing (Chen et al., 2016): a block keeps its input alone, and is run once more when gradients come back.

For about a third more computing the memory of a step holds what is inside of one block and no longer of all. The second run repeats the
first one's operations, so gradients stay as they were. Towers of convolutions are left as they are: their norms would count twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch.backends import cuda
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from moon_ops.recipes.encoder import Training

KERNELS = {
    SDPBackend.MATH: cuda.math_sdp_enabled,
    SDPBackend.FLASH_ATTENTION: cuda.flash_sdp_enabled,
    SDPBackend.EFFICIENT_ATTENTION: cuda.mem_efficient_sdp_enabled,
    SDPBackend.CUDNN_ATTENTION: cuda.cudnn_sdp_enabled,
}


@contextmanager
def recomputed(model: Any, training: Training) -> Iterator[None]:
    """Within it the transformer blocks of ``model`` are run twice in training, if the recipe says so."""
    every: Iterable[Any] = model.modules() if training.activation_checkpointing else ()
    found: list[Any] = [module for module in every if isinstance(module, GradientCheckpointingLayer)]
    twice = partial(checkpoint, use_reentrant=False, context_fn=lambda: _alike(model.encoder.trunk.config))
    for block in found:
        block.gradient_checkpointing, block._gradient_checkpointing_func = True, twice
    try:
        yield
    finally:
        for block in found:
            block.gradient_checkpointing = False
            del block._gradient_checkpointing_func


def _alike(config: Any) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around the first run nothing; around the second attention as it was set at the first, which whoever set it has undone since."""
    return nullcontext(), _attention(config, config.is_causal, [kernel for kernel, on in KERNELS.items() if on()])


@contextmanager
def _attention(config: Any, causal: bool, kernels: list[SDPBackend]) -> Iterator[None]:
    now, config.is_causal = config.is_causal, causal
    try:
        with sdpa_kernel(kernels):
            yield
    finally:
        config.is_causal = now
