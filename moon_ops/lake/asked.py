"""What users have asked: queries with their pictures, and which of them the lake does not know."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.lake import changes
from moon_ops.lake.intake import Intake
from moon_ops.lake.lake import Lake
from moon_ops.lake.layout import ROW, Refusals
from moon_ops.lake.query import sql
from moon_ops.lake.reading import pictures


def described(raw: pa.Table, intake: Intake) -> pa.Table:
    """The rows of the ``queries`` table, without ``created``; one whose only content was a refused picture is left out."""
    cells = raw.select([ROW, "image"]).filter(pc.is_valid(raw["image"])).to_pylist()  # most ask by a text
    found = [intake.ids(pictures.references([cell["image"]]), "queries", cell[ROW], "image") for cell in cells]
    shown = pa.array([ids[0] if ids else None for ids in found], pa.string())
    images = pc.replace_with_mask(pa.nulls(raw.num_rows, pa.string()), pc.is_valid(raw["image"]).combine_chunks(), shown)
    table = raw.append_column("image_id", images)
    table = table.rename_columns(["event_timestamp" if n == "timestamp" else n for n in table.column_names])
    nothing = pc.and_(pc.is_null(table["image_id"]), pc.is_null(table["text"]))
    return intake.refusals.split(table, nothing, "queries", "image", "cannot be read, and the query has no text")


def new(lake: Lake, queries: pa.Table, refusals: Refusals) -> tuple[pa.Table, int]:
    """The queries whose id the lake does not know, and how many it has as they are; a known id with another content is refused."""
    if not queries.num_rows:
        return queries, 0
    names = ["query_id", "text", "image_id"]
    found = sql(
        """SELECT q.query_id, k.text IS NOT DISTINCT FROM q.text AND k.image_id IS NOT DISTINCT FROM q.image_id AS same
        FROM queries q JOIN known k USING (query_id)""",
        queries=queries.select(names),
        known=changes.known(lake, "queries", queries["query_id"], names),
    )
    other = found.filter(pc.invert(found["same"]))["query_id"].combine_chunks()
    queries = refusals.split(queries, pc.is_in(queries["query_id"], other), "queries", "query_id", "is in the lake with another content")
    known = pc.is_in(queries["query_id"], found["query_id"].combine_chunks())
    return queries.filter(pc.invert(known)), pc.sum(known).as_py() or 0
