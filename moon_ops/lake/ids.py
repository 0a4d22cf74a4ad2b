"""The shop's ids and our keys: a whole number below 2^63 is its own key, any other id becomes a 63-bit hash, kept in the table ``ids``.

The shop's id is what goes in and comes out, everywhere; the key is what tables, vectors and Feast join by. ``42`` and ``"42"`` are one id;
``"0042"`` is another one, a text. A shop of whole numbers has no table ``ids`` and pays nothing.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, TypeAlias
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops.errors import InputError
from moon_ops.lake import changes
from moon_ops.lake.lake import Lake

ShopId: TypeAlias = "int | str"
Parsed: TypeAlias = "tuple[int | None, str | None, str | None]"  # key, text and fault of a cell
KINDS = {"item_id": "item", "spu_id": "product", "seller_id": "seller", "user_id": "user", "query_id": "query", "session_id": "session"}
KINDS |= {"item_ids": "item", "query_ids": "query"}  # the lists that Feast shows
TABLE, MISSING = "ids", -1
EXACT = 2**53  # up to here a float, and a number of JavaScript, holds every whole number
DIGITS = {pa.float16(): 2**11, pa.float32(): 2**24, pa.float64(): EXACT}

NO_ID = "is not an id (a whole number from 0, or a text)"
FRACTION = "is a number with a fraction, which is no id: write whole numbers or texts"
LARGE = "is a whole number stored as a float, which does not hold so many digits: write it as a whole number or a text"
ROUNDED = "was rounded by a spreadsheet: format the column as text and export it again"
FLOAT = re.compile(r"-?(0|[1-9]\d*)(\.\d+([eE]\+?\d{1,3})?|[eE]\+\d{1,3})?", re.ASCII)  # not 12E4, which no writer makes of a number
NEGATIVE = re.compile(r"-\d+(\.0+)?", re.ASCII)
WHOLE = r"^(0|[1-9][0-9]*)$"
AS_NUMBER = r"^-?[0-9]*[.eE+0-9]*[.eE+-][.eE+0-9]*$"  # what may be no id, or a number that was made a float
SPREADSHEET = re.compile(r"\d(\.(?P<decimals>\d+))?E\+(?P<exponent>\d{1,3})", re.ASCII)


@dataclass(frozen=True)
class Cells:
    """A column of ids [R]: ``keys``; ``texts``, the id of whatever is not its own key; and ``why`` a cell is no id. Else null."""

    keys: pa.Array
    texts: pa.Array
    why: pa.Array

    def shop_ids(self) -> pa.Array:
        """The shop's ids [R] as texts."""
        return pc.coalesce(self.texts, self.keys.cast(pa.string()))


@dataclass
class Spelling:
    """How the ids of a column are written, where its cells are not read at once: ``floats``, ``firsts`` (key → text, of keys that two
    ids have) and who ``gathers`` its ids are given, and the rest is noted of the cells as they come.
    """

    floats: bool = False
    firsts: Mapping[int, str] = field(default_factory=dict)
    gathers: Callable[[Cells], None] | None = None  # in a column that nothing is joined by
    marked: bool = False  # a text has a sign of a float
    plain: bool = True  # all texts are whole numbers
    odd: bool = False  # a text may be no id, or a number that was made a float
    kinds: set[str] = field(default_factory=set)  # number, text

    def saw(self, values: Sequence[str | None]) -> None:
        """Note different texts of the column."""
        there = [value for value in values if value is not None]
        marked = any("." in value or "+" in value for value in there)
        self.marked |= marked
        self.plain = self.plain and all(FLOAT.fullmatch(value) for value in there) and (not marked or _are_whole(there))

    def saw_plain(self, column: pa.Array) -> None:
        """Note texts of which none is odd."""
        numbers, there = (int(pc.sum(found).as_py() or 0) for found in (pc.match_substring_regex(column, WHOLE), pc.is_valid(column)))
        self.plain = self.plain and numbers == there
        self.kinds |= {kind for kind, count in (("number", numbers), ("text", there - numbers)) if count}

    def saw_cells(self, cells: Cells) -> None:
        """Note ids that nothing is joined by."""
        texts, there = (len(column) - column.null_count for column in (cells.texts, cells.keys))
        self.kinds |= {kind for kind, count in (("number", there - texts), ("text", texts)) if count}
        if self.gathers:
            self.gathers(cells)

    @property
    def all_floats(self) -> bool:
        """Whether all ids are whole numbers, of which somebody has made floats."""
        return self.marked and self.plain

    @property
    def may_clash(self) -> bool:
        """Whether a number of the column may have the key of a text, as far as a column is looked at that nothing is joined by."""
        return self.odd and len(self.kinds) > 1


def as_texts(column: pa.Array | pa.ChunkedArray, spelling: Spelling | None = None) -> tuple[pa.Array, pa.Array]:
    """Ids that need no key, as the shop's texts, and why a cell is none; texts already without the space around them."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_string(whole.type) and not pc.any(pc.match_substring_regex(whole, AS_NUMBER)).as_py():
        if spelling is not None:
            spelling.saw_plain(whole)
        if spelling is None or not (spelling.floats or spelling.gathers):
            return whole, pa.nulls(len(whole), pa.string())
    elif spelling is not None:
        spelling.odd = True
    cells = read(whole, spelling)
    if spelling is not None:
        spelling.saw_cells(cells)
    return cells.shop_ids(), cells.why


def stable_id(value: str) -> int:
    """The key of a text: the number that it writes, or 63 bits, the same on every machine and for ever."""
    if value.isdecimal() and len(value) <= 19 and str(int(value)) == value and int(value) < 2**63:
        return int(value)  # a parquet writer may have kept "1001" where another wrote a number: they are one item
    return int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8).digest(), "big") >> 1


def key(shop_id: ShopId) -> int:
    """The key of an id that :func:`clean` has let through."""
    return shop_id if isinstance(shop_id, int) else stable_id(shop_id)


def clean(value: Any) -> ShopId:
    """An id in the one form in which it comes out, a number or a text; ValueError with the reason for what is no id."""
    if type(value) is int and 0 <= value < 2**63:  # most of all there are
        return value
    if isinstance(value, str | UUID):
        value = str(value).strip()
        value.encode()  # half a surrogate pair is no text
    number, text, why = _text(value) if isinstance(value, str) and value else _number(value)
    if number is None:
        raise ValueError(f"{value!r} {why or NO_ID}")
    return text or number


def wire(shop_id: ShopId) -> ShopId:
    """The id as JSON carries it: a number that JavaScript would round is a text."""
    return shop_id if isinstance(shop_id, str) or shop_id <= EXACT else str(shop_id)


def read(column: pa.ChunkedArray | pa.Array, spelling: Spelling | None = None) -> Cells:
    """Ids of any type (texts already without the space around them); NaN is null. ``spelling`` is that of a column that is longer."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    kind = column.type
    if pa.types.is_integer(kind) and (kind != pa.uint64() or _fits(column)):
        keys = column.cast(pa.int64())
        bad = pc.less(keys, 0)
        nothing = pa.nulls(len(keys), pa.string())
        why = pc.if_else(bad, NO_ID, nothing) if pc.any(bad).as_py() else nothing
        return Cells(pc.if_else(bad, None, keys) if why.null_count < len(why) else keys, nothing, why)
    encoded = (column if pa.types.is_dictionary(kind) else column.dictionary_encode()).cast(pa.dictionary(pa.int32(), kind))
    values = encoded.dictionary.to_pylist()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        if spelling is not None:
            spelling.saw(values)
        floats = _are_floats(values) if spelling is None else spelling.floats
        parts = _told_apart([_text(value, floats=floats) for value in values], spelling.firsts if spelling else {})
    else:
        parts = [_number(value, DIGITS.get(kind, EXACT)) for value in values]
    keys, texts, why = zip(*parts, strict=True) if parts else ((), (), ())
    made = pa.array(keys, pa.int64()), pa.array(texts, pa.string()), pa.array(why, pa.string())
    return Cells(*(part.take(encoded.indices) for part in made))


def _fits(column: pa.Array) -> bool:
    return bool((pc.max(column).as_py() or 0) < 2**63)


def _number(value: Any, exact: int = EXACT) -> Parsed:
    """A number; NaN is nothing."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral | Real | Decimal):
        return None, None, None if value is None else NO_ID
    number: Any = value
    if not isinstance(value, Integral):
        if math.isnan(number):
            return None, None, None
        if not math.isfinite(number) or number != int(number):
            return None, None, FRACTION
        if not isinstance(value, Decimal) and abs(number) >= exact:
            return None, None, LARGE
    whole = int(number)
    if whole < 0:
        return None, None, NO_ID
    return (whole, None, None) if whole < 2**63 else (stable_id(str(whole)), str(whole), None)


def _text(value: str, *, floats: bool = False) -> Parsed:
    """A text; ``floats``: it stands in a column of numbers that somebody made floats of."""
    if NEGATIVE.fullmatch(value):
        return None, None, NO_ID
    sheet = SPREADSHEET.fullmatch(value)
    if sheet and len(sheet["decimals"] or "") < int(sheet["exponent"]):
        return None, None, ROUNDED
    if floats:
        return (None, None, LARGE) if Decimal(value) >= EXACT and not value.isdecimal() else _number(int(Decimal(value)))
    made = stable_id(value)
    return made, None if str(made) == value else value, None


def _told_apart(parts: list[Parsed], firsts: Mapping[int, str]) -> list[Parsed]:
    """The cells with a fault for each id that has the key of another one, which may be one of ``firsts``."""
    texts = dict(firsts)
    for number, text, _ in parts:
        if number is not None and text is not None:
            texts.setdefault(number, text)
    if not texts:
        return parts
    return [(None, None, clash(n, texts[n], t or str(n))) if n in texts and texts[n] != t else (n, t, why) for n, t, why in parts]


def clash(number: int, first: str, second: str) -> str:
    """Why neither of two ids may stand for the other."""
    return f"has the same key ({number}) as another id: {first!r} and {second!r} cannot both be used, rename one of them"


def _are_floats(values: Sequence[str | None]) -> bool:
    """Whether texts are whole numbers of which at least one was written as a float, e.g. by pandas where the column has a gap."""
    there = [value for value in values if value is not None]
    if not any("." in value or "+" in value for value in there) or not all(FLOAT.fullmatch(value) for value in there):
        return False
    return _are_whole(there)


def _are_whole(numbers: Sequence[str]) -> bool:
    return all(Decimal(value) == Decimal(value).to_integral_value() for value in numbers)


def keys(kind: str, values: Any) -> NDArray[np.int64]:
    """The keys [R] of the shop's ids in a Series, an array or a list, e.g. for an entity frame of Feast; -1 for what is missing.

    ``kind`` is item, product, seller, user, query or session. Raises :class:`InputError` for what is no id.
    """
    return of_column(f"{kind}_id", column_of(values))


def column_of(values: Any) -> pa.Array:
    """The values as an Arrow array; numbers and texts in one column are texts. :class:`InputError` for what is no id."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return spelled(values)
    try:
        return spelled(pa.array(values, from_pandas=True))
    except (pa.ArrowException, OverflowError):
        pass
    try:
        return pa.array([None if value is None or value != value else str(clean(value)) for value in values], pa.string())
    except ValueError as odd:
        raise InputError(str(odd), action="use the ids of the shop") from odd


def spelled(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Sixteen bytes, or what Arrow takes for a UUID, as the text that everybody writes; any other column as it is."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    whole = whole.storage if isinstance(whole, pa.ExtensionArray) else whole
    if not (pa.types.is_fixed_size_binary(whole.type) and whole.type.byte_width == 16):
        return column
    return pa.array([None if cell is None else str(UUID(bytes=cell)) for cell in whole.to_pylist()], pa.string())


def of_column(name: str, column: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    """The keys [R] of a column of ids, -1 for null; :class:`InputError` that names the first cell that is none."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        trimmed = pc.utf8_trim_whitespace(column)
        column = pc.if_else(pc.equal(trimmed, ""), None, trimmed)
    cells = read(column)
    if cells.why.null_count < len(cells.why):
        at = pc.index(pc.is_valid(cells.why), True).as_py()
        raise InputError(f"{name} = {column[at].as_py()!r} {cells.why[at].as_py()}", action="use the ids of the shop")
    return np.asarray(pc.fill_null(cells.keys, MISSING).to_numpy(zero_copy_only=False), np.int64)


def named(lake: Lake, kind: str, numbers: Iterable[float | None]) -> list[ShopId | None]:
    """The shop's ids of keys, in their order; None for -1, for nothing and for NaN, as pandas has it, and the number for a key that no
    text was given for.
    """
    wanted = [MISSING if number is None or number != number else int(number) for number in numbers]
    known = known_texts(lake, kind, sorted(set(wanted)))
    return [None if number == MISSING else known.get(number, number) for number in wanted]


def known_texts(lake: Lake, kind: str, wanted: Sequence[int]) -> dict[int, str]:
    """Key → text, of the keys that stand for a text."""
    if not wanted or not lake.exists(TABLE):
        return {}
    found: dict[int, str] = {}
    for one in ("item", kind) if kind == "product" else (kind,):  # a product without an id of its own has that of its item
        rows = matching(lake, TABLE, "key", pa.array(wanted, pa.int64()), ("source_id",), f"kind = '{one}'")
        found |= dict(zip(rows["key"].to_pylist(), rows["source_id"].to_pylist(), strict=True))
    return found


def matching(lake: Lake, table: str, column: str, wanted: pa.Array, columns: Sequence[str], where: str | None = None) -> pa.Table:
    """``column`` and ``columns`` of the rows whose ``column`` is one of ``wanted``; memory grows with what is found, not with the table."""
    return changes.rows_of(lake.open(table), column, wanted, (column, *columns), where)
