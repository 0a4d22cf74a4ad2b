"""Batches made ahead of the model, by torch's DataLoader: worker processes read and change pictures while the model computes.

Processes, not threads: two teams of OpenMP threads on the same cores wait for each other, and cost more than the work they do.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from torch.utils.data import DataLoader, Dataset

from moon_ops.encoder.answering import answering
from moon_ops.errors import MoonError
from moon_ops.processor import cores

AHEAD = 3  # batches per worker


def spare_workers() -> int:
    """How many processes make batches: one where there is a core for it.

    On two cores none: the model's two threads wait for each other at every operation, and a third worker makes both wait (a step of
    moon-tiny 1.17 s with it, 0.66 s without, AVX2, float32).
    """
    return 1 if cores() > 2 else 0


class Numbered(Dataset[Any]):
    """Batch ``n`` is ``make(n)``: a function of its number alone, so it does not matter which worker makes it, or when."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __getitem__(self, number: int) -> Any:
        try:
            return self.make(number)
        except MoonError as refused:  # torch would raise another error in its place, and lose the action
            return refused


def batches(make: Callable[[int], Any], numbers: Sequence[int], workers: int, *, pinned: bool = False) -> Iterator[Any]:
    """The batches of ``numbers`` in order. Without ``workers`` each is made when it is asked for.

    ``pinned``: in memory that a GPU copies from while it computes; what holds tensors has a method ``pin_memory`` for it.
    """
    if not numbers:
        return
    loader = DataLoader(
        Numbered(make),
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        multiprocessing_context="fork" if workers else None,  # what batches are made of is then the same memory for all
        pin_memory=pinned,
    )
    with answering() if workers else nullcontext():
        for batch in _started(loader):
            if isinstance(batch, MoonError):
                raise batch
            yield batch


def _started(loader: DataLoader[Any]) -> Iterator[Any]:
    """Its iterator, whose workers are forked here. Lance warns of that; they read nothing of it themselves."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="lance is not fork-safe")
        return iter(loader)
