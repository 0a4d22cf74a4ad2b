"""An exponential moving average of weights: what a stage ends with, in place of where its last steps happened to lead.

Polyak and Juditsky (1992); as in Tarvainen and Valpola's mean teacher (2017) early steps count less, so that a short stage's average is not
mostly its start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from moon_ops.encoder.checkpoints import changing

PREFIX = "average."  # of the names in a checkpoint


class Average:
    """The average of a model's trained parameters and running statistics; nothing at all where ``decay`` is 0."""

    def __init__(self, model: nn.Module, decay: float, tensors: dict[str, Tensor] | None = None) -> None:
        """Begin with the model as it is, or with the ``tensors`` of a checkpoint."""
        own = {name: value for name, value in changing(model).items() if value.is_floating_point()} if decay else {}
        kept = {name.removeprefix(PREFIX): value for name, value in (tensors or {}).items() if name.startswith(PREFIX)}
        self.decay, self.own = decay, own
        self.of = {
            name: kept[name].to(value.device, value.dtype) if name in kept else value.detach().clone() for name, value in own.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take up the model after ``step``, counted from 0 in its stage."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, value in self.own.items():
            self.of[name].lerp_(value, share)

    @torch.no_grad()
    def give(self) -> None:
        """Put the average in the model's place."""
        for name, value in self.own.items():
            value.copy_(self.of[name])

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Within it the average stands in the model's place; after it the model is, to the bit, as it was."""
        own = {name: value.detach().clone() for name, value in self.own.items()}
        self.give()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self.own.items():
                    value.copy_(own[name])

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold to go on exactly."""
        return {PREFIX + name: value for name, value in self.of.items()}
