"""How often values occur in impressions: counted by row number and by pieces, so that no column is made for all rows.

R rows, M rows of a feature view.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops import pieces
from moon_ops.embeddings.as_of import Joined
from moon_ops.embeddings.sequences import one
from moon_ops.lake.query import sql

MIN_COUNT = 2  # a value seen less often is trained as "everything else", so that this row means something at evaluation


class Values:
    """The values of joined rows."""

    def __init__(self, joined: Joined) -> None:
        self.joined, self._seen = joined, dict[str, NDArray[np.int64]]()

    def seen(self, view: str) -> NDArray[np.int64]:
        """By how many rows each feature row [M] is seen."""
        if view not in self._seen:
            counts = np.zeros(self.joined.views[view].num_rows, np.int64)
            for some in pieces.parts(len(self.joined)):
                at = self.joined.at[view][some]
                counts += np.bincount(at[at >= 0], minlength=len(counts))
            self._seen[view] = counts
        return self._seen[view]

    def frequent(self, name: str) -> pa.Array:
        """The values of a column, or in its lists, that occur at least :data:`MIN_COUNT` times, sorted; null, -1 and the empty text are
        none."""
        if name in self.joined.rows.column_names:
            found = self._of_rows(name)
        else:
            view = self.joined.view_of(name)
            column, counts = one(self.joined.views[view][name]), self.seen(view)
            if pa.types.is_list(column.type):
                column, counts = pc.list_flatten(column), counts[pc.list_parent_indices(column).to_numpy()]
            found = _summed(pa.table({"value": column, "count": counts}))
        return _sorted(found)

    def asked(self) -> pa.Array:
        """The queries of at least :data:`MIN_COUNT` sessions: however many items a query showed there, it counts once."""
        query = "SELECT query_id AS value, count(*) AS count FROM (SELECT DISTINCT query_id, session_id FROM rows) GROUP BY 1"
        return _sorted(sql(query, rows=self.joined.rows.select(["query_id", "session_id"])))

    def _of_rows(self, name: str) -> pa.Table:
        column = self.joined.rows[name]
        if pa.types.is_list(column.type):
            flat = pc.list_flatten(column)
            return _summed(pa.table({"value": flat, "count": np.ones(len(flat), np.int64)}))
        found = sql("SELECT value, count(*) AS count FROM rows GROUP BY 1", rows=pa.table({"value": column}))
        pieces.let_columns_go()
        return found

    def quantiles(self, name: str, shares: Sequence[float]) -> NDArray[np.float64]:
        """Quantiles of a number, as numpy interpolates them; none where nothing is known."""
        view = self.joined.view_of(name)
        values, counts = one(self.joined.views[view][name]), self.seen(view)
        known = (counts > 0) & np.asarray(values.is_valid())
        numbers = np.asarray(values.filter(pa.array(known)), np.float64)
        order = np.argsort(numbers, kind="stable")
        numbers, ends = numbers[order], np.cumsum(counts[known][order])
        if not len(numbers):
            return np.zeros(0)
        place = np.asarray(shares) * (ends[-1] - 1)
        low, high = (numbers[np.searchsorted(ends, whole, side="right")] for whole in (np.floor(place), np.ceil(place)))
        share = place - np.floor(place)
        return np.where(share < 0.5, low + (high - low) * share, high - (high - low) * (1 - share))

    @cached_property
    def clicked(self) -> float:
        """The share of clicks."""
        return (pc.sum(self.joined.rows["label"]).as_py() or 0) / len(self.joined)


def _summed(table: pa.Table) -> pa.Table:
    return table.group_by("value").aggregate([("count", "sum")]).rename_columns(["value", "count"])


def _sorted(found: pa.Table) -> pa.Array:
    """Values that occur often enough, texts by their code points; null, -1 and the empty text are none."""
    often = one(found["value"].filter(pc.greater_equal(found["count"], MIN_COUNT))).drop_null()
    often = often.dictionary_decode() if pa.types.is_dictionary(often.type) else often
    if not len(often):
        return often
    nothing = -1 if pa.types.is_integer(often.type) else ""
    known = often.filter(pc.not_equal(often, pa.scalar(nothing, often.type)))
    return known.take(pc.sort_indices(known))
