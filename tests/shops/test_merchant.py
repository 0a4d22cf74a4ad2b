"""Google Merchant feeds, as text and as XML: what their elements become, and files that are no feed."""

from __future__ import annotations

import datetime as dt
import gzip
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from moon_ops.errors import InputError
from moon_ops.shops.catalogues import CatalogueReport, import_catalogue

Rows = dict[str, dict[str, Any]]
Import = Callable[..., tuple[CatalogueReport, Rows]]
SPACE = 'xmlns:g="http://base.google.com/ns/1.0"'


@pytest.fixture
def imported(tmp_path: Path) -> Import:
    def run(content: str | bytes, name: str = "feed.xml") -> tuple[CatalogueReport, Rows]:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        report = import_catalogue("google_merchant", tmp_path / name, tmp_path / "shop")
        assert report.rows == report.items + report.merged + report.refused
        return report, {row["item_id"]: row for row in pq.read_table(tmp_path / "shop" / "items.parquet").to_pylist()}

    return run


TEXT = """id\titem group id\ttitle\tdescription\tlink\timage link\tadditional image link\tavailability\tprice\t\
sale price\tbrand\tproduct type\t\
google product category\texpiration date\tcolor
a\tg\tBowl 5" blue\tA <b>bowl</b>.\thttps://x.example/a\thttps://x.example/a.jpg\thttps://x.example/b.jpg,https://x.example/c.jpg\t\
in stock\t12.90 EUR\t9.90 EUR\tPottery\tHome > Bowls\t187\t2026-07-01T10:00+0200\tblue
b\tg\tBowl\t\t\thttps://x.example/b.jpg\t\tout_of_stock\t12.90 EUR\t\t\t\t187\t\t
c\t\tCup\t\t\t\t\tsomewhere\t12.90 EUR\t\t\t\t\t\t
d\t\tCup\t\t\t\t\tpreorder\t12.90 USD\t\t\t\tHome > Cups\t\t
e\t\tCup\t\t\t\t\tbackorder\t\t\t\t\tHome > Cups\tsoon\t
"""


def test_a_feed_as_text(imported: Import) -> None:
    report, items = imported(TEXT, "feed.txt")
    assert (report.rows, report.items, report.refused) == (5, 2, 3)
    assert items["a"] == {
        **{"item_id": "a", "spu_id": "g", "title": 'Bowl 5" blue', "category": ["Home", "Bowls"], "brand": "Pottery", "tags": None},
        **{"description": "A <b>bowl</b>.", "attributes": [("color", "blue")], "price": 9.9, "status": "active"},
        **{"images": [f"https://x.example/{n}.jpg" for n in "abc"], "available_until": dt.datetime(2026, 7, 1, 8, tzinfo=dt.UTC)},
    }
    assert (items["b"]["status"], items["b"]["category"]) == ("deleted", [])
    assert report.columns_left_out == {"link": 1}
    assert report.picture_addresses == 3
    assert report.read == {"feed.txt": "products, CSV, tab between cells, UTF-8", "items": "prices in EUR"}
    assert report.reasons == (
        "feed.txt:3: availability = 'somewhere' is none of in_stock, out_of_stock, preorder, backorder",
        "feed.txt:4: price = '12.90 USD' is in USD, and most others are in EUR",
        "feed.txt:5: 'soon' is not a time (e.g. 2026-01-31T12:00:00Z, 2026-01-31 12:00:00+01:00, or seconds since 1970)",
    )


RSS = f"""<?xml version="1.0" encoding="ISO-8859-1"?>
<rss {SPACE} version="2.0"><channel><title>Shop</title><link>https://x.example</link>
<item><title>Tasse gr\xfcn</title><g:title>Gr\xfcne Tasse</g:title><link>https://x.example/a</link>
<description>&lt;p&gt;A &amp;amp; B&lt;/p&gt;</description>
<g:id>a</g:id><g:image_link>https://x.example/a.jpg</g:image_link><g:additional_image_link>https://x.example/b.jpg</g:additional_image_link>
<g:additional_image_link>https://x.example/c.jpg</g:additional_image_link><g:price>12.90 EUR</g:price>
<g:product_type>Home &gt; Cups</g:product_type>
<g:product_type>Sale</g:product_type><g:shipping><g:country>DE</g:country><g:price>4 EUR</g:price></g:shipping>
<g:description><![CDATA[<p>A cup.</p>]]></g:description></item>
<item><g:id>b</g:id></item>
</channel></rss>"""


def test_a_feed_as_rss(imported: Import) -> None:
    report, items = imported(RSS.encode("iso-8859-1"))
    assert (report.rows, report.items, report.refused) == (2, 1, 1)
    assert report.reasons == ("feed.xml:2: has no title, and no row that it continues has one",)
    assert (items["a"]["title"], items["a"]["description"], items["a"]["price"]) == ("Gr\xfcne Tasse", "<p>A cup.</p>", 12.9)
    assert items["a"]["images"] == [f"https://x.example/{n}.jpg" for n in "abc"]
    assert items["a"]["category"] == ["Home", "Cups"]
    assert report.columns_left_out == {"link": 1, "shipping": 1}


def test_a_packed_feed_as_atom(imported: Import) -> None:
    entry = '<entry><title>Cup</title><link rel="alternate" href="https://x.example/a"/><g:id>a</g:id><g:item_group_id>g</g:item_group_id></entry>'
    atom = f'<feed xmlns="http://www.w3.org/2005/Atom" {SPACE}><title>Shop</title>{entry}</feed>'
    report, items = imported(gzip.compress(atom.encode()), "feed.xml.gz")
    assert (items["a"]["title"], items["a"]["spu_id"], report.columns_left_out) == ("Cup", "g", {"link": 1})


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><rss><item><id>&b;</id></item></rss>'
FILE = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]><rss><item><id>&a;</id></item></rss>'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (BOMB, "it declares a document type, which a feed does not need"),
        (FILE, "it declares a document type, which a feed does not need"),
        ('<!DOCTYPE x SYSTEM "http://127.0.0.1/x.dtd"><rss/>', "it declares a document type, which a feed does not need"),
        (RSS.encode("iso-8859-1")[:-200], "no element found"),
        (RSS.encode("iso-8859-1")[:-4], "unclosed token"),
        (b"<rss><item><id>a</id><title>\xff</title></item></rss>", "not well-formed"),
        ("<rss><item><id>a</id><title>A&nbsp;B</title></item></rss>", "undefined entity"),
        ("<rss><channel/></rss>", "holds no <item> and no <entry>"),
        ("", "no element found"),
    ],
)
def test_what_is_no_feed_is_refused_whole(tmp_path: Path, imported: Import, content: str | bytes, reason: str) -> None:
    with pytest.raises(InputError, match=r"feed\.xml .*; nothing was imported") as wrong:
        imported(content)
    assert reason in str(wrong.value)
    assert not (tmp_path / "shop").exists()


def test_one_product_has_a_bound(imported: Import) -> None:
    with pytest.raises(InputError, match="more than 4,194,304 characters"):
        imported(f"<rss><item><id>a</id><title>{'x' * 5_000_000}</title></item></rss>")


def test_what_lies_around_the_products_takes_no_memory(imported: Import) -> None:
    """The tree of a feed is never whole in memory: 40 MB of what we do not read cost less than a tenth of it."""
    chatter = "<note>" + "x" * 1000 + "</note>"
    feed = f"<rss><channel>{chatter * 40_000}<item><id>a</id><title>A</title><price>1</price></item></channel></rss>".encode()
    packed, size = gzip.compress(feed, 1), len(feed)
    del feed
    tracemalloc.start()
    try:
        report, _ = imported(packed, "feed.xml.gz")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert report.items == 1
    assert peak < size / 10
