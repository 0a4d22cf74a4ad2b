"""Everything that can go wrong in a way a user can mend.

::

    MoonError                what happened, and what to do next
    ├── SettingsError        an environment variable or a recipe is wrong
    ├── InputError           a directory, file, row or request that was brought to us is wrong
    ├── StageError           a stage was run before the one it needs
    ├── ContractError        vectors or models of two encoders were about to be combined
    ├── LeakError            an evaluation would see what its model was trained on
    ├── GateError            a release that failed its gates was about to be promoted
    ├── InstallError         a package of an extra is not installed
    └── ServiceError         a port, a server or a registry is not available

Other exceptions are faults of ours and keep their traceback. The command line turns this family, and no other, into one line and
exit code 1; the HTTP service turns :class:`InputError` into 422 and the rest into 503.
"""

from __future__ import annotations

from collections.abc import Mapping


class MoonError(Exception):
    """A fault that the reader of its message can mend.

    ``problem`` names the field and the value and what follows from it; ``action`` says what to do next.
    """

    def __init__(self, problem: str, *, action: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.action = action

    def __str__(self) -> str:
        return f"{self.problem} → {self.action}"

    def __reduce__(self) -> tuple[object, ...]:
        """Keep ``action`` when the error crosses a process boundary (a worker, an Airflow task)."""
        return (_rebuild, (type(self), self.problem, self.action))


def _rebuild(kind: type[MoonError], problem: str, action: str) -> MoonError:
    return kind(problem, action=action)


class SettingsError(MoonError):
    """An environment variable or a recipe is missing, malformed or breaks a rule."""


class InputError(MoonError):
    """What was brought to us (a directory, a file, a row, a request) cannot be used."""


class StageError(MoonError):
    """A stage was asked for before the stage that makes its input has run."""


class ContractError(MoonError):
    """Two things made by different encoders were about to be combined. Names both contracts."""


class LeakError(MoonError):
    """An evaluation window that begins before the model's ``trained_until``: its figures would be too good."""


class GateError(MoonError):
    """A release without passing evidence was about to be made champion."""


class InstallError(MoonError):
    """A job was asked for that needs a package which only an extra brings."""


class ServiceError(MoonError):
    """A port, a server, a database or a registry cannot be used now."""


def in_a_line(fault: BaseException) -> str:
    """The first line of what a fault says; its class where it says nothing."""
    return next((line for line in str(fault).splitlines() if line.strip()), type(fault).__name__)


def counted(count: int, one: str, many: str) -> str:
    """A count and what is counted: ``1 row was set aside``, ``2 rows were set aside``."""
    return f"{count:,} {one if count == 1 else many}"


def by_place(found: Mapping[str, int], one: str, many: str) -> str:
    """A number of things and where they are: ``3 rows were set aside (2 x items.csv price, 1 x events.csv item_id)``."""
    return f"{counted(sum(found.values()), one, many)} ({', '.join(f'{count:,} x {place}' for place, count in found.items())})"


def set_aside(rows: Mapping[str, int], pictures: Mapping[str, int]) -> str:
    """Rows and pictures that an ingest left out, each counted by file and column; empty if there are none."""
    said = [by_place(rows, "row was set aside", "rows were set aside")] if rows else []
    return " and ".join([*said, by_place(pictures, "picture could not be read", "pictures could not be read")] if pictures else said)
