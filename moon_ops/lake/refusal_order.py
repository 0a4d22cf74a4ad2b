"""In which order rows were refused, or would have been: a log that is read in pieces tells of its rows as one that is read whole.

Read whole, a table goes through one check after the other, each of which refuses rows of all of it. So a refusal has the place of its
check, and within that of its reason, of which the first row is looked at; then comes the number of the row.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from moon_ops.lake.reading.files import TABLES

READ, TIMED, ERASED, CLASHED, TAKEN = 0, 10, 20, 30, 40  # phases of an ingest; to all but the last the place of the table is added


@dataclass
class Order:
    """The places of refusals. ``phase`` and ``step`` say which check is at work; ``pieces``: it sees a part of the table's rows."""

    phase: int = READ
    step: int = 0
    group: str = ""  # of reasons of the check
    pieces: bool = False
    places: list[tuple[int, int, str | None, int]] = field(default_factory=list)

    def begin(self, phase: int, table: str = "") -> None:
        """The checks of a phase begin, or those that look at a ``table`` in it."""
        self.phase, self.step, self.group = phase + (TABLES.index(table) if table else 0), 0, ""

    def check(self) -> None:
        """One check begins, whether or not it refuses anything."""
        self.step, self.group = self.step + 1, ""

    def refused(self, number: int) -> None:
        """Note the place of one more refusal, of row ``number``."""
        group, at = (self.group, number) if self.pieces else (None, len(self.places))
        self.places.append((self.phase, self.step, group, at))

    def of_all(self) -> list[int]:
        """Which refusal comes first, second and so on."""
        firsts: dict[tuple[int, int, str], int] = {}
        for phase, step, group, number in self.places:
            if group is not None:
                firsts[phase, step, group] = min(firsts.get((phase, step, group), number), number)
        keys = [(p, s, -1 if g is None else firsts[p, s, g], n) for p, s, g, n in self.places]
        return sorted(range(len(keys)), key=keys.__getitem__)
