"""Score rows with an exported click model: the one path for offline evaluation and for ``/v1/score``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moon_ops.columns import Feature
from moon_ops.ctr.dataset import Rows, encode
from moon_ops.ctr.vectors import Tables
from moon_ops.ctr.vocabulary import Vocabulary
from moon_ops.embeddings.as_of import Joined
from moon_ops.errors import ContractError
from moon_ops.files import required
from moon_ops.inputs.contract import require_same
from moon_ops.sessions import session

GRAPH = "model.onnx"
BATCH = 4096


class Scorer:
    """An exported click model with its vocabulary; it scores only with the vectors of its own contract."""

    def __init__(self, directory: Path, *, threads: int = 2) -> None:
        if not (directory / "ctr.json").is_file():
            raise ContractError(f"{directory} holds no ctr.json: it is not a click model", action="train it with `moon ctr`")
        self.meta: dict[str, Any] = required(directory / "ctr.json", "train the click model again with `moon ctr`")
        self.vocabulary = Vocabulary.load(directory)
        self._session = session(directory / GRAPH, threads=threads)
        self.inputs = [i.name for i in self._session.get_inputs()]

    @property
    def own(self) -> tuple[Feature, ...]:
        """The columns of the shop's own that the model reads."""
        return self.vocabulary.own

    @property
    def contract_id(self) -> str:
        """The contract of the vectors that the model was trained on."""
        return str(self.meta["contract_id"])

    def encode(self, joined: Joined, tables: Tables) -> Rows:
        """Encode impressions joined with features as this model reads them."""
        return encode(joined, self.vocabulary, tables, int(self.meta["behaviors"]), int(self.meta["top_k"]))

    def score(self, rows: Rows, chosen: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Click probabilities of the rows ``chosen`` (default: all)."""
        require_same(rows.tables.items.contract_id, self.contract_id, what="click model and vectors")
        chosen = np.arange(len(rows)) if chosen is None else chosen
        out = np.empty(len(chosen), np.float64)
        for start in range(0, len(chosen), BATCH):
            some = slice(start, start + BATCH)
            out[some] = self.probabilities(rows.columns(chosen[some], self.inputs))
        return out

    def probabilities(self, columns: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
        """Click probabilities [B] of a batch's inputs by name."""
        logits = np.asarray(self._session.run(None, {name: columns[name] for name in self.inputs})[0], np.float64)
        return 1.0 / (1.0 + np.exp(-logits))
