"""Dealing parts: two workers of a Ray cluster end with the rows of one process, also when one of them is killed in the middle."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from feast import FeatureService

from moon_ops import dealing, pieces
from moon_ops.ctr.impressions import shown
from moon_ops.dealing import Deal, dealer, here, on_ray
from moon_ops.embeddings import as_of, features
from moon_ops.encoder import pairs
from moon_ops.encoder.pairs import behaviour
from moon_ops.errors import InputError, ServiceError, SettingsError
from moon_ops.lake import counting, event_log, statistics
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS
from moon_ops.lake.statistics import TABLES, derive
from moon_ops.recipes.caps import Caps, Most
from moon_ops.settings import Settings

MAY, DAY = dt.datetime(2026, 5, 1, tzinfo=dt.UTC), dt.timedelta(days=1)
ITEMS, USERS, QUERIES, DAYS = 30, 40, 200, 12
TIGHT = Caps(visitor=12, visitor_item=3, nobody_item=6, impressions=2)
KINDS, SHARES = ("impression", "click", "cart", "purchase", "return"), (0.6, 0.2, 0.06, 0.09, 0.05)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Two workers on this machine, no nicer than others: beside other tests they would hardly ever have a core."""
    path, alike = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}, {"worker_niceness": 0}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=path, _system_config=alike)
    yield
    ray.shutdown()


def events(count: int, seed: int, start: float, days: float) -> pa.Table:
    """Drawn at random, and not in the order of time."""
    drawn = np.random.default_rng(seed)
    columns: dict[str, Any] = {
        "event_timestamp": [MAY + float(day) * DAY for day in start + np.round(drawn.random(count) * days, 3)],
        "user_id": pa.array(drawn.integers(0, USERS, count), mask=drawn.random(count) < 0.1),
        "item_id": drawn.integers(0, ITEMS, count),
        "query_id": pa.array(drawn.integers(0, QUERIES, count), mask=drawn.random(count) < 0.2),
        "event": drawn.choice(KINDS, count, p=SHARES),
        "session_id": pa.array(drawn.integers(0, 60, count), mask=drawn.random(count) < 0.3),
    }
    missing = {f.name: pa.nulls(count, f.type) for f in SCHEMAS["events"] if f.name not in columns}
    return pa.table(columns | missing).select(SCHEMAS["events"].names).cast(SCHEMAS["events"])


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Twelve days of a shop in which things are sent back. Do not write into it."""
    lake = Lake(str(tmp_path_factory.mktemp("dealt") / "lake"))
    told = {"status": "active", "content_hash": "h", "event_timestamp": MAY, "created": MAY}
    items = [{"item_id": n, "spu_id": n // 2, "title": f"mug {n}", "category": ["A", f"B{n % 3}"], **told} for n in range(ITEMS)]
    lake.append("items", pa.Table.from_pylist(items, schema=SCHEMAS["items"]))
    asked = [{"query_id": n, "text": f"mug {n % 50}", "event_timestamp": MAY} for n in range(QUERIES)]
    lake.append("queries", pa.Table.from_pylist(asked, schema=SCHEMAS["queries"]))
    lake.append("events", events(2500, 0, 0, DAYS))
    lake.append("events", events(500, 1, 0, DAYS))
    return lake


@pytest.fixture
def copy(filled: Lake, tmp_path: Path) -> Callable[[str], Lake]:
    """The lake at another place, to write into."""
    return lambda name: Lake(str(shutil.copytree(filled.uri, tmp_path / name / "lake")))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardly any events are many; who deals decides what a part is, so workers need not know."""
    monkeypatch.setattr(event_log, "AT_ONCE", 400)
    monkeypatch.setattr(counting, "AT_ONCE", 500)
    monkeypatch.setattr(pieces, "LONG", 700)
    monkeypatch.setattr(pieces, "AT_ONCE", 256)


def once(mark: Path, make: Callable[[Any], Any], part: Any) -> Any:
    """What is made of a part, by a worker that is killed before it can say so, the first time."""
    made = make(part)
    try:
        mark.touch(exist_ok=False)
        os.kill(os.getpid(), signal.SIGKILL)
    except FileExistsError:
        pass
    return made


def deadly(mark: Path) -> Deal:
    """Two workers, of whom one is killed when it has made a part."""
    return lambda make, parts: on_ray(2)(partial(once, mark, make), parts)


def test_statistics_are_the_same_also_after_a_night(copy: Callable[[str], Lake], tmp_path: Path) -> None:
    alone, dealt, mark = copy("alone"), copy("dealt"), tmp_path / "killed"
    for lake, deals in ((alone, (here, here)), (dealt, (deadly(mark), on_ray(2)))):
        derive(lake, caps=TIGHT, deal=deals[0])
        lake.append("events", events(150, 2, DAYS - 2, 4))
        derive(lake, caps=TIGHT, deal=deals[1])
    assert mark.exists()
    for name in TABLES[:3]:
        rows = alone.read(name)
        assert rows.num_rows > 10
        assert dealt.read(name).equals(rows), name
        assert dealt.open(name).schema.equals(alone.open(name).schema, check_metadata=True)


def test_what_parts_have_written_is_in_no_table_until_all_have(copy: Callable[[str], Lake]) -> None:
    lake = copy("there")
    derive(lake, caps=TIGHT)
    before, seen = lake.read(statistics.BEHAVIOR), list[bool]()

    def looking(make: Callable[[Any], Any], parts: Iterable[Any]) -> Iterator[Any]:
        for made in here(make, parts):
            seen.append(lake.read(statistics.BEHAVIOR).equals(before))
            yield made

    derive(lake, caps=Caps(visitor=2), deal=looking)
    assert len(seen) > 4
    assert all(seen)
    assert lake.count(statistics.BEHAVIOR) < before.num_rows


def test_pairs_are_the_same_whoever_reads_the_events(filled: Lake) -> None:
    until, excepted = MAY + 10.5 * DAY, (MAY + 3.2 * DAY, MAY + 4 * DAY)
    make = partial(behaviour, filled, until, Caps(visitor=2), Most(visitor=20, item=15), excepted)
    alone, dealt = make(), make(deal=on_ray(2))
    assert len(alone) > 100
    assert {"except_between", "undone", "visitor", "most.item"} <= set(alone.left_out)
    for field in fields(pairs.Pairs):
        one, other = getattr(alone, field.name), getattr(dealt, field.name)
        assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other, field.name


def test_impressions_and_what_was_known_of_them_are_the_same(copy: Callable[[str], Lake], tmp_path: Path) -> None:
    lake = copy("home")
    derive(lake, caps=TIGHT)
    things = features.definitions(lake, [])
    store = features.open_store(Settings(home=tmp_path / "home"))
    views = [thing for thing in things if hasattr(thing, "batch_source")]
    features.apply(store, tmp_path / "home", [*things, FeatureService(name="ctr_v0", features=views)])
    service, found = features.service(store, 0), list[as_of.Joined]()
    for deal in (here, deadly(tmp_path / "killed")):
        rows = shown(lake, MAY + DAY, MAY + 11.5 * DAY, rule=TIGHT, deal=deal)
        found.append(as_of.join(store, rows.rows, service, deal=deal))
        assert rows.counts["clicks"] > 50
        assert rows.rows.num_rows > 500
    assert (tmp_path / "killed").exists()
    alone, dealt = found
    assert alone.rows.equals(dealt.rows)
    assert alone.table().equals(dealt.table())
    assert all((alone.at[name] >= 0).any() and alone.at[name].dtype == dealt.at[name].dtype for name in alone.at)


def refuse(part: int) -> int:
    """A fault of what was brought, or of ours."""
    if part == 3:
        raise InputError("price = -1 is below 0", action="mend the file")
    return {0: 1, 1: 2, 2: 3, 4: 5}[part]


def test_an_error_of_a_part_is_raised_as_it_is() -> None:
    made = on_ray(2)(refuse, range(5))
    assert [next(made) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(InputError) as told:
        next(made)
    assert type(told.value) is InputError
    assert (told.value.problem, told.value.action) == ("price = -1 is below 0", "mend the file")
    with pytest.raises(KeyError, match="7"):
        list(on_ray(2)(refuse, [0, 7]))


def refuses(mark: Path, make: Callable[[Any], Any], part: Any) -> Any:
    raise InputError(f"{mark.name} is no shop", action="bring another one")


def test_an_error_of_a_part_passes_through_what_writes_a_table(copy: Callable[[str], Lake], tmp_path: Path) -> None:
    """Lance asks for rows from within, and would make a text of it; nothing is committed."""
    lake = copy("there")
    derive(lake, caps=TIGHT)
    before = lake.open(statistics.STATS).version
    for deal in (here, on_ray(2)):
        refusing = lambda make, parts, deal=deal: deal(partial(refuses, tmp_path, make), parts)  # noqa: E731
        with pytest.raises(InputError, match=f"{tmp_path.name} is no shop → bring another one"):
            derive(lake, caps=Caps(visitor=5), deal=refusing)
    assert lake.open(statistics.STATS).version == before


def test_parts_are_asked_for_when_there_is_somebody_to_work_on_them() -> None:
    asked = list[int]()
    parts = (asked.append(n) or n for n in range(50))  # type: ignore[func-returns-value]
    made = on_ray(2)(str, parts)
    assert [next(made), next(made)] == ["0", "1"]
    assert len(asked) == 2 * dealing.AHEAD + 1
    assert list(made) == [str(n) for n in range(2, 50)]


def few(part: int) -> int | None:
    return dealing.threads()


def test_a_worker_has_neighbours_and_one_process_has_none() -> None:
    """DuckDB would start a thread for each core of the machine, in each of its workers."""
    assert list(on_ray(2)(few, range(2))) == [1, 1]
    assert list(here(few, range(2))) == [None, None]


def die(part: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_part_that_kills_every_worker_ends_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dealing, "RETRIES", 0)
    with pytest.raises(ServiceError, match=r"the Ray cluster gave up \(.*\) → see Ray's logs, and run the command again: nothing is lost"):
        list(on_ray(2)(die, range(2)))


def test_one_part_needs_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert list(on_ray(2)(str, [1])) == ["1"]
    assert list(on_ray(2)(str, [])) == []
    with pytest.raises(SettingsError, match=r"moon_ops\[ray\]"):
        list(on_ray(2)(str, [1, 2]))


def test_the_engine_is_a_setting() -> None:
    assert dealer("local", 2) is here
    assert Settings().deal is here
    assert Settings(engine="ray").deal is not here
    with pytest.raises(SettingsError, match="MOON_ENGINE = 'spark' is not one of local, ray → set MOON_ENGINE to one of these"):
        Settings(engine="spark")
    with pytest.raises(InputError, match="engine 'spark' is not known → choose local or ray"):
        dealer("spark", 2)


def test_of_several_pieces_of_advice_the_line_before_them_is_told() -> None:
    assert dealing._line(RuntimeError("Traceback\n  here\nValueError: no")) == "ValueError: no"
    assert dealing._line(ConnectionError("nobody is there\n1. Start one.\n2. Set RAY_ADDRESS instead")) == "nobody is there"
    assert dealing._line(RuntimeError()) == "RuntimeError"


def test_an_address_at_which_nobody_answers_is_said_at_once() -> None:
    """Ray's own try takes a minute and a half; an address that is not of this form is Ray's to judge."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "127.0.0.1:99999"):
        with pytest.raises(ServiceError, match=f"RAY_ADDRESS = '{address}' does not answer"):
            dealing._reach(address)
    with socket.socket() as open_one:
        open_one.bind(("127.0.0.1", 0))
        open_one.listen()
        dealing._reach(f"127.0.0.1:{open_one.getsockname()[1]}")
    for other in ("auto", "local", ""):
        dealing._reach(other)
