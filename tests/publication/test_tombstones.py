"""Erasure is final: what was erased comes back from no file, and nothing of it is kept where it is refused. Users are forgotten, too."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from moon_ops.cli.main import app
from moon_ops.embeddings import features
from moon_ops.errors import InputError
from moon_ops.lake import fetches, ids, quarantine, statistics
from moon_ops.lake.fetches import Fetch
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS
from moon_ops.publication import erasure, maintenance, places, publication, traces
from moon_ops.publication.erasure import erase, restore, target
from moon_ops.publication.shop_ids import ShopIds
from moon_ops.serving.follower import Follower
from moon_ops.serving.live import Intake, NewItem
from moon_ops.settings import Settings

Shop = Callable[..., Path]
DAY = dt.timedelta(days=1)
ITEM = "item/6"  # of the shop of texts


@pytest.fixture
def home(text_home: Settings, moved: Callable[[Any, Path], Any], tmp_path: Path) -> Settings:
    copied: Settings = moved(text_home, tmp_path / "copied")
    return copied


def bytes_with(home: Path, *needles: bytes) -> list[Path]:
    files = [p for top in ("lake", "tables", "index", "feature_store") for p in sorted((home / top).rglob("*")) if p.is_file()]
    return [p for p in files if any(needle in p.read_bytes() for needle in needles)]


def test_an_erased_item_is_refused_from_then_on_without_a_trace(home: Settings, text_shop: Path, now: dt.datetime) -> None:
    """Neither the inbox that still has it nor a service brings it back, and the quarantine knows only that something was refused."""
    lake, who = home.lake, target(home.lake, "item", ITEM)
    title = lake.read("items", ["title"], f"item_id = {who.key}")["title"][0].as_py()
    events = lake.count("events"), len(lake.read("events", ["item_id"], f"item_id = {who.key}"))
    assert ShopIds(home).item([who.key]) == [ITEM]
    receipt = erase(home, who, now=now)
    assert (receipt.kind, receipt.shop_id) == ("item", ITEM)
    assert receipt.places["lake/ids"] >= 1
    assert receipt.places["tables/shop_ids"] >= 1
    assert [page for page in receipt.elsewhere if page.startswith(("report/", "mlartifacts/"))] == receipt.elsewhere
    (written,) = (home.home / "receipts").iterdir()
    assert written.name.startswith("item%2F6-20")
    report = ingest(text_shop, lake, now=now + DAY)
    assert (report.items, report.updated, report.events) == (0, 0, 0)
    assert (report.refused, report.erased) == ({}, {"items.parquet item_id": 1, "events.parquet item_id": events[1]})
    assert "item_id names an item that was erased, and does not come back: `moon restore ITEM_ID` allows it again" in report.first_refusal
    assert lake.count("events") == events[0] - events[1]
    assert {row["row"] for row in lake.read("quarantine").to_pylist()} == {"{}"}
    alone = title.encode() if sum(t == title for t in lake.read("items", ["title"])["title"].to_pylist()) == 0 else b"item/6"
    assert bytes_with(home.home, alone) == []
    assert ShopIds(home).item([who.key]) == [str(who.key)]
    with pytest.raises(InputError, match=r"no item could be used .*was erased"):
        Intake(home, Follower(home)).accept([NewItem(item_id=ITEM, title="again")], now + DAY)
    with pytest.raises(InputError, match="ITEM_ID = item/6 is in no place") as again:
        erase(home, who, now=now + DAY)
    assert str(written) in again.value.action
    assert restore(home, "item", ITEM)
    assert not restore(home, "item", ITEM)
    assert ingest(text_shop, lake, now=now + 2 * DAY).items == 1
    publication.publish(home, 1, now=now + 2 * DAY)
    assert ShopIds(home).item([who.key]) == [ITEM]


def test_a_killed_erasure_leaves_the_tombstone_first(
    home: Settings, text_shop: Path, now: dt.datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = target(home.lake, "item", ITEM)

    def killed(*_: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(erasure, "_forget", killed)
        with pytest.raises(KeyboardInterrupt):
            erase(home, who, now=now)
    assert ingest(text_shop, home.lake, now=now + DAY).erased["items.parquet item_id"] == 1
    assert [str(one) for one in erasure.unfinished(home)] == [ITEM]
    (receipt,) = erasure.finish(home, now=now)
    assert receipt.shop_id == ITEM


def lone_user(lake: Lake) -> tuple[int, list[int]]:
    """A user who clicked, and asked what nobody else has asked."""
    for user in lake.read("events", ["user_id"], "event = 'click' AND query_id IS NOT NULL")["user_id"].unique().to_pylist():
        (name,), queries = ids.named(lake, "user", [user]), traces.queries_of(lake, user)
        if queries and "Größe" in str(name):  # found in files without mistake
            return user, queries
    raise AssertionError("the shop has no such user")


def lone_picture(lake: Lake, query: int) -> str:
    """Show a picture from an address in a query, and another one elsewhere; what the first is known as."""
    (row,) = lake.read("queries", where=f"query_id = {query}").to_pylist()
    own, other = "e" * 64, "f" * 64
    lake.open("queries").delete(f"query_id = {query}")
    lake.append("queries", pa.Table.from_pylist([row | {"image_id": own}], schema=SCHEMAS["queries"]))
    fetches.write(lake, [Fetch("http://a.example/theirs.png", own), Fetch("http://a.example/another.png", other)])
    return own


def test_a_user_is_forgotten_with_the_queries_that_are_theirs(home: Settings, text_shop: Path, now: dt.datetime) -> None:
    lake = home.lake
    user, queries = lone_user(lake)
    (name,) = ids.named(lake, "user", [user])
    called = ids.named(lake, "query", queries)
    texts = [str(one).encode() for one in (name, *called) if "Größe" in str(one)]
    of_user = f"user_id = {user}"
    events, clicked = lake.count("events"), lake.read("events", ["item_id"], f"{of_user} AND event = 'click'")["item_id"].to_pylist()
    counted = {i: lake.read(statistics.STATS, ["clicks"], f"item_id = {i}")["clicks"].to_pylist()[-1] for i in set(clicked)}
    training = home.home / "checkpoints" / "x.partial"
    (training / "material").mkdir(parents=True)
    (training / "pixels-0.u8").write_bytes(b"pixels")
    picture = lone_picture(lake, queries[0])
    (training / "pixels-0.json").write_text(picture)
    (training / "material" / "queries.arrow").write_text(texts[0].decode())
    kept = places.prepared(home)
    with kept.found("rows", lambda: "of this user", lambda place: (place / "words").write_text(texts[0].decode())):
        pass
    receipt = erase(home, target(lake, "user", str(name)), now=now)
    assert receipt.kind == "user"
    assert lake.read("fetches")["address"].to_pylist() == ["http://a.example/another.png"]
    assert bytes_with(home.home, picture.encode()) == []
    for place in ("lake/events", "lake/queries", "lake/query_embeddings/v1", "lake/ids", "lake/features/user_behavior", "online store"):
        assert receipt.places[place] >= 1, place
    assert receipt.places["pixels of trainings"] == 1
    assert not list(training.iterdir())
    assert not list(kept.directory.glob("rows-*"))
    for table in maintenance.tables(lake):
        for version in lake.open(table).versions():
            old = lance.dataset(lake.address(table), version=version["version"])
            if "user_id" in old.schema.names:
                assert old.count_rows(filter=of_user) == 0, table
            if "query_id" in old.schema.names:
                assert old.count_rows(filter=f"query_id IN ({', '.join(map(str, queries))})") == 0, table
    assert bytes_with(home.home, *texts) == []
    table = places.tables(home, 1).queries
    assert (table.rows(queries) == -1).all()  # type: ignore[arg-type]
    for item, before in counted.items():
        after = lake.read(statistics.STATS, ["clicks"], f"item_id = {item}")["clicks"].to_pylist()[-1]
        assert after == before - clicked.count(item)
    online = features.open_store(home).get_online_features(["user_behavior:item_ids"], [{"user_id": user}]).to_dict()
    assert online["item_ids"] == [None]
    report = ingest(text_shop, lake, now=now + DAY)
    assert (report.queries, report.events) == (0, 0)
    assert not report.refused
    assert report.erased == {"queries.parquet query_id": len(queries), "events.parquet user_id": events - lake.count("events")}
    assert bytes_with(home.home, *texts) == [], "what is refused is not kept"
    assert restore(home, "user", str(name))
    assert all(restore(home, "query", str(one)) for one in called)
    assert ingest(text_shop, lake, now=now + 2 * DAY).queries == len(queries)


def test_what_a_user_did_before_signing_in_does_not_come_back(make_shop: Shop, tmp_path: Path, now: dt.datetime) -> None:
    home = Settings(home=tmp_path / "home")
    made = make_shop(items=[{"item_id": 1, "title": "Hat"}, {"item_id": 2, "title": "Cap"}])
    log = "timestamp,item_id,event,user_id,session_id\n2026-01-01T01:00:00Z,1,click,ann,s1\n2026-01-01T02:00:00Z,1,purchase,,s1\n"
    (made / "events.csv").write_text(log + "2026-01-01T03:00:00Z,1,click,bob,s2\n2026-01-01T04:00:00Z,1,click,ann,s2\n")
    ingest(made, home.lake, now=now)
    erase(home, target(home.lake, "user", "ann"), now=now)
    with (made / "events.csv").open("a") as more:
        more.write("2026-01-01T05:00:00Z,2,click,bob,s1\n2026-01-01T06:00:00Z,2,click,,s2\n")
    report = ingest(made, home.lake, now=now + DAY)
    assert (report.events, report.refused) == (2, {})
    assert report.erased == {"events.csv user_id": 2, "events.csv session_id": 1}
    assert {row["row"] for row in home.lake.read("quarantine").to_pylist()} == {"{}"}
    erase(home, target(home.lake, "user", "bob"), now=now + DAY)
    assert restore(home, "user", "ann")
    back = ingest(made, home.lake, now=now + 2 * DAY)
    assert (back.events, back.erased) == (3, {"events.csv user_id": 2, "events.csv session_id": 1})


def test_a_row_that_is_refused_for_something_else_is_not_kept_either(make_shop: Shop, tmp_path: Path, now: dt.datetime) -> None:
    home = Settings(home=tmp_path / "home")
    good = [{"item_id": "SKU/1", "title": "Hat"}, {"item_id": 7, "title": "Cap"}, {"item_id": 8, "title": "Scarf"}]
    ingest(make_shop(items=good), home.lake, now=now)
    for given in ("SKU/1", "7"):
        erase(home, target(home.lake, "item", given), now=now)
    made = make_shop("again")
    (made / "items.csv").write_text("item_id,title,price\nSKU/1,secret,cheap\n7.0,secret,dear\n8,Scarf,secret-no\n9,secret\n7,secret\n")
    report = ingest(made, home.lake, now=now + DAY)
    assert (report.refused, report.erased) == ({"items.csv price": 1, "items.csv": 1}, {"items.csv price": 2, "items.csv": 1})
    rows = home.lake.read("quarantine").sort_by("source").to_pylist()
    assert [row["row"] == "{}" for row in rows] == [True, True, False, False, True]
    assert "secret" not in "".join(row["row"] + row["reason"] for row in rows if row["row"] == "{}")
    assert all("names an item that was erased" in row["reason"] for row in rows if row["row"] == "{}")
    (file,) = quarantine.write_csv(quarantine.refused(home.lake), tmp_path / "mend.csv")
    assert [line.partition(",")[0] for line in file.read_text().splitlines()[1:]] == ["8", "9"], "nothing is left of the others to mend"


def test_the_refused_rows_of_a_user_and_of_the_queries_that_are_theirs_are_forgotten(
    make_shop: Shop, tmp_path: Path, now: dt.datetime
) -> None:
    """Whatever form the id has there, and whether the query is known by good rows or by refused ones."""
    home, day = Settings(home=tmp_path / "home"), "2026-05-01"
    click = {"item_id": 1, "timestamp": day, "event": "click"}
    shop = make_shop(
        items=[{"item_id": 1, "title": "Hat"}],
        queries=[
            {"query_id": 5, "timestamp": "secret-time", "text": "secret one"},
            {"query_id": 6, "timestamp": "secret-time", "text": "secret two"},
            {"query_id": 8, "timestamp": "odd", "text": "of two users"},
            {"query_id": 9, "timestamp": "odd", "text": "of another"},
        ],
        events=[
            {**click, "user_id": 7},
            {**click, "user_id": 8},
            {**click, "user_id": 7, "query_id": 5},
            {**click, "user_id": "7", "query_id": "6", "event": "secret-event"},
            {**click, "user_id": 7, "query_id": 8},
            {**click, "user_id": 8, "query_id": 8},
            {**click, "user_id": 8, "query_id": 9},
        ],
        users=[{"user_id": 7, "timestamp": "secret-since"}],
    )
    assert sum(ingest(shop, home.lake, now=now).refused.values()) == 10
    receipt = erase(home, target(home.lake, "user", "7"), now=now)
    assert receipt.places["lake/quarantine"] == 6
    left = [json.loads(row) for row in home.lake.read("quarantine")["row"].to_pylist()]
    assert sorted((row.get("text", ""), row.get("user_id")) for row in left) == sorted(
        [("of two users", None), ("of another", None), ("", "8"), ("", "8")]
    )
    assert bytes_with(home.home, b"secret") == []


def test_the_command_line_erases_and_restores(make_shop: Shop, tmp_path: Path) -> None:
    shop = make_shop(
        items=[{"item_id": "SKU/1", "title": "Hat"}, {"item_id": "SKU/2", "title": "Cap"}],
        events=[{"item_id": "SKU/2", "timestamp": "2026-05-01", "event": "click", "user_id": "anna@x.org"}],
    )

    def moon(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, [*arguments, "--home", str(tmp_path / "home")])
        return done.exit_code, done.output + str(done.exception or "")

    assert moon("ingest", str(shop))[0] == 0
    code, said = moon("erase", "SKU/1", "--yes")
    assert code == 0
    assert "shop_id: SKU/1\n" in said
    assert moon("erase", "--user", "anna@x.org", "--yes")[0] == 0
    code, said = moon("ingest", str(shop))
    assert code == 0, "what was erased is not taken in, and that is what the shop wanted"
    assert "erased: " in said
    code, said = moon("quarantine")
    assert (code, "`moon restore ITEM_ID` allows it again" in said) == (0, True)
    assert moon("restore", "SKU/1")[0] == 0
    assert moon("restore", "--user", "anna@x.org")[0] == 0
    assert moon("ingest", str(shop))[0] == 0
    for wrong, says in (
        (("restore", "SKU/1"), "ITEM_ID = SKU/1 was not erased"),
        (("erase", "SKU/9", "--yes"), "ITEM_ID = SKU/9 is in no place"),
        (("erase", "--yes"), "none of an ITEM_ID, --user"),
        (("restore", "a", "--user", "b"), "2 of an ITEM_ID, --user"),
    ):
        code, said = moon(*wrong)
        assert code == 1
        assert says in said
