"""Texts as tokens, in arrays: a list of lists would take 36 bytes for each token, and every process that looks at it a copy.

T tokens of N texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from moon_ops.encoder.model import Encoder
from moon_ops.inputs.contract import Sample

AT_ONCE = 10_000  # texts that the tokenizer reads together: what it returns of each takes kilobytes


class Tokens(Sequence[list[int]]):
    """The token ids of N texts: ``numbers`` [T], and where each text begins and ends, ``edges`` [N + 1]."""

    def __init__(self, texts: Iterable[Sequence[int]]) -> None:
        numbers, lengths = [np.zeros(0, np.int32)], [np.zeros(1, np.int64)]
        rest = iter(texts)
        while some := list(islice(rest, AT_ONCE)):
            lengths.append(np.array([len(text) for text in some], np.int64))
            numbers.append(np.fromiter((number for text in some for number in text), np.int32))
        self.numbers: NDArray[np.int32] = np.concatenate(numbers)
        self.edges: NDArray[np.int64] = np.concatenate(lengths).cumsum()

    def __len__(self) -> int:
        return len(self.edges) - 1

    @overload
    def __getitem__(self, row: int) -> list[int]: ...
    @overload
    def __getitem__(self, row: slice) -> list[list[int]]: ...
    def __getitem__(self, row: int | slice) -> list[int] | list[list[int]]:
        if isinstance(row, slice):
            return [self[n] for n in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row = int(row) % len(self)
        found: list[int] = self.numbers[self.edges[row] : self.edges[row + 1]].tolist()
        return found


def tokens(encoder: Encoder, samples: Iterable[Any], text: Callable[[Any], str] | None = None) -> Tokens:
    """Each sample's text, or what ``text`` makes of each thing that is given, as token ids without special tokens."""
    return Tokens(_encoded(encoder, samples, text or (lambda sample: sample.text)))


def served_tokens(encoder: Encoder, samples: Sequence[Sample], text: Callable[[Sample], str] | None = None) -> Tokens:
    """The :func:`tokens` that production reads beside all of a sample's pictures: training shows fewer, which leaves room for more."""
    layout = encoder.layout
    room = (layout.max_tokens - min(len(s.image_ids), layout.max_pictures) * len(layout.picture()) for s in samples)
    found = _encoded(encoder, samples, text or (lambda sample: sample.text))
    return Tokens(ids[:most] for ids, most in zip(found, room, strict=True))


def _encoded(encoder: Encoder, samples: Iterable[Any], text: Callable[[Any], str]) -> Iterator[list[int]]:
    rest = iter(samples)
    while some := [text(sample) for sample in islice(rest, AT_ONCE)]:
        yield from (found.ids for found in encoder.tokenizer.encode_batch_fast(some, add_special_tokens=False))
