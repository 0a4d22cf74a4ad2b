"""A shop's own columns, out of ``extra`` into typed columns of the tables that Feast shows.

A table knows what its own columns are: each carries its declaration in the field's metadata. So a recipe that is taken away takes no
column from a click model that is being served, and Feast's views are told by the tables.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict

import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.columns import CLOCK, COUNTED, Feature
from moon_ops.errors import InputError
from moon_ops.lake.query import sql

log = logging.getLogger(__name__)
DECLARED = b"moon.feature"
TYPES = {"number": pa.float64(), "category": pa.string(), "list": pa.list_(pa.string())}


def declared(schema: pa.Schema) -> tuple[Feature, ...]:
    """The own columns that a table has."""
    found = ((field.metadata or {}).get(DECLARED) for field in schema)
    return tuple(Feature(**json.loads(one)) for one in found if one)


def wanted(schema: pa.Schema | None, own: Sequence[Feature]) -> tuple[Feature, ...]:
    """What a table with ``schema`` is to have: its own columns, unless ``own`` declares them otherwise, and those of ``own``."""
    kept = declared(schema) if schema is not None else ()
    names = {feature.name for feature in own}
    return tuple(sorted((*own, *(f for f in kept if f.name not in names)), key=lambda f: f.name))


def changed(schema: pa.Schema, own: Sequence[Feature]) -> bool:
    """Whether a table with ``schema`` lacks a column of ``own``, or has it made of something else."""
    there = {f.name: (f.source, f.kind) for f in declared(schema)}
    return any(there.get(f.name) != (f.source, f.kind) for f in own)


def typed(rows: pa.Table, own: Sequence[Feature]) -> pa.Table:
    """Rows with ``extra`` replaced by the columns ``own``; null where it holds none. What is no number is counted in a warning."""
    chosen = ", ".join(["* EXCLUDE (extra)", *(f"{expression(f)} AS {f.name}" for f in own)])
    made = sql(f"SELECT {chosen} FROM rows", rows=rows)
    for feature in (f for f in own if f.kind == "number"):
        given = sql(f"SELECT {path(feature.source)} IS NOT NULL AS given FROM rows", rows=rows)["given"]
        bad = pc.sum(pc.and_(given, pc.is_null(made[feature.name]))).as_py() or 0
        if bad:
            log.warning("features.%s: %d of %d values are no finite numbers, and count as missing", feature.name, bad, rows.num_rows)
    fields = [with_declaration(field, own) for field in made.schema]
    return made.cast(pa.schema(fields))


def with_declaration(field: pa.Field, own: Sequence[Feature]) -> pa.Field:
    """The field, of the type of its kind and with its declaration, if it is one of ``own``."""
    feature = next((f for f in own if f.name == field.name), None)
    if feature is None:
        return field
    return pa.field(feature.name, TYPES[feature.kind], metadata={DECLARED: json.dumps(asdict(feature)).encode()})


def path(column: str) -> str:
    """DuckDB's words for a column in ``extra``, as text."""
    return f"(extra->>{_json_path(column)})"


def expression(feature: Feature) -> str:
    """DuckDB's words for the feature of a row with ``extra``."""
    if feature.kind == "number":
        return f"(SELECT CASE WHEN isfinite(v) THEN v END FROM (SELECT TRY_CAST({path(feature.source)} AS DOUBLE) AS v))"
    if feature.kind == "category":
        return f"nullif(trim({path(feature.source)}), '')"
    place = _json_path(feature.source)
    array, text = f"CAST(json_extract(extra, {place}) AS VARCHAR[])", f"string_split({path(feature.source)}, '|')"
    parts = f"CASE WHEN json_type(extra, {place}) = 'ARRAY' THEN {array} ELSE {text} END"
    return f"list_filter(list_transform({parts}, lambda part: trim(part)), lambda part: part <> '')"


def of_context(feature: Feature) -> str:
    """DuckDB's words for a context feature of an impression: of its time, its position, or the shop's own column."""
    if feature.source in CLOCK:
        number = f"{'hour' if feature.source == 'hour' else 'isodow'}(event_timestamp)"
    elif feature.source in COUNTED:
        number = feature.source
    else:
        return expression(feature)
    if feature.kind == "list":
        problem = f"features.{feature.name}: kind = 'list', but {feature.source} is one number"
        raise InputError(problem, action="declare it as number or category")
    return f"CAST({number} AS {'DOUBLE' if feature.kind == 'number' else 'VARCHAR'})"


def _json_path(column: str) -> str:
    quoted = column.replace("\\", "\\\\").replace('"', '\\"').replace("'", "''")
    return f"""'$."{quoted}"'"""
