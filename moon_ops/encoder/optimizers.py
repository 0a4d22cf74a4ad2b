"""AdamW, and Muon for the hidden matrices; learning rates are a function of the step alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from moon_ops.recipes import Training

SCALE_RATE = 10.0  # the logit scale is one number and has far to go in few steps


def build(model: nn.Module, training: Training) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the hidden matrices if the recipe gives it a rate. Gains, biases and the temperature do not decay.

    On the demo shop, with the vision transformer, Muon reached in 200 steps what AdamW did not in 400. Our own convolutions are kept as
    matrices, so they are among them; those of other towers have four dimensions and stay with AdamW.
    """
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    hidden = [p for n, p in named.items() if p.ndim == 2 and "embed" not in n and training.matrix_learning_rate]
    taken = {id(p) for p in hidden}
    rest = {n: p for n, p in named.items() if id(p) not in taken}
    scale = [p for n, p in rest.items() if n.endswith("log_scale")]
    others = [p for n, p in rest.items() if not n.endswith("log_scale")]
    rate = training.learning_rate
    groups: list[dict[str, Any]] = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": training.weight_decay, "lr": rate, "full": rate},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0, "lr": rate, "full": rate},
    ]
    if scale:
        groups.append({"params": scale, "weight_decay": 0.0, "lr": SCALE_RATE * rate, "full": SCALE_RATE * rate})
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, betas=(0.9, 0.98))]
    if hidden:
        matrix = training.matrix_learning_rate
        optimizers.append(
            torch.optim.Muon([{"params": hidden, "lr": matrix, "full": matrix}], lr=matrix, weight_decay=training.weight_decay)
        )
    return optimizers


def set_rates(optimizers: list[torch.optim.Optimizer], training: Training, step: int, steps: int, share: float) -> float:
    """Give every group its rate at ``step`` of ``steps``: ``share`` of its full one, warmed up and cooled down; returns AdamW's."""
    now = share * warm_cosine(step, training.warmup_steps, steps)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["full"] * now
    return float(optimizers[0].param_groups[0]["lr"])


def warm_cosine(step: int, warmup: int, total: int) -> float:
    """Share of the learning rate: linear up for ``warmup`` steps, then a half cosine down to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
