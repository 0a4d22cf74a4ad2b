"""JSON, one object a line, or one list of objects: every cell as it is written, in columns of one type each."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from moon_ops.lake.reading import encoding as encodings
from moon_ops.lake.reading.parts import ROW, Held, Keep, Part, WholeError

AT_ONCE, LINES = 2**24, 20_000  # bytes of a long file; lines of it that are Python's at once


def read(path: Path, label: str, encoding: str, names: Collection[str], keep: Keep | None = None) -> Part:
    """The file's columns. Arrow reads it, unless a row of it is odd, or ids among the ``names`` are numbers that Arrow would round. If it
    is long, its rows are given to ``keep``.
    """
    part = Part(label, path, f"JSON lines, {encodings.NAMES.get(encoding, encoding)}")
    ids = [name for name in names if name.endswith("_id")]
    if keep is not None:
        if encoding not in ("utf-8", "utf-8-sig") or not _keep(path, ids, part, keep):
            part = Part(label, path, part.how)
            _keep_objects(path, encoding, part, keep)
        return part
    table = _fast(path, ids) if encoding in ("utf-8", "utf-8-sig") else None
    table = _slow(path, encoding, part) if table is None else numbered(table)
    part.table, part.rows = table, part.rows or table.num_rows
    return part


def numbered(table: pa.Table) -> pa.Table:
    """The table with the numbers of its rows, in place of a column of that name."""
    table = table.drop_columns(ROW) if ROW in table.column_names else table
    return table.append_column(ROW, pa.array(np.arange(1, table.num_rows + 1)))


def _fast(path: Path, ids: Collection[str]) -> pa.Table | None:
    """What Arrow makes of the file; None where it cannot, or where ids would be floats."""
    try:
        with encodings.opened(path) as stream:
            table = pyarrow.json.read_json(stream)
        asread = pa.schema([f.with_type(_untimed(f.type)) for f in table.schema])
        if not asread.equals(table.schema):
            with encodings.opened(path) as stream:
                table = pyarrow.json.read_json(stream, parse_options=pyarrow.json.ParseOptions(explicit_schema=asread))
        table.validate(full=True)  # the reader lets bytes through that are no UTF-8
    except (pa.ArrowInvalid, ValueError):
        return None
    return None if _rounded(table.schema, ids) or not table.num_columns else table


def _keep(path: Path, ids: Collection[str], part: Part, keep: Keep) -> bool:
    """Give what Arrow makes of the file to ``keep``, some lines at a time; whether it can."""
    known = [pa.schema([])]
    try:
        _, held = keep(_some(path, part, known))
    except (pa.ArrowException, ValueError):
        return False
    fields = [field for field in known[0] if field.name != ROW]
    schema = pa.schema([*fields, pa.field(ROW, pa.int64())])
    part.table, part.held = schema.empty_table(), partial(_completed, held, schema)
    return bool(fields) and not _rounded(known[0], ids)


def _completed(held: Held, schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows with the columns that others of the file have; WholeError where a cell does not fit into the type of all."""
    for table in held():
        try:
            yield pa.concat_tables([schema.empty_table(), table], promote_options="permissive").cast(schema)
        except pa.ArrowException as odd:
            raise WholeError from odd


def _some(path: Path, part: Part, known: list[pa.Schema]) -> Iterator[pa.Table]:
    """The file's rows, some lines at a time; what their types are together is put into ``known``. ArrowException where there is none."""
    with encodings.opened(path) as stream:
        rest = b""
        while chunk := stream.read(AT_ONCE):
            lines, end, rest = (rest + chunk).rpartition(b"\n")
            if lines.strip():
                yield _numbered_on(_of_lines(lines + end, known), part)
        if rest.strip():
            yield _numbered_on(_of_lines(rest, known), part)


def _numbered_on(table: pa.Table, part: Part) -> pa.Table:
    before, part.rows = part.rows, part.rows + table.num_rows
    table = numbered(table)
    return table.set_column(table.num_columns - 1, ROW, pc.add(table[ROW], before))


def _of_lines(lines: bytes, known: list[pa.Schema]) -> pa.Table:
    """What Arrow makes of some lines, in the types that are known of those before, or that both have."""
    options = pyarrow.json.ParseOptions(explicit_schema=pa.schema([f for f in known[0] if not pa.types.is_null(f.type)]))
    try:
        table = pyarrow.json.read_json(pa.BufferReader(lines), parse_options=options)
    except pa.ArrowInvalid:
        table = pyarrow.json.read_json(pa.BufferReader(lines))
    asread = pa.unify_schemas([known[0], pa.schema([f.with_type(_untimed(f.type)) for f in table.schema])], promote_options="permissive")
    if any(table.schema.field(f.name).type != f.type for f in asread if f.name in table.column_names):
        whole = pyarrow.json.ParseOptions(explicit_schema=asread)
        table = pyarrow.json.read_json(pa.BufferReader(lines), parse_options=whole)
    table.validate(full=True)
    known[0] = asread
    return table


def _keep_objects(path: Path, encoding: str, part: Part, keep: Keep) -> None:
    """Give the rows that can be read to ``keep``, as the texts that they are; all of them together tell what types they have. WholeError
    for one list, and where a column is of lists or objects.
    """
    with encodings.text(path, encoding) as stream:
        if stream.read(64).lstrip("\ufeff \t").startswith("["):
            raise WholeError
    kinds: dict[str, set[str]] = {}
    _, held = keep(_lines(path, encoding, part, kinds))
    fields = [pa.field(name, _kind(found)) for name, found in kinds.items() if name != ROW]
    schema = pa.schema([*fields, pa.field(ROW, pa.int64())]) if fields else pa.schema([])
    part.table, part.held = schema.empty_table(), partial(_typed, held, schema) if fields else None


def _lines(path: Path, encoding: str, part: Part, kinds: dict[str, set[str]]) -> Iterator[pa.Table]:
    """Rows as JSON, some at a time, and their numbers; what kinds of cells each column has is put into ``kinds``."""
    rows: list[tuple[str, int]] = []
    for part.rows, row in enumerate(_objects(path, encoding), 1):
        if not _legible(row):
            part.refuse_half(part.rows, row)
            continue
        for name, cell in row.items():
            large = isinstance(cell, int) and abs(cell) > 2**53
            kinds.setdefault(name, set()).add(f"{type(cell).__name__}{' beyond floats' * large}")
            if large and not -(2**63) <= cell < 2**63:
                kinds[name].add("no int64")
        rows.append((json.dumps(row), part.rows))
        if len(rows) >= LINES:
            yield pa.table(dict(zip(("row", ROW), zip(*rows, strict=True), strict=True)))
            rows = []
    if rows:
        yield pa.table(dict(zip(("row", ROW), zip(*rows, strict=True), strict=True)))


def _kind(found: set[str]) -> pa.DataType:
    """The type of a column's cells as :func:`cells` has it: texts where there is no other."""
    cells = found - {"NoneType"}
    if cells <= {"int", "int beyond floats", "float"} and "float" not in cells:
        return pa.int64() if cells else pa.null()
    if (cells & {"list", "dict"} and len(cells) == 1) or cells >= {"bool", "float"}:  # Arrow takes some truths for numbers, and some not
        raise WholeError
    numbers = pa.float64() if cells <= {"int", "float"} else pa.string()
    return pa.bool_() if cells == {"bool"} else numbers


def _typed(held: Held, schema: pa.Schema) -> Iterator[pa.Table]:
    for table in held():
        rows = [json.loads(row) for row in table["row"].to_pylist()]
        columns = [[row.get(field.name) for row in rows] for field in schema if field.name != ROW]
        arrays = [
            texts(column) if pa.types.is_string(field.type) else pa.array(column, field.type)
            for column, field in zip(columns, schema, strict=False)
        ]
        yield pa.Table.from_arrays([*arrays, table[ROW]], schema=schema)


def _rounded(schema: pa.Schema, ids: Collection[str]) -> bool:
    return any(pa.types.is_floating(f.type) and f.name.lower() in ids for f in schema)


def _untimed(kind: pa.DataType) -> pa.DataType:
    """The type with texts for times: the reader takes any text that looks like one for a time, an id or an attribute too."""
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_untimed(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([f.with_type(_untimed(f.type)) for f in kind.fields])
    return kind


def _slow(path: Path, encoding: str, part: Part) -> pa.Table:
    """Row by row: what cannot be a row of a table is refused by itself."""
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    for part.rows, row in enumerate(_objects(path, encoding), 1):
        if not _legible(row):
            part.refuse_half(part.rows, row)
            continue
        rows.append(row)
        numbers.append(part.rows)
    names = dict.fromkeys(name for row in rows for name in row if name != ROW)
    table = pa.table({name: cells([row.get(name) for row in rows]) for name in names})
    return table.append_column(ROW, pa.array(numbers, pa.int64())) if names else table


def _objects(path: Path, encoding: str) -> Iterator[dict[str, Any]]:
    with encodings.text(path, encoding) as stream:
        for number, line in enumerate(stream, 1):
            if number == 1 and line.lstrip("\ufeff \t").startswith("["):
                yield from (_object(f"entry {n}", one) for n, one in enumerate(_list(line + stream.read()), 1))
                return
            if line.strip():
                yield _object(f"line {number}", _loaded(f"line {number}", line))


def _list(content: str) -> list[Any]:
    found = _loaded("the list", content)
    return found if isinstance(found, list) else [found]


def _loaded(where: str, content: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as broken:
        raise ValueError(f"{where} is not JSON: {broken}") from broken


def _object(where: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is not a JSON object")
    return row


def _legible(row: dict[str, Any]) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def cells(values: list[Any]) -> pa.Array[Any]:
    """Cells of one type as such; those of several types as texts, so that only the rows are refused whose cells do not fit."""
    try:
        rounded = any(isinstance(v, float) for v in values) and any(isinstance(v, int) and abs(v) > 2**53 for v in values)
        if not rounded:  # ids among other numbers
            return pa.array(values)
    except (pa.ArrowException, OverflowError):
        pass
    return texts(values)


def texts(values: list[Any]) -> pa.Array[Any]:
    """Cells of several types as texts that are read as the cells would be: 42.0 as 42, as an id is; a list or an object as JSON."""
    return pa.array([None if v is None else _text(v) for v in values], pa.string())


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        if isinstance(value, Decimal) or abs(value) < 2**53:
            return str(int(value))
        return re.sub(r"\.?0*E", "E", f"{value:.14E}")  # as spreadsheets write what is no id: not all digits are there
    if isinstance(value, bytes):
        return str(UUID(bytes=value)) if len(value) == 16 else value.decode("utf-8", "backslashreplace")
    return json.dumps(value, default=str) if isinstance(value, bool | int | float | list | dict) else str(value)
