"""New items while the service runs: accepted into the lake at once, embedded and published in the background within seconds.

The same stages as the DAG's, so it does not matter who is first: an item that this process accepts and does not live to embed is the next
``moon_new_items``' work.
"""

from __future__ import annotations

import base64
import datetime as dt
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictFloat, StrictInt, StrictStr

from moon_ops.embeddings import produce
from moon_ops.errors import InputError, MoonError
from moon_ops.inputs.images import MAX_BYTES
from moon_ops.lake.ingest import IngestReport
from moon_ops.publication import publication, sharing
from moon_ops.serving.follower import Follower
from moon_ops.serving.taking import Fill, require_some, take, whole, write_rows
from moon_ops.settings import Settings

log = logging.getLogger(__name__)
AGAIN_SECONDS = 5.0  # after a fault
PATIENCE = 5.0  # seconds that a request waits for `moon ingest` or `moon maintain`: each one waiting holds a thread of the service
MOST = 200  # items in a request
MAX_TEXT = 100_000  # characters; an encoder reads a few dozen tokens


Id = Annotated[StrictInt | StrictStr, BeforeValidator(whole)]  # the ingestion says what else is no id
Extra = StrictStr | StrictInt | StrictFloat | list[StrictStr]


class NewItem(BaseModel):
    """An item with the columns of docs/shop.md; its pictures are given in base64, and columns of the shop's own in ``extra``."""

    model_config = ConfigDict(extra="forbid")
    item_id: Id
    title: Annotated[str, Field(max_length=MAX_TEXT)]
    spu_id: Id | None = None
    category: str | None = None
    brand: str | None = None
    description: Annotated[str, Field(max_length=MAX_TEXT)] | None = None
    attributes: dict[str, str] | None = None
    seller_id: Id | None = None
    price: float | None = None
    status: str | None = None
    extra: dict[str, Extra] | None = None  # columns of the shop's own
    images: list[Annotated[str, Field(max_length=MAX_BYTES * 4 // 3 + 4)]] = Field([], max_length=20)


class Intake:
    """Takes items in, and keeps a thread that makes them searchable."""

    waiting = "new items wait"  # while the refresh fails

    def __init__(self, settings: Settings, follower: Follower) -> None:
        self.settings, self.follower = settings, follower
        self.fault = ""  # of the last refresh; empty if it went well
        self._work, self._stop, self._started = threading.Event(), threading.Event(), threading.Lock()

    def start(self) -> None:
        """Refresh in the background until :meth:`stop`; what an earlier process left undone is done first. Again: refresh now."""
        self._work.set()
        if self._started.acquire(blocking=False):  # for good: there is one thread
            threading.Thread(target=self._loop, name="refresh", daemon=True).start()

    def stop(self) -> None:
        """Stop after the present refresh."""
        self._stop.set()
        self._work.set()

    def accept(self, items: Sequence[NewItem], now: dt.datetime) -> IngestReport:
        """Commit the items to the lake; :class:`InputError` with the reason if none of them can be used,
        :class:`~moon_ops.errors.ServiceError` if others keep the lake busy.
        """

        def fill(folder: Path) -> None:
            write_rows(folder / "items.jsonl", [row(folder, number, item) for number, item in enumerate(items)])

        with self.settings.lake.pushing(PATIENCE):
            return self.taken(fill, "item", now)

    def taken(self, fill: Fill, what: str, now: dt.datetime) -> IngestReport:
        """Commit what ``fill`` writes, rows of ``what``, and have it handed over."""
        report = take(self.settings, fill, now, PATIENCE)
        require_some(report, what)
        self.start()
        return report

    def refresh(self, now: dt.datetime) -> bool:
        """Embed and publish what is new under the champion; whether there was anything."""
        champion = self.follower.current
        if champion is None:
            return False
        lake = self.settings.lake
        made = produce.embed(lake, champion.runtime, champion.encoder, now=now, workers=self.settings.workers)
        if not made.looked_at and sharing.is_current(self.settings, champion.encoder, now):
            return False
        publication.publish(self.settings, champion.encoder, now=now, behaviour=False)
        self.follower.refresh()
        return True

    def _loop(self) -> None:
        while True:
            self._work.wait()
            if self._stop.is_set():
                return
            self._work.clear()  # before the lake is read: what is accepted meanwhile wakes us again
            try:
                self.refresh(dt.datetime.now(dt.UTC))
                self.fault = ""
            except Exception as fault:  # the service goes on, and so does the next attempt
                self.fault = f"{self.waiting}: {fault}"
                log.error(self.fault, exc_info=not isinstance(fault, MoonError))
                self._stop.wait(AGAIN_SECONDS)
                self._work.set()


def row(folder: Path, number: int, item: NewItem) -> dict[str, Any]:
    """The item's row in the ingest layout, with its pictures written beside it."""
    names = pictures(folder, number, item.images, f"items[{number}].images")
    told = item.model_dump(exclude_none=True, exclude={"extra"}) | {"images": names}
    if taken := sorted(set(item.extra or {}) & set(NewItem.model_fields)):
        raise InputError(f"items[{number}].extra.{taken[0]} is a standard column", action=f"send it as items[{number}].{taken[0]}")
    return (item.extra or {}) | told


def pictures(folder: Path, number: int, images: Sequence[str], field: str) -> list[str]:
    """Write pictures that a request has in base64 into ``folder``; their names. :class:`InputError` names the ``field`` of what is none."""
    names = []
    for place, content in enumerate(images):
        try:
            picture = base64.b64decode(content, validate=True)
        except ValueError as broken:
            raise InputError(f"{field}[{place}] is not base64 ({broken})", action="send the picture's bytes") from broken
        names.append(f"{number}-{place}")
        (folder / names[-1]).write_bytes(picture)
    return names
