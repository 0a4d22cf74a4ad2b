"""How many items there are and have vectors, in `moon status`: one that is to end is on sale until then."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from moon_ops.embeddings import vector_tables
from moon_ops.lake import versions
from moon_ops.lake.ingest import ingest
from moon_ops.lake.schemas import embeddings_schema
from moon_ops.release.status import active_items, embedded_items, status
from moon_ops.settings import Settings

DAY = dt.timedelta(days=1)


def test_an_item_that_is_to_end_counts_until_then(make_shop: Callable[..., Path], tmp_path: Path, now: dt.datetime) -> None:
    home = Settings(home=tmp_path / "home")
    ends = {1: None, 2: (now + 10 * DAY).isoformat(), 3: "9999-12-31", 4: (now - DAY).isoformat()}
    ingest(make_shop(items=[{"item_id": n, "title": f"thing {n}", "available_until": end} for n, end in ends.items()]), home.lake, now=now)
    assert status(home, now=now + DAY)["items"] == 3
    assert active_items(home.lake, now + 10 * DAY) == {1, 3}
    rows = versions.current(home.lake, ["content_hash"]).to_pylist()
    made = [{"version_id": str(row["item_id"]), "embedding": [1.0, 0.0], **{n: row[n] for n in KEPT}} for row in rows]
    home.lake.append(vector_tables.table_name(1), pa.Table.from_pylist(made, schema=embeddings_schema(2)))
    assert embedded_items(home.lake, 1) == {1, 2, 3, 4}


KEPT = ("item_id", "content_hash", "event_timestamp", "created")
