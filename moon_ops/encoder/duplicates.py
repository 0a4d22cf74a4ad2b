"""Near-identical pictures and titles: what may not stand in training and in evaluation at once.

A picture is known by its 64-bit perceptual hash (``images.phash`` in the lake), a text by its set of words. N pictures; distances are
counts of differing bits and, for pictures with structure, always even: such a hash has 32 bits set.

Why 4 bits: of 300 shop photographs, recompressed (JPEG quality 20), halved or a fifth brighter, 99 % or more stay within 4 bits; of the
19 pairs within 4 bits among 5,421 photographs all were the same scene and 18 the same product, of those 6 bits apart 37 of 42. With 2 % cut
off each side 56 % are caught, with 5 % off 2 %, mirrored none. The hash does not see colours, and products drawn or photographed on white
hash alike although they differ: in the simulated shop 2,804 pairs of items are within 4 bits, 2,236 of them of different SPUs, and 1 pair
has similar titles. There the texts have to be given, or lookalikes count as twins.

A plain picture (one colour, or the same along one direction) has hardly any bit set, and its hash says nothing; so has the hash 0, which
stands for no picture. Neither is ever a twin here, not even of its equal: byte-identical pictures have the same image id, and need no hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from moon_ops.encoder.entities import words

BITS = 64
MOST = 4  # differing bits of twins
LEAST_TEXT = 0.8  # shared words of twins, of all their words
PLAIN = 16  # a hash with fewer bits set says nothing: the picture's frequencies tie with their median

Words = frozenset[str]


def from_hex(phashes: Iterable[str | None]) -> NDArray[np.uint64]:
    """The hashes [N] of the lake's hex digits; 0 where there is none."""
    return np.array([int(digits, 16) if digits else 0 for digits in phashes], np.uint64)


def similar_text(a: str, b: str) -> float:
    """Jaccard similarity of the two texts' sets of words, 0 to 1; their order does not count. 0 if either has no words."""
    return _similar(frozenset(words(a)), frozenset(words(b)))


def picture_twins(hashes: NDArray[np.uint64], most: int = MOST) -> NDArray[np.int64]:
    """The group [N] of each picture, named by its smallest row: pictures within ``most`` bits are together, and so are their twins' twins.

    No text is asked, so in a catalogue on white backgrounds these are groups of silhouettes; :func:`twins` asks.
    """
    return twins(hashes, [""] * len(hashes), most)


def twins(hashes: NDArray[np.uint64], texts: Sequence[str], most: int = MOST, least_text: float = LEAST_TEXT) -> NDArray[np.int64]:
    """The group [N] of each entry, named by its smallest row: near-identical in picture and, where both have text, in text.

    Groups are joined through their members: an entry without text can hold two together whose texts differ.
    """
    kinds, first, place = _distinct(hashes, texts)
    root = np.arange(len(kinds))
    for a, b in _twin_pairs(kinds, kinds, most, least_text):
        low, high = sorted((_find(root, a), _find(root, b)))
        root[high] = low  # kinds are numbered by first appearance, so the smaller root has the smaller row
    named = np.array([first[_find(root, kind)] for kind in range(len(kinds))], np.int64)
    labels = np.arange(len(hashes))
    usable = _usable(hashes)
    labels[usable] = named[place[usable]]
    return labels


def leaked(
    train_hashes: NDArray[np.uint64],
    train_texts: Sequence[str],
    eval_hashes: NDArray[np.uint64],
    eval_texts: Sequence[str],
    most: int = MOST,
    least_text: float = LEAST_TEXT,
) -> NDArray[np.bool_]:
    """Which evaluation entries have a twin in training: a picture within ``most`` bits and, where both have text, as similar a text.

    An entry is a picture's hash (0: none) and a text ("": none). A query asked twice in the same words is no leak, so entries without a
    picture are never flagged.
    """
    kinds, _, place = _distinct(eval_hashes, eval_texts)
    known, _, _ = _distinct(train_hashes, train_texts)
    found = np.zeros(len(kinds), np.bool_)
    for kind, _ in _twin_pairs(kinds, known, most, least_text):
        found[kind] = True
    return found[place]


Kind = tuple[int, Words]


def _distinct(hashes: NDArray[np.uint64], texts: Sequence[str]) -> tuple[list[Kind], list[int], NDArray[np.int64]]:
    """The distinct entries, in order, the first row of each, and which of them each row is: a placeholder picture is compared once."""
    numbers: dict[Kind, int] = {}
    first: list[int] = []
    place = np.empty(len(hashes), np.int64)
    for row, (value, text) in enumerate(zip(hashes.tolist(), texts, strict=True)):
        number = place[row] = numbers.setdefault((value, frozenset(words(text))), len(numbers))
        if number == len(first):
            first.append(row)
    return list(numbers), first, place


def _twin_pairs(left: list[Kind], right: list[Kind], most: int, least_text: float) -> Iterator[tuple[int, int]]:
    """Numbers of twins, one of ``left`` and one of ``right``; a pair can come more than once, and each is its own twin."""
    ours, theirs = (np.array([value for value, _ in side], np.uint64) for side in (left, right))
    for a, b in _near(ours, theirs, most):
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            mine, other = left[x][1], right[y][1]
            if not mine or not other or _similar(mine, other) >= least_text:
                yield x, y


def _near(left: NDArray[np.uint64], right: NDArray[np.uint64], most: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows of ``left`` and ``right`` whose hashes differ in at most ``most`` bits, plain ones left out; a pair can come more than once.

    Of ``most`` + 1 bands of bits at least one is equal in such a pair, so only hashes that share a band are compared.
    """
    if not 0 <= most < BITS:
        raise ValueError(f"most = {most} is not a distance of {BITS}-bit hashes that leaves a band to look up")
    ours, theirs = np.flatnonzero(_usable(left)), np.flatnonzero(_usable(right))
    edges = [BITS * band // (most + 1) for band in range(most + 2)]
    for low, high in pairwise(edges):
        mask, shift = np.uint64(2 ** (high - low) - 1), np.uint64(low)
        keys = right[theirs] >> shift & mask
        order = np.argsort(keys, kind="stable")
        wanted = left[ours] >> shift & mask
        start, stop = (np.searchsorted(keys[order], wanted, side=side) for side in ("left", "right"))
        for step in range(int((stop - start).max(initial=0))):  # one candidate of every row at a time: memory stays at N
            live = np.flatnonzero(start + step < stop)
            a, b = ours[live], theirs[order[start[live] + step]]
            close = np.bitwise_count(left[a] ^ right[b]) <= most
            yield a[close], b[close]


def _usable(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    return np.bitwise_count(hashes) >= PLAIN


def _similar(a: Words, b: Words) -> float:
    return len(a & b) / len(a | b) if a and b else 0.0


def _find(root: NDArray[np.int64], kind: int) -> int:
    """The root of ``kind``'s tree, with the way there halved."""
    while root[kind] != kind:
        root[kind] = root[root[kind]]
        kind = root[kind]
    return int(kind)
