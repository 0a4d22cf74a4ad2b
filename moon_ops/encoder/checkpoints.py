"""Training checkpoints: all that a killed run needs to go on as if nothing had happened. Safetensors and JSON only.

A checkpoint is written beside its place and named by one rename, so there is always a whole one or none.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moon_ops.errors import InputError
from moon_ops.files import put, remembered, write_text

log = logging.getLogger(__name__)
ANEW = "the training begins anew"
SAMPLED = 1024  # numbers of a frozen weight by which it is known


@dataclass
class State:
    """Where a run is: in which stage, after how many of its steps, with which losses so far, and what the stage had prepared."""

    stage: str
    step: int
    losses: list[float]
    tensors: dict[str, Tensor] = field(default_factory=dict)  # of the stage: queue, chosen pairs, hard negatives
    scaler: dict[str, float] = field(default_factory=dict)  # of the loss, in fp16
    validation: dict[str, Any] = field(default_factory=dict)  # what was measured by then; its best weights are among the tensors

    def told(self) -> dict[str, Any]:
        """All but the tensors, for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "tensors"}


class Checkpoints:
    """The checkpoints of one run in ``directory``; only the newest is kept.

    ``brought``: frozen weights came with the model when the run began and will again, so they are known by a digest alone.
    """

    shared = False  # whether all processes save together, each its part

    def __init__(self, directory: Path, *, brought: bool = False) -> None:
        self.directory, self.brought = directory, brought

    @property
    def newest(self) -> Path | None:
        """The newest whole checkpoint; None, too, where a run was killed while it replaced the one of that name."""
        pointer = self.directory / "newest"
        name = pointer.read_text() if pointer.is_file() else ""
        return self.directory / name if name and (self.directory / name).is_dir() else None

    def save(self, state: State, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        """Write weights, optimizers and ``state``."""
        partial = self._begun(state)
        kept = changing(model) if self.brought else distinct(model)
        save_file({n: t.detach().cpu().contiguous() for n, t in kept.items()}, partial / "model.safetensors")
        about = state.told() | {"frozen": digest(model) if self.brought else "", "optimizers": []}
        for number, optimizer in enumerate(optimizers):
            tensors, numbers = flat(optimizer.state_dict())
            save_file({n: t.cpu().contiguous().clone() for n, t in tensors.items()}, partial / f"optimizer-{number}.safetensors")
            about["optimizers"].append(numbers)
        save_file({n: t.detach().cpu().contiguous() for n, t in state.tensors.items()}, partial / "stage.safetensors")
        self._ended(partial, about)

    def _begun(self, state: State) -> Path:
        """An empty directory for a checkpoint that is being written."""
        partial = self.directory / f"{state.stage}-{state.step}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def _ended(self, partial: Path, about: dict[str, Any]) -> None:
        """Give what is written its name, and call it the newest."""
        (partial / "state.json").write_text(json.dumps(about))
        name = partial.stem
        place = self.directory / name
        shutil.rmtree(place, ignore_errors=True)
        put(partial, place)
        before = self.newest
        write_text(self.directory / "newest", name)
        if before is not None and before != place:
            shutil.rmtree(before, ignore_errors=True)

    def read(self) -> State | None:
        """The newest state, without weights; None where there is no checkpoint, or one of its files was cut."""
        if (newest := self.newest) is None:
            return None
        about = remembered(newest / "state.json", ANEW)
        if about is None or not whole_files(newest):
            return None
        tensors, validation = load_file(newest / "stage.safetensors"), about.get("validation", {})
        return State(about["stage"], about["step"], about["losses"], tensors, about["scaler"], validation)

    def shards(self, model: nn.Module) -> dict[str, Tensor]:  # noqa: ARG002 - others hold parts of what is as large as the model
        """What :meth:`read` has left out of the state, as ``model`` is divided: nothing."""
        return {}

    def restore(self, model: nn.Module) -> None:
        """Load the newest weights into ``model``: those it has in common with the stage that wrote them. Raises :class:`InputError` if the
        frozen ones are not those with which the others were trained.
        """
        assert self.newest is not None
        self._same_frozen(model)
        with torch.no_grad():
            own = distinct(model)
            for name, value in load_file(self.newest / "model.safetensors").items():
                if name in own:
                    own[name].copy_(value)

    def _same_frozen(self, model: nn.Module) -> None:
        """Raise :class:`InputError` if the frozen weights are not those with which the newest others were trained."""
        assert self.newest is not None
        before = json.loads((self.newest / "state.json").read_text()).get("frozen", "")  # without it all weights are there
        if before and before != digest(model):
            raise InputError(
                "the frozen weights are not those with which the killed run began: its recipe's checkpoint has changed",
                action=f"bring back the checkpoint, or remove {self.directory} to begin anew",
            )

    def restore_optimizers(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Load the newest optimizer states."""
        assert self.newest is not None
        about = json.loads((self.newest / "state.json").read_text())
        for number, (optimizer, numbers) in enumerate(zip(optimizers, about["optimizers"], strict=True)):
            optimizer.load_state_dict(nested(load_file(self.newest / f"optimizer-{number}.safetensors"), numbers))


class Unkept(Checkpoints):
    """Of a run that nobody will go on with: nothing is written."""

    def save(self, state: State, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        """Nothing."""


def whole_files(checkpoint: Path) -> bool:
    """Whether each file of tensors is as long as its header says."""
    for place in sorted(checkpoint.glob("*.safetensors")):
        try:
            with safe_open(place, "pt"):
                pass
        except (SafetensorError, OSError) as damaged:
            log.warning("%s cannot be read (%s): %s", place, damaged, ANEW)
            return False
    return True


def distinct(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones once."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        found.setdefault(value.data_ptr() or id(value), (name, value))
    return dict(found.values())


def changing(model: nn.Module) -> dict[str, Tensor]:
    """Of :func:`distinct` what training changes: all but frozen weights."""
    return {name: value for name, value in distinct(model).items() if value.requires_grad or not isinstance(value, nn.Parameter)}


def digest(model: nn.Module, full: Callable[[Tensor], Tensor] = Tensor.detach) -> str:
    """By what the frozen weights are known: names, shapes and the first numbers of each; ``full`` makes a divided one whole."""
    found = hashlib.sha256()
    for name, value in model.named_parameters():
        if not value.requires_grad:
            found.update(f"{name} {list(value.shape)}".encode())
            found.update(full(value.detach()).flatten()[:SAMPLED].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def flat(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors, and the rest as JSON."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {"groups": state["param_groups"], "state": {}}
    for parameter, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{parameter}.{name}"] = value.detach()
            else:
                numbers["state"].setdefault(str(parameter), {})[name] = value
    return tensors, numbers


def nested(tensors: dict[str, Tensor], numbers: dict[str, Any]) -> dict[str, Any]:
    """What :func:`flat` took apart."""
    state: dict[int, dict[str, Any]] = {int(parameter): dict(values) for parameter, values in numbers["state"].items()}
    for name, value in tensors.items():
        parameter, _, key = name.partition(".")
        state.setdefault(int(parameter), {})[key] = value
    return {"state": state, "param_groups": numbers["groups"]}
