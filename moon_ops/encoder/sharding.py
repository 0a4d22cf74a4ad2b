"""One model over several processes, each of which holds a part of every weight, gradient and optimizer state (FSDP2; Zhao et al. 2023).

A block's weights are gathered when it is run, forward and backward, and let go after it; its gradients are summed and shared out at once,
after every pass: of a batch in chunks, too, no process ever holds all gradients. It is torch's ``fully_shard``, which accelerate calls on
GPUs alone, by the class names of blocks, and together with optimizers; called here, processes on CPUs can prove what it does.

All processes must run the same blocks in the same order, or they wait for ever: :class:`moon_ops.encoder.objectives.Sides` sees to it. What
is trained is a copy: the first process's own model, whole, waits beside it for measurements and for the end of the stage; those of the
others hold no numbers meanwhile. This module knows nothing of losses and stages. W processes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from moon_ops.errors import InputError

Whole = Callable[[], AbstractContextManager[None]]
FOREIGN = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def refuse_foreign(machine: Accelerator) -> None:
    """Raise :class:`InputError` where ``accelerate launch`` was told to divide the model in a way that this loop does not know."""
    if machine.distributed_type in FOREIGN:
        raise InputError(
            f"accelerate was launched with {machine.distributed_type.value}, and the training divides models by itself",
            action='launch it for several GPUs without that, and set training.sharding = "full" in the recipe',
        )


@contextmanager
def spread(stage: Any, machine: Accelerator, sharding: str) -> Iterator[tuple[nn.Module, Whole]]:
    """``stage.model`` on this process's device, as it is to be called, and a context in which the first process's model is whole.

    ``full`` with several processes puts a model of shards in the place of ``stage.model``, and afterwards brings what was trained back to
    the first process. Raises :class:`InputError` for weights that are one under two names.
    """
    if sharding == "none" or machine.num_processes == 1:
        stage.model.to(machine.device)
        yield machine.prepare_model(stage.model), nullcontext
        return
    plain = stage.model
    stage.model = sharded = _sharded(plain, machine)
    try:
        yield machine.prepare_model(sharded, evaluation_mode=True), lambda: _whole(sharded, plain, machine)
        _gather(sharded, plain, machine)
        if machine.is_main_process:
            plain.to(machine.device)
    finally:
        stage.model = plain
        machine.free_memory()  # it remembers what it has prepared


def full(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of which each process has a part, whole; all of them must ask for it. Any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _sharded(plain: nn.Module, machine: Accelerator) -> Any:
    """A copy of which each process holds its parts, with the weights that ``plain`` has in the first one."""
    names = [name for name, _ in plain.named_parameters(remove_duplicate=False)]
    if tied := set(names) - {name for name, _ in plain.named_parameters()}:
        raise InputError(
            f"{min(tied)} is the weight of another layer, too, so the model cannot be sharded",
            action='set training.sharding = "none", or untie the weights of the checkpoint',
        )
    empty: dict[int, Any] = {id(p): _numberless(p) for p in plain.parameters()}
    copied: Any = copy.deepcopy(plain, empty)
    if machine.is_main_process:
        plain.to("cpu")
    else:
        _forget(plain)
    mesh = init_device_mesh(machine.device.type, (machine.num_processes,))
    for block in copied.encoder.blocks if hasattr(copied, "encoder") else ():
        fully_shard(block, mesh=mesh)
    root: Any = fully_shard(copied, mesh=mesh)
    root.even = True
    root.set_reduce_scatter_unused_params(True)  # no group's gradients may be fewer in one process than in another
    buffers = {name: buffer.detach().clone() for name, buffer in copied.named_buffers()}
    copied.to_empty(device=machine.device)
    for name, buffer in copied.named_buffers():
        buffer.copy_(buffers[name])
    _scatter(plain, copied, machine)
    return copied


def _numberless(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)


def _forget(model: nn.Module) -> None:
    """Let go of the numbers, and keep names and shapes."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, _numberless(parameter))


@torch.no_grad()
def _scatter(plain: nn.Module, sharded: nn.Module, machine: Accelerator) -> None:
    """Give each process its part of the first one's weights, one after another."""
    source = dict(plain.named_parameters())
    for name, parameter in sharded.named_parameters():
        assert isinstance(parameter, DTensor)
        there = machine.is_main_process
        whole = source[name].detach().to(machine.device) if there else torch.empty_like(source[name], device=machine.device)
        parameter.to_local().copy_(distribute_tensor(whole, parameter.device_mesh, parameter.placements).to_local())


@torch.no_grad()
def _gather(sharded: nn.Module, plain: nn.Module, machine: Accelerator) -> None:
    """Bring what is trained, and all counts, back to the ``plain`` model of the first process; one weight at a time is whole elsewhere."""
    target = dict(plain.named_parameters())
    for name, parameter in sharded.named_parameters():
        if parameter.requires_grad:
            whole = full(parameter.detach())
            if machine.is_main_process:
                target[name].copy_(whole)
    counts = dict(plain.named_buffers())
    for name, buffer in sharded.named_buffers():
        counts[name].copy_(buffer)
    plain.eval()


@contextmanager
def _whole(sharded: nn.Module, plain: nn.Module, machine: Accelerator) -> Iterator[None]:
    """Within it the first process's model has the weights, on its device."""
    _gather(sharded, plain, machine)
    if not machine.is_main_process:
        yield
        return
    plain.to(machine.device)
    try:
        yield
    finally:
        plain.to("cpu")
