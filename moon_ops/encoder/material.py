"""What a training reads of the lake beside pixels: pairs and catalogue, and files of both that its processes read together.

The first process writes them into the run's directory and all map the same numbers into memory, so that none sees a lake which another
process of the same training did not see.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from moon_ops.encoder.pairs import Pairs
from moon_ops.encoder.samples import Samples, Texts, read, rows_of, write
from moon_ops.encoder.validation import Held
from moon_ops.files import put

FOLDER = "material"  # in a run's directory; an erasure removes it: it holds what users asked
ARRAYS = [field.name for field in fields(Pairs) if field.type == "Rows"]
SAMPLES = ("queries", "items")
WORDS, TASKS = f"{FOLDER}-words", f"{FOLDER}-tasks"  # beside it, for as long


@dataclass(frozen=True)
class Material:
    """Pairs, how many others were left out because a near-identical picture leads to the same product, the catalogue's rows, and the
    queries that are held out for validation.
    """

    pairs: Pairs
    twins: int
    catalogue: pa.Table
    held: Held | None = None

    def image_ids(self) -> Texts:
        """Every picture that training and validation may look at, each once."""
        found = self.pairs.image_ids()
        return found if self.held is None else found.distinct(self.held.image_ids())

    @property
    def rows(self) -> Iterable[dict[str, Any]]:
        """The catalogue, once through."""
        return rows_of(self.catalogue)

    def write(self, place: Path) -> None:
        """Write it beside ``place`` and move it there in one step."""
        scratch = place.with_name(f"{place.name}.new")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        arrays = {name: torch.tensor(getattr(self.pairs, name)) for name in ARRAYS}
        about = {"left_out": json.dumps(self.pairs.left_out), "twins": str(self.twins)}
        for name in SAMPLES:
            Samples.of(getattr(self.pairs, name)).write(scratch / f"{name}.arrow")
        if self.held is not None:
            about["held"] = json.dumps({"search": self.held.search, "since": self.held.since, "spu_ids": self.held.spu_ids.tolist()})
            Samples.of(self.held.samples).write(scratch / "held.arrow")
        save_file(arrays, scratch / "pairs.safetensors", about)
        write(scratch / "catalogue.arrow", self.catalogue)
        shutil.rmtree(place, ignore_errors=True)
        put(scratch, place)

    @classmethod
    def read(cls, place: Path) -> Material:
        """What :meth:`write` wrote; the numbers stay on the disk until they are looked at, and are the same pages for all processes."""
        with safe_open(place / "pairs.safetensors", "pt") as file:
            about = file.metadata()
            columns: dict[str, Any] = {name: file.get_tensor(name).numpy() for name in ARRAYS}
        columns |= {name: Samples.read(place / f"{name}.arrow") for name in SAMPLES}
        pairs = Pairs(**columns, left_out=json.loads(about["left_out"]))
        held = None
        if "held" in about:
            told = json.loads(about["held"])
            ids = np.array(told["spu_ids"], np.int64)
            held = Held(Samples.read(place / "held.arrow"), ids, told["search"], told["since"])
        return cls(pairs, int(about["twins"]), read(place / "catalogue.arrow"), held)
