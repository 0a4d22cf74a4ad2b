"""The lake's record of addresses: which picture came from where, and of what failed why, and when it is tried again.

A row an address. It is a memory and no source: whoever deletes it makes the next ingest ask all hosts anew.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import pyarrow as pa

from moon_ops.lake import changes
from moon_ops.lake.fetch import Fetched
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS

TABLE = "fetches"
LATELY = dt.timedelta(hours=1)  # an answer holds for it where its host says nothing
LONGEST = dt.timedelta(days=1)  # an answer holds no longer than this, whatever its host says: pictures change
FIRST, LAST = dt.timedelta(minutes=10), dt.timedelta(days=1)  # until an address that failed is tried again: twice as long each time


@dataclass(frozen=True)
class Fetch:
    """What is known of an address. ``tries``: how often in a row it failed."""

    address: str
    image_id: str | None = None
    etag: str | None = None
    last_modified: str | None = None
    fetched_at: dt.datetime | None = None
    fresh_until: dt.datetime | None = None
    failed_at: dt.datetime | None = None
    reason: str | None = None
    tries: int = 0
    next_try: dt.datetime | None = None
    created: dt.datetime | None = None

    def is_fresh(self, now: dt.datetime) -> bool:
        """Whether its picture holds without asking the host."""
        return self.image_id is not None and self.fresh_until is not None and now < self.fresh_until

    def waits(self, now: dt.datetime) -> bool:
        """Whether it failed and is not to be tried yet. A clock that was set back by more than the longest wait holds nothing up."""
        return self.next_try is not None and now < self.next_try <= now + LAST

    def validators(self) -> Fetched:
        """What the host is asked about: whether the picture is still this one."""
        return Fetched(None, self.etag or "", self.last_modified or "")

    def fetched(self, answer: Fetched, image_id: str, now: dt.datetime) -> Fetch:
        """After an answer; one without validators keeps those that are known only if nothing has changed."""
        held = LATELY if answer.fresh is None else min(dt.timedelta(seconds=min(answer.fresh, LONGEST.total_seconds())), LONGEST)
        kept = (self.etag, self.last_modified) if answer.content is None else (None, None)
        etag, modified = answer.etag or kept[0], answer.last_modified or kept[1]
        return Fetch(self.address, image_id, etag, modified, fetched_at=now, fresh_until=now + held, created=now)

    def failed(self, reason: str, now: dt.datetime, retry_after: float | None = None) -> Fetch:
        """After a fault: the next try in ten minutes, then twenty, at most a day; later if the host wants that. Its picture is kept."""
        wait = min(FIRST * 2 ** min(self.tries, 10), LAST)
        if retry_after is not None:
            wait = min(max(wait, dt.timedelta(seconds=min(retry_after, LAST.total_seconds()))), LAST)
        return replace(self, failed_at=now, reason=reason, tries=self.tries + 1, next_try=now + wait, created=now)


def read(lake: Lake, addresses: Sequence[str]) -> dict[str, Fetch]:
    """What is known of these addresses."""
    if not addresses:
        return {}
    if not lake.exists(TABLE):
        return {}
    names = lake.open(TABLE).schema.names
    known = changes.rows_of(lake.open(TABLE), "address", pa.array(dict.fromkeys(addresses), pa.string()), names)
    return {row["address"]: Fetch(**{name: row[name] for name in Fetch.__dataclass_fields__}) for row in known.to_pylist()}


def due(lake: Lake, now: dt.datetime) -> bool:
    """Whether an address that failed is to be tried again."""
    when = f"TIMESTAMP '{now.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S}'"
    return lake.exists(TABLE) and lake.open(TABLE).count_rows(filter=f"next_try <= {when}") > 0


def write(lake: Lake, fetches: Iterable[Fetch]) -> None:
    """Keep what is known now, in place of what was."""
    rows = pa.Table.from_pylist([asdict(fetch) for fetch in fetches], schema=SCHEMAS[TABLE])
    if not rows.num_rows:
        return
    if not lake.exists(TABLE):
        lake.append(TABLE, SCHEMAS[TABLE].empty_table())
    lake.open(TABLE).merge_insert(["address"]).when_matched_update_all().when_not_matched_insert_all().execute(rows)
