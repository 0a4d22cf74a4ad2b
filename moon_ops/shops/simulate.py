"""The simulated shop: the data set that every part of the pipeline can be tried on without anybody's data.

Writes the ingest layout, as any shop would bring it, and never the lake::

    out/
      README.md            which shop this is
      items.parquet        queries.parquet        events.parquet
      images/items/<item_id>_<view>.jpg           studio pictures
      images/queries/<query_id>.jpg               users' photographs
      oracle.parquet       the true click probabilities; no training code reads it

The same arguments give the same bytes, with any number of workers. The same shop with more days begins with exactly the
same days and goes on. A killed run is repeated: pictures that exist are kept, and tables appear last, only when whole.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
from tqdm import tqdm

from moon_ops.errors import InputError
from moon_ops.files import is_claimed, put, write_text
from moon_ops.shops.simulated import tables
from moon_ops.shops.simulated.behaviour import KINDS, Day, live
from moon_ops.shops.simulated.catalogue import Catalogue, stock
from moon_ops.shops.simulated.parameters import SHOP_VERSION, ShopSize
from moon_ops.shops.simulated.pictures import PHOTOGRAPHERS, draw_missing
from moon_ops.shops.simulated.sessions import Shelves
from moon_ops.shops.simulated.users import population

SIZES = {
    "tiny": ShopSize(items=120, users=80, impressions=4_000, days=20),  # for tests: a second or two
    "demo": ShopSize(items=3_000, users=3_000, impressions=150_000, days=60),  # under a minute
    "busy": ShopSize(items=3_000, users=10_000, impressions=1_500_000, days=60),  # the demo's catalogue, ten times the behaviour
    "large": ShopSize(items=100_000, users=100_000, impressions=5_000_000, days=90),  # a coffee break
}
_SCHEMAS = {
    "items": tables.ITEMS,
    "queries": tables.QUERIES,
    "events": tables.EVENTS,
    "oracle": tables.ORACLE,
}


@dataclass(frozen=True)
class SimulateReport:
    """What a simulated shop holds. ``image_purchases`` came after an image query; ``pictures`` counts both kinds."""

    out: Path
    size: str
    seed: int
    days: int
    items: int
    spus: int
    users: int
    queries: int
    image_queries: int
    impressions: int
    clicks: int
    carts: int
    purchases: int
    image_purchases: int
    pictures: int


def simulate(
    out: Path,
    *,
    size: str = "demo",
    seed: int = 0,
    days: int | None = None,
    workers: int | None = None,
    photographer: str = "known",
) -> SimulateReport:
    """Write a shop of ``size`` (see ``SIZES``) into directory ``out``, in the ingest layout.

    ``days`` replaces the size's usual length; a longer shop begins with the same days. ``workers`` is the number of
    processes that draw (``None``: one per core, or none for a small shop). They are spawned, so a script must call this
    under ``if __name__ == "__main__":``. ``photographer`` takes the users' photographs: ``known`` does much what an encoder's training
    practises on pictures of items, ``unknown`` (:mod:`~moon_ops.shops.simulated.camera`) what it has never seen. All else is the same.

    Raises :class:`InputError` for an unknown size or photographer, fewer than 2 days, a negative seed, fewer than 1 worker, and an
    ``out`` that is a file or holds anything but this very shop.
    """
    shop = _checked(size, seed, days, workers, photographer)
    days = shop.days if days is None else days
    out = Path(out)
    _claim(out, size=size, seed=seed, days=days, photographer=photographer)
    catalogue = stock(shop, seed=seed, days=days)
    with _new_tables(out) as writers:
        writers["items"].write_table(tables.items_table(catalogue.items))
        story = _live_all(catalogue, shop, writers, seed=seed, days=days)
        pictures = draw_missing(catalogue.items, story.photographs, out, seed=seed, workers=workers, photographer=photographer)
    return SimulateReport(
        out=out,
        size=size,
        seed=seed,
        days=days,
        items=len(catalogue.items),
        spus=catalogue.items[-1].product.spu_id,
        users=shop.users,
        pictures=pictures,
        **story.told(),
    )


def _checked(size: str, seed: int, days: int | None, workers: int | None, photographer: str) -> ShopSize:
    if photographer not in PHOTOGRAPHERS:
        raise InputError(f"photographer {photographer!r} is not known here", action=f"choose one of {', '.join(PHOTOGRAPHERS)}")
    if size not in SIZES:
        raise InputError(f"size {size!r} is not a size of the simulated shop", action=f"choose one of {', '.join(SIZES)}")
    if days is not None and days < 2:
        raise InputError(f"days={days} leaves nothing to hold out for an evaluation", action="give days of at least 2")
    if seed < 0:
        raise InputError(f"seed={seed} is negative", action="give a seed of 0 or more")
    if workers is not None and workers < 1:
        raise InputError(f"workers={workers} cannot draw anything", action="give workers of at least 1, or leave it out")
    return SIZES[size]


def _claim(out: Path, *, size: str, seed: int, days: int, photographer: str) -> None:
    """Make ``out`` this shop's directory, or refuse: pictures of another shop would be kept as if they were right."""
    who = "" if photographer == "known" else f", photographer {photographer}"
    identity = f"Simulated shop, version {SHOP_VERSION}, size {size}, seed {seed}{who}."
    if out.exists() and not out.is_dir():
        raise InputError(f"out={out} is a file, and the shop needs a directory", action="give another path")
    readme = out / "README.md"
    found = readme.read_text(encoding="utf-8").splitlines()[:1] if readme.is_file() else []
    if found != [identity] and is_claimed(out, readme.name):
        raise InputError(
            f"out={out} holds something else ({found[0] if found else 'no README.md of a simulated shop'})",
            action=f"give an empty directory for size {size}, seed {seed}",
        )
    out.mkdir(parents=True, exist_ok=True)
    _write_readme(readme, identity, days)


def _write_readme(readme: Path, identity: str, days: int) -> None:
    text = f"""{identity}
{days} days from {tables.START:%Y-%m-%d}. Made by `moon simulate`; nothing here is about a real person or product.

- `items`, `queries`, `events` (.parquet) and `images/`: the ingest layout. A session has one query, with the same id.
- `oracle.parquet`: the true click probability of every impression. For judging models, never for training them.
"""
    write_text(readme, text)


@contextmanager
def _new_tables(out: Path) -> Iterator[dict[str, pq.ParquetWriter]]:
    """A Parquet writer for each table. Files get their names when all went well, so a table that exists is whole."""
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(pq.ParquetWriter(out / f"{name}.partial", schema, compression="zstd"))
            for name, schema in _SCHEMAS.items()
        }
        yield writers
    for name in _SCHEMAS:
        put(out / f"{name}.partial", out / f"{name}.parquet")


@dataclass
class _Story:
    """What the days left behind: counts for the report, and the query ids for each photographed item id."""

    counts: Counter[str] = field(default_factory=Counter)
    photographs: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))

    def told(self) -> dict[str, int]:
        """The counts by their names in the report."""
        kinds = ("impression", "click", "cart", "purchase", "image_purchase")
        queries = {"queries": self.counts["query"], "image_queries": self.counts["image_query"]}
        return queries | {f"{kind}s": self.counts[kind] for kind in kinds}

    def add(self, day: Day, first_id: int) -> None:
        kinds = day.events.kind
        self.counts.update({kind: int((kinds == code).sum()) for code, kind in enumerate(KINDS)})
        bought = day.events.impression[kinds == KINDS.index("purchase")]
        by_image = day.visits.by_image
        self.counts["image_purchase"] += int(by_image[day.impressions.session[bought]].sum())
        self.counts["query"] += len(by_image)
        self.counts["image_query"] += int(by_image.sum())
        for session in by_image.nonzero()[0].tolist():
            self.photographs[int(day.visits.photographed[session]) + 1].append(first_id + session)


def _live_all(catalogue: Catalogue, shop: ShopSize, writers: dict[str, pq.ParquetWriter], *, seed: int, days: int) -> _Story:
    """Simulate and write one day after the other: a day is a row group, and no more than one is held in memory."""
    shelves, users, story = Shelves(catalogue), population(shop, seed=seed), _Story()
    first_id = 1
    for number in tqdm(range(days), unit="day", desc="behaviour"):
        day = live(shelves, users, shop, seed=seed, day=number)
        writers["queries"].write_table(tables.queries_table(day, catalogue.items, first_id=first_id, seed=seed))
        writers["events"].write_table(tables.events_table(day, first_id=first_id))
        writers["oracle"].write_table(tables.oracle_table(day, first_id=first_id))
        story.add(day, first_id)
        first_id += len(day.visits.user)
    return story
