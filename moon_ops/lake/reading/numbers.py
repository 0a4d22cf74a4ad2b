"""Numbers as people write them: a decimal comma, thousands apart, a currency before or behind.

``1,234`` and ``1.234`` mean different numbers in different places. A column's other cells tell which is meant; where they do not, a comma
or a point before three digits is refused.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

PLAIN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
SIGNS = {
    "€": "EUR",
    "$": "USD",
    "US$": "USD",
    "£": "GBP",
    "¥": "JPY",
    "₹": "INR",
    "₽": "RUB",
    "₩": "KRW",
    "zł": "PLN",
    "Kč": "CZK",
    "kr": "kr",
}
CURRENCY = rf"(?P<{{}}>[A-Z]{{{{3}}}}|[A-Z]{{{{0,2}}}}[{''.join(s for s in SIGNS if len(s) == 1)}]|zł|Kč|kr\.?)"
MONEY = re.compile(rf"(?:{CURRENCY.format('before')}\s*)?(?P<number>[+-]?[\d.,'’\s]*\d)(?:\s*{CURRENCY.format('behind')})?")
WHOLE = re.compile(r"[.,][-–—]{1,2}(?=\s|$)")  # 19,-
GROUPED = re.compile(r"[+-]?\d{1,3}(?:(?P<by>[.,'’ ])\d{3})(?:(?P=by)\d{3})*")
OTHER = {".": ",", ",": "."}
BOTH = re.compile(r"[+-]?\d{1,3}(?:(?P<by>[.,'’ ])\d{3})+(?!(?P=by))(?P<point>[.,])\d+")


@dataclass
class Numbers:
    """The values, null where a cell has none or a bad one; why each distinct bad cell is bad; what was recognised."""

    values: pa.Array
    reasons: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)


@dataclass
class Writing:
    """How the numbers of a column are written, where its cells are not read at once: its ``own`` currency and its decimal ``points`` are
    used, and what the cells say of them is noted as they come.
    """

    own: str = ""
    points: frozenset[str] = frozenset()
    currencies: Counter[str] = field(default_factory=Counter)
    certain: set[str] = field(default_factory=set)

    def told(self) -> Writing:
        """What is to be used of the column, as all of its cells say."""
        return Writing(_most(self.currencies), frozenset(self.certain))


def _most(currencies: Counter[str]) -> str:
    return currencies.most_common(1)[0][0] if currencies else ""


def parsed(column: pa.ChunkedArray | pa.Array, writing: Writing | None = None) -> Numbers:
    """Finite float64 of every cell that is a number, whatever its type. ``writing`` is that of a column that is longer."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        values = column.cast(pa.float64(), safe=False)
        return Numbers(pc.if_else(pc.is_finite(values), values, pa.scalar(None, pa.float64())))
    if not pa.types.is_string(column.type):
        column = pa.array([None if c is None or isinstance(c, bool) else str(c) for c in column.to_pylist()], pa.string())
    encoded = column.dictionary_encode()
    told = _Column(encoded.dictionary.to_pylist())
    counts = np.bincount(encoded.indices.drop_null().to_numpy(), minlength=len(encoded.dictionary))
    values = pa.array(told.values(counts, writing), pa.float64())
    return Numbers(values.take(encoded.indices), told.reasons, told.said)


class _Column:
    """The distinct cells of a column, of which each helps to understand the others."""

    def __init__(self, cells: list[str]) -> None:
        self.cells = [WHOLE.sub("", cell.strip().replace("\u00a0", " ").replace("\u202f", " ")) for cell in cells]
        self.asread = cells
        self.reasons: dict[str, str] = {}
        self.said: list[str] = []

    def values(self, counts: np.ndarray, writing: Writing | None) -> list[float | None]:
        """The number that each cell means; a currency that is not the column's own is a fault."""
        matches = [None if PLAIN.fullmatch(cell) else MONEY.fullmatch(cell) for cell in self.cells]
        currencies = [_currency(match) for match in matches]
        used: Counter[str] = Counter()
        for name, count in zip(currencies, counts, strict=True):
            used.update({name: int(count)} if name else {})
        own = _most(used)
        numbers = [cell if match is None else match["number"].strip() for cell, match in zip(self.cells, matches, strict=True)]
        points = {point for number in numbers if (point := _certain(number))}
        if writing is not None:
            writing.currencies.update(used)
            writing.certain |= points
            own, points = writing.own, set(writing.points)
        if own:
            self.said.append(f"prices in {own}")
        if "," in points:
            self.said.append("decimal comma")
        found: list[float | None] = []
        for asread, number, currency in zip(self.asread, numbers, currencies, strict=True):
            if currency and currency != own:
                self.reasons[asread] = f"is in {currency}, and most others are in {own}"
                found.append(None)
            else:
                found.append(self._value(asread, number, points))
        return found

    def _value(self, asread: str, number: str, points: set[str]) -> float | None:
        grouped = GROUPED.fullmatch(number)
        point = _certain(number)
        if grouped:
            by = grouped["by"]
            if point is None and by in OTHER and len(points) != 1:
                plain, decimal = number.replace(by, ""), number.replace(by, ".")
                self.reasons[asread] = f"may be {decimal} or {plain}: no other cell tells which"
                return None
            return float(number.replace(by, "." if points == {by} or point == by else ""))
        if PLAIN.fullmatch(number):
            value = float(number)
            return value if np.isfinite(value) else None
        if point is None:
            return None
        whole, _, rest = number.rpartition(point)
        digits = re.sub(r"[.,'’ ]", "", whole)
        return float(f"{digits or '0'}.{rest}") if re.fullmatch(r"[+-]?\d*", digits) and rest.isdigit() else None


def _certain(number: str) -> str | None:
    """The decimal sign of a number in which there can be no doubt about it."""
    if match := BOTH.fullmatch(number):
        return match["point"]
    if match := GROUPED.fullmatch(number):
        by, several = match["by"], number.count(match["by"]) > 1
        return OTHER.get(by) if several else by if by in OTHER and re.match(r"[+-]?0", number) else None  # 0.125 groups nothing
    signs = [sign for sign in number if sign in ".,"]
    if len(signs) == 1 and not GROUPED.fullmatch(number) and re.fullmatch(r"[+-]?\d*[.,]\d+", number):
        return signs[0]
    return None


def _currency(match: re.Match[str] | None) -> str:
    found = (match["before"] or match["behind"] or "") if match else ""
    return SIGNS.get(found.rstrip("."), found)
