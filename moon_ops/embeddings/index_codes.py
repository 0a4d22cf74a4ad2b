"""Which kind of index memory allows, and the rotation that makes short codes good ones. N items, D dimensions, M bytes of a code.

A product code cuts a vector into M parts and keeps of each the number of the nearest of 256 points. That is best where every part says
equally much, but an encoder's vectors say most in few directions (a Matryoshka encoder's in its first numbers). So they are turned first:
the directions of most variance are dealt out to the parts so that the products of the variances are equal (Ge et al. 2013, "Optimized
Product Quantization", the solution for Gaussian data). Nothing is trained for it, and cosines stay what they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FLAT, LISTS, PRODUCT = "flat", "ivf", "pq"
PARTS = (4, 8)  # dimensions that share a byte of a product code: at the least, and at the most
STEP = 4  # bytes by which product codes differ: FAISS reads eight at a time, or four
ID = 8  # bytes of an item's number in the lists
GROWN = 1.5  # times its bytes that a list takes which has grown, as those of 8-bit codes do when an index is opened
NUMBERS = 3 * ID  # that flat indexes and 8-bit codes keep of an item besides: its id, twice, and its place
GB = 10**9

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Plan:
    """A kind, the bytes M of a code, the bytes that an item takes in memory, and why the kind was not a larger one (empty: it was not)."""

    kind: str
    code: int
    item_bytes: float
    because: str = ""


def plan(items: int, dim: int, memory: int | None, exact_up_to: int) -> Plan:
    """The kind of so many items: exact where they are few, else the longest codes that ``memory`` (bytes, None: any) allows."""
    if items <= exact_up_to:
        return Plan(FLAT, 4 * dim, 4 * dim + NUMBERS)
    usual = Plan(LISTS, dim, GROWN * (dim + ID) + NUMBERS)
    if memory is None or items * usual.item_bytes <= memory:
        return usual
    longest, shortest = (-(-dim // part) for part in PARTS)
    allowed = (memory // items - ID) // STEP * STEP
    code = longest if items * (longest + ID) <= memory else max(shortest, min(allowed, longest))
    found = Plan(PRODUCT, code, code + ID)
    because = f"8-bit codes of {items:,} items would take {_gb(items * usual.item_bytes)}, MOON_INDEX_GB allows {_gb(memory)}: "
    because += f"product codes of {found.code} bytes take {_gb(items * found.item_bytes)}"
    because += "" if items * found.item_bytes <= memory else ", still more: the shortest there are"
    return Plan(found.kind, found.code, found.item_bytes, because)


def _gb(amount: float) -> str:
    return f"{amount / GB:.2g} GB"


def rotation(sample: Floats, code: int) -> Floats:
    """Orthonormal rows [D, M · S] that deal out the directions of the sample [R, D] to ``code`` parts of S numbers; S·M − D of zeros."""
    dim = sample.shape[1]
    size = -(-dim // code)
    centred = sample - sample.mean(0)
    variances, directions = np.linalg.eigh((centred.T @ centred / len(sample)).astype(np.float64))
    worth = np.log(np.maximum(variances, 1e-12 * variances[-1]))  # of which the least, 0, would be none
    worth -= worth.min()
    out, held, total = np.zeros((dim, code * size), np.float32), np.zeros(code, np.int64), np.zeros(code)
    for one in np.argsort(-worth, kind="stable").tolist():
        part = int(np.argmin(np.where(held < size, total + 1e-9 * held, np.inf)))
        out[:, part * size + held[part]] = directions[:, one]
        held[part] += 1
        total[part] += worth[one]
    return out


def turned(vectors: Floats, by: Floats | None) -> Floats:
    """The vectors [M, D] as the codes see them."""
    return vectors if by is None else np.ascontiguousarray(vectors @ by)
