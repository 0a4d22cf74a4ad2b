"""Rows that continue an item, and texts that come as HTML: what becomes of them in every way into the lake."""

from __future__ import annotations

import csv
import datetime as dt
import io
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from moon_ops.lake.checking import check
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.lake.reading import markup

NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
HEADER = "item_id,title,description,brand,Option1 Name,Option1 Value,Variant SKU,price,images,Image Position,status"
BOWL = '"<p data-start=""1"">A bowl.</p>\n<p>Two lines &amp; a mark.</p>"'


def shop(place: Path, *lines: str, header: str = HEADER, pictures: str = "one two three") -> Path:
    place.mkdir(exist_ok=True)
    (place / "items.csv").write_text("\n".join([header, *lines]) + "\n")
    for number, name in enumerate(pictures.split()):
        buffer = io.BytesIO()
        Image.new("RGB", (40, 30), (40 * number, 90, 90)).save(buffer, "JPEG")
        (place / f"{name}.jpg").write_bytes(buffer.getvalue())
    return place


def current(lake: Lake) -> dict[str, dict[str, Any]]:
    return {row["source_id"] or row["item_id"]: row for row in lake.read("items").to_pylist()}


def test_rows_that_continue_a_product_bring_their_pictures(tmp_path: Path, empty: Lake) -> None:
    place = shop(
        tmp_path / "shop",
        f"plain-bowl,Plain bowl,{BOWL},Pottery Co,Colour,Blue,,12.50,one.jpg,1,active",
        "plain-bowl,,,,,Green,,12.5,two.jpg,2,",
        "plain-bowl,,,,,,,,three.jpg,3,",
        "plain-cup,Plain cup,<p>A cup.</p>,Pottery Co,Title,Default Title,,8.00,gone.jpg,1,active",
    )
    said = check(place, now=NOW)
    assert said.tables["items"] == {"rows": 4, "new": 2, "twice": 0, "refused": 0, "merged": 2}
    assert said.pictures == {"found": 3, "missing": 1, "addresses": 0}
    report = ingest(place, empty, now=NOW)
    assert (report.items, report.merged, report.refused, report.images) == (2, 2, {}, 3)
    assert report.unread == {"items.csv images": 1}
    bowl = current(empty)["plain-bowl"]
    assert (bowl["title"], bowl["description"], bowl["price"]) == ("Plain bowl", "A bowl. Two lines & a mark.", 12.5)
    assert len(bowl["image_ids"]) == 3
    assert current(empty)["plain-cup"]["description"] == "A cup."
    (note,) = [note for note in report.notes if "continue" in note]
    assert "the columns Image Position, Option1 Value differ from its first row" in note
    assert ingest(place, empty, now=NOW).known == 2, "the same again is nothing new"


@pytest.mark.parametrize(
    ("cells", "column", "reason"),
    [
        (
            "1,,,13.50,,two.jpg",
            "price",
            "price = '13.50': the row continues item '1' of row 1, which has '12.50' there: the first row counts",
        ),
        ("1,,Other,,,two.jpg", "brand", "brand = 'Other': the row continues item '1' of row 1, which has 'Pottery' there"),
        ("1,,,,draft,two.jpg", "status", "status = 'draft': the row continues item '1' of row 1, which has nothing there"),
        ("1,Bowl,,13.50,,two.jpg", "price", "price = '13.50': the row continues item '1'"),
    ],
)
def test_a_row_that_contradicts_its_item_is_refused_for_it(tmp_path: Path, empty: Lake, cells: str, column: str, reason: str) -> None:
    header = "item_id,title,brand,price,status,images"
    report = ingest(shop(tmp_path / "shop", "1,Bowl,Pottery,12.50,,one.jpg", cells, header=header), empty, now=NOW)
    assert (report.items, report.merged, report.refused) == (1, 0, {f"items.csv {column}": 1})
    (refused,) = empty.read("quarantine").to_pylist()
    assert refused["source"] == "items.csv:2"
    assert refused["reason"].startswith(reason)
    assert [len(row["image_ids"]) for row in empty.read("items").to_pylist()] == [1]


def test_rows_that_repeat_the_title_for_each_picture_are_one_item(tmp_path: Path, empty: Lake) -> None:
    lines = ("1,Bowl,12.50,one.jpg", "1,Bowl,12.50,two.jpg", "1,Bowl,12.50,two.jpg", "2,Cup,,three.jpg")
    report = ingest(shop(tmp_path / "shop", *lines, header="item_id,title,price,images"), empty, now=NOW)
    assert (report.items, report.merged, report.refused) == (2, 1, {"items.csv item_id": 1})
    assert report.first_refusal == "items.csv:3: item_id = '1' is there twice: the first row counts"
    assert len(current(empty)["1"]["image_ids"]) == 2


def test_a_missing_picture_of_a_continuing_row_names_that_row(tmp_path: Path, empty: Lake) -> None:
    place = shop(tmp_path / "shop", "1,Bowl,one.jpg", "1,,gone.jpg", header="item_id,title,images")
    report = ingest(place, empty, now=NOW)
    assert (report.items, report.merged, report.unread) == (1, 1, {"items.csv images": 1})
    assert empty.read("quarantine")["source"].to_pylist() == ["items.csv:2"]
    assert check(place, now=NOW).reasons == ["items.csv:2: images = 'gone.jpg': gone.jpg cannot be read (No such file or directory)"]


@pytest.mark.parametrize(
    ("cell", "seen"),
    [
        ('<p data-start="1">A bowl.</p>\n<p>Two lines &amp; a mark.</p>', "A bowl. Two lines & a mark."),
        ("<b>H</b>ello<br>World", "Hello World"),
        ("<ul><li>Red<li>Blue</ul>", "Red Blue"),
        ("<style>p{a:b}</style>Hi <script>x<y</script>there", "Hi there"),
        ("<p>size <3 kg, R&D, by <YourName></p>", "size <3 kg, R&D, by <YourName>"),
        ("<p>5 &lt; 6&nbsp;cm</p>", "5 < 6 cm"),
        ('one <a href="http://x.example/', 'one <a href="http://x.example/'),
        ('<p>one</p> <a href="http://x.example/', "one"),
        ("&lt;p&gt;Hello&lt;/p&gt;", "Hello"),
        ("Salt &amp; Pepper, it&#39;s 10&nbsp;cm", "Salt & Pepper, it's 10 cm"),
        ("Salt &amp;amp; Pepper", "Salt & Pepper"),
        *(
            (text, text)
            for text in ("size <3 kg", "a < b", "a<b and c>d", "the <b> tag", "AT&T", "a&copy=2", "&foo;", "two\nlines", "a <3 </3")
        ),
        ("<p></p>", ""),
    ],
)
def test_html_becomes_what_people_see_and_other_text_stays(cell: str, seen: str) -> None:
    assert markup.text(cell) == seen
    assert markup.text(seen) == seen, "what is in the lake may be sent again"


@pytest.mark.timeout(20)
def test_no_text_takes_long() -> None:
    for text in ("<p" + " " * 100_000, '<p a="' * 20_000, "<p a=b" * 20_000 + "</p>", "<" * 100_000 + "</p>", "&" * 100_000 + "</p>"):
        assert isinstance(markup.text(text), str)


def test_the_simulated_shop_has_no_html(request: pytest.FixtureRequest) -> None:
    items = pq.read_table(request.getfixturevalue("shop") / "items.parquet").to_pylist()
    for item in items:
        assert [markup.text(item[name] or "") for name in ("title", "brand", "description")] == [
            item[name] or "" for name in ("title", "brand", "description")
        ]


def test_html_goes_from_all_that_is_read_of_an_item(tmp_path: Path, empty: Lake) -> None:
    cells = [
        "1",
        "Salt &amp; pepper<br>mill",
        "M&amp;S",
        "Home &amp; garden > Mills",
        '{"colour": "black &amp; white"}',
        "a < b",
        "<b>own</b>",
    ]
    out = io.StringIO()
    csv.writer(out).writerow(cells)
    header = "item_id,title,brand,category,attributes,description,mine"
    ingest(shop(tmp_path / "shop", out.getvalue().strip(), "2,<p> </p>,,,,,", header=header), empty, now=NOW)
    (item,) = empty.read("items").to_pylist()
    assert (item["title"], item["brand"], item["category"]) == ("Salt & pepper mill", "M&S", ["Home & garden", "Mills"])
    assert (item["attributes"], item["description"]) == ([("colour", "black & white")], "a < b")
    assert item["extra"] == '{"mine": "<b>own</b>"}', "the shop's own columns are its own"
    (refused,) = empty.read("quarantine").to_pylist()
    assert refused["reason"] == "title = '<p> </p>' is empty"


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.lists(st.sampled_from([*'<>&x \n"', "</", "<p>", "<b>", "</b>", "<br/>", "<!--", "-->", "<a href=", "&amp;", "lt;", "#39;"])))
def test_no_text_ends_in_a_traceback_and_plain_text_stays(parts: list[str]) -> None:
    text = "".join(parts)
    seen = markup.text(text)
    assert len(seen) <= len(text)
    if "&" not in text and not markup.is_html(text):
        assert seen == text
    assert text.count("x") == seen.count("x") or markup.is_html(text), "no word is lost"
