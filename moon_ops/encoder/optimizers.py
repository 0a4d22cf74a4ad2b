"""AdamW, and Muon for the hidden matrices; learning rates are a function of the step alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from moon_ops.encoder.muon import Muon
from moon_ops.recipes.encoder import Training

TOWERS = {"vision_model", "visual"}  # what families call their picture tower
SCALE_RATE = 10.0  # the logit scale is one number and has far to go in few steps
WARMEST = 0.2  # share of the steps that warm up at most: a short stage, or a recipe cut to fewer steps, would do nothing else


def build(model: nn.Module, training: Training) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the hidden matrices if the recipe gives it a rate. Gains, biases and the temperature do not decay.

    On the demo shop, with the vision transformer, Muon reached in 200 steps what AdamW did not in 400. Our own convolutions are kept as
    matrices, so they are among them; those of other towers have four dimensions and stay with AdamW.
    """
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    matrices = {n: p for n, p in named.items() if p.ndim == 2 and "embed" not in n and training.matrix_learning_rate}
    rest = {n: p for n, p in named.items() if n not in matrices and not n.endswith("log_scale")}
    rate, decay = training.learning_rate, training.weight_decay
    groups: list[dict[str, Any]] = []
    for share, chosen in _by_tower(rest, training.tower_share):
        groups.append(_group([p for p in chosen if p.ndim > 1], share * rate, decay))
        groups.append(_group([p for p in chosen if p.ndim <= 1], share * rate, 0.0))
    groups.append(_group([p for n, p in named.items() if n.endswith("log_scale")], SCALE_RATE * rate, 0.0))
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW([g for g in groups if g["params"]], lr=rate, betas=(0.9, 0.98))]
    if matrices:
        fast = training.matrix_learning_rate
        hidden = [_group(chosen, share * fast, decay) for share, chosen in _by_tower(matrices, training.tower_share)]
        optimizers.append(Muon([g for g in hidden if g["params"]], lr=fast, weight_decay=decay))
    return optimizers


def _by_tower(named: dict[str, nn.Parameter], share: float) -> list[tuple[float, list[nn.Parameter]]]:
    """The parameters outside the picture tower, and those in it if they have another rate."""
    inside = {n for n in named if not TOWERS.isdisjoint(n.split(".")) and share != 1.0}
    return [(1.0, [p for n, p in named.items() if n not in inside]), (share, [named[n] for n in named if n in inside])]


def _group(params: list[nn.Parameter], rate: float, decay: float) -> dict[str, Any]:
    return {"params": params, "weight_decay": decay, "lr": rate, "full": rate}


def set_rates(optimizers: list[torch.optim.Optimizer], training: Training, step: int, steps: int, share: float) -> float:
    """Give every group its rate at ``step`` of ``steps``: ``share`` of its full one, warmed up and cooled down; returns AdamW's."""
    now = share * warm_cosine(step, training.warmup_steps, steps)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["full"] * now
    return float(optimizers[0].param_groups[0]["lr"])


def warm_cosine(step: int, warmup: int, total: int) -> float:
    """Share of the learning rate: linear up for ``warmup`` steps, a fifth of ``total`` at most, then a half cosine down to zero."""
    warmup = min(warmup, int(WARMEST * total))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
