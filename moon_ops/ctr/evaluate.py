"""What a click model is worth on impressions after its training: metrics by slice, beside the oracle's ceiling on a simulated shop."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops.ctr import metrics
from moon_ops.ctr.dataset import Rows
from moon_ops.ctr.score import Scorer
from moon_ops.ctr.vectors import Tables
from moon_ops.embeddings.as_of import Joined
from moon_ops.errors import LeakError
from moon_ops.lake.lake import Lake
from moon_ops.lake.query import sql

NEW_ITEM_DAYS = 7
TAIL_IMPRESSIONS = 20  # an item shown less often than this before the row's time is long tail
LARGEST = 5  # categories that are slices of their own
SMALL_SELLERS = 0.2  # the smallest sellers, which together have this share of the impressions


@dataclass(frozen=True)
class Scored:
    """Labels, users and scores [R] of one model on one window, with the slices' masks."""

    rows: Rows
    scores: NDArray[np.float64]
    slices: dict[str, NDArray[np.bool_]]

    def metrics(self, model: str = "") -> dict[str, float]:
        """By their public names, e.g. ``ctr/auc`` and ``ctr/auc:new_items``; ``model`` tells models apart (``ctr/auc_id_only``)."""
        return metrics.report(self.rows.labels, self.scores, self.rows.user_ids, self.slices, model)


def score(scorer: Scorer, joined: Joined, tables: Tables, lake: Lake, *, start: dt.datetime) -> Scored:
    """Score impressions of a window that starts at ``start``; :class:`LeakError` if the click model was trained into it."""
    until = dt.datetime.fromisoformat(scorer.meta["trained_until"])
    if start < until:
        raise LeakError(
            f"the window starts at {start:%Y-%m-%dT%H:%MZ}, but the click model was trained until {until:%Y-%m-%dT%H:%MZ}",
            action="evaluate on impressions after its training",
        )
    rows = scorer.encode(joined, tables)
    return Scored(rows, scorer.score(rows), slices(joined, lake))


def slices(joined: Joined, lake: Lake) -> dict[str, NDArray[np.bool_]]:
    """Where IDs know little: items in their first week, items hardly shown before, sellers with few impressions. Beside them rows by what
    was asked with (``query_picture``, ``query_text``, ``query_both``) and by the largest categories (``category_hats``).
    """
    found = _little_known(joined, lake)
    if "is_image" in joined.rows.column_names:
        picture = joined.column("is_image").to_numpy().astype(bool)
        text = np.array([bool(t and t.strip()) for t in joined.column("text").to_pylist()], bool)
        found |= {"query_picture": picture & ~text, "query_text": text & ~picture, "query_both": text & picture}
    if any("category" in view.column_names for view in joined.views.values()):
        category = joined.column("category").combine_chunks()
        counts = sorted(pc.value_counts(category.drop_null()).to_pylist(), key=lambda c: (-c["counts"], c["values"]))
        for name in [c["values"] for c in counts[:LARGEST] if c["values"]]:
            rows = pc.fill_null(pc.equal(category, name), False).to_numpy(zero_copy_only=False)
            plain = "category_" + re.sub(r"[^\w. -]", "_", name)  # MLflow takes no other characters
            found[plain if plain not in found else f"{plain}_{len(found)}"] = rows
    return found


def _little_known(joined: Joined, lake: Lake) -> dict[str, NDArray[np.bool_]]:
    first = lake.read("items", ["item_id", "event_timestamp"]).group_by("item_id").aggregate([("event_timestamp", "min")])
    query = f"""
    WITH sellers AS (SELECT seller_id, count(*) AS shown FROM rows WHERE seller_id >= 0 GROUP BY 1),
    ranked AS (SELECT seller_id, sum(shown) OVER (ORDER BY shown, seller_id) / sum(shown) OVER () AS share FROM sellers)
    SELECT rows.event_timestamp < first.event_timestamp_min + INTERVAL {NEW_ITEM_DAYS} DAY AS new_items,
           coalesce(rows.impressions, 0) < {TAIL_IMPRESSIONS} AS long_tail,
           coalesce(ranked.share <= {SMALL_SELLERS}, false) AS small_sellers
    FROM rows LEFT JOIN first USING (item_id) LEFT JOIN ranked USING (seller_id) ORDER BY number"""
    found = sql(query, rows=_numbered(joined, ["item_id", "event_timestamp", "impressions", "seller_id"]), first=first)
    return {name: found[name].to_numpy(zero_copy_only=False).astype(bool) for name in found.column_names}


def oracle(path: Path, joined: Joined, column: str = "click_probability") -> NDArray[np.float64]:
    """The simulated shop's true click probability [R] of each impression, NaN where it has none. Only reports read it, never training."""
    query = f"SELECT o.{column} AS truth FROM rows LEFT JOIN read_parquet($path) o USING (session_id, item_id) ORDER BY number"
    found = sql(query, {"path": str(path)}, rows=_numbered(joined, ["session_id", "item_id"]))
    return found["truth"].to_numpy(zero_copy_only=False).astype(np.float64)


def _numbered(joined: Joined, columns: list[str]) -> pa.Table:
    """Some columns, and the number of each row, by which to put an answer back in order."""
    return joined.table(columns).append_column("number", pa.array(range(len(joined)), pa.int64()))
