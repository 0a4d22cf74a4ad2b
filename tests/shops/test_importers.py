"""Importers of public click logs: what each data set becomes, in the layout in which it is published, and what is refused."""

from __future__ import annotations

import datetime as dt
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from moon_ops.cli.main import app
from moon_ops.ctr.impressions import impressions
from moon_ops.errors import InputError
from moon_ops.lake import fetch
from moon_ops.lake.ids import stable_id
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.release.windows import windows
from moon_ops.shops.importers.histories import DAY
from moon_ops.shops.imports import ImportReport, import_clicks

NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
LARGE = 2**63
Rows = list[dict[str, Any]]


MADE = ("taobao_mm", "pairs", "challenge", "amazon2023", "hm", "movielens")
Publish = Callable[[str, Path], Path]
Import = Callable[..., ImportReport]


def kind_of(made: str) -> str:
    return "microlens" if made in ("pairs", "challenge") else made


@pytest.fixture
def imported(tmp_path: Path, published: Publish) -> Import:
    """Import the data set of that name, made when it is first asked for, into a directory of ``tmp_path``."""

    def run(made: str, out: str = "shop", users: int | None = None) -> ImportReport:
        source = tmp_path / made
        return import_clicks(kind_of(made), source if source.exists() else published(made, source), tmp_path / out, users=users)

    return run


def ingested(report: ImportReport, tmp_path: Path) -> Lake:
    lake = Lake(str(tmp_path / f"lake-{report.out.name}"))
    taken = ingest(report.out, lake, now=NOW)
    assert (taken.refused, taken.items, taken.queries) == ({}, report.items, report.queries)
    assert taken.events == report.impressions + report.clicks + report.purchases
    return lake


def events(lake: Lake) -> Rows:
    return sorted(lake.read("events").to_pylist(), key=lambda row: row["event_timestamp"])


def counts(report: ImportReport) -> tuple[int, ...]:
    return tuple(vars(report).values())[3:11]


def test_taobao_mm_knows_each_rows_history_and_nothing_of_its_answer(tmp_path: Path, imported: Import) -> None:
    report = imported("taobao_mm")
    assert counts(report) == (2, 7, 6, 8, 0, 0, 0, 3)  # users, items, impressions, clicks, purchases, left out, pictures, vectors
    lake = ingested(report, tmp_path)
    mine = [row for row in events(lake) if row["user_id"] == 5]
    cut = windows(lake).ctr_until
    parts = [[(r["event"], r["item_id"]) for r in mine if (r["event_timestamp"] < cut) == early] for early in (True, False)]
    n12, n32 = LARGE - 12, LARGE - 32
    shown = [("impression", 11), ("impression", n12), ("impression", 13)]
    assert parts[0] == [("click", 31), ("click", n32), *shown, ("click", 11)]
    assert parts[1] == [("click", 31), ("click", n32), ("click", 33), ("impression", 11), ("impression", 14), ("click", 14)]
    assert len({r["event_timestamp"] for r in mine}) == len(mine)
    rows = impressions(lake, mine[0]["event_timestamp"], NOW).to_pylist()
    assert [(r["user_id"], r["item_id"], r["label"]) for r in rows if r["user_id"] == 5] == [
        *((5, 11, 1), (5, n12, 0), (5, 13, 0)),
        *((5, 11, 0), (5, 14, 1)),
    ]
    titles = {row["item_id"]: (row["title"], row["category"]) for row in lake.read("items").to_pylist()}
    assert (titles[n12], titles[n32], titles[31]) == (("-12", ["7"]), ("-32", []), ("31", ["9"]))


def test_the_vectors_of_taobao_mm_are_of_unit_length(tmp_path: Path, imported: Import) -> None:
    table = pq.read_table(imported("taobao_mm").out / "vectors.parquet")
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 128)
    assert table["item_id"].to_pylist() == [11, 31, LARGE - 12]
    vectors = np.array(table["embedding"].to_pylist())
    np.testing.assert_allclose(vectors[1, :3], [0.6, 0.8, 0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_microlens_pairs_become_clicks_at_their_times(tmp_path: Path, imported: Import) -> None:
    report = imported("pairs")
    assert counts(report) == (3, 2, 0, 4, 0, 1, 1, 0)
    lake = ingested(report, tmp_path)
    assert events(lake)[0]["event_timestamp"] == dt.datetime(2020, 3, 5, 3, 23, 49, 552000, dt.UTC)
    assert {r["item_id"]: (r["title"], len(r["image_ids"])) for r in lake.read("items").to_pylist()} == {
        10: ('What a "day, part 2', 1),
        20: ("Cats", 0),
    }


def test_the_challenge_keeps_visits_of_one_user_apart(tmp_path: Path, imported: Import) -> None:
    report = imported("challenge")
    assert counts(report) == (3, 5, 5, 8, 0, 0, 1, 5)
    lake = ingested(report, tmp_path)
    mine = [(r["event"], r["item_id"]) for r in events(lake) if r["user_id"] == 1]
    first = [("click", 1), ("click", 2), ("impression", 3), ("impression", 5), ("click", 3)]
    assert mine == [*first, ("click", 1), ("click", 2), ("click", 3), ("impression", 4)]
    item = {r["item_id"]: r for r in lake.read("items").to_pylist()}
    assert (item[1]["title"], item[1]["attributes"], len(item[1]["image_ids"])) == ("A dance", [("tags", "1 7")], 1)
    assert item[2]["title"] == "2"
    judged = [r["event_timestamp"] for r in events(lake) if r["user_id"] == 3]
    learned = [r["event_timestamp"] for r in events(lake) if r["user_id"] != 3]
    assert max(learned) < windows(lake).ctr_until < min(judged)
    assert max(judged) - min(learned) <= dt.timedelta(microseconds=100 * DAY)


def test_amazon_takes_verified_reviews_for_purchases(
    tmp_path: Path, imported: Import, jpeg: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(fetch, "fetch", lambda address, **_: asked.append(address) or fetch.Fetched(jpeg("red")))
    report = imported("amazon2023")
    assert counts(report) == (3, 2, 0, 0, 4, 2, 0, 0)
    lake = ingested(report, tmp_path)
    assert asked == ["https://m.media-amazon.com/l.jpg"]
    assert events(lake)[-1]["event_timestamp"] == dt.datetime(2023, 3, 4, 14, 6, 7, 352000, dt.UTC)
    assert events(lake)[-1]["user_id"] == stable_id("AEA")
    item = {r["source_id"]: r for r in lake.read("items").to_pylist()}
    soap, names = item["B01"], ("title", "category", "brand", "description", "attributes", "price")
    assert [soap[name] for name in names] == ["Rose soap", ["Beauty", "Soap"], "Rosy", "Mild By hand.", [("Scent", "Rose")], 4.99]
    assert (item["0439064864"]["price"], item["0439064864"]["image_ids"]) == (None, [])


def test_hm_keeps_the_order_of_a_day_and_two_of_the_same_article(tmp_path: Path, imported: Import) -> None:
    report = imported("hm")
    assert counts(report) == (2, 2, 0, 0, 4, 1, 1, 0)
    lake = ingested(report, tmp_path)
    day = dt.datetime(2018, 9, 20, tzinfo=dt.UTC)
    assert [(r["event_timestamp"] - day, r["item_id"]) for r in events(lake)[:3]] == [
        (dt.timedelta(microseconds=n + 1), item) for n, item in enumerate((108775015, 108775015, 108775044))
    ]
    item = {r["item_id"]: r for r in lake.read("items").to_pylist()}
    top = item[108775015]
    assert (top["description"], top["spu_id"], top["price"], len(top["image_ids"])) == ('Jersey top, "narrow" straps.', 108775, 0.01, 1)
    assert top["category"] == ["Index Group", "Product Group", "Product Type"]
    assert dict(top["attributes"])["colour"] == "Colour Group"
    assert item[108775044]["image_ids"] == []


@pytest.mark.parametrize("made", MADE)
def test_a_sample_of_users_is_the_same_again_and_lies_in_a_larger_one(tmp_path: Path, imported: Import, made: str) -> None:
    def people(out: str, users: int) -> set[Any]:
        report = imported(made, out, users)
        return set(pq.read_table(report.out / "events.parquet")["user_id"].to_pylist())

    one, again, two = people("one", 1), people("again", 1), people("two", 2)
    assert one == again < two
    assert (len(one), len(two)) == (1, 2)


@pytest.mark.parametrize("made", MADE)
def test_a_killed_run_and_a_finished_one_are_repeated(tmp_path: Path, imported: Import, made: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # who is killed clears nothing away
        patch.setattr(os, "link", killed)
        patch.setattr("moon_ops.shops.importers.shop.columns", killed)
        with pytest.raises(KeyboardInterrupt):
            imported(made)
    assert not list((tmp_path / "shop").glob("*.parquet"))
    assert (tmp_path / "shop" / "work.partial").exists()
    done = [imported(made) for _ in range(2)]
    assert done[0] == done[1]
    assert counts(done[0]) == counts(imported(made, "other"))
    names = {p.name for p in done[0].out.iterdir()} - {"images", "vectors.parquet", "users.parquet"}
    assert names == {"README.md", "items.parquet", "queries.parquet", "events.parquet"}
    for path in done[0].out.glob("*.parquet"):
        assert pq.read_table(path).equals(pq.read_table(tmp_path / "other" / path.name)), path.name


def spoil(place: Path, name: str, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(place / name)), place / name)


def test_pictures_are_links_or_copies(imported: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError("no links here")

    name = Path("images", "010", "0108775015.jpg")
    linked = imported("hm")
    assert (linked.out / name).samefile(linked.source / name)
    monkeypatch.setattr(os, "link", refused)
    copied = imported("hm", "copied").out
    assert (copied / name).read_bytes() == (linked.out / name).read_bytes()
    assert not list(copied.rglob("*.partial"))


def write(path: Path, content: str) -> None:
    path.write_text(content)


def one_id_twice(table: pa.Table) -> pa.Table:
    return table.set_column(table.column_names.index("205"), "205", [[31 - LARGE]])


FAULTS: list[tuple[str, Callable[[Path], Any], list[str]]] = [
    ("taobao_mm", lambda p: shutil.rmtree(p / "train") or shutil.rmtree(p / "test"), ["holds no train/*.parquet"]),
    ("taobao_mm", lambda p: shutil.rmtree(p / "raw"), ["holds no raw/scl_embedding_int8_p90.parquet", "download it"]),
    ("taobao_mm", lambda p: write(p / "test" / "a.parquet", "no"), ["a.parquet cannot be read", "download it again"]),
    ("taobao_mm", lambda p: spoil(p, "train/train-shard-000000.parquet", lambda t: t.drop_columns("205")), ["no column '205' (it has"]),
    (
        "taobao_mm",
        lambda p: spoil(p, "raw/scl_embedding_int8_p90.parquet", lambda t: t.set_column(1, "205_c", [[[1, 2]] + [[1]] * 5])),
        ["lists of"],
    ),
    ("taobao_mm", lambda p: spoil(p, "train/train-shard-000001.parquet", one_id_twice), ["the items ", "31", "would get the same id"]),
    ("pairs", lambda p: (p / "MicroLens-1M_title.csv").unlink(), ["holds no *_title*.csv"]),
    ("pairs", lambda p: write(p / "MicroLens-1M_pairs.csv", "user,item\n1,2\n"), ["no column 'timestamp' (it has user, item)"]),
    ("pairs", lambda p: write(p / "MicroLens-1M_pairs.csv", "user,item,timestamp\n"), ["no event could be made (the log has no rows"]),
    (
        "pairs",
        lambda p: write(p / "MicroLens-1M_pairs.csv", "user,item,timestamp\n1,ten,3\n"),
        ["_pairs.csv cannot be read", "1,ten,3", "item"],
    ),
    ("pairs", lambda p: write(p / "MicroLens-1M_title.csv", "7,Other\n"), ["5 rows name no item that has a title"]),
    ("challenge", lambda p: (p / "MicroLens_1M_x1" / "valid.parquet").unlink(), ["holds no valid.parquet"]),
    ("challenge", lambda p: spoil(p, "MicroLens_1M_x1/train.parquet", lambda t: t.set_column(5, "label", [[2] * 4])), ["label = 2"]),
    ("amazon2023", lambda p: (p / "All_Beauty.jsonl.gz").unlink(), ["holds no All_Beauty.jsonl or All_Beauty.jsonl.gz beside meta_"]),
    ("amazon2023", lambda p: write(p / "meta_All_Beauty.jsonl", '{"parent_asin": "B01"}\n'), ["no column 'title' (it has parent_asin)"]),
    ("amazon2023", lambda p: write(p / "meta_All_Beauty.jsonl", '{"parent_asin": "B01", "title": "x"}\n{"a\n'), ["after line 1"]),
    ("amazon2023", lambda p: write(p / "All_Beauty.jsonl.gz", "no gzip"), ["All_Beauty.jsonl.gz cannot be read"]),
    ("hm", lambda p: (p / "articles.csv").unlink(), ["holds no articles.csv"]),
    ("hm", lambda p: write(p / "transactions_train.csv", "t_dat,customer_id,article_id\n"), ["no column 'price'"]),
    (
        "hm",
        lambda p: write(p / "transactions_train.csv", "t_dat,customer_id,article_id,price\nsoon,a,1,2\n"),
        ["transactions_train.csv cannot be read", "soon", "t_dat"],
    ),
]


@pytest.mark.parametrize(("made", "fault", "named"), FAULTS, ids=[f"{made}: {named[0][:30]}" for made, _, named in FAULTS])
def test_what_cannot_be_read_is_named_and_nothing_is_left(
    tmp_path: Path, published: Publish, made: str, fault: Callable[[Path], Any], named: list[str]
) -> None:
    source = published(made, tmp_path / "source")
    fault(source)
    with pytest.raises(InputError) as refused:
        import_clicks(kind_of(made), source, tmp_path / "shop")
    for words in [*named, "nothing was imported →", str(source)]:
        assert words in str(refused.value)
    assert not (tmp_path / "shop").exists()


def test_arguments_that_cannot_be(tmp_path: Path, imported: Import, published: Publish) -> None:
    report = imported("pairs")
    kinds = "shopify, woocommerce, magento, google_merchant, taobao_mm, microlens, amazon2023, hm, movielens, grocery"
    with pytest.raises(InputError, match=rf"KIND = 'lens' is no data set .* → choose one of {kinds}"):
        import_clicks("lens", report.source, report.out)
    with pytest.raises(InputError, match="users = 0 is no sample"):
        imported("pairs", users=0)
    with pytest.raises(InputError, match="is not a directory"):
        import_clicks("hm", tmp_path / "nowhere", tmp_path / "other")
    with pytest.raises(InputError, match=r"holds something else \(Imported from microlens .* all users\.\); nothing was imported"):
        imported("pairs", users=2)
    with pytest.raises(InputError, match=r"train\.parquet, whose ids differ"):
        import_clicks("microlens", published("challenge", report.source), tmp_path / "other")


def test_the_command_says_what_was_imported(tmp_path: Path, published: Publish) -> None:
    source = published("hm", tmp_path / "it's [hm]")
    done = CliRunner().invoke(app, ["import", "hm", str(source), str(tmp_path / "shop"), "--users", "1"])
    assert done.exit_code == 0, done.output
    assert "kind: hm" in done.output
    assert "users: 1" in done.output
