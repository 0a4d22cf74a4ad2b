"""Shops with a log of events of each kind that there is, with rows that are no good and rows that come twice."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from moon_ops.lake import ids

Rows: TypeAlias = list[dict[str, Any]]
NOW, MAY = dt.datetime(2026, 6, 1, tzinfo=dt.UTC), dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
ERASED = "u-erased"


BAD = (  # row, column and cell
    *((11, "user_id", "-4"), (12, "timestamp", "soon"), (13, "event", "dance"), (13, "session_id", "-1"), (23, "item_id", "")),
    *((24, "item_id", "no such item"), (25, "position", "1.5"), (26, "position", "-2"), (35, "position", "many"), (36, "query_id", "q-9")),
    *((37, "timestamp", "1970-01-01"), (38, "timestamp", "2027-01-01"), (95, "position", "-7"), (96, "timestamp", "never")),
    *((97, "event", "sing"), (120, "item_id", "nor this"), (121, "user_id", "-9"), (122, "position", "a few")),
)


def log_of(count: int = 150, seed: int = 0) -> Rows:
    """Events with ids that are texts, nearly in the order of time: some come twice, some are no good, also at the edges of pieces."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        row = {"timestamp": f"{MAY + dt.timedelta(minutes=7 * number - 40 * (number % 11 == 5)):%Y-%m-%dT%H:%M:%SZ}"}
        row |= {"user_id": rng.choice(("u-1", "u-2", ERASED, "77", "")), "item_id": rng.choice(("hat", "coat", "12"))}
        row |= {"event": rng.choice(("impression", "view_item", "purchase")), "query_id": rng.choice(("q-1", ""))}
        row |= {"session_id": f"s{number // 9}", "position": rng.choice(("1", "", "3")), "color": rng.choice(("red", ""))}
        found.append(row)
    for number, column, cell in BAD:
        found[number][column] = cell
    return [*found, *found[30:40], *found[100:104]]


def told(rows: Rows, column: str, every: int, name: Callable[[int], str]) -> Rows:
    """The rows with a column that some of them have."""
    return [{**row, column: name(number) if number % every == 0 else ""} for number, row in enumerate(rows)]


def catalogue(place: Path) -> Path:
    place.mkdir()
    items = {"item_id": ["hat", "coat", "12"], "title": ["a", "b", "c"], "price": [1.0, None, 2.0]}
    pq.write_table(pa.table(items), place / "items.parquet")
    pq.write_table(pa.table({"user_id": ["u-1", "u-2"], "tier": ["gold", "tin"]}), place / "users.parquet")
    pq.write_table(pa.table({"query_id": ["q-1"], "timestamp": [MAY], "text": ["a hat"]}), place / "queries.parquet")
    return place


def as_csv(place: Path, rows: Rows, delimiter: str = ",") -> None:
    with place.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def as_json(place: Path, rows: Rows) -> None:
    cells = [{name: int(cell) if name == "position" and cell.isdecimal() else cell for name, cell in row.items() if cell} for row in rows]
    place.write_text("".join(json.dumps(row) + "\n" for row in cells), "utf-8")


def as_parquet(place: Path, rows: Rows, **kinds: pa.DataType) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in rows[0]])
    cells = [{name: None if cell == "" else cell for name, cell in row.items()} for row in rows]
    pq.write_table(pa.Table.from_pylist(cells, schema=schema), place, row_group_size=40)


def by_day(place: Path, rows: Rows) -> None:
    days: dict[str, Rows] = {}
    for row in rows:
        day = row["timestamp"][:10] if row["timestamp"].startswith("2026-05") else "__HIVE_DEFAULT_PARTITION__"
        days.setdefault(day, []).append({name: cell for name, cell in row.items() if name != "color"})
    for number, (day, some) in enumerate(days.items()):
        as_parquet(place / "events" / f"dt={day}" / f"part-{number}.parquet", some)


def of_several_types(place: Path, rows: Rows) -> None:
    as_parquet(place / "events" / "a.parquet", rows[:60])
    later = [{**row, "position": 3, "timestamp": MAY + dt.timedelta(days=1, minutes=n)} for n, row in enumerate(rows[60:110])]
    as_parquet(place / "events" / "b.parquet", later, position=pa.int64(), timestamp=pa.timestamp("us", "UTC"))
    as_csv(place / "events" / "c.csv", [{**row, "shelf": "9"} for row in rows[110:]])


def torn(place: Path, rows: Rows) -> None:
    as_csv(place / "events.csv", rows)
    lines = (place / "events.csv").read_text().splitlines(keepends=True)
    lines[13], lines[14] = lines[13].strip() + ",more\n", "too,few\n"
    lines[50:50] = [lines[0], "\n", "," * (lines[0].count(",")) + "\n"]
    (place / "events.csv").write_text("".join(lines).rstrip("\n"))


def western(place: Path, rows: Rows) -> None:
    as_csv(place / "events.csv", [{**row, "color": "grün und süß"} for row in rows], ";")
    (place / "events.csv").write_bytes((place / "events.csv").read_text("utf-8").encode("cp1252"))


def half(place: Path, rows: Rows) -> None:
    as_csv(place / "events.csv", [{**row, "color": "grün" if n == 3 else "X" if n in (26, 90) else "rot"} for n, row in enumerate(rows)])
    (place / "events.csv").write_bytes((place / "events.csv").read_bytes().replace(b",X\r", b",gr\xfcn\r"))


def packed(place: Path, rows: Rows) -> None:
    as_csv(place / "plain.csv", rows)
    (place / "events.csv.gz").write_bytes(gzip.compress((place / "plain.csv").read_bytes(), 1))
    (place / "plain.csv").unlink()


def mixed_json(place: Path, rows: Rows) -> None:
    as_json(place / "events.jsonl", [{**row, "position": "1.5" if n == 100 else row["position"]} for n, row in enumerate(rows)])


def listed_json(place: Path, rows: Rows) -> None:
    (place / "events.json").write_text(json.dumps(rows), "utf-8")


def odd_json(place: Path, rows: Rows) -> None:
    """Ids that a float does not hold, numbers and texts in one column, truths, half a character, and what is in one row alone."""
    cells = [{**row, "session_id": 2**53 + n, "shelf": n if n % 3 else f"{n}"} for n, row in enumerate(rows)]
    cells = [
        {**row, "user_id": 7.0 if n == 30 else n % 9, "sold": n == 4 or None, "size": 2 if n % 2 else 1.5} for n, row in enumerate(cells)
    ]
    cells[90] |= {"color": "\ud83d"}
    cells[100] |= {"shelf": {"a": 1}, "alone": 2**70}
    (place / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in cells), "utf-8")


def growing_json(place: Path, rows: Rows) -> None:
    """Columns that come later, and one that is of floats from then on."""
    cells = [{**{k: c for k, c in row.items() if c}, **({"shelf": n * 0.5} if n > 80 else {"shelf": n})} for n, row in enumerate(rows)]
    cells = [{k: c for k, c in row.items() if k != "color" or n > 60} for n, row in enumerate(cells)]
    (place / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in cells), "utf-8")


def late_json(place: Path, rows: Rows) -> None:
    """The first pieces have no column ``event``: their rows are refused, and those after them are good."""
    cells = [{name: cell for name, cell in row.items() if cell and (name != "event" or n > 50)} for n, row in enumerate(rows)]
    (place / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in cells), "utf-8")


def blank_first(place: Path, rows: Rows) -> None:
    """More blank lines before the header than are read at once."""
    as_csv(place / "events.csv", rows)
    (place / "events.csv").write_text("\n" * 25 + (place / "events.csv").read_text("utf-8"), "utf-8")


def our_names(place: Path, rows: Rows) -> None:
    """Columns that are called as ours are inside."""
    ours = {"_row": "7", "_raw": "x", "_why": "x", "_quantity": "5", "extra": "x", "source_id": "x"}
    as_csv(place / "events.csv", [{**row, **ours, "quantity": "-1" if n % 3 else "1"} for n, row in enumerate(rows)])


def floats(place: Path, rows: Rows) -> None:
    """Users as pandas writes them where there are gaps: from the last piece it is seen that they are numbers."""
    as_csv(place / "events.csv", [{**row, "user_id": "7.0" if n == 150 else str(n % 5)} for n, row in enumerate(rows)])


def almost_floats(place: Path, rows: Rows) -> None:
    """The only cell that would say so stands in a row that is refused for something else."""
    rows = [{**row, "session_id": str(n % 5)} for n, row in enumerate(rows)]
    rows[121] |= {"user_id": "-3", "session_id": "4.0"}
    as_csv(place / "events.csv", rows)


def money(place: Path, rows: Rows) -> None:
    """What a comma means, and which currency is the shop's own, the last cells tell."""
    cells = ["1", "2,5", "1.234", "€ 3", "-1", "$ 2"]
    rows = [{**row, "quantity": cells[n % 6] if n > 130 else "1.234" if n % 9 == 1 else "", "position": ""} for n, row in enumerate(rows)]
    places = {40: "1.000", 60: "1.000", 141: "€ 2", 142: "€ 2"}
    as_csv(place / "events.csv", [{**row, "position": places.get(n, "")} for n, row in enumerate(rows)])


def clashing(place: Path, rows: Rows) -> None:
    """Numbers that are the keys of texts, which come before them and after them."""
    rows[60]["user_id"], rows[140]["user_id"] = str(ids.stable_id("u-1")), "alone"
    rows[61]["session_id"], rows[12]["user_id"] = str(ids.stable_id("s14")), str(ids.stable_id("alone"))
    rows[80]["query_id"] = str(ids.stable_id("q-1"))
    as_csv(place / "events.csv", rows)


def some_events(place: Path, rows: Rows) -> None:
    """Every third event has an id; sent again, some say something else, and some are like one without an id."""
    rows = told(rows, "event_id", 3, lambda n: f"e{n % 120}" if n > 120 else f"e{n}")
    named = [{**row, "event_id": f"x{n}"} for n, row in enumerate(rows[6:12])]
    as_csv(place / "events.csv", [*rows, *({**row, "event_id": ""} for row in rows[6:12]), *named])


def some_orders(place: Path, rows: Rows) -> None:
    rows = told(rows, "order_id", 2, lambda n: f"o{n}")
    others = [{**row, "order_id": order} for order in ("", "o2") for row in rows[6:12]]
    as_csv(place / "events.csv", [*rows, *others])


def clashing_events(place: Path, rows: Rows) -> None:
    rows = told(rows, "event_id", 1, lambda n: {5: "12e45", 20: str(ids.stable_id("e130")), 99: "3e5"}.get(n, f"e{n}"))
    as_csv(place / "events.csv", rows)


def float_events(place: Path, rows: Rows) -> None:
    as_csv(place / "events.csv", told(rows, "event_id", 1, lambda n: f"{n}.0" if n > 100 else str(n)))


KINDS: dict[str, Callable[[Path, Rows], None]] = {
    "parquet": lambda place, rows: as_parquet(place / "events" / "a.parquet", rows),
    "csv": lambda place, rows: as_csv(place / "events.csv", rows),
    "json": lambda place, rows: as_json(place / "events.jsonl", rows),
    **{f.__name__: f for f in (by_day, of_several_types, torn, western, half, packed, mixed_json, growing_json, listed_json, odd_json)},
    **{f.__name__: f for f in (late_json, blank_first, our_names)},
    **{f.__name__: f for f in (floats, almost_floats, money, clashing, some_events, some_orders, clashing_events, float_events)},
}
WHOLE = {"listed_json"}  # kinds of which no piece can be read by itself
