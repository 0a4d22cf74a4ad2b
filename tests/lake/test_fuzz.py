"""The same rows in every dialect: nothing is lost, nothing ends in a traceback, and CSV, JSON lines and Parquet say the same."""

from __future__ import annotations

import bz2
import contextlib
import csv
import datetime as dt
import gzip
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moon_ops.errors import InputError
from moon_ops.lake import rows, statistics
from moon_ops.lake.checking import check
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.lake.layout import ROW, Refusals, pairs, words
from moon_ops.lake.reading import missing, pictures

NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
SEEDED = settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252")
COMPRESSED = {"": lambda b: b, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": lambda b: pa.compress(b, "zstd", asbytes=True)}

LETTERS = st.sampled_from(list("aZ09 ,;|\t\"'\\/\n.-_äöüéß€"))
TEXTS = st.one_of(st.text(LETTERS, max_size=12), st.sampled_from(missing.WORDS), st.just("lamp"))
SMALL, LARGE, SKUS = (
    st.integers(1, 5),
    st.sampled_from([2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]),
    st.sampled_from(["sku/1", "A-7", "007", "-5", "1.0"]),
)
IDS = (LARGE, st.integers(0, 2**53 - 1), SMALL | st.none(), SKUS | st.none(), SMALL | LARGE | SKUS | st.none())  # of one column
MOMENTS = st.datetimes(*(dt.datetime.fromisoformat(day) for day in ("1990-01-01", "2026-06-10")))
FORMS = (
    lambda t: t.isoformat(),
    lambda t: t.isoformat(" ") + " UTC",
    lambda t: t.isoformat() + "Z",
    lambda t: (t + dt.timedelta(hours=2)).isoformat() + "+02:00",
    lambda t: f"{t:%Y/%m/%d %H:%M:%S}",
    lambda t: str(int(t.replace(tzinfo=dt.UTC).timestamp())),
    lambda t: str(int(t.replace(tzinfo=dt.UTC).timestamp()) * 1000),
)
TIMES = st.one_of(st.tuples(MOMENTS, st.sampled_from(FORMS)).map(lambda p: p[1](p[0])), st.sampled_from(["now", "soon", "", "NULL", "0"]))
PRICES = (
    st.integers(-5, 10**6) | st.none(),
    st.floats(0, 1e6).map(lambda value: round(value, 2)) | st.none(),
    st.integers(0, 9) | st.floats(0, 1e3).map(lambda value: round(value, 2)) | st.sampled_from(["19.99 EUR", "1.234,50 €", "cheap"]),
)
PICTURES = st.sampled_from([None, "a.jpg", "b.jpg|c.jpg"])


def tables(ids: tuple[Any, Any], prices: Any) -> Any:
    """Items and events whose columns are of the kinds chosen: what a column's other cells are decides how a file stores one."""
    items = {"item_id": ids[0], "title": TEXTS, "brand": TEXTS, "price": prices, "seller_id": ids[1], "available_from": TIMES}
    names = st.sampled_from(["click", "view_item", "Purchase", "add to cart", "x", "impression", "refund", "Order Cancelled"])
    events = {"timestamp": TIMES, "item_id": ids[0], "event": names, "user_id": ids[1], "session_id": SMALL | st.none()}
    events |= {"event_id": ids[1], "order_id": ids[1], "position": st.integers(-2, 3) | st.none()}
    events["quantity"] = st.sampled_from(["-1", "0", "2"])
    rows = [
        st.lists(st.fixed_dictionaries(columns), min_size=1, max_size=8)
        for columns in (items | {"colour": TEXTS, "images": PICTURES}, events)
    ]
    return st.fixed_dictionaries({"items": rows[0], "events": rows[1]})


TABLES = st.tuples(st.tuples(st.sampled_from(IDS), st.sampled_from(IDS)), st.sampled_from(PRICES)).flatmap(lambda kinds: tables(*kinds))


def text_of(cell: Any) -> str:
    return "" if cell is None else str(cell)


def as_csv(table: list[dict[str, Any]], delimiter: str, newline: str, capital: bool) -> str:
    out = io.StringIO()
    names = list(table[0])
    writer = csv.writer(out, delimiter=delimiter, lineterminator=newline)
    writer.writerow([n.upper() if capital and n not in ("colour", "quantity") else n for n in names])
    writer.writerows([[text_of(row[n]) for n in names] for row in table])
    return out.getvalue()


def column(cells: list[Any]) -> pa.Array:
    """As pandas would store it: whole numbers with gaps as floats, if that loses nothing; mixed ones as texts."""
    kinds = {type(cell) for cell in cells if cell is not None}
    if kinds == {int} and None in cells and all(c is None or abs(c) < 2**53 for c in cells):
        return pa.array([None if c is None else float(c) for c in cells])
    if kinds == {int} and max(c for c in cells if c is not None) >= 2**63:
        return pa.array(cells, pa.uint64()) if min(c for c in cells if c is not None) >= 0 else pa.array([*map(text_of, cells)])
    if kinds <= {int, float}:
        return pa.array(cells, pa.float64() if float in kinds else None)
    return pa.array([None if c is None else str(c) for c in cells], pa.string())


def brought(place: Path) -> tuple[dict[str, list[dict[str, Any]]], dict[str, set[tuple[int, str]]], dict[str, int], dict[str, int]]:
    """The typed rows, the refused ones by number and column, how many rows each file has, and how many continue an item."""
    refusals = Refusals()
    raw = rows.read_all(place, refusals, now=NOW)
    found = {name: table.to_pylist() for name, table in raw.items()}
    refused: dict[str, set[tuple[int, str]]] = {}
    for one in refusals.rows:
        source, _, number = one["source"].rpartition(":")
        refused.setdefault(source.split(".")[0], set()).add((int(number), one["column"]))
    return found, refused, {name: content.rows for name, content in refusals.contents.items()}, refusals.merged


@SEEDED
@given(
    tables=TABLES,
    delimiter=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(ENCODINGS),
    newline=st.sampled_from(["\n", "\r\n"]),
    ending=st.sampled_from(list(COMPRESSED)),
    capital=st.booleans(),
)
def test_every_dialect_says_the_same_and_loses_nothing(
    tables: dict[str, list[dict[str, Any]]], delimiter: str, encoding: str, newline: str, ending: str, capital: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("csv", "jsonl", "parquet"):
            (Path(folder) / kind).mkdir()
        for name, table in tables.items():
            text = as_csv(table, delimiter, newline, capital)
            (Path(folder) / "csv" / f"{name}.csv{ending}").write_bytes(COMPRESSED[ending](text.encode(encoding)))
            lines = "".join(json.dumps(row) + "\n" for row in table)
            (Path(folder) / "jsonl" / f"{name}.jsonl{ending}").write_bytes(COMPRESSED[ending](lines.encode()))
            columns = {n: column([row[n] for row in table]) for n in table[0]}
            pq.write_table(pa.table(columns), Path(folder) / "parquet" / f"{name}.parquet")
        found = {kind: brought(Path(folder) / kind) for kind in ("csv", "jsonl", "parquet")}
    for kind, (typed, refused, many, merged) in found.items():
        for name, table in tables.items():
            assert many[name] == len(table)
            used = len(typed[name]) + merged.get(name, 0)
            assert used + len(refused.get(name, ())) == len(table), f"{kind}: each row is used, merged or refused, and once"
            assert {row[ROW] for row in typed[name]}.isdisjoint(number for number, _ in refused.get(name, ()))
    assert found["csv"] == found["jsonl"] == found["parquet"]


SHORT = settings(SEEDED, max_examples=8)
KINDS = ("csv", "jsonl", "parquet")
MINUTES = st.integers(0, 3).map(lambda n: f"2026-05-02T10:0{n}:00")
ACTS = st.fixed_dictionaries(
    {
        "timestamp": MINUTES,
        "item_id": st.integers(1, 3),  # the third one is no item
        "event": st.sampled_from(["impression", "click", "purchase", "cancel", "refund"]),
        "user_id": st.sampled_from([1, None]),
        "session_id": st.sampled_from([1, None]),
        "position": st.sampled_from([None, -1, 4]),
        "event_id": st.sampled_from([None, None, "a", "b"]),
        "order_id": st.sampled_from([None, "A-1", "A-2"]),
    }
)


@SHORT
@given(first=st.lists(ACTS, min_size=1, max_size=12), second=st.lists(ACTS, min_size=1, max_size=6), kind=st.sampled_from(KINDS))
def test_every_event_is_new_known_or_refused_however_often_it_comes(
    first: list[dict[str, Any]], second: list[dict[str, Any]], kind: str
) -> None:
    """Duplicated ids, events of nobody, clicks before impressions, undoings, positions below zero: in files, and again in later ones."""
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(f"{folder}/lake")
        for number, events in enumerate((first, second, second)):
            said = []
            for name in KINDS:
                place = Path(folder) / name / str(number)
                place.mkdir(parents=True)
                (place / "items.jsonl").write_text('{"item_id": 1, "title": "coat"}\n{"item_id": 2, "title": "hat"}\n')
                write(place, "events", name, events)
                found = check(place, now=NOW)
                said.append((found.tables["events"], found.behaviour, found.pairs))
            assert said[0] == said[1] == said[2]
            assert said[0][0]["rows"] == sum(said[0][0][fate] for fate in ("new", "twice", "refused")) == len(events)
            report = ingest(Path(folder) / kind / str(number), lake, now=NOW)
            assert report.items + report.events + report.known + sum(report.refused.values()) == 2 + len(events)
            assert number < 2 or report.events == 0, "what came once is known"
        kept, derived = lake.read("events").to_pylist(), statistics.derive(lake)
        assert derived.user_behavior == sum(row["event"] == "click" and row["user_id"] is not None for row in kept)
        assert all(row["purchases"] >= 0 for row in lake.read(statistics.STATS).to_pylist())


def write(place: Path, name: str, kind: str, table: list[dict[str, Any]]) -> None:
    if kind == "csv":
        (place / f"{name}.csv").write_text(as_csv(table, ",", "\n", False))
    elif kind == "jsonl":
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    else:
        pq.write_table(pa.table({n: column([row[n] for row in table]) for n in table[0]}), place / f"{name}.parquet")


@SEEDED
@given(
    content=st.one_of(st.binary(max_size=200), st.text(LETTERS, max_size=200).map(str.encode)),
    name=st.sampled_from(["csv", "jsonl", "tsv", "parquet", "csv.gz"]),
)
def test_any_file_is_read_or_refused_with_a_reason(content: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"items.{name}").write_bytes((b"item_id,title\n" if name == "csv" else b"") + content)
        refusals = Refusals()
        try:
            read = rows.read(Path(folder), "items", refusals)
        except InputError as refused:
            read, said = None, str(refused)
        if read is None:
            assert "→" in said
        else:
            assert read.num_rows + len(refusals.rows) + refusals.merged.get("items", 0) == refusals.contents["items"].rows


@SEEDED
@given(cell=st.recursive(st.one_of(st.none(), TEXTS, st.integers()), lambda inner: st.lists(inner, max_size=3), max_leaves=5))
def test_no_cell_of_pictures_categories_or_attributes_ends_in_a_traceback(cell: Any) -> None:
    assert all(isinstance(name, str) and name for name in pictures.references(cell))
    assert all(isinstance(word, str) for word in words(cell, ">"))
    with contextlib.suppress(ValueError):  # no object
        assert isinstance(pairs(cell), list)
