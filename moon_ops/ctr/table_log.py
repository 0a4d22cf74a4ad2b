"""An embedding table and its optimizer's moments in files: all rows once, and from then on those that have changed.

A step changes the rows of its batch alone, so a checkpoint of a large table writes what was touched since the one before. When what was
written since the last whole file would be half of the table, the next file is whole. Of a table that several processes share each writes
its own rows; whoever reads takes those that are its own, so another number of processes can go on. A checkpoint says which files count:
what is killed here has left those that the last one names as they were.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from moon_ops import pieces
from moon_ops.ctr import processes
from moon_ops.ctr.prefetch import Part
from moon_ops.files import put

log = logging.getLogger(__name__)
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam
SHARE = 0.5  # of a table's rows that may lie in files of changed rows before all are written again


class TableLog:
    """The files of one table in ``directory``; ``files`` names those that together are the table as it was last written."""

    def __init__(self, directory: Path, weight: Tensor, optimizer: torch.optim.Optimizer, part: Part) -> None:
        self.directory, self.weight, self.optimizer, self.part = directory, weight, optimizer, part
        self.files: list[str] = []
        self.changed = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
        self._since = 0  # rows written since the last whole file

    def touch(self) -> None:
        """The rows that have a gradient will have changed."""
        gradient = self.weight.grad
        if gradient is not None:
            self.changed[gradient._indices()[0]] = True

    def pending(self) -> int:
        """How many rows the next file would have; all processes that share the table call it."""
        count, whole = self._due()
        return self._total(len(self.weight)) if whole else count

    def _due(self) -> tuple[int, bool]:
        """How many rows have changed since the last file, and whether all are to be written."""
        count = self._total(int(self.changed.sum()))
        return count, not self.files or self._since + count > SHARE * self._total(len(self.weight))

    def _total(self, number: int) -> int:
        return processes.total(number) if self.part.of > 1 else number

    def write(self, step: int) -> None:
        """Write what has changed since the last file; all processes that share the table call it."""
        count, whole = self._due()
        if self.files and not count:
            return
        name = f"table-{step}-of-{self.part.of}"
        if self.part.of > 1 or processes.first():  # else all have the same
            self._fill(name, whole=whole)
        self.files, self._since = ([name], 0) if whole else ([*self.files, name], self._since + count)
        self.changed[:] = False

    def _fill(self, name: str, *, whole: bool) -> None:
        """Write all rows, or those that have changed."""
        tensors = {"weight": self.weight.detach(), **{key: self.optimizer.state[self.weight][key] for key in self._moments()}}
        if not whole:
            at = self.changed.nonzero().flatten()
            tensors = {key: tensor[at] for key, tensor in tensors.items()} | {"at": at * self.part.of + self.part.number}
        place = self._place(name, self.part.number)
        partial = place.with_suffix(".partial")
        self.directory.mkdir(parents=True, exist_ok=True)
        save_file({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, partial)
        put(partial, place)

    def restore(self, files: Iterable[str], step: int | None = None) -> None:
        """Take the rows of this process from ``files``, and with ``step``, after which they were written, the moments, too."""
        self.files = list(files)
        kept = {"weight": self.weight.detach()}
        if step:
            kept |= {name: torch.zeros_like(self.weight) for name in MOMENTS}
            self.optimizer.state[self.weight] = {"step": step, **{name: kept[name] for name in MOMENTS}}
        self._since = 0
        for name in self.files:
            of = int(name.rpartition("-")[2])
            for number in range(of):
                with safe_open(self._place(name, number), "pt") as file:
                    self._since = self._since + self._taken(file, kept, Part(number, of))
        self.changed[:] = False

    def readable(self, files: Iterable[str]) -> bool:
        """Whether each file is there and as long as its header says."""
        for name in files:
            for number in range(int(name.rpartition("-")[2])):
                if not readable(self._place(name, number)):
                    return False
        return True

    def remove_others(self, *kept: Iterable[str]) -> None:
        """Remove the files that none of the lists names."""
        names = {name for files in kept for name in files}
        for place in self.directory.glob("table-*"):
            if place.name.partition(".")[0] not in names:
                place.unlink(missing_ok=True)

    def _moments(self) -> tuple[str, ...]:
        return MOMENTS if self.optimizer.state.get(self.weight) else ()

    def _place(self, name: str, number: int) -> Path:
        return self.directory / f"{name}.{number}.safetensors"

    def _taken(self, file: Any, kept: dict[str, Tensor], source: Part) -> int:
        """Copy what a file has of this process's rows, a piece at a time; how many changed rows it has, 0 for one of all rows."""
        count = file.get_slice("weight").get_shape()[0]
        at = file.get_tensor("at") if "at" in file.keys() else None  # noqa: SIM118  no dictionary
        for some in pieces.spans(count, pieces.AT_ONCE):
            rows = torch.arange(some.start, some.stop) * source.of + source.number if at is None else at[some]
            own = rows % self.part.of == self.part.number
            for name, tensor in kept.items():
                if name in file.keys():  # noqa: SIM118
                    tensor[(rows[own] // self.part.of).to(tensor.device)] = file.get_slice(name)[some][own].to(tensor.device)
        return 0 if at is None else count


def readable(place: Path) -> bool:
    """Whether a file of tensors is there and as long as its header says; the log says what becomes of a training where it is not."""
    try:
        with safe_open(place, "pt"):
            return True
    except (SafetensorError, OSError) as damaged:
        log.warning("%s cannot be read (%s): the training begins anew", place, damaged)
        return False
