"""Where parts of work are done: one after the other in this process, or by the workers of a Ray cluster at the same time.

A part is small: a span of days, a range of users, a table. What is made of it depends on the part alone, so a killed worker has lost
nothing: Ray gives its part to another. Results come in the order of their parts, so both ways end with the same rows. This file does not
know what a part is of, and imports Ray only for who asks for it.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import socket
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

from moon_ops.errors import InputError, MoonError, ServiceError, SettingsError
from moon_ops.startup import start

ENGINES = ("local", "ray")
ADVICE = re.compile(r"\d+\. ")  # how Ray begins each of several
AHEAD = 2  # parts that are on their way for each core of a cluster: one is made, the next one is there when it is done
RETRIES = 3  # of a part whose worker was killed; one that Ray has killed for memory is tried for longer
PATIENCE = 10.0  # seconds in which a cluster must answer
_neighbours: ContextVar[bool] = ContextVar("_neighbours", default=False)
Part = TypeVar("Part")
Made = TypeVar("Made")


class Deal(Protocol):
    """Somebody who deals parts out."""

    def __call__(self, make: Callable[[Part], Made], parts: Iterable[Part], /) -> Iterator[Made]:
        """What is made of each part, in their order; parts are asked for when there is somebody to work on them."""


def here(make: Callable[[Part], Made], parts: Iterable[Part], /) -> Iterator[Made]:
    """One after the other in this process."""
    return map(make, parts)


def on_ray(workers: int) -> Deal:
    """The Ray cluster that ``RAY_ADDRESS`` names, else one of so many ``workers`` on this machine; a core is given to each part.

    What is given to a worker is pickled, and what it reads (a lake) it must be able to reach. Where there is but one part, it is made here.
    Raises what a part raises, :class:`ServiceError` where the cluster gives up, and :class:`SettingsError` without the extra ``ray``.
    """

    def deal(make: Callable[[Part], Made], parts: Iterable[Part], /) -> Iterator[Made]:
        parts = iter(parts)
        few = list(itertools.islice(parts, 2))
        if len(few) < 2:
            return map(make, few)
        return _dealt(cluster(workers), make, itertools.chain(few, parts))  # begun by who asks, not by a thread that reads the results

    return deal


def _dealt(ray: Any, make: Callable[[Part], Made], parts: Iterator[Part]) -> Iterator[Made]:
    waiting = deque[Any]()
    most = AHEAD * max(int(ray.cluster_resources().get("CPU", 1)), 1)
    task, given = ray.remote(num_cpus=1, max_retries=RETRIES)(_made), ray.put(make)
    try:
        for part in parts:
            waiting.append(task.remote(given, part))
            del part  # a table, maybe: what is on its way need not be in memory here
            if len(waiting) >= most:
                yield ray.get(waiting.popleft())
        while waiting:
            yield ray.get(waiting.popleft())
    except ray.exceptions.RayError as fault:
        cause = getattr(fault, "cause", None)  # what a part raised, as it would be raised here
        raise (reason(fault) if cause is None or isinstance(cause, ray.exceptions.RayError) else cause) from fault
    finally:
        for one in waiting:  # nobody wants them any more
            ray.cancel(one)


def _made(make: Callable[[Part], Made], part: Part) -> Made:
    """In a worker."""
    start()
    token = _neighbours.set(True)
    try:
        return make(part)
    finally:
        _neighbours.reset(token)


def threads() -> int | None:
    """How many threads a library may start: one where other parts are made on the same machine; None where it may choose."""
    return 1 if _neighbours.get() else None


def cluster(workers: int) -> Any:
    """Ray, joined or begun; see :func:`on_ray` for what is raised."""
    try:
        import ray
    except ImportError as absent:
        raise SettingsError("--engine ray needs Ray, which is not installed", action='run `pip install "moon_ops[ray]"`') from absent
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "")
        own: dict[str, Any] = {} if address else {"num_cpus": workers, "include_dashboard": False}
        _reach(address)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "lance is not fork-safe")  # Ray forks to begin other programs, which have no Lance
                ray.init(log_to_driver=False, logging_level=logging.WARNING, **own)
        except (ConnectionError, RuntimeError, ValueError) as fault:
            raise ServiceError(f"there is no Ray cluster to work on ({_line(fault)})", action="check RAY_ADDRESS") from fault
    return ray


def _reach(address: str) -> None:
    """:class:`ServiceError` for a ``host:port`` at which nobody answers; Ray itself tries for a minute and a half."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():  # "auto", "local", or what Ray itself refuses
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except (OSError, OverflowError) as fault:
        raise ServiceError(
            f"RAY_ADDRESS = {address!r} does not answer ({fault})", action="start the cluster, or correct the address"
        ) from fault


def reason(fault: BaseException) -> MoonError:
    """What a worker said, if it was one of our errors; else that the cluster gave up."""
    cause: Any = fault
    while cause is not None:
        inner = getattr(cause, "cause", None)
        if isinstance(cause, MoonError) and inner is None:  # Ray's own error is one of the same class, with ours in it
            return cause
        cause = inner or cause.__cause__
    return ServiceError(f"the Ray cluster gave up ({_line(fault)})", action="see Ray's logs, and run the command again: nothing is lost")


def _line(fault: BaseException) -> str:
    """Its last line, where a traceback says what happened; but not the last one of several pieces of advice."""
    said = [line.strip() for line in str(fault).splitlines() if line.strip()]
    while len(said) > 1 and ADVICE.match(said[-1]):
        said.pop()
    return said[-1] if said else type(fault).__name__


def dealer(name: str, workers: int) -> Deal:
    """Who deals with parts: ``local`` or ``ray``; :class:`InputError` for another name."""
    require_known(name)
    return here if name == "local" else on_ray(workers)


def require_known(name: str) -> None:
    """:class:`InputError` for a name that is no engine's."""
    if name not in ENGINES:
        raise InputError(f"engine {name!r} is not known", action=f"choose {' or '.join(ENGINES)}")
