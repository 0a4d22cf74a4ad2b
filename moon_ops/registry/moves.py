"""The record of moves: which release was made champion, when, by whom, and why. It is a log that only grows, in the registry itself.

An entry is a version of the model ``moon-moves``, whose numbers the registry gives out one by one, each once. An entry names the one
that it follows. If somebody else was quicker, it follows one that is no longer the newest, and counts for nothing: for every reader the
same. So of many processes that move at once one wins, on one machine or through a server.

An entry that somebody has edited or deleted in MLflow is passed over. Whoever followed it had read it, so what follows it counts on.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

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


class Record(list[Move]):
    """The moves that count, oldest first. The next one follows entry ``newest``; ``unreadable`` are the numbers of those passed over."""

    def __init__(self) -> None:
        super().__init__()
        self.newest, self.unreadable = NOTHING, list[int]()


def moves(registry: Registry) -> Record:
    """The moves that count.

    An entry that cannot be read counted if another one follows it, or if it is done: one that came too late is neither.
    """
    entries, found = registry.entries(MOVES), Record()
    read = {number: _read(number, tags) for number, tags in entries.items()}
    followed = {move.follows for move in read.values() if move is not None}
    for number in range(1, max(entries, default=NOTHING) + 1):  # with those that somebody has deleted
        move = read.get(number)
        if move is None:
            found.unreadable += [number] if number in entries else []
            found.newest = number if number in followed or DONE in entries.get(number, {}) else found.newest
        elif move.follows == found.newest:
            found.append(move)
            found.newest = number
    return found


def _read(number: int, tags: Mapping[str, str]) -> Move | None:
    """An entry; None for one that no command has written like this."""
    known = {field.name for field in fields(Move)}
    try:
        said = {name: value for name, value in json.loads(tags[ENTRY]).items() if name in known}
        move = Move(**{**said, "number": number, "done": DONE in tags})
        dt.datetime.fromisoformat(move.at)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    before = NOTHING if move.before is None else move.before
    numbers, texts = (move.release, move.follows, before), (move.by, move.why, move.evidence)
    sound = all(type(value) is int for value in numbers) and all(isinstance(value, str) for value in texts)
    return move if sound and isinstance(move.forced, bool) and move.kind in get_args(Kind) else None


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
