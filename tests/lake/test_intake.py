"""Pictures on their way into the lake: each stored once, and what becomes of one that cannot be read."""

from __future__ import annotations

import hashlib
import io
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from coat_and_hat import DAY, HAT, NOW, Shop, current, image_id, set_aside
from PIL import Image

from moon_ops.inputs import images
from moon_ops.lake import fetch, hosts, intake
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS


def png(colour: str, size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("references", [1, 10**6])
def test_known_pictures_are_known_and_sixteen_bytes_of_each_are_kept(empty: Lake, references: int) -> None:
    names = [hashlib.sha256(bytes([n])).hexdigest() for n in range(250)]
    rows = [{"image_id": name, "bytes": b""} for name in [*names[:200], "odd"]]
    empty.append("images", pa.Table.from_pylist(rows[:100], schema=SCHEMAS["images"]))
    empty.append("images", pa.Table.from_pylist(rows[100:200], schema=SCHEMAS["images"]))
    empty.append("images", pa.Table.from_pylist(rows[200:], schema=SCHEMAS["images"]))
    known = intake.Known(empty, references)
    twin = names[0][:16] + "0" * 48  # begins like another one
    assert [name in known for name in (*names, "odd", "even", twin, None)] == [True] * 200 + [False] * 50 + [True] + [False] * 3
    if references > 1:
        assert known._first.nbytes + known._second.nbytes == 16 * 200
        assert known._here == {"odd"}
    known.add([names[249]])
    assert names[249] in known


def test_a_picture_is_stored_once_however_many_name_it(make_shop: Shop, empty: Lake) -> None:
    names = ["a.png", "copy/of/a.png", "b.png"]
    items = [{"item_id": n, "title": "Hat", "images": path} for n, path in enumerate(names)]
    shop = make_shop(items=items, pictures={"a.png": "red", "copy/of/a.png": "red", "b.png": "blue"})
    assert ingest(shop, empty, now=NOW).images == 2
    rows = {row["image_id"]: row for row in empty.read("images").to_pylist()}
    assert len(rows) == empty.count("images") == 2
    a, b = image_id(shop, "a.png"), image_id(shop, "b.png")
    assert rows[a] == {
        **{"image_id": a, "bytes": (shop / "a.png").read_bytes(), "format": "PNG", "width": 40, "height": 30},
        **{"phash": images.inspect((shop / "a.png").read_bytes()).phash, "created": NOW},
    }
    assert current(empty, "item_id", "image_ids") == [(0, [a]), (1, [a]), (2, [b])]


def test_many_pictures_are_committed_in_pieces_and_each_once(make_shop: Shop, empty: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moon_ops.lake.intake.COMMIT", 2)
    pictures = {f"{n}.png": ("red", "green", "blue", "white", "red")[n] for n in range(5)}  # the last piece holds the first picture
    items = [{"item_id": n, "title": "Hat", "images": path} for n, path in enumerate(pictures)]
    shop = make_shop(items=items, pictures=pictures)
    for stored in (4, 0):
        assert ingest(shop, empty, now=NOW).images == stored
        assert empty.count("images") == 4
        assert empty.open("images").version == 2
    assert current(empty, "image_ids") == [([image_id(shop, path)],) for path in pictures]


def test_bytes_bound_a_piece_as_well(make_shop: Shop, empty: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """4,096 pictures of three megabytes would be twelve gigabytes."""
    pictures = {f"{n}.png": ("red", "green", "blue", "white")[n] for n in range(4)}
    items = [{"item_id": n, "title": "Hat", "images": path} for n, path in enumerate(pictures)]
    shop = make_shop(items=items, pictures=pictures)
    monkeypatch.setattr("moon_ops.lake.intake.COMMIT_BYTES", (shop / "0.png").stat().st_size * 3 // 2)  # full with two
    assert ingest(shop, empty, now=NOW).images == 4
    assert empty.open("images").version == 2


BAD_PICTURES = [
    ("broken.png", "it is not a JPEG, PNG, WebP, GIF, AVIF or HEIC picture"),
    ("half.png", "it cannot be decoded"),
    ("missing.png", "missing.png cannot be read (No such file or directory)"),
    (".", ". cannot be read (Is a directory)"),
    ("../outside.png", "../outside.png lies outside "),
    ("/etc/hostname", "/etc/hostname lies outside "),
    ("link.png", "link.png lies outside "),
    ("loop.png", "loop.png"),
    ("x" * 300 + ".png", "cannot be read (File name too long)"),
    ("nul\0.png", "is no path (embedded null byte)"),
    ("http://127.0.0.1/a.png", "points to 127.0.0.1, which is not a public address"),
    ("http://[bad/a.png", "is not an http(s) address"),
]


@pytest.fixture
def rough(make_shop: Shop, tmp_path: Path) -> Path:
    """A shop directory with pictures that cannot be used, and one good picture outside."""
    good = png("red", (400, 300))
    shop = make_shop(pictures={"a.png": "red", "broken.png": b"<html>not found</html>", "half.png": good[: len(good) // 2]})
    (tmp_path / "outside.png").write_bytes(good)
    (shop / "link.png").symlink_to(tmp_path / "outside.png")
    (shop / "loop.png").symlink_to(shop / "loop.png")
    return shop


@pytest.mark.parametrize(("path", "reason"), BAD_PICTURES, ids=[b[0][:20].replace("\0", "0") for b in BAD_PICTURES])
def test_a_picture_that_cannot_be_read_is_left_out_of_its_item(make_shop: Shop, rough: Path, empty: Lake, path: str, reason: str) -> None:
    make_shop(items=[{**HAT, "images": ["a.png", path]}], queries=[{"query_id": 1, "timestamp": "2026-05-02", "image": path, "text": "x"}])
    report = ingest(rough, empty, now=NOW)
    assert current(empty, "image_ids") == [([image_id(rough, "a.png")],)]
    assert empty.read("queries", ["text", "image_id"]).to_pylist() == [{"text": "x", "image_id": None}]
    assert (report.refused, report.unread) == ({}, {"items.jsonl images": 1, "queries.jsonl image": 1})
    aside = {column: (source, why) for source, column, why in set_aside(empty)}
    for column, source in (("images", "items.jsonl:1"), ("image", "queries.jsonl:1")):
        assert aside[column][0] == source
        assert aside[column][1].startswith(f"{column} = {path!r}: ")
        assert reason in aside[column][1]
    assert empty.count("images") == 1


def test_a_query_of_nothing_but_a_broken_picture_is_left_out(make_shop: Shop, rough: Path, empty: Lake) -> None:
    make_shop(
        items=[HAT],
        queries=[
            {"query_id": 1, "timestamp": "2026-05-02", "image": "broken.png"},
            {"query_id": 9, "timestamp": "2026-05-03", "text": "hat"},
        ],
    )
    report = ingest(rough, empty, now=NOW)
    assert report.refused == {"queries.jsonl image": 1}
    assert empty.read("queries")["query_id"].to_pylist() == [9]


def test_a_picture_file_that_is_too_large_is_left_out(make_shop: Shop, empty: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = make_shop(items=[{**HAT, "images": "a.png"}], pictures={"a.png": b"\x89PNG" + b"." * 96})
    monkeypatch.setattr(images, "MAX_BYTES", 50)
    ingest(shop, empty, now=NOW)
    assert [why for *_, why in set_aside(empty)] == ["images = 'a.png': a.png: 51 bytes is more than 50; the picture was not read"]
    assert current(empty, "image_ids") == [([],)]


def test_a_mended_picture_is_added(make_shop: Shop, rough: Path, empty: Lake) -> None:
    make_shop(items=[{**HAT, "images": "broken.png|a.png"}])
    ingest(rough, empty, now=NOW)
    make_shop(pictures={"broken.png": "green"})
    assert ingest(rough, empty, now=NOW + DAY).updated == 1
    assert current(empty, "image_ids", when=NOW + DAY) == [([image_id(rough, "broken.png"), image_id(rough, "a.png")],)]


def test_a_picture_that_cannot_be_read_any_more_is_not_taken_away(make_shop: Shop, empty: Lake) -> None:
    """A host that is down for an hour must not give every item two new versions, each with a new vector."""
    coat, hat = {"item_id": 1, "title": "Wool coat", "images": "a.png|b.png"}, {**HAT, "images": "a.png"}
    shop = make_shop(items=[coat, hat], pictures={"a.png": "red", "b.png": "blue"})
    ingest(shop, empty, now=NOW)
    a, b = image_id(shop, "a.png"), image_id(shop, "b.png")
    (shop / "a.png").unlink()
    report = ingest(shop, empty, now=NOW + DAY)
    assert (report.updated, report.unread) == (0, {"items.jsonl images": 2})
    make_shop(items=[{**coat, "title": "Red coat", "images": "a.png|c.png"}, hat], pictures={"c.png": "green"})
    assert ingest(shop, empty, now=NOW + 2 * DAY).updated == 1
    c = image_id(shop, "c.png")
    assert current(empty, "title", "image_ids", when=NOW + 2 * DAY) == [("Red coat", [a, b, c]), ("Hat", [a])]
    make_shop(items=[{**coat, "title": "Red coat", "images": "c.png"}, hat])
    assert ingest(shop, empty, now=NOW + 3 * DAY).updated == 1
    assert current(empty, "image_ids", when=NOW + 3 * DAY) == [([c],), ([a],)]


def test_a_picture_by_address_is_fetched_once_and_kept_when_its_host_is_down(
    make_shop: Shop, empty: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Answer(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            asked.append(self.path)

    monkeypatch.setattr(fetch, "is_public", lambda ip: True)
    monkeypatch.setattr(hosts, "PAUSE_SECONDS", 0.0)
    shop = make_shop(pictures={"a.png": "red"})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Answer, directory=shop)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        make_shop(items=[{"item_id": n, "title": "Hat", "images": f"http://127.0.0.1:{server.server_port}/a.png"} for n in (1, 2)])
        assert ingest(shop, empty, now=NOW).images == 1
        assert asked == ["/a.png"]
        server.shutdown()
        thread.join()
    assert ingest(shop, empty, now=NOW + DAY).updated == 0
    assert current(empty, "image_ids") == [([image_id(shop, "a.png")],)] * 2
    assert all("could not be fetched" in why for *_, why in set_aside(empty))
    assert empty.count("quarantine") == 2
