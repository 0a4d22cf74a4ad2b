"""Words that mean "nothing": what spreadsheets, databases and pandas write into a cell that has no value."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

WORDS = ("", "NaN", "nan", "NAN", "NULL", "null", "Null", "None", r"\N", "NaT", "<NA>", "#N/A", "N/A", "(null)", "undefined")


def emptied(table: pa.Table) -> pa.Table:
    """The table with null for every cell that is one of :data:`WORDS`, space around it aside, and for floats that are no number."""
    for place, name in enumerate(table.column_names):
        column = table[name]
        if pa.types.is_string(column.type):
            nothing = pc.is_in(pc.utf8_trim_whitespace(column), value_set=pa.array(WORDS))
        elif pa.types.is_floating(column.type):
            nothing = pc.is_nan(column)
        else:
            continue
        if pc.any(nothing).as_py():
            table = table.set_column(place, name, pc.if_else(nothing, pa.scalar(None, column.type), column))
    return table
