"""Training checkpoints of a sharded model: each process writes its parts, and any number of processes reads them (torch's DCP).

The frame is that of :mod:`moon_ops.encoder.checkpoints`: written beside its place, named by one rename once all processes have written.
Safetensors and JSON here, too: torch's usual format says in a pickle where the parts lie.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from moon_ops.encoder import averaging, validation
from moon_ops.encoder.checkpoints import ANEW, Checkpoints, State, changing, digest, distinct, flat, nested, whole_files
from moon_ops.encoder.sharding import full
from moon_ops.encoder.together import alone, once, waiting
from moon_ops.errors import InputError, in_a_line
from moon_ops.files import remembered
from moon_ops.recipes.encoder import Training

log = logging.getLogger(__name__)
LARGE = (averaging.PREFIX, validation.PREFIX)  # of a stage's tensors: as many numbers as the model has


def checkpoints(training: Training, directory: Path, *, brought: bool = False) -> Checkpoints:
    """Those that a training keeps: see :class:`Checkpoints`."""
    return (SharedCheckpoints if training.sharding == "full" else Checkpoints)(directory, brought=brought)


class SharedCheckpoints(Checkpoints):
    """Checkpoints that all processes write together; one process alone may, too, and read what several wrote."""

    shared = True

    def __init__(self, directory: Path, *, brought: bool = False) -> None:
        super().__init__(directory, brought=brought)
        self.frozen = ""  # the digest of weights that do not change, once it is known

    def save(self, state: State, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        """Write weights, optimizers and ``state``; every process must call it, and none goes on before there is a whole checkpoint."""
        partial = once(lambda: self._begun(state))
        if self.brought and not self.frozen:
            self.frozen = digest(model, full)
        tensors = {f"model.{name}": value.detach() for name, value in (changing(model) if self.brought else distinct(model)).items()}
        about = state.told() | {"frozen": self.frozen, "optimizers": []}
        for number, optimizer in enumerate(optimizers):
            own, numbers = flat(optimizer.state_dict())
            tensors |= {f"optimizer-{number}.{name}": value for name, value in own.items()}
            about["optimizers"].append(numbers)
        tensors |= {f"stage.{name}": value.detach() for name, value in state.tensors.items()}
        _write(tensors, partial)

        def ended() -> None:
            self._ended(partial, about | {"files": sorted(place.name for place in partial.iterdir())})

        once(ended)

    def read(self) -> State | None:
        """The newest state, without weights and what is as large: see :meth:`shards`; None where there is no whole checkpoint."""
        if (newest := self.newest) is None or (about := remembered(newest / "state.json", ANEW)) is None:
            return None
        if missing := [name for name in about["files"] if not (newest / name).is_file()]:
            log.warning("%s is missing from %s: %s", missing[0], newest, ANEW)
            return None
        if not whole_files(newest):
            return None
        kept = {name: what for name, what in _kept(newest, "stage.").items() if not name.startswith(LARGE)}
        tensors = _loaded(newest, "stage.", {name: torch.zeros(what.size, dtype=what.properties.dtype) for name, what in kept.items()})
        return State(about["stage"], about["step"], about["losses"], tensors, about["scaler"], about["validation"])

    def shards(self, model: nn.Module) -> dict[str, Tensor]:
        """The average and the best weights, as ``model`` is divided among the processes that there are now."""
        assert self.newest is not None
        own, kept = changing(model), _kept(self.newest, "stage.")
        wanted = {prefix + name: torch.zeros_like(value) for prefix in LARGE for name, value in own.items() if prefix + name in kept}
        return _loaded(self.newest, "stage.", wanted)

    def restore(self, model: nn.Module) -> None:
        """As :meth:`Checkpoints.restore`, into the first process's ``model``: the others get their parts of it."""
        once(lambda: self._restore(model))

    def _restore(self, model: nn.Module) -> None:
        assert self.newest is not None
        self._same_frozen(model)
        kept = _kept(self.newest, "model.")
        _loaded(self.newest, "model.", {name: value.detach() for name, value in distinct(model).items() if name in kept})

    def restore_optimizers(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Load this process's parts of the newest optimizer states."""
        assert self.newest is not None
        about = json.loads((self.newest / "state.json").read_text())
        for number, (optimizer, numbers) in enumerate(zip(optimizers, about["optimizers"], strict=True)):
            prefix, parameters = f"optimizer-{number}.", [p for group in optimizer.param_groups for p in group["params"]]
            places = {name: _place(parameters[int(name.partition(".")[0])], what) for name, what in _kept(self.newest, prefix).items()}
            optimizer.load_state_dict(nested(_loaded(self.newest, prefix, places), numbers))


def _write(tensors: dict[str, Any], place: Path) -> None:
    """Each process writes its parts, and what all have alike one of them. Fails in all where it fails in one."""
    writer = dcp.HuggingFaceStorageWriter(str(place), save_distributed=True)
    try:
        dcp.save(tensors, storage_writer=writer, process_group=None if alone() else waiting(dist.group.WORLD))
    except CheckpointException as failed:  # no Exception, so that nobody would say it in a line
        process, (fault, _) = min(failed.failures.items())
        if not isinstance(fault, Exception):
            raise fault from failed
        raise InputError(
            f"process {process} could not write its part of the checkpoint {place.stem}: {in_a_line(fault)}",
            action="make room, and call it again: the training goes on from the checkpoint before",
        ) from failed


def _place(parameter: Tensor, what: TensorStorageMetadata) -> Tensor:
    """Where a number of a parameter's state goes: divided as the parameter is, if it is one for each of its numbers."""
    if what.size == parameter.shape:
        return torch.zeros_like(parameter.detach())
    return torch.zeros(what.size, dtype=what.properties.dtype)


def _kept(place: Path, prefix: str) -> dict[str, Any]:
    """What a checkpoint has under ``prefix``: shapes by name."""
    found = dcp.HuggingFaceStorageReader(str(place)).read_metadata().state_dict_metadata
    return {name.removeprefix(prefix): what for name, what in found.items() if name.startswith(prefix)}


def _loaded(place: Path, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fill ``tensors`` with what a checkpoint has of them; each process reads for itself."""
    named: dict[str, Any] = {prefix + name: value for name, value in tensors.items()}
    if named:
        dcp.load(named, storage_reader=dcp.HuggingFaceStorageReader(str(place)), no_dist=True)
    return {name: named[prefix + name] for name in tensors}
