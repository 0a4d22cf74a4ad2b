"""Times as logs and exports write them, each cell by itself: with its own zone, or in UTC if it names none.

ISO 8601 with ``T`` or a space, ``-`` or ``/``, an offset, ``Z``, ``UTC`` or a region such as ``Europe/Berlin``; seconds, milli-, micro- or
nanoseconds since 1970, told by their digits; ``20260131``; the times of web servers and mails. Words such as ``now`` are no times.
"""

from __future__ import annotations

import datetime as dt
import re
from email.utils import parsedate_to_datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.lake.query import sql
from moon_ops.lake.schemas import STAMP

FORMS = "e.g. 2026-01-31T12:00:00Z, 2026-01-31 12:00:00+01:00, or seconds since 1970"
FIRST = dt.datetime(1995, 1, 1, tzinfo=dt.UTC)  # nothing was sold over the web before: such a time is a gap that a program filled
NEVER = 253_402_300_800  # seconds to the year 10000: more is finer than seconds, and what finer would be of the 1970s is no finer
SCALES = (  # epoch: from, to, microseconds of one
    *((1e8, NEVER, 1_000_000), (NEVER, 1e13, 1000), (1e14, NEVER * 1e3, 1000)),
    *((NEVER * 1e3, 1e16, 1), (1e17, NEVER * 1e6, 1), (NEVER * 1e6, 1e19, 0.001)),
)
ISO = r"^\d{4}([-/]\d{1,2}){2}([T ]\d{1,2}:\d{2}(:\d{2}([.,]\d{1,9})?)?\s*(Z|UTC|GMT|[+-](0\d|1[0-4])(:?[0-5]\d)?|[A-Z]\w+(/[\w+-]+)+)?)?$"
MAIL = re.compile(r"[A-Z][a-z]{2}, \d{1,2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} (GMT|UTC|[+-]\d{4})")
PARSED = f"""
SELECT CASE
  WHEN regexp_matches(t, '{ISO}', 'i') THEN TRY_CAST(
    regexp_replace(replace(regexp_replace(t, '^(\\d+)/(\\d+)/', '\\1-\\2-'), ',', '.'), ' +([+-])', '\\1') AS TIMESTAMPTZ)
  WHEN regexp_matches(t, '^\\d{{8}}$') THEN CAST(try_strptime(t, '%Y%m%d') AS TIMESTAMPTZ)
  WHEN regexp_matches(t, '^\\d{{8}}T\\d{{6}}Z?$', 'i') THEN CAST(try_strptime(substr(t, 1, 15), '%Y%m%dT%H%M%S') AS TIMESTAMPTZ)
  WHEN regexp_matches(t, '^(\\d{{9,13}}|\\d{{15,16}}|\\d{{18,19}})(\\.\\d{{1,9}})?$') THEN
    CAST(make_timestamp(CAST(trunc(CAST(t AS DECIMAL(38, 9)) * CASE
      WHEN CAST(t AS DECIMAL(38, 9)) < {NEVER} THEN 1000000 WHEN CAST(t AS DECIMAL(38, 9)) < {NEVER}000 THEN 1000
      WHEN CAST(t AS DECIMAL(38, 9)) < {NEVER}000000 THEN 1 ELSE 0.001 END) AS BIGINT)) AS TIMESTAMPTZ) END AS found
FROM (SELECT upper(trim(t)) AS t FROM cells)"""


def parsed(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """The moments, in UTC; null for a cell that is no time."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    kind = column.type
    if column.null_count == len(column):
        return pa.nulls(len(column), STAMP)
    if pa.types.is_timestamp(kind):  # a zone, if it has one, only says how to show it: what is stored is UTC
        return column.cast(pa.timestamp("us"), safe=False).cast(STAMP)
    if pa.types.is_date(kind):
        return column.cast(pa.timestamp("us"), safe=False).cast(STAMP)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _epochs(column)
    if not pa.types.is_string(kind):
        column = pa.array([None if cell is None or isinstance(cell, bool) else str(cell) for cell in column.to_pylist()], pa.string())
    found = sql(PARSED, cells=pa.table({"t": column}))["found"].combine_chunks().cast(STAMP)
    rest = pc.and_(pc.is_null(found), pc.is_valid(column))
    if not pc.any(rest).as_py():
        return found
    said = {cell: _spoken(cell) for cell in set(column.filter(rest).to_pylist())}
    return pc.replace_with_mask(found, rest, pa.array([said[cell] for cell in column.filter(rest).to_pylist()], STAMP))


def _epochs(column: pa.Array) -> pa.Array:
    """Seconds, milli-, micro- or nanoseconds since 1970, whichever gives a time of this century or the last decades before it."""
    gone = pc.is_null(column, nan_is_null=True)
    whole = pa.types.is_integer(column.type)
    values = pc.fill_null(column if whole else column.cast(pa.float64(), safe=False), 0).to_numpy(zero_copy_only=False)
    micros, good = np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    for low, high, scale in SCALES:
        here = (values >= low) & (values < high)
        some = values[here]
        micros[here] = some // 1000 if scale < 1 else some * int(scale) if whole else np.round(some * scale)
        good |= here
    return pa.array(micros, pa.int64(), mask=~good | gone.to_numpy(zero_copy_only=False)).cast(pa.timestamp("us")).cast(STAMP)


def _spoken(cell: str) -> dt.datetime | None:
    """The times of web servers (``31/Jan/2026:12:00:00 +0100``) and of mails (``Sat, 31 Jan 2026 12:00:00 GMT``)."""
    try:
        return dt.datetime.strptime(cell.strip(" []"), "%d/%b/%Y:%H:%M:%S %z")
    except ValueError:
        pass
    try:
        found = parsedate_to_datetime(cell) if MAIL.fullmatch(cell.strip()) else None
    except ValueError:
        return None
    return found if found is None or found.tzinfo else found.replace(tzinfo=dt.UTC)


def text(when: dt.datetime) -> str:
    """A moment as reasons name it."""
    return f"{when:%Y-%m-%dT%H:%MZ}"
