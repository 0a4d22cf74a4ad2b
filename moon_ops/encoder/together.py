"""What several processes of a training do together: one prepares while the others wait, and what fails in one ends all of them.

They wait in a group of their own. The pictures of a large shop take hours, and the group that trains must notice sooner that one is gone.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch.distributed as dist

from moon_ops.errors import InputError, MoonError, in_a_line

T = TypeVar("T")
PATIENCE = dt.timedelta(days=7)  # torch's own is half an hour, ten minutes on GPUs
SAYS = "look at what that process says"


def alone() -> bool:
    """Whether no other process takes part."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


@cache
def waiting(world: Any) -> Any:
    """The group of ``world``'s processes whose members wait for :data:`PATIENCE`; on the CPU, where waiting costs nothing."""
    return dist.new_group(dist.get_process_group_ranks(world), backend="gloo", timeout=PATIENCE)


def once(work: Callable[[], T]) -> T:
    """What ``work`` returns in the first process, in all of them; small, since it is sent. Where it fails all raise the same error."""
    if alone():
        return work()
    group = waiting(dist.group.WORLD)
    sent: list[Any] = [None, None]
    failed: BaseException | None = None
    if dist.get_rank() == 0:
        try:
            sent[0] = work()
        except BaseException as fault:  # whatever it is: the others wait
            failed, sent[1] = fault, _told(fault, 0)
    dist.broadcast_object_list(sent, src=0, group=group)
    if failed is not None:
        raise failed
    if sent[1] is not None:
        raise sent[1]
    return sent[0]


def each(work: Callable[[], T]) -> T:
    """What ``work`` returns in each process; where it fails in one of them all end, the others with that one's error."""
    if alone():
        return work()
    group = waiting(dist.group.WORLD)
    found: T | None = None
    failed: BaseException | None = None
    try:
        found = work()
    except BaseException as fault:
        failed = fault
    told: list[MoonError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(told, failed and _told(failed, dist.get_rank()), group=group)
    if failed is not None:
        raise failed
    for error in told:
        if error is not None:
            raise error
    return found  # type: ignore[return-value] # it is there, since nothing has failed


def shared(make: Callable[[], T], write: Callable[[T], None], read: Callable[[], T], *, mapped: bool = False) -> T:
    """What the first process makes, by way of files that all read; a process alone needs none, but reads them where they are ``mapped``:
    what lies in a file need not stay in memory.

    Raises :class:`InputError` in all processes where one of them does not see the files, also one that is alone.
    """
    if alone() and not mapped:
        return make()

    def seen() -> T:
        try:
            return read()
        except FileNotFoundError as missing:
            gone = missing.filename or in_a_line(missing)
            if alone():
                problem = f"{gone}, which was just written, is gone: an erasure, or somebody else, has removed it"
                raise InputError(problem, action="run it again") from missing
            raise InputError(
                f"process {dist.get_rank()} does not see {gone}, which the first process has written",
                action="give all processes the same disk and the same MOON_HOME",
            ) from missing

    once(lambda: write(make()))
    return each(seen)


def _told(fault: BaseException, rank: int) -> MoonError:
    """What the other processes raise: the same error where it is one that a user can mend."""
    if isinstance(fault, MoonError):
        return fault
    return InputError(f"process {rank} has ended with {type(fault).__name__}: {in_a_line(fault)}", action=SAYS)
