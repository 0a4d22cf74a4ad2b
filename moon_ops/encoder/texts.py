"""Texts as tokens, in columns: a list of lists would take 36 bytes for each token, and every process that looks at it a copy.

T tokens of N texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tokenizers import Tokenizer

from moon_ops.encoder.model import Encoder
from moon_ops.encoder.samples import Column, Samples, read, some_at_a_time, together, whole, write
from moon_ops.inputs.contract import Sample, title_of

NUMBER = np.int32
SHORT = np.uint16  # of tokenizers that know no more
WORDS = ("query", "rich", "title")


class Tokens(Column[list[int]]):
    """The token ids of N texts: ``numbers`` [T], and where each text begins and ends, ``edges`` [N + 1]."""

    def __init__(self, column: pa.Array) -> None:
        super().__init__(column)
        self.numbers: NDArray[Any] = column.values.to_numpy(zero_copy_only=True)

    @classmethod
    def of(cls, texts: Iterable[Sequence[int]], kind: type[np.integer[Any]] = NUMBER) -> Tokens:
        """Columns of ``texts``, whose numbers are of that ``kind``."""
        lists = pa.large_list(pa.from_numpy_dtype(kind))
        return cls(together([_column(some, kind) for some in some_at_a_time(texts)], lists))

    def _made(self, start: int, stop: int) -> list[int]:
        found: list[int] = self.numbers[start:stop].tolist()
        return found


def _column(texts: list[Sequence[int]], kind: type[np.integer[Any]]) -> pa.Array:
    edges = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    numbers = np.fromiter(chain.from_iterable(texts), kind, int(edges[-1]))
    return pa.LargeListArray.from_arrays(pa.array(edges), pa.array(numbers))


@dataclass(frozen=True)
class Words:
    """A training's texts as tokens, made once and read by all stages and processes. Q queries, I items."""

    query: Tokens  # [Q]
    rich: Tokens  # [I], an item's whole text
    title: Tokens  # [I]

    @classmethod
    def of(cls, encoder: Encoder, queries: Sequence[Sample], items: Sequence[Sample]) -> Words:
        """What ``encoder`` reads of them."""
        return cls(tokens(encoder, queries), served_tokens(encoder, items), served_tokens(encoder, items, title_of))

    def write(self, place: Path) -> None:
        """To files of the directory ``place``."""
        place.mkdir(parents=True, exist_ok=True)
        for name in WORDS:
            write(place / f"{name}.arrow", pa.table({"tokens": getattr(self, name).column}))

    @classmethod
    def read(cls, place: Path) -> Words:
        """What :meth:`write` wrote, mapped."""
        return cls(*(Tokens(whole(read(place / f"{name}.arrow")["tokens"])) for name in WORDS))


class Again(Iterable[str]):
    """Texts that are made whenever somebody goes through them."""

    def __init__(self, make: Callable[[], Iterator[str]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[str]:
        return self.make()


def tokens(encoder: Encoder, samples: Iterable[Any], text: Callable[[Any], str] | None = None) -> Tokens:
    """Each sample's text, or what ``text`` makes of each thing that is given, as token ids without special tokens."""
    return Tokens.of(_encoded(encoder, _texts(samples) if text is None else map(text, samples)), _kind(encoder.tokenizer))


def served_tokens(encoder: Encoder, samples: Sequence[Sample], text: Callable[[Sample], str] | None = None) -> Tokens:
    """The :func:`tokens` that production reads beside all of a sample's pictures: training shows fewer, which leaves room for more."""
    layout, columns = encoder.layout, Samples.of(samples)
    room = layout.max_tokens - np.minimum(columns.names.counts(), layout.max_pictures) * len(layout.picture())
    found = _encoded(encoder, columns.texts if text is None else (text(Sample(words)) for words in columns.texts))
    return Tokens.of((ids[:most] for ids, most in zip(found, map(int, room), strict=True)), _kind(encoder.tokenizer))


def _kind(tokenizer: Tokenizer) -> type[np.integer[Any]]:
    """Numbers that all of its tokens fit."""
    return SHORT if tokenizer.get_vocab_size() <= np.iinfo(SHORT).max + 1 else NUMBER


def _texts(samples: Iterable[Any]) -> Iterable[str]:
    return samples.texts if isinstance(samples, Samples) else (sample.text for sample in samples)


def _encoded(encoder: Encoder, texts: Iterable[str]) -> Iterator[list[int]]:
    for some in some_at_a_time(texts):  # what the tokenizer returns of each takes kilobytes
        yield from (found.ids for found in encoder.tokenizer.encode_batch_fast(some, add_special_tokens=False))
