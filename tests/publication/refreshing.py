"""Items that change, a refresh as a service makes it, and whether all readers say the same afterwards."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa

from moon_ops.embeddings import features, vector_tables
from moon_ops.embeddings.cards import Cards, Wanted
from moon_ops.embeddings.index_shards import ItemShards
from moon_ops.lake.schemas import SCHEMAS
from moon_ops.lake.tables import items_as_of
from moon_ops.publication import places, publication
from moon_ops.release import stages
from moon_ops.settings import Settings


def change(settings: Settings, ids: list[int], now: dt.datetime, learned: dt.datetime | None = None, **columns: Any) -> None:
    """Give items a new version, valid from ``now``; it is ``learned`` then, too, or before."""
    rows = items_as_of(settings.lake, now).to_pylist()
    times = {"event_timestamp": now, "created": learned or now}
    fresh = [{**row, **times, "content_hash": f"{row['content_hash']}-{now:%d%H%M}", **columns} for row in rows if row["item_id"] in ids]
    settings.lake.append("items", pa.Table.from_pylist(fresh, schema=SCHEMAS["items"]))


def refresh(settings: Settings, now: dt.datetime) -> publication.Published:
    stages.embed(settings, 1, now=now)
    return publication.publish(settings, 1, now=now, behaviour=False)


def found_by_its_vector(settings: Settings, item: int, now: dt.datetime) -> int:
    ids, vectors = vector_tables.vectors_as_of(settings.lake, 1, now)
    opened = ItemShards.open(places.index_place(settings, 1))
    return int(opened.search(vectors[ids == item], 1, opened.header.contract_id)[0][0, 0])


def agree(settings: Settings, now: dt.datetime) -> None:
    """Lake, representation table, index and online store say the same of every active item."""
    ids, vectors = vector_tables.vectors_as_of(settings.lake, 1, now)
    table = places.tables(settings, 1).items
    assert (table.rows(ids) >= 0).all()
    np.testing.assert_array_equal(table.gather(table.rows(ids)), vectors)
    opened = ItemShards.open(places.index_place(settings, 1))
    nearest, cosines = opened.search(vectors, 1, opened.header.contract_id)
    assert opened.header.items == len(ids)
    assert (
        Cards.open(places.cards_place(settings, 1)).matching(Wanted()).tolist()
        == items_as_of(settings.lake, now, ["item_id"])[0].to_pylist()
    )
    np.testing.assert_allclose(cosines[:, 0], 1.0, atol=1e-5)
    same = table.gather(table.rows(nearest[:, 0]))
    np.testing.assert_allclose(same, vectors, atol=1e-5)
    store = features.open_store(settings)
    online = store.get_online_features(["item_embedding_v1:embedding"], [{"item_id": int(i)} for i in ids]).to_dict()["embedding"]
    np.testing.assert_allclose(np.array(online, np.float32), vectors, atol=1e-6)
