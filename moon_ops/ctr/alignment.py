"""A linear map from a new encoder's space to an old one's: a click model that was trained on the old vectors can read the new ones.

Spaces of two trainings differ by little more than a rotation, so a linear map fitted on the items that both have embedded carries most of
it over (orthogonal Procrustes: Schönemann 1966; between embedding spaces: Smith et al. 2017, arXiv 1702.03859). What it loses is measured
for each release and stands in its evidence. D dimensions of the new space, E of the old one.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moon_ops.ctr.vectors import Ints, Tables, Vectors
from moon_ops.errors import ContractError, StageError
from moon_ops.inputs.contract import require_same

FILE = "alignment.npz"
LEAST = 20  # items to fit a map on
HELD_OUT = 5  # every fifth item judges the map
PENALTIES = (0.0, 1e-3, 1e-2, 1e-1, 1.0)  # of ridge regression, in units of the mean of the spectrum; the held-out items choose


@dataclass(frozen=True)
class Alignment:
    """``matrix`` [D, E] maps vectors of the contract ``new`` into the space of ``old``; ``cosine``: to the true ones, of items held out."""

    matrix: NDArray[np.float32]
    new: str
    old: str
    cosine: float

    def apply(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors [..., D] in the old space [..., E], unit length; zeros, which stand for no vector, stay zeros."""
        mapped = vectors @ self.matrix
        lengths = np.linalg.norm(mapped, axis=-1, keepdims=True)
        return np.divide(mapped, lengths, out=np.zeros_like(mapped), where=lengths > 0)

    def save(self, directory: Path) -> Path:
        """Write it; the file."""
        np.savez(directory / FILE, matrix=self.matrix, new=self.new, old=self.old, cosine=self.cosine)
        return directory / FILE

    @classmethod
    def load(cls, file: Path) -> Alignment:
        """Read it; :class:`ContractError` for a file that is none."""
        try:
            with np.load(file, allow_pickle=False) as read:
                return cls(read["matrix"], str(read["new"]), str(read["old"]), float(read["cosine"]))
        except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as broken:
            raise ContractError(f"{file} is no alignment of two encoders ({broken})", action="make the release again") from broken


class Aligned:
    """The vectors of a new encoder, as a click model of the old one reads them."""

    def __init__(self, vectors: Vectors, alignment: Alignment) -> None:
        require_same(vectors.contract_id, alignment.new, what="vectors and alignment")
        self.vectors, self.alignment, self.contract_id = vectors, alignment, alignment.old

    @property
    def dim(self) -> int:
        """E."""
        return int(self.alignment.matrix.shape[1])

    def codes(self, ids: Ints) -> Ints:
        """The number of each id, any shape; -1 for one without a vector."""
        return self.vectors.codes(ids)

    def at(self, codes: Ints, times: Ints) -> Ints:
        """The row number of the vector to use at ``times`` [µs]; -1 for none."""
        return self.vectors.at(codes, times)

    def gather(self, rows: Ints) -> NDArray[np.float32]:
        """Vectors [..., E] of row numbers [...]; zeros for -1."""
        return self.alignment.apply(self.vectors.gather(rows))


def through(tables: Tables, alignment: Alignment | None) -> Tables:
    """The tables as a click model reads them: through the map, if there is one."""
    return tables if alignment is None else Tables(Aligned(tables.items, alignment), Aligned(tables.queries, alignment))


def align(new: NDArray[np.float32], old: NDArray[np.float32], contracts: tuple[str, str]) -> Alignment:
    """The map of ``new`` [N, D] to ``old`` [N, E], the vectors of the same items under two encoders, whose contracts are named.

    A rotation where the spaces have the same size, and ridge regression, are fitted on four fifths of the items; what brings the others
    nearest is kept. Raises :class:`StageError` for fewer than 20 items.
    """
    if len(new) < LEAST:
        raise StageError(
            f"{len(new)} items have a vector under both encoders: too few to align them", action="embed the catalogue under both"
        )
    judged = np.arange(len(new)) % HELD_OUT == 0
    left, right = new[~judged].astype(np.float64), old[~judged].astype(np.float64)
    tried = [Alignment(made.astype(np.float32), *contracts, 0.0) for made in _maps(left, right)]
    cosines = [float((one.apply(new[judged]) * old[judged]).sum(-1).mean()) for one in tried]
    best = int(np.argmax(cosines))
    return Alignment(tried[best].matrix, *contracts, cosines[best])


def _maps(left: NDArray[np.float64], right: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Candidates [D, E]."""
    products, crossed = left.T @ left, left.T @ right
    scale = float(np.trace(products)) / len(products)
    found = []
    if products.shape == crossed.shape:
        u, _, v = np.linalg.svd(crossed)
        found.append(u @ v)
    for penalty in PENALTIES:
        ridge = products + max(penalty, 1e-9) * scale * np.eye(len(products))
        found.append(np.linalg.solve(ridge, crossed))
    return found
