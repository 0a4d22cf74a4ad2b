"""The record of moves: which release was made champion, when, by whom, and why. It is a log that only grows, in the registry itself.

An entry is a version of the model ``moon-moves``, whose numbers the registry gives out one by one, each once. An entry names the one
that it follows. If somebody else was quicker, it follows one that is no longer the newest, and counts for nothing: for every reader the
same. So of many processes that move at once one wins, on one machine or through a server.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal

from moon_ops.registry.registry import MOVES, Registry

Kind = Literal["promote", "rollback", "noticed"]
ENTRY, DONE = "move", "done"  # tags of an entry: what it says, and that the aliases have followed
NOTHING = 0  # what the first entry follows


@dataclass(frozen=True)
class Move:
    """``release`` was made champion in place of ``before``; ``noticed``: somebody had moved the alias in MLflow."""

    kind: Kind
    release: int
    before: int | None
    by: str
    at: str  # ISO 8601
    why: str = ""
    evidence: str = ""  # sha256 of the release's manifest
    forced: bool = False  # in spite of a failed gate, by the person and for the reason named
    follows: int = NOTHING
    number: int = NOTHING
    done: bool = False

    def told(self) -> str:
        """One line for people."""
        verb = {"promote": "promoted", "rollback": "rolled back to", "noticed": "found as champion"}[self.kind]
        before = f" in place of {self.before}" if self.before is not None else ""
        reason = f": {self.why}" if self.why else ""
        return f"release {self.release} {verb}{before}{' (forced)' if self.forced else ''} by {self.by}, {self.at}{reason}"


def moves(registry: Registry) -> list[Move]:
    """The moves that count, oldest first."""
    found, newest = list[Move](), NOTHING
    known = {field.name for field in fields(Move)}
    for number, tags in sorted(registry.entries(MOVES).items()):
        if ENTRY not in tags:
            continue
        said = {name: value for name, value in json.loads(tags[ENTRY]).items() if name in known}
        move = Move(**{**said, "number": number, "done": DONE in tags})
        if move.follows == newest:
            found.append(move)
            newest = number
    return found


def claim(registry: Registry, move: Move) -> Move | None:
    """Write the move down as the next one; None if somebody else was quicker, and this one counts for nothing."""
    number = registry.append(MOVES, move.release, {ENTRY: json.dumps(asdict(move))}, move.told())
    return next((found for found in moves(registry) if found.number == number), None)


def finished(registry: Registry, move: Move) -> None:
    """Note that the aliases have followed the move."""
    registry.tag(MOVES, move.number, {DONE: "true"})


def way_back(known: Sequence[Move], current: int | None) -> list[int]:
    """The releases to go back to from ``current``, the one served last first: those that were champion, but none that somebody left by a
    rollback and has not promoted since."""
    left = set[int]()
    for move in known:
        if move.kind == "rollback" and move.before is not None:
            left.add(move.before)
        left.discard(move.release)
    served = [move.release for move in reversed(known)]
    return [release for release in dict.fromkeys(served) if release != current and release not in left]
