"""Whether vectors are sound, and whether people ask for other things than before. N vectors, D dimensions, B categories.

Spaces of two encoders cannot be laid over each other, so nothing here compares a candidate's vectors with the champion's: a space is judged
by itself, for what makes it useless whatever its recall on a small window is. Two figures tell a collapsed space. The mean cosine of two
items is near 1 where all of them lie in one direction (Wang & Isola 2020, arXiv 2005.10242: good spaces are spread over the sphere). The
effective rank is the number of directions that are used (Roy & Vetterli 2007; as RankMe in Garrido et al. 2023, arXiv 2210.02885), and it
finds a collapse into a few of them that the mean does not show (Jing et al. 2022, arXiv 2110.09348).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import stats

from moon_ops.embeddings import vector_tables
from moon_ops.lake import changes, counting, lookups
from moon_ops.lake.lake import Lake
from moon_ops.lake.query import sql
from moon_ops.lake.schemas import STAMP
from moon_ops.metric_names import drift, space
from moon_ops.pieces import spans
from moon_ops.release.windows import Windows

SAMPLED = 20_000  # vectors that the effective rank is counted from
ASKED = 5_000  # queries of each time whose vectors are compared
CONFIDENCE = 0.95  # that a shift of categories is more than chance
TINY = 1e-6  # of a norm: a vector of zeros


def of_space(vectors: NDArray[np.float32]) -> dict[str, float]:
    """The figures of a catalogue's vectors [N, D]; empty for none.

    ``space/broken`` is the share that is zero or no number, ``space/norm_error`` how far the worst of the others is from length 1.
    """
    if not len(vectors):
        return {}
    norms = np.concatenate([np.linalg.norm(vectors[span], axis=1) for span in spans(len(vectors))])
    sound = np.isfinite(norms) & (norms > TINY)
    found = {space("broken"): float(1 - sound.mean())}
    if not sound.any():
        return found
    units = vectors if sound.all() else vectors[sound]
    found[space("norm_error")] = float(np.abs(norms[sound] - 1).max())
    if len(units) > 1:
        found |= {space("pair_cosine"): pair_cosine(units), space("effective_rank"): effective_rank(units)}
    return found


def pair_cosine(units: NDArray[np.float32]) -> float:
    """The mean cosine over all pairs of two of the unit vectors [N, D], N from 2: exact, from their sum alone."""
    total, count = units.sum(0, dtype=np.float64), len(units)
    return float((total @ total - count) / (count * (count - 1)))


def effective_rank(units: NDArray[np.float32]) -> float:
    """How many directions vectors [N, D] use, from 1 to D: the exponential of the entropy of their normalised singular values."""
    if len(units) > SAMPLED:
        units = units[np.random.default_rng(0).choice(len(units), SAMPLED, replace=False)]
    wide = units.astype(np.float64)
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(wide.T @ wide), 0))
    shares = singular[singular > 0] / singular.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def psi(before: NDArray[np.int64], after: NDArray[np.int64]) -> tuple[float, float]:
    """The population stability index of counts [B] of two times, and what chance alone exceeds in 5 of 100 cases.

    Above 0.25 a shift is usually called large (Siddiqi 2006, Credit risk scorecards). Of few events the index is large by chance: without a
    shift it is distributed as χ² with B − 1 degrees of freedom times 1/N + 1/M, of N and M events (Yurdakul & Naranjo 2020, Statistical
    properties of the population stability index).
    """
    left, right = ((counts + 0.5) / (counts + 0.5).sum() for counts in (before, after))  # half an event where there was none
    value = float(((right - left) * np.log(right / left)).sum())
    sizes = max(int(before.sum()), 1), max(int(after.sum()), 1)
    return value, float(stats.chi2.ppf(CONFIDENCE, max(len(before) - 1, 1)) * (1 / sizes[0] + 1 / sizes[1]))


def of_queries(lake: Lake, encoder: int, windows: Windows) -> dict[str, float]:
    """How what was asked in the judged window differs from what was asked in training; only what both times have.

    ``drift/categories_psi`` is over the categories of what was clicked or bought after queries, ``…_chance`` what it would hardly exceed
    without a shift; ``drift/picture_queries`` is the share of photographs now minus then; ``drift/queries_cosine`` that of the two mean
    vectors, both of this encoder.
    """
    if not lake.exists("queries"):
        return {}
    asked = lake.read("queries", ["query_id", "image_id", "event_timestamp"])
    times = [_between(asked, *bounds) for bounds in _times(windows)]
    if not all(part.num_rows for part in times):
        return {}
    pictured = [1 - part["image_id"].null_count / part.num_rows for part in times]
    found = {drift("picture_queries"): float(pictured[1] - pictured[0])}
    counts = _by_category(lake, windows)
    if len(counts[0]) > 1 and all(some.sum() for some in counts):
        found |= dict(zip((drift("categories_psi"), drift("categories_psi_chance")), psi(*counts), strict=True))
    name = vector_tables.query_table_name(encoder)
    if lake.exists(name):
        means = [_mean(lake, name, part["query_id"].to_numpy()) for part in times]
        lengths = [float(np.linalg.norm(mean)) for mean in means]
        if min(lengths) > TINY:
            found[drift("queries_cosine")] = float(means[0] @ means[1]) / (lengths[0] * lengths[1])
    return found


def _times(windows: Windows) -> Sequence[tuple[dt.datetime, dt.datetime]]:
    """The time of training and the time that is judged."""
    return (windows.start, windows.trained_until), (windows.trained_until, windows.end)


def _between(rows: pa.Table, start: dt.datetime, end: dt.datetime) -> pa.Table:
    column = rows["event_timestamp"]
    return rows.filter(pc.and_(pc.greater_equal(column, pa.scalar(start, STAMP)), pc.less(column, pa.scalar(end, STAMP))))


def _by_category(lake: Lake, windows: Windows) -> list[NDArray[np.int64]]:
    """Clicks, carts and purchases after a query by the item's category [B], in training and in the judged window."""
    between = f"event_timestamp >= {lookups.moment(windows.start)} AND event_timestamp < {lookups.moment(windows.end)}"
    both = counting.read(lake, ["event_timestamp", "item_id"], f"{counting.LEARNED} AND query_id IS NOT NULL AND {between}")
    items = lake.read("items", ["item_id", "category", "event_timestamp"])
    query = """
    WITH known AS (SELECT item_id, arg_max(category[-1], event_timestamp) AS category FROM items GROUP BY 1)
    SELECT category, count(*) FILTER (event_timestamp < $cut) AS before, count(*) FILTER (event_timestamp >= $cut) AS after
    FROM events JOIN known USING (item_id) WHERE category IS NOT NULL GROUP BY 1 ORDER BY 1"""
    found = sql(query, {"cut": windows.trained_until}, events=both, items=items)
    return [found[name].to_numpy().astype(np.int64) for name in ("before", "after")]


def _mean(lake: Lake, name: str, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean vector [D] of up to :data:`ASKED` of the queries, drawn with a fixed seed; zeros if none has one."""
    drawn = np.sort(np.random.default_rng(0).permutation(ids)[:ASKED])
    dataset = lake.open(name)
    rows = changes.rows_of(dataset, "query_id", pa.array(drawn), ("query_id", "embedding"))
    vectors = vector_tables.as_matrix(rows["embedding"], vector_tables.dim_of(dataset))
    vectors = vectors[np.isfinite(vectors).all(1)]
    return vectors.mean(0, dtype=np.float64) if len(vectors) else np.zeros(vector_tables.dim_of(dataset))
