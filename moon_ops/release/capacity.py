"""What a shop of any size would take, part by part, before there is one: arithmetic on :mod:`moon_ops.recipes.costs`, nothing is run.

Every line says where its figure comes from. *measured*: a straight line through sizes that were measured, on one core of the processor in
``models/costs.toml``. *computed*: bytes and operations that follow from the shapes. *assumed*: a figure that the reader gave.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from moon_ops.embeddings import index_codes
from moon_ops.embeddings.index_kinds import EXACT_UP_TO
from moon_ops.errors import InputError
from moon_ops.recipes.costs import Costs
from moon_ops.settings import MOST as SETTINGS_MOST
from moon_ops.settings import RANGES

MEASURED, COMPUTED, ASSUMED = "measured", "computed", "assumed"
NUMBER = 4  # bytes of a number of a vector in the lake
GIB = 2**30
MOST = 1e15  # of anything
DAYS_A_MONTH, HOUR = 30.0, 3600.0
NEW, COVERED = 1000, 60  # items of an increment, and days of a log, in what was measured
FORWARD, TRAINED = 2, 6  # operations a parameter and token: of a forward pass; of one with its gradients


@dataclass(frozen=True)
class Shop:
    """The size: ``items``, ``events`` in the log, which covers so many ``days``; pictures an item and KiB of one."""

    items: float
    events: float
    days: float = 365.0
    pictures: float = 2.0
    picture_kb: float = 60.0
    purchases: float = 0.003  # share of the events

    @property
    def daily(self) -> float:
        """Events of a day."""
        return self.events / self.days


@dataclass(frozen=True)
class Means:
    """The encoder and the machines. ``tokens``: of an item with its pictures; ``gpu_tflops``: what a GPU can do, ``utilisation``: the share
    of it that a training reaches; ``new``: share of the items that is new or changed on a day; ``retrained``: days between two trainings.
    """

    dim: float = 128
    versions: float = 3
    index_gb: float = 2.0
    parameters: float = 256e6
    tokens: float = 200.0
    gpu_tflops: float = 989.0
    utilisation: float = 0.4
    new: float = 0.01
    retrained: float = 30.0


@dataclass(frozen=True)
class Prices:
    """Of an hour of a GPU, an hour of a core, and a month of 10^9 bytes on disk, in any currency; 0: not given."""

    gpu_hour: float = 0.0
    core_hour: float = 0.0
    gb_month: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """A part: core-hours and GPU-hours of one run, GiB of memory of its largest process, GiB on disk, runs a day, and what it rests on."""

    part: str
    rests_on: str
    core_hours: float = 0.0
    gpu_hours: float = 0.0
    memory: float = 0.0
    disk: float = 0.0
    a_day: float = 0.0
    note: str = ""

    def daily(self, prices: Prices) -> float:
        """Cost of a day: its runs, and a thirtieth of a month on disk."""
        runs = self.a_day * (self.core_hours * prices.core_hour + self.gpu_hours * prices.gpu_hour)
        return runs + self.disk * GIB / 1e9 * prices.gb_month / DAYS_A_MONTH


Filled = TypeVar("Filled", Shop, Means, Prices)


def estimates(shop: Shop, means: Means, costs: Costs) -> list[Estimate]:
    """Every part of the machine for the shop; :class:`InputError` for a size that is none."""
    for where in (shop, means):
        for name, value in vars(where).items():
            if not 0 < value <= MOST:
                raise InputError(f"{name} = {value:g} must be above 0, and at most {MOST:g}", action="correct the option of this name")
    if means.dim % 1 or means.index_gb < RANGES["index_gb"][0]:
        raise InputError(
            f"dim = {means.dim:g} must be a whole number, and index_gb = {means.index_gb:g} at least {RANGES['index_gb'][0]:g}",
            action="correct --means",
        )
    if means.utilisation > 1 or means.new > 1 or shop.purchases > 1:
        raise InputError("utilisation, new and purchases are shares: at most 1", action="correct the option")
    return [*_lake(shop, means, costs), *_encoder(shop, means), *_vectors(shop, means, costs), _clicks(shop, costs)]


def _lake(shop: Shop, means: Means, costs: Costs) -> Iterator[Estimate]:
    yield Estimate("pictures", ASSUMED, disk=shop.items * shop.pictures * shop.picture_kb * 1024 / GIB)
    lately = min(shop.events, shop.daily * COVERED)  # what one process sees at once, if a longer log is brought in parts
    runs = {"ingest": (0.0, f"once, at most {COVERED} days a directory"), "derive": (0.0, "once"), "night": (1.0, "a day's events")}
    runs["increment"] = (shop.items * means.new / NEW, f"{NEW:,} items new or changed")
    for part, (a_day, note) in runs.items():
        cost = getattr(costs, part)
        seconds = cost.of("seconds", shop.items, shop.daily * COVERED if part == "night" else shop.events)
        disk = cost.of("disk", shop.items, shop.events) / 1024 if not a_day else 0.0
        memory = cost.of("memory", shop.items, lately) / 1024
        yield Estimate(part, MEASURED, seconds / HOUR, memory=memory, disk=disk, a_day=a_day, note=note)


def _encoder(shop: Shop, means: Means) -> Iterator[Estimate]:
    """Operations by 2 and 6 of a parameter and token (Kaplan et al. 2020, 2001.08361, section 2.1)."""
    hour = means.gpu_tflops * 1e12 * means.utilisation * HOUR
    a_token = means.parameters * means.tokens
    pairs = shop.events * shop.purchases
    trained = pairs * 2 * TRAINED * a_token / hour
    yield Estimate("training", COMPUTED, gpu_hours=trained, a_day=1 / means.retrained, note=f"once over {pairs:.3g} purchases")
    whole = shop.items * FORWARD * a_token / hour
    yield Estimate("embedding", COMPUTED, gpu_hours=whole, a_day=1 / means.retrained, note="all items, after a training")
    yield Estimate("embedding, daily", COMPUTED, gpu_hours=whole * means.new, a_day=1.0, note=f"{means.new:.3g} of the items")


def _vectors(shop: Shop, means: Means, costs: Costs) -> Iterator[Estimate]:
    vector = means.dim * NUMBER
    kept = shop.items * vector * means.versions / GIB
    yield Estimate("vectors", COMPUTED, disk=kept, note=f"{means.versions:g} versions of {means.dim:g} numbers")
    hours, memory, online = (costs.publish.of(what, shop.items, shop.events) for what in ("seconds", "memory", "disk"))
    redis = f"all of it once, to SQLite; Redis takes {shop.items * (costs.redis + vector) / GIB:,.3g} GiB of memory instead"
    table = shop.items * vector / GIB
    yield Estimate("publish", MEASURED, hours / HOUR, memory=memory / 1024, disk=online / 1024 + table, note=redis)
    limit = int(means.index_gb * 1e9)
    kind = index_codes.plan(int(shop.items), int(means.dim), limit, EXACT_UP_TO)
    whole = shop.items * kind.item_bytes
    shards = max(1, -(-int(whole) // limit))
    more = f", {shards:,} shards (MOON_INDEX_SHARDS): more than MOON_INDEX_GB allows" if shards > 1 else ""
    if shards > SETTINGS_MOST["index_shards"]:
        more += f", and beyond the {SETTINGS_MOST['index_shards']:,} that can be: give index_gb more"
    note = f"{kind.kind}, {kind.code} bytes a code{more}"
    hours, disk = costs.index.of("seconds", shop.items, shop.events) / HOUR, (whole + shop.items * vector) / GIB
    yield Estimate("index", MEASURED, hours, memory=whole / shards / GIB, disk=disk, a_day=1.0, note=note)


def _clicks(shop: Shop, costs: Costs) -> Estimate:
    note = "one pass over all events as rows, at most"
    return Estimate("click model", MEASURED, shop.events / costs.click_rows / HOUR, a_day=1.0, note=note)


def given(default: Filled, option: str, text: str) -> Filled:
    """A default with the values of ``name=number,…``; :class:`InputError` for a name that it lacks or a value that is no number."""
    found: dict[str, float] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = word.partition("=")
        try:
            amount = found[name.strip()] = float(value)
        except ValueError:
            raise InputError(f"--{option} {word!r} is no name=number", action=f"write e.g. {_names(default)[0]}=1") from None
        if name.strip() not in _names(default):
            raise InputError(f"--{option} knows no {name!r}", action=f"name one of {', '.join(_names(default))}")
        if not 0 <= amount <= MOST:
            raise InputError(f"--{option} {word!r} must be from 0 to {MOST:g}", action="correct the number")
    return replace(default, **found)


def _names(of: Filled) -> list[str]:
    return [field.name for field in fields(of) if field.name not in ("items", "events")]  # these have options of their own
