"""CSV files that were joined, filled up or cut: what is passed over, and what is said of it."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from moon_ops.lake import rows
from moon_ops.lake.layout import Refusals


def read(place: Path) -> tuple[list[str], list[str], Refusals]:
    """The titles, the notes and what was refused."""
    refusals = Refusals()
    titles = rows.read(place, "items", refusals)["title"].to_pylist()
    return titles, refusals.contents["items"].notes, refusals


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_header_that_comes_again_is_no_item(tmp_path: Path, mark: str) -> None:
    first, second = (f"{mark}item_id,title\n{n},{title}\n".encode() for n, title in enumerate("ab"))
    (tmp_path / "items.csv").write_bytes(first + second)
    said = ["items.csv: 1 rows repeat the header and were passed over"]
    assert read(tmp_path)[:2] == (["a", "b"], said)
    (tmp_path / "items.csv").rename(tmp_path / "items.csv.gz")
    (tmp_path / "items.csv.gz").write_bytes(gzip.compress(first) + gzip.compress(second))
    assert read(tmp_path)[0] == ["a", "b"]


def test_rows_without_content_are_counted_and_not_refused(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id;title;price\n1;a;1\n;;\n2;b\n;;\n;;\n")
    titles, notes, refusals = read(tmp_path)
    assert (titles, notes) == (["a"], ["items.csv: 3 rows have no content and were passed over"])
    assert [(row["source"], row["reason"]) for row in refusals.rows] == [("items.csv:2", "has 2 cells, and the header has 3")]


def test_a_long_cell_is_taken(tmp_path: Path) -> None:
    long = "lamp " * 100_000
    (tmp_path / "items.csv").write_text(f'item_id,title,description\n1,a,"{long}"\n2,b,x\n')
    refusals = Refusals()
    assert rows.read(tmp_path, "items", refusals)["description"].to_pylist() == [long.strip(), "x"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_last_row_without_a_line_end_is_said(tmp_path: Path, encoding: str) -> None:
    text = "item_id,title,price\n1,a,5.50\n2,b,199"
    said = ["items.csv: the last row has no line end, and may be cut"]
    for more, notes in (("", said), ("\n", []), (".99\r\n", [])):
        (tmp_path / "items.csv").write_bytes((text + more).encode(encoding))
        assert read(tmp_path)[:2] == (["a", "b"], notes)
    (tmp_path / "items.csv").unlink()
    (tmp_path / "items.csv.gz").write_bytes(gzip.compress(text.encode(encoding)))
    assert read(tmp_path)[1] == ["items.csv.gz: the last row has no line end, and may be cut"]
