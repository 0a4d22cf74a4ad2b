"""The rows of one table as they stand in its files, whatever these are: which rows there are, where each stands, what was recognised."""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moon_ops.errors import InputError
from moon_ops.lake.reading import delimited, encoding, files, json_lines
from moon_ops.lake.reading.delimited import bare
from moon_ops.lake.reading.files import Found
from moon_ops.lake.reading.parts import ROW, Keep, Part, Refused, WholeError

AT_ONCE = 2**16  # rows of a long file
INDEX = re.compile(r"__index_level_\d+__|Unnamed: 0|_reason|")  # what pandas adds unasked, and `moon quarantine`


@dataclass
class Content:
    """A table's rows. ``table`` has the number of each in ``_row``, counted through its files; ``rows`` counts the refused ones, too."""

    label: str
    table: pa.Table
    rows: int = 0
    refused: list[Refused] = field(default_factory=list)
    starts: list[tuple[int, str]] = field(default_factory=list)  # rows that lie before a file, and the file
    said: list[str] = field(default_factory=list)  # what was recognised of it
    notes: list[str] = field(default_factory=list)  # what may be wrong with it
    paths: tuple[Path, ...] = ()
    names: set[str] = field(default_factory=set)  # of its columns, as the files have them, in small letters

    def add(self, part: Part) -> None:
        """Say what one more file holds, but for its rows."""
        self.refused += [Refused(one.number + self.rows, one.row, one.column, one.reason) for one in part.refused]
        self.starts.append((self.rows, part.label))
        self.notes += part.notes
        self.rows += part.rows

    def finish(self, parts: Sequence[Part], found: Found) -> None:
        """Say how the files are written, now that all are read."""
        how = list(dict.fromkeys(part.how for part in parts))
        self.said = [*how, *([f"{len(parts)} files"] if len(parts) > 1 else [])]
        self.paths = found.paths

    def place(self, number: int) -> str:
        """Where a row stands, e.g. ``events.csv:7``."""
        before, label = max((start for start in self.starts if start[0] < number), default=(0, self.label))
        return f"{label}:{number - before}"


def empty(label: str, names: Sequence[str]) -> Content:
    """What a file says that is not there or has no content: a table of texts without rows."""
    return Content(label, pa.schema([*((name, pa.string()) for name in names), (ROW, pa.int64())]).empty_table())


def read(
    found: Found, required: Sequence[str], known: Collection[str], *, given: str | None = None, renamed: dict[str, str] | None = None
) -> Content:
    """All rows of a table's files, with the ``known`` columns under their own names whatever the case of their letters.

    ``given`` is the encoding, if the shop says it; ``renamed`` its names of columns → ours. A column of ``required`` that is not there, one
    that is there twice, and a file that cannot be read to its end, is an :class:`InputError`.
    """
    names = (*known, *map(bare, renamed or ()))
    content = empty(found.label, required)
    parts = []
    for path in found.paths:
        part = partitioned(read_part(path, found, names, given), found)
        content.names |= {bare(name) for name in part.table.column_names}
        parts.append(named(part, known, renamed or {}, required))
    tables = []
    for part in parts:
        table = part.table
        if content.rows:
            table = table.set_column(table.schema.get_field_index(ROW), ROW, pc.add(table[ROW], content.rows))
        tables.append(table)
        content.add(part)
    content.table = together(tables)
    content.finish(parts, found)
    return content


def read_part(path: Path, found: Found, known: Collection[str], given: str | None, keep: Keep | None = None) -> Part:
    """One file; :class:`InputError` where it is cut, or no such file at all. The rows of a long one are not in memory: those of a text are
    given to ``keep``, and :class:`~moon_ops.lake.reading.parts.WholeError` is raised for what cannot be read so.
    """
    label, kind = found.called(path), files.kind(path)
    try:
        if not path.stat().st_size:
            return Part(label, path, f"{kind}, empty")
        is_really = _kind(path, kind or "CSV")
        part = _parquet(path, label, keep) if is_really == "Parquet" else _text(path, label, known, given, is_really, keep)
        part.how += f", though its name says {kind}" if is_really != kind else ""
        return part
    except (pa.ArrowException, OSError, ValueError, EOFError) as unreadable:
        raise _unreadable(path, unreadable) from unreadable


def _kind(path: Path, said: str) -> str:
    """What the file is by its first bytes; ``said``, what its name says, where they show nothing else."""
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise InputError(
            f"{path} is a spreadsheet or an archive, whatever its name says; nothing was ingested", action="save it as CSV, or unpack it"
        )
    if head.startswith(b"PAR1") or said == "Parquet":
        return "Parquet"
    with encoding.opened(path) as stream:
        start = stream.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
    return "JSON lines" if re.match(rb'\{\s*"|\[\s*\{', start) else said


def _text(path: Path, label: str, known: Collection[str], given: str | None, kind: str, keep: Keep | None) -> Part:
    """A CSV or JSON file in the encoding that it names, or in another if it is none that is good in that."""
    asked = encoding.known(given) if given else encoding.recognise(path)
    reader = delimited.read if kind == "CSV" else json_lines.read
    part = None
    with contextlib.suppress(UnicodeEncodeError):  # a column's name has half a character
        part = reader(path, label, asked, known, keep)
    if (part is None or part.halves) and not given and asked == encoding.UTF8 and (likely := encoding.guess(path)) != asked:
        part = reader(path, label, likely, known, keep)
        guessed = encoding.NAMES.get(likely, likely)
        part.notes.append(f"{label}: is not UTF-8 and was read as {guessed}; if letters are wrong, name its encoding with --encoding")
    if part is None:
        raise ValueError("a column's name holds half a character: if it is no UTF-8, name its encoding")
    return part


def _parquet(path: Path, label: str, keep: Keep | None) -> Part:
    with pq.ParquetFile(path) as file:
        rows, table = file.metadata.num_rows, file.schema_arrow.remove_metadata().empty_table() if keep else file.read()
    part = Part(label, path, "Parquet", rows, _typed(table))
    part.held = partial(_batches, path, part.table.schema, rows) if keep else None
    return part


def _typed(table: pa.Table) -> pa.Table:
    """Rows of a Parquet file, numbered, in types that the other formats have."""
    table.validate(full=True)
    table = json_lines.numbered(table)
    if len(set(table.column_names)) < table.num_columns:
        return table
    return pa.table({name: plain(table[name]) for name in table.column_names})


def _batches(path: Path, schema: pa.Schema, rows: int) -> Iterator[pa.Table]:
    """The rows of a Parquet file, some at a time; :class:`WholeError` where not all of them have the types of its ``schema``, and
    :class:`InputError` where they are not the ``rows`` any more that they were.
    """
    before = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            now, names, were = file.metadata.num_rows, [n for n in file.schema_arrow.names if n != ROW], schema.names[:-1]
            if (now, names) != (rows, were):
                what = f"{path} had {rows:,} rows of {', '.join(were)} and now has {now:,} of {', '.join(names)}: it was written meanwhile"
                raise InputError(f"{what}; nothing was ingested", action="wait until it is whole, and try again")
            for batch in file.iter_batches(batch_size=AT_ONCE):
                table = _typed(pa.Table.from_batches([batch]))
                table = table.set_column(table.num_columns - 1, ROW, pc.add(table[ROW], before))
                before += table.num_rows
                if table.schema.types != schema.types:  # bytes, of which not all are texts
                    raise WholeError
                yield table
    except (pa.ArrowException, OSError, ValueError, EOFError) as unreadable:
        raise _unreadable(path, unreadable) from unreadable


def _unreadable(path: Path, fault: Exception) -> InputError:
    why = "the file is cut" if "truncated" in str(fault).lower() else str(fault)
    action = "let whoever runs this read it" if isinstance(fault, PermissionError) else "write the file again"
    return InputError(f"{path} cannot be read ({why}); nothing was ingested", action=action)


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column in a type that the other formats have: no dictionaries, no large or viewed texts, none as bytes."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return plain(column.cast(kind.value_type))
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        with contextlib.suppress(pa.ArrowException):  # Spark and Impala write texts so
            return column.cast(pa.string())
    return column


def partitioned(part: Part, found: Found) -> Part:
    """The part with the columns that its directories name; :class:`InputError` where the file itself says something else."""
    for name, value in found.partition(part.path).items() if part.table.num_columns else ():
        own = next((n for n in part.table.column_names if bare(n) == bare(name)), None)
        if own is None:
            cells = pa.array([value] * part.table.num_rows, pa.string())
            part.table = part.table.add_column(part.table.num_columns - 1, name, cells)
            part.refused = [Refused(r.number, r.row | {name: value}, r.column, r.reason) for r in part.refused]
        elif other := {cell for cell in json_lines.texts(part.table[own].to_pylist()).to_pylist() if _short(cell) != _short(value)}:
            raise InputError(
                f"{part.path}: the directory says {name} = {value}, and a row of the file says {next(iter(other))}; nothing was ingested",
                action="move the file, or rename the directory",
            )
    return part


def _short(cell: str | None) -> str | None:
    """A number without the zeros before it: ``month=01`` is the month 1."""
    return cell.lstrip("0") if cell and cell.isdecimal() else cell


def named(part: Part, known: Collection[str], renamed: dict[str, str], required: Sequence[str]) -> Part:
    """The part with its columns called as they are meant, and all of ``required``; of a file without columns, none."""
    ours = {bare(theirs): name for theirs, name in renamed.items()}
    names = [name for name in part.table.column_names if name != ROW]
    if not names:
        part.table = empty(part.label, required).table
        return part
    meant = [ours.get(bare(n), bare(n) if bare(n) in known else n) for n in names]
    if twice := [name for name in meant if meant.count(name) > 1]:
        raise InputError(f"{part.path} has the column '{twice[0]}' twice; nothing was ingested", action="keep one of them")
    if missing := [name for name in required if name not in meant]:
        raise InputError(
            f"{part.path} has no column '{missing[0]}' (it has {', '.join(names)}; it was read as {part.how}); nothing was ingested",
            action=f"add the column {missing[0]}, or name it in moon.toml",
        )
    part.table = part.table.rename_columns([*meant, ROW] if part.table.column_names[-1] == ROW else part.table.column_names)
    part.refused = [
        Refused(r.number, {dict(zip(names, meant, strict=True)).get(n, n): c for n, c in r.row.items()}, r.column, r.reason)
        for r in part.refused
    ]
    if index := [name for name in meant if INDEX.fullmatch(name)]:
        part.table = part.table.drop_columns(index)
        part.how += f", without the column '{index[0]}'"
    return part


def together(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of all tables; a column for whose cells there is no one type is read as texts."""
    odd = disagreeing([table.schema for table in tables])
    try:
        return _joined(tables, odd)
    except pa.ArrowInvalid:  # a cell does not fit into the type of all: a long id where another file has floats
        names = dict.fromkeys(name for table in tables for name in table.column_names)
        return _joined(tables, odd | {name for name in names if not _fit([t.select([name]) for t in tables if name in t.column_names])})


def _joined(tables: Sequence[pa.Table], odd: Collection[str]) -> pa.Table:
    return pa.concat_tables([as_texts(table, odd) for table in tables], promote_options="permissive")


def _fit(columns: Sequence[pa.Table]) -> bool:
    try:
        _joined(columns, ())
    except pa.ArrowException:
        return False
    return True


def disagreeing(schemas: Sequence[pa.Schema]) -> set[str]:
    """The columns for whose cells there is no one type."""
    fields: dict[str, dict[str, pa.Field]] = {}
    for schema in schemas:
        for field_ in schema:
            fields.setdefault(field_.name, {})[str(field_.type)] = field_
    return {name for name, found in fields.items() if len(found) > 1 and not _agree(list(found.values()))}


def as_texts(table: pa.Table, names: Collection[str]) -> pa.Table:
    """The table with texts for the cells of the columns ``names``."""
    for name in {*names} & {*table.column_names}:
        column = table[name]
        if pa.types.is_timestamp(column.type):  # Python has no nanoseconds
            column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
        values = column.to_pylist()
        values = [v if v is None else dict(v) for v in values] if pa.types.is_map(column.type) else values
        table = table.set_column(table.schema.get_field_index(name), name, json_lines.texts(values))
    return table


def _agree(fields: Sequence[pa.Field]) -> bool:
    """Whether there is one type that holds the cells of all; Arrow takes sixteen bytes of a UUID for a text, too."""
    try:
        whole = pa.unify_schemas([pa.schema([field_]) for field_ in fields], promote_options="permissive").types[0]
    except pa.ArrowException:
        return False
    return not any(pa.types.is_fixed_size_binary(field_.type) and field_.type != whole for field_ in fields)
