"""Vectors by id and time, as a click model gathers them: of one snapshot, or of all versions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moon_ops.inputs.contract import require_same

Ints = NDArray[np.integer[Any]]


class Vectors(Protocol):
    """Vectors by id: of one snapshot (a representation table), or of all versions with their times."""

    contract_id: str

    @property
    def dim(self) -> int:
        """D."""

    def codes(self, ids: Ints) -> Ints:
        """The number of each id, any shape; -1 for one without a vector."""

    def at(self, codes: Ints, times: Ints) -> Ints:
        """The row number of the vector to use at ``times`` [µs]; -1 for none."""

    def gather(self, rows: Ints) -> NDArray[np.float32]:
        """Vectors [..., D] of row numbers [...]; zeros for -1."""


@dataclass(frozen=True)
class Tables:
    """The vectors of one contract: of items and of queries; :class:`ContractError` for two contracts."""

    items: Vectors
    queries: Vectors

    def __post_init__(self) -> None:
        require_same(self.items.contract_id, self.queries.contract_id, what="vectors of items and of queries")
