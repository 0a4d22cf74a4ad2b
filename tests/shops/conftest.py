"""Tiny click logs in the layouts in which the data sets are published, with what is odd in them."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from moon_ops.shops.catalogues import CatalogueReport, import_catalogue
from moon_ops.shops.exports.export import Choices

Rows = list[dict[str, Any]]
Export = Callable[..., tuple[CatalogueReport, dict[str, dict[str, Any]]]]


@pytest.fixture
def jpeg() -> Callable[[str], bytes]:
    """A small picture of one colour."""
    return picture


@pytest.fixture
def published() -> Callable[[str, Path], Path]:
    """Write the data set of that name into a directory and return it."""

    def make(name: str, place: Path) -> Path:
        place.mkdir(parents=True, exist_ok=True)
        return MAKE[name](place)

    return make


@pytest.fixture
def exported(tmp_path: Path) -> Export:
    """Write an export's files, import it, and hand out the report and the items by id; every row is accounted for."""

    def run(kind: str, chosen: Choices | None = None, **files: str) -> tuple[CatalogueReport, dict[str, dict[str, Any]]]:
        place = tmp_path / "export"
        place.mkdir(exist_ok=True)
        for name, text in files.items():
            stem, _, ending = name.rpartition("_")
            (place / f"{stem}.{ending}").write_text(text, encoding="utf-8")
        report = import_catalogue(kind, place, tmp_path / "shop", chosen or Choices())
        assert report.rows == report.items + report.merged + report.refused
        assert report.order_lines == report.purchases + sum(report.orders_left_out.values()) + report.orders_refused
        return report, {row["item_id"]: row for row in pq.read_table(tmp_path / "shop" / "items.parquet").to_pylist()}

    return run


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[], list[tuple[str, str]]]:
    """What the import of :func:`exported` has refused: places and reasons."""

    def read() -> list[tuple[str, str]]:
        with (tmp_path / "shop" / "_refused.csv").open(encoding="utf-8") as file:
            return [(row["place"], row["reason"]) for row in csv.DictReader(file)]

    return read


def picture(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def parquet(path: Path, rows: Rows, **kinds: pa.DataType) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    pq.write_table(table.cast(pa.schema([(f.name, kinds.get(f.name, f.type)) for f in table.schema])), path)


def csv_file(path: Path, rows: Rows) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    write(path, text.getvalue())


def taobao(place: Path) -> Path:
    """Users 5 and -6 in training, 5 again in the test; behaviours of 0 are none, 31's category is given in a history alone."""

    def rows(user: int, history: list[int], shown: dict[int, int]) -> Rows:
        sides: dict[str, Any] = {**{f"130_{n}": n for n in range(1, 6)}, "206": 7, "213": 1, "214": 2}
        sequences = {"150_2_180": history, "151_2_180": [9 if item == 31 else 0 for item in history]}
        return [{"label_0": [1 - clicked, clicked], "129_1": user, "205": item, **sides, **sequences} for item, clicked in shown.items()]

    labels = pa.list_(pa.int8())
    parquet(place / "train" / "train-shard-000000.parquet", rows(5, [0, 31, -32], {11: 1, -12: 0, 13: 0}), label_0=labels)
    parquet(place / "train" / "train-shard-000001.parquet", rows(-6, [31], {11: 0}), label_0=labels)
    parquet(place / "test" / "test-shard-000000.parquet", rows(5, [31, -32, 33], {11: 0, 14: 1}), label_0=labels)
    vectors = {11: [60] * 128, -12: [-60] + [0] * 127, 33: [0] * 128, 99: [1] * 128, 31: [3, 4] + [0] * 126}
    table = [{"205": item, "205_c": vector} for item, vector in [*vectors.items(), (31, vectors[31])]]  # one key is there twice
    parquet(place / "raw" / "scl_embedding_int8_p90.parquet", table, **{"205_c": labels})
    return place


def pairs(place: Path) -> Path:
    clicks = [(1, 10, 1583378629552), (1, 20, 1583378629553), (2, 10, 1600000000000), (3, 30, 1600000000001), (3, 10, 1600000000002)]
    csv_file(place / "MicroLens-1M_pairs.csv", [{"user": u, "item": i, "timestamp": t} for u, i, t in clicks])
    write(place / "MicroLens-1M_title.csv", '10,What a "day, part 2\n20,"Cats"\n99,Never seen\n')
    write(place / "MicroLens-1M_covers" / "10.jpg", picture("red"))
    write(place / "MicroLens-1M_covers" / "99.jpg", picture("blue"))
    return place


def challenge(place: Path) -> Path:
    """User 1 has two rows with one history and a later one with a longer history; item 0 is none."""
    inner = place / "MicroLens_1M_x1"

    def row(user: int, sequence: list[int], item: int, label: int) -> dict[str, Any]:
        padded = [0] * (5 - len(sequence)) + sequence
        return {"user_id": user, "item_seq": padded, "item_id": item, "likes_level": 3, "views_level": 4, "label": label}

    train = [row(1, [1, 2, 3], 4, 0), row(1, [1, 2], 3, 1), row(1, [1, 2], 5, 0), row(2, [], 1, 0)]
    parquet(inner / "train.parquet", train)
    parquet(inner / "valid.parquet", [row(3, [5], 2, 1)])
    info = [{"item_id": i, "item_tags": [0, 0, 0, i, 7], "item_emb_d128": [float(i)] * 128} for i in range(7)]
    parquet(inner / "item_info.parquet", info, item_tags=pa.list_(pa.int64()), item_emb_d128=pa.list_(pa.float32()))
    parquet(place / "item_feature.parquet", [{"item_id": 1, "item_title": "A dance", "item_tags": [1]}])
    write(inner / "item_images" / "1.jpg", picture("green"))
    return place


def amazon(place: Path) -> Path:
    def review(user: str, item: str, time: int, verified: bool = True) -> dict[str, Any]:
        told = {"rating": 5.0, "title": "Good", "text": "…", "images": [], "asin": f"{item}X", "helpful_vote": 0}
        return {**told, "parent_asin": item, "user_id": user, "timestamp": time, "verified_purchase": verified}

    reviews = [
        *(review("AEA", "B01", 1677938767351), review("AEA", "0439064864", 1677938767352), review("AEB", "B01", 1577938767351)),
        *(
            review("AEB", "B02", 1577938767399, verified=False),
            review("AEC", "B03", 1577938767400),
            review("AEC", "B01", 1577938767401),
        ),  # B03 has no page
    ]
    sizes: dict[str, Any] = {"thumb": "https://m.media-amazon.com/t.jpg", "large": "https://m.media-amazon.com/l.jpg", "hi_res": None}
    rest = {"main_category": "All Beauty", "average_rating": 4.5, "rating_number": 3, "videos": [], "bought_together": None}
    pages = [
        {
            **{"parent_asin": "B01", "title": "Rose soap", "features": ["Mild"], "description": ["By hand."], "price": 4.99},
            **{"images": [{**sizes, "large": "https://m.media-amazon.com/2.jpg", "variant": "PT01"}, {**sizes, "variant": "MAIN"}]},
            **{"store": "Rosy", "categories": ["Beauty", "Soap"], "details": {"Scent": "Rose", "Rank": {"Soap": 1}}, **rest},
        },
        {"parent_asin": "0439064864", "title": "A book", "price": "from 9.99", "images": [], "details": {}, "store": None, **rest},
    ]
    with gzip.open(place / "All_Beauty.jsonl.gz", "wt") as lines:
        lines.write("".join(json.dumps(r) + "\n" for r in reviews))
    write(place / "meta_All_Beauty.jsonl", "".join(json.dumps(p) + "\n" for p in pages))
    return place


def hm(place: Path) -> Path:
    names = ("product_type", "product_group", "graphical_appearance", "colour_group", "index_group", "section", "garment_group")
    kinds = {f"{name}_name": name.replace("_", " ").title() for name in names}
    articles = [("0108775015", "Strap top", 'Jersey top, "narrow" straps.'), ("0108775044", "Strap top", ""), ("0999999999", "Unsold", "")]
    csv_file(
        place / "articles.csv",
        [{"article_id": a, "product_code": "0108775", "prod_name": n, **kinds, "detail_desc": d} for a, n, d in articles],
    )
    bought = [("2018-09-20", "00a", 1), ("2018-09-20", "00a", 1), ("2018-09-20", "00b", 2), ("2018-09-22", "00a", 2)]
    sold = [{"t_dat": day, "customer_id": who, "article_id": articles[n - 1][0], "price": n / 100} for day, who, n in bought]
    sold.append({"t_dat": "2018-09-22", "customer_id": "00b", "article_id": "0777777777", "price": 0.5})  # no such article
    csv_file(place / "transactions_train.csv", [{**row, "sales_channel_id": 2} for row in sold])
    write(place / "images" / "010" / "0108775015.jpg", picture("red"))
    write(place / "images" / "099" / "0999999999.jpg", picture("blue"))
    return place


def movielens(place: Path) -> Path:
    """Film 3 has no genre but "unknown"; film 9 was rated and is not in u.item; the posters and plots lie beside ``ml-100k``."""
    inner = place / "ml-100k"
    genres = ("unknown", "Action", "Animation", "Comedy", "Film-Noir")
    write(inner / "u.genre", "".join(f"{name}|{number}\n" for number, name in enumerate(genres)) + "\n")
    films = {
        "1|Toy Story (1995)|01-Jan-1995": "00110",
        "2|Café (1994)|": "01010",
        "3|Unknown|": "10000",
        "4|Quiet (1950)|02-Feb-1950": "01001",
    }
    lines = [f"{head}||http://us.imdb.com/x|{'|'.join(flags)}\n" for head, flags in films.items()]
    write(inner / "u.item", "".join(lines).encode("latin-1"))
    ratings = [
        (7, 1, 5, 881250949),
        (7, 2, 3, 881250949),
        (8, 1, 4, 891717742),
        (8, 4, 1, 891717743),
        (8, 9, 5, 891717744),
        (9, 3, 2, 891717745),
    ]
    write(inner / "u.data", "".join("\t".join(map(str, row)) + "\n" for row in ratings))
    write(inner / "u.user", "7|24|M|technician|85711\n8|53|F|other|94043\n9|23|M|writer|32067\n99|1|F|none|T8H1N\n")
    write(place / "posters" / "1.jpg", picture("red"))
    write(place / "posters" / "99.jpg", picture("blue"))
    write(place / "plots.csv", 'movie_id,plot\n1,"Toys, alive."\n2,\n')
    return place


def grocery(place: Path) -> Path:
    """Two apples whose texts have the names that the published classes.csv misspells, a juice, and a photograph that is not there."""
    inner = place / "dataset"
    names = ("Class Name (str)", "Class ID (int)", "Coarse Class Name (str)", "Coarse Class ID (int)")
    rows, paths = [], ("Fruit/Apple/Pink-Lady", "Fruit/Pear/Anjou", "Packages/Juice/Bravo-Orange-Juice")
    for number, path in enumerate(paths):
        _, coarse, name = path.split("/")
        said = {0: f"{name}_Description.txt", 1: f"{name}_Descriptions.txt", 2: f"{name}_Description"}[number]
        at = f"/iconic-images-and-descriptions/{path}"
        row = dict(zip(names, (name, number, coarse, number), strict=True))
        rows.append(row | {"Iconic Image Path (str)": f"{at}/{name}_Iconic.jpg", "Product Description Path (str)": f"{at}/{said}"})
        write(inner / at[1:] / f"{name}_Iconic.jpg", picture("red"))
        write(inner / at[1:] / f"{name}_Description.txt", f"About\n{name}.")
        for split, count in (("train", 4), ("val", 1), ("test", 2)):
            for photograph in range(count):
                write(inner / split / path / f"{name}_{photograph:03d}.jpg", picture("green"))
    csv_file(inner / "classes.csv", rows)
    for split, count in (("train", 4), ("val", 1), ("test", 2)):
        lines = [f"{split}/{p}/{p.split('/')[2]}_{n:03d}.jpg, {number}, {number}\n" for number, p in enumerate(paths) for n in range(count)]
        write(inner / f"{split}.txt", "".join(lines))
    (inner / "test" / paths[0] / "Pink-Lady_001.jpg").unlink()
    return place


MAKE: dict[str, Callable[[Path], Path]] = {
    **{"taobao_mm": taobao, "pairs": pairs, "challenge": challenge, "amazon2023": amazon, "hm": hm},
    **{"movielens": movielens, "grocery": grocery},
}
