"""MLflow's client, whose faults repeat the server's address with the password that stands in it, without that."""

from __future__ import annotations

import functools
import re
from typing import Any

from moon_ops.errors import ServiceError


class Discreet:
    """A part of MLflow whose faults do not repeat the password that stands in the server's address."""

    def __init__(self, part: Any, name: str) -> None:
        self._part, self._name = part, name

    def __getattr__(self, method: str) -> Any:
        @functools.wraps(getattr(self._part, method))
        def called(*arguments: Any, **named: Any) -> Any:
            try:
                return getattr(self._part, method)(*arguments, **named)
            except Exception as fault:
                said = re.sub(r"://[^/\s]*@", "://***@", str(fault))
                if said == str(fault):
                    raise
            problem = f"MOON_TRACKING_URI = {self._name}: MLflow does not answer ({said})"
            raise ServiceError(problem, action="start it, or correct the address")  # after the handler: the fault is no part of it

        return called
