"""The simulated shop as files: repeatable, resumable, and plausible where it counts."""

from __future__ import annotations

import multiprocessing
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from moon_ops.errors import InputError, StageError
from moon_ops.shops.simulate import SIZES, SimulateReport, simulate
from moon_ops.shops.simulated import pictures
from moon_ops.shops.simulated.catalogue import stock
from moon_ops.shops.simulated.fabric import MOTIFS, TEXTURES

TABLES = ("items", "queries", "events", "oracle")


def read(report: SimulateReport, table: str) -> pa.Table:
    return pq.read_table(report.out / f"{table}.parquet")


def column(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy()


def every_byte(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def of_kind(events: pa.Table, kind: str) -> pa.Table:
    return events.filter(pc.equal(events["event"], kind))


def shown_item(events: pa.Table) -> list[tuple[int, int]]:
    return list(zip(events["session_id"].to_pylist(), events["item_id"].to_pylist(), strict=True))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SimulateReport:
    return simulate(tmp_path_factory.mktemp("shop") / "tiny", size="tiny", workers=1)


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> SimulateReport:
    return simulate(tmp_path_factory.mktemp("shop") / "longer", size="tiny", days=26, workers=1)


def test_counts_are_near_the_size(tiny: SimulateReport) -> None:
    size = SIZES["tiny"]
    assert tiny.items == pytest.approx(size.items, rel=0.1)
    assert tiny.impressions == pytest.approx(size.impressions, rel=0.12)
    assert (tiny.users, tiny.days) == (size.users, size.days)
    assert tiny.image_queries / tiny.queries == pytest.approx(0.4, abs=0.06)
    assert tiny.clicks / tiny.impressions == pytest.approx(0.09, abs=0.03)
    assert tiny.clicks > tiny.carts > tiny.purchases > tiny.image_purchases > 0


def test_report_counts_what_the_tables_hold(tiny: SimulateReport) -> None:
    items, queries, events = (read(tiny, name) for name in ("items", "queries", "events"))
    assert tiny.items == items.num_rows
    assert tiny.spus == pc.count_distinct(items["spu_id"]).as_py()
    assert (tiny.queries, tiny.image_queries) == (queries.num_rows, pc.count(queries["image"]).as_py())
    counted = [of_kind(events, kind).num_rows for kind in ("impression", "click", "cart", "purchase")]
    assert counted == [tiny.impressions, tiny.clicks, tiny.carts, tiny.purchases]
    asked_by_image = queries.filter(pc.is_valid(queries["image"]))["query_id"]
    bought = of_kind(events, "purchase")
    assert tiny.image_purchases == pc.sum(pc.is_in(bought["query_id"], value_set=asked_by_image)).as_py()
    assert tiny.pictures == len(list(tiny.out.rglob("*.jpg")))


def test_two_workers_write_the_same_bytes_as_one(tiny: SimulateReport, tmp_path: Path) -> None:
    simulate(tmp_path / "shop", size="tiny", workers=2)
    assert every_byte(tmp_path / "shop") == every_byte(tiny.out)


def test_a_longer_shop_begins_with_the_same_days(tiny: SimulateReport, longer: SimulateReport) -> None:
    for name in TABLES:
        short, long = read(tiny, name), read(longer, name)
        assert long.num_rows > short.num_rows
        assert long.slice(0, short.num_rows).equals(short), name
    pictures = {path: content for path, content in every_byte(tiny.out).items() if path.endswith(".jpg")}
    assert pictures.items() <= every_byte(longer.out).items()


def test_a_fifth_of_the_items_arrives_in_the_last_fifth_of_the_time(tiny: SimulateReport) -> None:
    items = read(tiny, "items")
    start = np.datetime64("2026-01-01")
    day = (column(items, "available_from") - start) / np.timedelta64(1, "D")
    assert (day >= 0).mean() == pytest.approx(0.2, abs=0.05)
    assert day[day >= 0].min() >= 16
    assert day.max() < 20
    assert -90 <= day.min() < day[day < 0].max() < 0


def test_more_days_bring_more_items_at_the_same_rate(tiny: SimulateReport, longer: SimulateReport) -> None:
    # 8 products in the last 4 of 20 days, so 12 more in 6 more days.
    assert (tiny.spus, longer.spus) == (40, 52)


def test_items_of_a_product_arrive_together_in_one_category(tiny: SimulateReport) -> None:
    items = read(tiny, "items").select(["spu_id", "available_from", "category", "seller_id", "brand"])
    distinct = items.group_by("spu_id").aggregate([(name, "count_distinct") for name in items.column_names[1:]])
    assert all(set(column(distinct, name)) == {1} for name in distinct.column_names if name != "spu_id")
    assert set(items["spu_id"].value_counts().field("counts").to_pylist()) <= {2, 3, 4}


def test_no_event_precedes_the_item(tiny: SimulateReport) -> None:
    events, items = read(tiny, "events"), read(tiny, "items")
    available = column(items, "available_from")[column(events, "item_id") - 1]
    assert (column(events, "timestamp") >= available).all()


def test_events_are_in_order_of_time_and_of_cause(tiny: SimulateReport) -> None:
    events = read(tiny, "events")
    assert (np.diff(column(events, "timestamp")).astype(int) >= 0).all()
    moments = {}
    for kind in ("impression", "click", "cart", "purchase"):
        chosen = of_kind(events, kind)
        moments[kind] = dict(zip(shown_item(chosen), chosen["timestamp"].to_pylist(), strict=True))
        assert len(moments[kind]) == chosen.num_rows, f"a {kind} happened twice"
    for earlier, later in (("impression", "click"), ("click", "cart"), ("cart", "purchase")):
        assert all(moments[earlier][key] < moment for key, moment in moments[later].items())


def test_a_query_is_a_text_or_a_picture_that_exists(tiny: SimulateReport) -> None:
    queries = read(tiny, "queries").to_pylist()
    assert all((query["text"] is None) != (query["image"] is None) for query in queries)
    assert all(query["text"].strip() for query in queries if query["text"] is not None)
    named = {query["image"] for query in queries if query["image"]}
    assert named == {f"images/queries/{path.name}" for path in (tiny.out / "images/queries").iterdir()}


def test_a_query_precedes_what_it_leads_to(tiny: SimulateReport) -> None:
    queries, events = read(tiny, "queries"), read(tiny, "events")
    asked = dict(zip(queries["query_id"].to_pylist(), queries["timestamp"].to_pylist(), strict=True))
    pairs = zip(events["query_id"].to_pylist(), events["timestamp"].to_pylist(), strict=True)
    assert all(asked[query] < moment for query, moment in pairs)


def test_click_rate_falls_with_position(tiny: SimulateReport) -> None:
    oracle, events = read(tiny, "oracle"), read(tiny, "events")
    clicked, position = clicks_of(oracle, events), column(oracle, "position")
    top, middle, bottom = (clicked[(position >= low) & (position <= high)].mean() for low, high in ((1, 2), (3, 5), (6, 14)))
    assert top > 1.5 * middle > 2 * bottom
    examination = column(oracle, "click_probability") / column(oracle, "attraction")
    assert examination[position == 1] == pytest.approx(1)
    assert examination[position == 10] == pytest.approx(10**-0.55)


def clicks_of(oracle: pa.Table, events: pa.Table) -> np.ndarray:
    clicked = set(shown_item(of_kind(events, "click")))
    return np.array([pair in clicked for pair in shown_item(oracle)])


def test_oracle_is_calibrated(tiny: SimulateReport) -> None:
    oracle = read(tiny, "oracle")
    clicked, probability = clicks_of(oracle, read(tiny, "events")), column(oracle, "click_probability")
    error = np.sqrt((probability * (1 - probability)).sum())
    assert abs(clicked.sum() - probability.sum()) < 3 * error
    likely = probability > np.median(probability)
    error = np.sqrt((probability * (1 - probability))[likely].sum())
    assert abs(clicked[likely].sum() - probability[likely].sum()) < 3 * error


def test_oracle_ranks_clicks_well(tiny: SimulateReport) -> None:
    oracle = read(tiny, "oracle")
    clicked, probability = clicks_of(oracle, read(tiny, "events")), column(oracle, "click_probability")
    better = (probability[clicked][:, None] > probability[~clicked]).mean()
    assert 0.78 < better < 0.95


def test_oracle_has_the_impressions_in_their_order(tiny: SimulateReport) -> None:
    shared = ["timestamp", "session_id", "user_id", "item_id", "position"]
    impressions = of_kind(read(tiny, "events"), "impression")
    assert read(tiny, "oracle").select(shared).equals(impressions.select(shared).combine_chunks())


def test_few_items_get_most_clicks(longer: SimulateReport) -> None:
    clicks = np.bincount(column(of_kind(read(longer, "events"), "click"), "item_id"), minlength=longer.items + 1)[1:]
    top = np.sort(clicks)[::-1][: longer.items // 10]
    assert 0.3 < top.sum() / clicks.sum() < 0.8


def test_motif_and_texture_are_only_in_the_picture(longer: SimulateReport) -> None:
    items = read(longer, "items").to_pylist()
    secret = {*MOTIFS, *TEXTURES} - {"none"}
    words = [set(re.findall(r"[a-z]+", f"{item['title']} {item['description']} {item['attributes']}".lower())) for item in items]
    assert not any(secret & each for each in words)


def test_pictures_are_small_jpegs_and_no_two_are_alike(tiny: SimulateReport) -> None:
    pictures = list(tiny.out.rglob("*.jpg"))
    for path in pictures:
        with Image.open(path) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (96, 96)), path
    assert len({path.read_bytes() for path in pictures}) == len(pictures)


def test_items_name_their_pictures(tiny: SimulateReport) -> None:
    named = [path for images in read(tiny, "items")["images"].to_pylist() for path in images]
    assert sorted(named) == sorted(f"images/items/{path.name}" for path in (tiny.out / "images/items").iterdir())


def test_a_killed_run_is_repeated_and_keeps_its_pictures(tiny: SimulateReport, tmp_path: Path) -> None:
    out = tmp_path / "shop"
    shutil.copytree(tiny.out, out)
    (out / "events.parquet").unlink()
    (out / "images/items/1_0.jpg").unlink()
    (out / "images/items/2_0.partial").write_bytes(b"half a pict")
    (out / "images/items/2_0.jpg").unlink()
    kept = out / "images/items/3_0.jpg"
    kept.write_bytes(b"not drawn again")
    simulate(out, size="tiny", workers=1)
    expected = {**every_byte(tiny.out), "images/items/3_0.jpg": b"not drawn again"}
    assert every_byte(out) == expected


def of_pictures(out: Path, how_many: int, photographer: str = "known") -> list[pictures.Order]:
    """Orders of one photograph each."""
    for folder in (pictures.ITEMS_FOLDER, pictures.QUERIES_FOLDER):
        (out / folder).mkdir(parents=True, exist_ok=True)
    look = stock(SIZES["tiny"], seed=0, days=2).items[0].look
    return [pictures.Order(1, look, (), (query,), 0, out, photographer) for query in range(how_many)]


def test_an_error_of_a_process_that_draws_is_raised(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="nobody"):
        list(pictures.drawn(of_pictures(tmp_path, 4, "nobody"), workers=2))
    assert not multiprocessing.active_children()


def test_a_process_that_draws_and_is_killed_is_named(tmp_path: Path) -> None:
    drawing = pictures.drawn(of_pictures(tmp_path, 2000), workers=2)
    next(drawing)
    for process in multiprocessing.active_children():
        process.kill()
    with pytest.raises(StageError, match="a process that draws pictures was killed; those that it has drawn are kept → run it again"):
        list(drawing)


def test_another_seed_is_another_shop(tiny: SimulateReport, tmp_path: Path) -> None:
    other = simulate(tmp_path, size="tiny", seed=1, days=2, workers=1)
    assert not read(other, "items").slice(0, 20)["title"].equals(read(tiny, "items").slice(0, 20)["title"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "huge"}, "size 'huge' .* → choose one of tiny, demo, busy, large"),
        ({"days": 1}, "days=1 .* → give days of at least 2"),
        ({"seed": -1}, "seed=-1 .* → give a seed of 0 or more"),
        ({"workers": 0}, "workers=0 .* → give workers of at least 1"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        simulate(tmp_path / "shop", **{"size": "tiny", **arguments})
    assert not (tmp_path / "shop").exists()


def test_a_file_is_not_a_directory(tmp_path: Path) -> None:
    (tmp_path / "shop").write_text("")
    with pytest.raises(InputError, match=r"shop is a file.* → give another path"):
        simulate(tmp_path / "shop", size="tiny")


def test_somebody_elses_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "items.parquet").write_bytes(b"precious")
    with pytest.raises(InputError, match="holds something else"):
        simulate(tmp_path, size="tiny")
    assert (tmp_path / "items.parquet").read_bytes() == b"precious"


def test_what_a_killed_simulation_had_begun_is_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / ".README.md-77-1").write_text("Simulated sh")
    assert simulate(tmp_path, size="tiny", days=2, workers=1).items


def test_another_shop_is_not_mixed_in(tiny: SimulateReport) -> None:
    with pytest.raises(InputError, match=r"size tiny, seed 0.* → give an empty directory for size tiny, seed 7"):
        simulate(tiny.out, size="tiny", seed=7)
