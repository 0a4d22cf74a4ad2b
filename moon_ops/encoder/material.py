"""What a training reads of the lake beside pixels: pairs and catalogue, and files of both that its processes read together.

The first process writes them into the run's directory and all map the same numbers into memory, so that none sees a lake which another
process of the same training did not see.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from moon_ops.encoder.pairs import Pairs
from moon_ops.encoder.validation import Held
from moon_ops.files import put
from moon_ops.inputs.contract import Sample

FOLDER = "material"  # in a run's directory; an erasure removes it: it holds what users asked
ARRAYS = [field.name for field in fields(Pairs) if field.type == "Rows"]
SAMPLES = ("queries", "items")
SAMPLE = pa.schema([("text", pa.string()), ("image_ids", pa.list_(pa.string()))])


@dataclass(frozen=True)
class Material:
    """Pairs, how many others were left out because a near-identical picture leads to the same product, the catalogue's rows, and the
    queries that are held out for validation.
    """

    pairs: Pairs
    twins: int
    catalogue: pa.Table
    held: Held | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The catalogue."""
        return self.catalogue.to_pylist()

    def write(self, place: Path) -> None:
        """Write it beside ``place`` and move it there in one step."""
        scratch = place.with_name(f"{place.name}.new")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        arrays = {name: torch.tensor(getattr(self.pairs, name)) for name in ARRAYS}
        about = {"left_out": json.dumps(self.pairs.left_out), "twins": str(self.twins)}
        for name in SAMPLES:
            _write(scratch / f"{name}.arrow", _table(getattr(self.pairs, name)))
        if self.held is not None:
            about["held"] = json.dumps({"search": self.held.search, "since": self.held.since, "spu_ids": self.held.spu_ids.tolist()})
            _write(scratch / "held.arrow", _table(self.held.samples))
        save_file(arrays, scratch / "pairs.safetensors", about)
        _write(scratch / "catalogue.arrow", self.catalogue)
        shutil.rmtree(place, ignore_errors=True)
        put(scratch, place)

    @classmethod
    def read(cls, place: Path) -> Material:
        """What :meth:`write` wrote; the numbers stay on the disk until they are looked at, and are the same pages for all processes."""
        with safe_open(place / "pairs.safetensors", "pt") as file:
            about = file.metadata()
            columns: dict[str, Any] = {name: file.get_tensor(name).numpy() for name in ARRAYS}
        columns |= {name: _samples(_read(place / f"{name}.arrow")) for name in SAMPLES}
        pairs = Pairs(**columns, left_out=json.loads(about["left_out"]))
        held = None
        if "held" in about:
            told = json.loads(about["held"])
            ids = np.array(told["spu_ids"], np.int64)
            held = Held(_samples(_read(place / "held.arrow")), ids, told["search"], told["since"])
        return cls(pairs, int(about["twins"]), _read(place / "catalogue.arrow"), held)


def _table(samples: list[Sample]) -> pa.Table:
    return pa.table([[sample.text for sample in samples], [sample.image_ids for sample in samples]], schema=SAMPLE)


def _samples(table: pa.Table) -> list[Sample]:
    return [Sample(text, tuple(names)) for text, names in zip(*(table[name].to_pylist() for name in SAMPLE.names), strict=True)]


def _write(place: Path, table: pa.Table) -> None:
    with pa.OSFile(str(place), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _read(place: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(place))).read_all()
