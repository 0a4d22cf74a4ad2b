"""MAKE's module is trained before the click model: on the vectors alone, for several epochs."""

from __future__ import annotations

import math

import torch
from tqdm import tqdm

from moon_ops.ctr import processes
from moon_ops.ctr.dataset import POSITION, Rows, mixed
from moon_ops.ctr.extractors.make import Make
from moon_ops.ctr.extractors.seen import Seen
from moon_ops.ctr.position import PositionBias, of_places
from moon_ops.ctr.prefetch import WHOLE, Part
from moon_ops.recipes.ctr import CtrRecipe


def pretrain(part: Make, rows: Rows, trained: int, recipe: CtrRecipe, *, seed: int, share: Part = WHOLE) -> None:
    """Train MAKE's module for ``pretrain_epochs`` over the first ``trained`` rows, and freeze it; of several processes each reads its
    ``share`` of each batch."""
    device = next(part.parameters()).device
    position = PositionBias().to(device) if recipe.position else None
    groups = [{"params": list(part.parameters())}, *of_places(position, recipe)]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    names = ("behavior_item", *Make.vectors, *([POSITION] if position else []))
    count = math.ceil(trained / recipe.batch)
    for epoch in range(recipe.pretrain_epochs):
        made = mixed(rows, names, recipe.batch, trained, (seed, epoch, 1), part=share)
        shown = tqdm(made, desc=f"MAKE epoch {epoch + 1}", unit="step", total=count, **processes.bar())
        for step, (columns, labels) in enumerate(shown):
            columns, labels = tuple(column.to(device) for column in columns), labels.to(device)
            batch = dict(zip(names, columns, strict=True))
            nothing, present = columns[1][:, :0], batch.pop("behavior_item") > 0
            found = part(Seen(nothing, nothing, nothing, present, present, batch))[:, -1]
            found = found + position(batch[POSITION]) if position else found
            size = min(recipe.batch, trained - step * recipe.batch)
            loss = processes.loss_of(found, labels, size)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            processes.summed((value for group in optimizer.param_groups for value in group["params"]), loss)
            optimizer.step()
    part.freeze()
