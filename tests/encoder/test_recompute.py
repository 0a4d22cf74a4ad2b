"""Blocks that run twice give the gradients of blocks that run once, with less in memory between the two."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from moon_ops.encoder.batches import Inputs
from moon_ops.encoder.model import Encoder, build
from moon_ops.encoder.objectives import Sides
from moon_ops.encoder.pretrain import NextToken
from moon_ops.encoder.recompute import recomputed
from moon_ops.errors import SettingsError

DEEP = {"num_hidden_layers": 4}
FAMILIES = {
    "smolvlm": {"text": DEEP, "vision": DEEP},
    "qwen3_vl": {
        "family": "qwen3_vl",
        "inputs": {"picture_size": 32},
        "vision": {"patch_size": 8, **DEEP},
        "text": DEEP,
    },
}


@contextmanager
def counted(sizes: list[int]) -> Iterator[None]:
    """Bytes that the graph keeps beside weights."""

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(0 if isinstance(tensor, torch.nn.Parameter) else tensor.numel() * tensor.element_size())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def inputs(encoder: Encoder) -> Inputs:
    layout, generator = encoder.layout, torch.Generator().manual_seed(1)
    ids, mask = layout.batch([[45, 46, 47], [48, 49, 50, 51, 52], []], [1, 0, 2])
    size = layout.picture_size
    pixels = torch.randint(0, 256, (3, 3, size, size), generator=generator, dtype=torch.uint8)
    return Inputs(torch.from_numpy(ids), torch.from_numpy(mask), pixels, (1, 0, 2))


def learned(least: Any, family: str, stage: int, twice: bool) -> tuple[dict[str, torch.Tensor], int]:
    recipe = least(**FAMILIES[family])
    encoder = build(recipe, ["red dress", "blue boots"] * 8, seed=0).train()
    read, sizes = inputs(encoder), [0]
    model: Any = NextToken(encoder) if stage == 1 else Sides(encoder, 0.07)
    with recomputed(model, replace(recipe.training, activation_checkpointing=twice)):
        with counted(sizes):
            if stage == 1:
                loss = model(read, read.attention_mask.bool())
            else:
                vectors, scale = model([read])
                loss = (vectors[0] * vectors[1]).sum() + (vectors[2] * vectors[1]).sum() * scale
        loss.backward()
    assert not hasattr(encoder.blocks[0], "_gradient_checkpointing_func")
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, sum(sizes)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stage", [1, 2])
def test_gradients_are_the_same_and_less_is_kept(least: Any, family: str, stage: int) -> None:
    """Also where attention is causal in the first run alone, and its kernel another one: both are set by who calls the model."""
    once, kept = learned(least, family, stage, False)
    twice, less = learned(least, family, stage, True)
    assert once.keys() == twice.keys()
    for name, gradient in once.items():
        assert torch.equal(gradient, twice[name]), name
    assert less < 0.6 * kept


def test_experts_are_not_run_twice(least: Any) -> None:
    with pytest.raises(
        (SettingsError, ValueError), match=r"training.activation_checkpointing = True must be false where there are \[experts\]"
    ):
        least(training={"activation_checkpointing": True}, experts={"routed": 2})
