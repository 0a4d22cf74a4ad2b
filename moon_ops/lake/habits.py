"""What a column's cells say of each other where they are not there at once: whether ids are floats, what a comma means, which ids clash.

A log in pieces is read with what was told of its columns, at first with nothing; what the cells say is noted as they come. If that is
something else, the log is read once more with it. A cell is then what it is in a table that is read whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from moon_ops.lake.ids import KINDS, Spelling
from moon_ops.lake.naming import Names
from moon_ops.lake.reading.numbers import Writing


@dataclass
class Habits:
    """What was told of a log's columns, and what its cells say; ``names`` has its ids, those of events and orders only if need be."""

    names: Names = field(default_factory=Names)
    spellings: dict[str, Spelling] = field(default_factory=dict)
    writings: dict[str, Writing] = field(default_factory=dict)

    def ids(self, column: str) -> Spelling:
        """How the ids of a column are written."""
        return self.spellings.setdefault(column, Spelling())

    def numbers(self, column: str) -> Writing:
        """How the numbers of a column are written."""
        return self.writings.setdefault(column, Writing())

    def better(self) -> Habits | None:
        """What is to be told instead, now that all cells have been seen; None if they said nothing else."""
        found, differs = Habits(), False
        for name, was in self.spellings.items():
            clashing = self.names.clashing(KINDS.get(name, name))
            now = found.spellings[name] = Spelling(was.all_floats, {**was.firsts, **clashing})
            now.gathers = partial(found.names.note, name) if was.gathers or (name not in KINDS and was.may_clash) else None
            differs |= (now.floats, now.firsts, bool(now.gathers)) != (was.floats, was.firsts, bool(was.gathers))
        for name, written in self.writings.items():
            told = found.writings[name] = written.told()
            differs |= (told.own, told.points) != (written.own, written.points)
        return found if differs else None
