"""MLflow's client on a server, whose faults are told as what they are: it is away, or it said no. Without the password in its address."""

from __future__ import annotations

import functools
import re
from typing import Any

from moon_ops.errors import ServiceError, in_a_line

SAID_NO = (  # by a server that is well; everything else is none of ours to answer
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "BAD_REQUEST",
)


class AwayError(ServiceError):
    """MLflow does not answer, or answers that it cannot; ``answered``: it was there, and may be asked again at once."""

    answered = False


class Discreet:
    """A part of MLflow on a server. A server that went away, that hangs or that fails is an :class:`AwayError`; a fault that the caller can
    tell from its code is raised as it is, if it does not repeat the password.
    """

    def __init__(self, part: Any, name: str) -> None:
        self._part, self._name = part, name

    def __getattr__(self, method: str) -> Any:
        @functools.wraps(getattr(self._part, method))
        def called(*arguments: Any, **named: Any) -> Any:
            try:
                return getattr(self._part, method)(*arguments, **named)
            except Exception as fault:
                said = re.sub(r"://[^/\s]*@", "://***@", in_a_line(fault))
                if not _is_of_mlflow(fault) or (getattr(fault, "error_code", "") in SAID_NO and said == in_a_line(fault)):
                    raise
                answered = type(fault).__name__ == "RestException"
            away = AwayError(
                f"MOON_TRACKING_URI = {self._name}: MLflow does not answer ({said})", action="start it, or correct the address"
            )
            away.answered = answered
            raise away  # after the handler: the fault is no part of it

        return called


def _is_of_mlflow(fault: Exception) -> bool:
    """Whether it comes from MLflow or from what it asks its server with, and from none of our code that it may have called."""
    return type(fault).__module__.partition(".")[0] in ("mlflow", "requests", "urllib3", "http") or isinstance(
        fault, (ConnectionError, TimeoutError)
    )


def is_outage(fault: Exception) -> bool:
    """Whether a registry, on a server or in a file, did not answer, and nothing but that is wrong."""
    stores = type(fault).__module__.partition(".")[0] in ("sqlalchemy", "sqlite3") or isinstance(fault, OSError)
    return stores or (_is_of_mlflow(fault) and getattr(fault, "error_code", "") not in SAID_NO)
