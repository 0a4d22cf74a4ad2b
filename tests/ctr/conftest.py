"""Impressions that carry their features themselves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from moon_ops.embeddings.as_of import Joined

VIEWS = {
    "item_profile": ["spu_id", "category", "brand", "seller_id", "price"],
    "item_stats": ["impressions", "clicks", "purchases"],
    "user_behavior": ["item_ids", "query_ids"],
}


def as_joined(table: pa.Table) -> Joined:
    """A table of impressions with their features as what a join makes of it: each impression has feature rows of its own."""
    views = {name: table.select([c for c in columns if c in table.column_names]) for name, columns in VIEWS.items()}
    own = table.select([c for c in table.column_names if not any(c in columns for columns in VIEWS.values())])
    return Joined(own, views, {name: np.arange(table.num_rows) for name in VIEWS})


@pytest.fixture(scope="session")
def wide() -> Callable[[pa.Table], Joined]:
    """:func:`as_joined`."""
    return as_joined
