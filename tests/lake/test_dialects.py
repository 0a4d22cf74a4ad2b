"""Files as spreadsheets, feeds and databases write them: what is recognised, what is refused with its row, and what is passed over."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moon_ops.errors import InputError
from moon_ops.lake import meanings, rows
from moon_ops.lake.layout import Refusals
from moon_ops.lake.reading import delimited, files

VASE = [{"item_id": 1, "title": "Blumenkübel", "price": 19.99}, {"item_id": 2, "title": "Krug", "price": 20.0}]
PLAIN = "item_id,title,price\n1,Blumenkübel,19.99\n2,Krug,20\n"


def items(place: Path, said: meanings.Meanings = meanings.PLAIN) -> tuple[list[dict[str, Any]], Refusals]:
    refusals = Refusals()
    table = rows.read(place, "items", refusals, said)
    return table.select(["item_id", "title", "price"]).to_pylist(), refusals


DIALECTS: dict[str, tuple[str, str, str]] = {  # what is written, in which encoding → what is said
    "comma": (PLAIN, "utf-8", "CSV, comma between cells, UTF-8"),
    "mark": (PLAIN, "utf-8-sig", "CSV, comma between cells, UTF-8"),
    "utf-16": (PLAIN, "utf-16", "CSV, comma between cells, UTF-16"),
    "utf-16 without a mark": (PLAIN, "utf-16-le", "CSV, comma between cells, UTF-16"),
    "western": (PLAIN, "cp1252", "CSV, comma between cells, Windows-1252"),
    "german": (
        "item_id;title;price\n1;Blumenkübel;19,99\n2;Krug;20\n",
        "cp1252",
        "CSV, semicolon between cells, Windows-1252, decimal comma",
    ),
    "tab": (PLAIN.replace(",", "\t"), "utf-8", "CSV, tab between cells, UTF-8"),
    "bar": (PLAIN.replace(",", "|"), "utf-8", "CSV, '|' between cells, UTF-8"),
    "hive": (PLAIN.replace(",", "\x01"), "utf-8", "CSV, '\\x01' between cells, UTF-8"),
    "windows": (PLAIN.replace("\n", "\r\n"), "utf-8", "CSV, comma between cells, UTF-8"),
    "mac": (PLAIN.replace("\n", "\r"), "utf-8", "CSV, comma between cells, UTF-8"),
    "excel": ("sep=;\n" + PLAIN.replace(",", ";"), "utf-8", "CSV, semicolon between cells, UTF-8"),
    "capitals": (PLAIN.replace("item_id,title,price", "Item ID, TITLE,Price"), "utf-8", "CSV, comma between cells, UTF-8"),
    "single quotes": (
        "'item_id','title','price'\n'1','Blumenkübel','19.99'\n'2','Krug','20'\n",
        "utf-8",
        "CSV, comma between cells, single quotes, UTF-8",
    ),
    "currency": (
        "item_id,title,price\n1,Blumenkübel,19.99 EUR\n2,Krug,€ 20.00\n",
        "utf-8",
        "CSV, comma between cells, UTF-8, prices in EUR",
    ),
    "pandas": (
        ",item_id,title,price\n0,1.0,Blumenkübel,19.99\n1,2.0,Krug,20.0\n",
        "utf-8",
        "CSV, comma between cells, UTF-8, without the column ''",
    ),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_a_dialect_is_recognised_and_said(tmp_path: Path, name: str) -> None:
    text, encoding, said = DIALECTS[name]
    (tmp_path / "items.csv").write_bytes(text.encode(encoding))
    found, refusals = items(tmp_path)
    assert (found, refusals.rows) == (VASE, [])
    assert ", ".join(refusals.contents["items"].said) == said


@pytest.mark.parametrize("ending", [".csv.gz", ".CSV.GZ", ".csv.bz2", ".csv.zst", ".tsv", ".txt", ".json", ".ndjson", ".jsonl.gz", ".pq"])
def test_an_ending_says_how_a_file_is_packed(tmp_path: Path, ending: str) -> None:
    lines = "".join(f'{{"item_id": {v["item_id"]}, "title": "{v["title"]}", "price": {v["price"]}}}\n' for v in VASE)
    content = (lines if "js" in ending else PLAIN).encode()
    packs: dict[str, Callable[[bytes], bytes]] = {
        "gz": gzip.compress,
        "bz2": bz2.compress,
        "zst": lambda b: pa.compress(b, "zstd", asbytes=True),
    }
    if ending == ".pq":
        pq.write_table(pa.Table.from_pylist(VASE), tmp_path / "Items.pq")
    else:
        (tmp_path / f"Items{ending}").write_bytes(packs.get(ending.rpartition(".")[2].lower(), bytes)(content))
    assert items(tmp_path)[0] == VASE


def test_a_list_of_objects_is_json_too(tmp_path: Path) -> None:
    (tmp_path / "items.json").write_text(
        '[{"item_id": 1, "title": "Blumenkübel", "price": 19.99},\n {"item_id": 2, "title": "Krug", "price": 20}]'
    )
    assert items(tmp_path)[0] == VASE


def test_quotes_escaped_by_a_backslash_are_those_of_spark(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text('item_id,title,brand\n1,"say \\"hi\\", now","\\\\"\n2,plain,\\N\n')
    refusals = Refusals()
    table = rows.read(tmp_path, "items", refusals)
    assert table.select(["title", "brand"]).to_pylist() == [{"title": 'say "hi", now', "brand": "\\"}, {"title": "plain", "brand": None}]
    assert "quotes escaped by a backslash" in refusals.contents["items"].said[0]


def test_a_feed_without_quoting_may_have_quotation_marks(tmp_path: Path) -> None:
    (tmp_path / "items.tsv").write_text('item_id\ttitle\n1\tscreen 5"\n2\t"Best" lamp\n')
    refusals = Refusals()
    assert rows.read(tmp_path, "items", refusals)["title"].to_pylist() == ['screen 5"', '"Best" lamp']
    assert "no quotes" in refusals.contents["items"].said[0]


@pytest.mark.parametrize(
    ("text", "row", "line"),
    [
        ('item_id,title,brand\n1,plate,x\n2,"Rock plate,x\n3,cup,x\n4,jug,x\n5,"tea pot",x\n6,bowl,x\n', 2, 3),
        ('item_id,title,brand\n1,"a\nb",x\n2,cup,"cut', 2, 4),
        ('item_id,title,brand\n1,plate,x\n2,"cup,x\n3,jug,x\n4,"pot",bowl",x\n', 2, 3),
        ('item_id,title,brand\n1,plate,x\n\n2,"cup,x\n3,jug",x,y\n', 2, 4),
    ],
)
def test_an_unclosed_quote_is_an_error_that_names_its_row(tmp_path: Path, text: str, row: int, line: int) -> None:
    (tmp_path / "items.csv").write_text(text)
    with pytest.raises(
        InputError, match=rf"items\.csv cannot be read \(row {row}, which begins in line {line}: a quote .*nothing was ingested"
    ):
        items(tmp_path)


def test_a_quote_that_may_have_swallowed_rows_is_told(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text('item_id,title,brand\n1,plate,x\n2,"cup,x\n3,jug,x\n4,pot",x\n')
    found, refusals = items(tmp_path)
    assert len(found) == 2
    assert refusals.contents["items"].notes == [
        "items.csv: 1 cell holds lines that look like rows: if a quote opened there by mistake, rows are lost"
    ]


def test_a_row_of_too_few_or_too_many_cells_is_refused_alone(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title,price\n1,Blumenkübel,19.99\n\n7,x\n8,x,1,2\n2,Krug,20\n")
    found, refusals = items(tmp_path)
    assert found == VASE
    assert [(r["source"], r["reason"], r["row"]) for r in refusals.rows] == [
        ("items.csv:2", "has 2 cells, and the header has 3", '{"item_id": "7", "title": "x"}'),
        ("items.csv:3", "has 4 cells, and the header has 3", '{"item_id": "8", "title": "x", "price": "1", "": ["2"]}'),
    ]


HALVES = {
    "items.jsonl": b'{"item_id": 1, "title": "lamp"}\n{"item_id": 2, "title": "sale \\ud83d"}\n{"item_id": 3, "title": "cup"}\n',
    "items.ndjson": b'{"item_id": 1, "title": "lamp"}\n{"item_id": 2, "title": "caf\xc3"}\n{"item_id": 3, "title": "\xc3\xa9"}\n',
    "items.csv": "item_id,title\n1,lampé\n".encode() + b"2,caf\xc3\n3,cup\n",
    "items.tsv": b"item_id\ttitle\n1\tlamp\n2\tcaf\xf0\x9f\x98\n3\tcup\n",
    "items.txt": "item_id,title\n1,lamp\n2,x".encode("utf-16") + b"\x3d\xd8" + "\n3,cup\n".encode("utf-16-le"),
}


@pytest.mark.parametrize("name", HALVES)
def test_half_a_character_costs_its_row_only(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(HALVES[name])
    found, refusals = items(tmp_path)
    assert [row["item_id"] for row in found] == [1, 3]
    assert [(r["source"], r["column"]) for r in refusals.rows] == [(f"{name}:2", "title")]
    assert "\N{REPLACEMENT CHARACTER}' holds half a character" in refusals.rows[0]["reason"]


def test_letters_of_windows_may_stand_in_the_header_alone(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_bytes("item_id,title,Größe\n1,lamp,2\n".encode("cp1252"))
    assert rows.read(tmp_path, "items", Refusals())["extra"].to_pylist() == ['{"Gr\\u00f6\\u00dfe": "2"}']
    (tmp_path / "items.csv").write_bytes(b"item_id,title,\xc3\n1,lamp,2\n")
    with pytest.raises(InputError, match="a column's name holds half a character: if it is no UTF-8, name its encoding"):
        items(tmp_path)


def test_an_encoding_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_bytes("item_id,title\n1,Блюдо\n".encode("cp866"))
    found, _ = items(tmp_path, meanings.of(tmp_path, encoding="cp866"))
    assert found[0]["title"] == "Блюдо"
    with pytest.raises(InputError, match="encoding = 'klingon' is unknown"):
        meanings.of(tmp_path, encoding="klingon")


def test_another_alphabet_is_told_by_its_language(tmp_path: Path) -> None:
    text = "item_id,title\n" + "".join(f"{n},Красивая настольная лампа из дерева и стекла\n" for n in range(5))
    (tmp_path / "items.csv").write_bytes(text.encode("cp1251"))
    assert items(tmp_path)[0][0]["title"] == "Красивая настольная лампа из дерева и стекла"


def test_a_cut_upload_is_refused_whole(tmp_path: Path) -> None:
    whole = gzip.compress(b"item_id,title\n" + b"".join(b"%d,lamp %d\n" % (n, n * 7919 % 4001) for n in range(3000)))
    (tmp_path / "items.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"items\.csv\.gz cannot be read \(the file is cut\); nothing was ingested"):
        items(tmp_path)
    (tmp_path / "items.csv.gz").unlink()
    pq.write_table(pa.table({"item_id": [1], "title": ["a"]}), tmp_path / "items.parquet")
    (tmp_path / "items.parquet").write_bytes((tmp_path / "items.parquet").read_bytes()[:-20])
    with pytest.raises(InputError, match=r"items\.parquet cannot be read .*; nothing was ingested"):
        items(tmp_path)


def test_part_files_are_one_table_and_refusals_name_the_part(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\n1,lamp\n")
    parts = tmp_path / "events.parquet" / "day=1"
    parts.mkdir(parents=True)
    for n, event in enumerate(("click", "x")):
        table = pa.table({"timestamp": ["2026-01-01T00:00:01Z"] * 2, "item_id": [1, 1], "event": ["click", event]})
        pq.write_table(table, parts / f"part-0000{n}.snappy.parquet")
    (tmp_path / "events.parquet" / "_SUCCESS").touch()
    refusals = Refusals()
    assert rows.read(tmp_path, "events", refusals).num_rows == 3
    assert refusals.rows[0]["source"] == "events.parquet/day=1/part-00001.snappy.parquet:2"
    assert refusals.summary() == {"events.parquet/ event": 1}
    assert refusals.contents["events"].said == ["Parquet", "2 files"]


def test_numbered_files_are_one_table(tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / f"items-00000000000{n}.csv").write_text(f"item_id,title\n{n},lamp\n")
    assert [row["item_id"] for row in items(tmp_path)[0]] == [0, 1, 2]


def test_parts_of_different_types_are_read_as_texts(tmp_path: Path) -> None:
    (tmp_path / "items").mkdir()
    pq.write_table(pa.table({"item_id": [1], "title": ["a"], "price": [1.5]}), tmp_path / "items" / "0.parquet")
    pq.write_table(pa.table({"item_id": ["sku"], "title": ["b"], "price": ["cheap"]}), tmp_path / "items" / "1.parquet")
    found, refusals = items(tmp_path)
    assert [(row["item_id"], row["price"]) for row in found] == [(1, 1.5)]
    assert refusals.rows[0]["reason"] == "price = 'cheap' is not a number"


def test_nothing_in_the_directory_is_passed_over_in_silence(tmp_path: Path) -> None:
    for name in ("items.csv", "Artikel.csv", "events.xlsx", "a.jpg", "b.jpg", "notes/old.csv", ".hidden", "_SUCCESS", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    said = files.passed_over(tmp_path, {tmp_path / "items.csv", tmp_path / "a.jpg"})
    assert (
        said == "not read, because no table is called so: Artikel.csv, events.xlsx, notes/old.csv; 1 picture that no row names, e.g. b.jpg"
    )
    assert files.passed_over(tmp_path / "notes", {tmp_path / "notes" / "old.csv"}) == ""


def test_words_of_the_shop_are_named_in_its_file_or_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("SKU,title,status\n1,lamp,paused\n2,cup,Enabled\n3,jug,gone\n")
    (tmp_path / "moon.toml").write_text('[status]\npaused = "deleted"\n[columns]\nsku = "item_id"\n')
    refusals = Refusals()
    table = rows.read(tmp_path, "items", refusals, meanings.of(tmp_path, status=["gone=active"]))
    assert table["status"].to_pylist() == ["deleted", "active", "active"]
    for text, named in (
        ("[status]\na = 'sold'\n", "status.a = 'sold' is not one of"),
        ("x = 1\n", "x = 1 is not understood"),
        ("[", "cannot be read"),
    ):
        (tmp_path / "moon.toml").write_text(text)
        with pytest.raises(InputError, match=named):
            meanings.of(tmp_path)
    with pytest.raises(InputError, match="is not WORD=MEANING"):
        meanings.of(tmp_path / "nowhere", events=["wishlist"])


def test_the_names_that_analytics_give_to_events_are_known(tmp_path: Path) -> None:
    named = {"view_item_list": "impression", "View Item": "click", "select_item": "click", "add_to_cart": "cart", "Purchase": "purchase"}
    lines = "".join(f"2026-01-01,1,{name}\n" for name in (*named, "wishlist"))
    (tmp_path / "events.csv").write_text(f"timestamp,item_id,event\n{lines}")
    refusals = Refusals()
    assert rows.read(tmp_path, "events", refusals)["event"].to_pylist() == list(named.values())
    assert refusals.rows[0]["reason"].startswith("event = 'wishlist' is not one of impression, click, cart, purchase")


def test_a_large_file_with_a_stray_quote_at_its_end_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "BATCH", 7)
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f'{n},"a\nb"\n' for n in range(20)) + '20,"x" y\n')
    with pytest.raises(InputError, match=r"row 21, which begins in line 42: "):
        items(tmp_path)
