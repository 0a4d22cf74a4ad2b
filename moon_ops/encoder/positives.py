"""What behaviour knows to answer a query: such an item is no negative of it, whichever pair of a batch it belongs to.

A pair says that one item was chosen. The same words are asked under many query ids, and lead to several items: counted as negatives of each
other these would teach that what users chose is wrong. K known positives, B askers, M items, N queries.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moon_ops.encoder.samples import Texts

Rows = NDArray[np.int64]
BETWEEN = "\x1f"  # a space to :func:`folded`, so in none of its texts
NOBODY = -1  # an asker of whom nothing is known beside its own product


def folded(text: str) -> str:
    """A query's text without what nobody means by it: case, compatibility forms, the number of spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def alike(texts: Iterable[str | None], pictures: Iterable[str | None]) -> Rows:
    """The group [N] of each query, numbered from 0 as they come: those of the same words and the same picture (or none) are one."""
    both = Texts.of(f"{folded(text or '')}{BETWEEN}{picture or ''}" for text, picture in zip(texts, pictures, strict=True))
    return both.column.dictionary_encode().indices.to_numpy().astype(np.int64)


def distinct(first: Rows, second: Rows) -> Rows:
    """The distinct pairs of two columns [K], in order of both: [K', 2]."""
    order = np.lexsort((second, first))
    pairs = np.stack([first[order], second[order]], 1)
    return pairs[np.append(True, (pairs[1:] != pairs[:-1]).any(1))[: len(pairs)]]


class Positives:
    """Which products answer whom. Looked up for whole batches, in a time that grows with what the batch's askers know."""

    def __init__(self, asker: Rows, product: Rows) -> None:
        """Row k says that ``product[k]`` answers ``asker[k]``; askers are numbers from 0."""
        pairs = distinct(asker, product)
        self.product = np.ascontiguousarray(pairs[:, 1])
        self.start = np.searchsorted(pairs[:, 0], np.arange(int(pairs[-1, 0]) + 2 if len(pairs) else 1))

    def mask(self, asker: Tensor, product: Tensor) -> Tensor:
        """[B, M]: whether ``product`` [M] is known to answer ``asker`` [B]; never for :data:`NOBODY`, nor for an asker without an entry."""
        asked, who = np.unique(asker.cpu().numpy(), return_inverse=True)
        columns, place = np.unique(product.cpu().numpy(), return_inverse=True)
        there = (asked >= 0) & (asked < len(self.start) - 1)
        first, last = (self.start[np.where(there, asked + step, 0)] for step in (0, 1))
        count = last - first
        row = np.repeat(np.arange(len(asked)), count)
        wanted = self.product[np.arange(len(row)) + np.repeat(first - (np.cumsum(count) - count), count)]
        column = np.minimum(np.searchsorted(columns, wanted), max(len(columns) - 1, 0))
        hit = columns[column] == wanted if len(columns) else np.zeros(0, bool)
        found = np.zeros((len(asked), len(columns)), bool)
        found[row[hit], column[hit]] = True
        return torch.from_numpy(found[who][:, place]).to(product.device)


@dataclass(frozen=True)
class Asked:
    """Who asks in each pair of this process [B], and what is known to answer whom."""

    asker: Tensor
    positives: Positives
