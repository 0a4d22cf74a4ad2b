"""Amazon Reviews 2023 (McAuley Lab, arXiv 2403.03952): reviews and product pages, by category.

https://amazon-reviews-2023.github.io and https://huggingface.co/datasets/McAuley-Lab/Amazon-Reviews-2023. What is read of it, for every
category that the directory holds, plain or as ``.gz``::

    <Category>.jsonl         user_id, parent_asin, timestamp (milliseconds), verified_purchase; ratings and texts are not read
    meta_<Category>.jsonl    parent_asin, title, features, description, price, images, store, categories, details

Serves a catalogue of pictures and texts with purchases: there are no impressions, clicks or queries, so there is no click model, and no
stage that contrasts queries with items. A verified review is a purchase at the review's time: when it was bought is not known. Other
reviews are left out, as are products without a page or a title. The item is the parent_asin, because pages are published by it. Its
picture is the address of the page's main one in the largest size; ``moon ingest`` fetches it. ``store`` becomes the brand, and those
entries of ``details`` that are texts become attributes. A price that is a text ("from 9.99") is none.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from moon_ops.errors import InputError
from moon_ops.shops.importers import files
from moon_ops.shops.importers.shop import Draft

REVIEW = {"user_id": "VARCHAR", "parent_asin": "VARCHAR", "timestamp": "BIGINT", "verified_purchase": "BOOLEAN"}
PAGE = ("parent_asin", "title")
BATCH = 10_000  # product pages in memory at a time
SIZES = ("hi_res", "large", "thumb")  # of a picture, the best first
ITEMS = pa.schema(
    [
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("category", pa.string()),
        ("brand", pa.string()),
        ("description", pa.string()),
        ("attributes", pa.map_(pa.string(), pa.string())),
        ("price", pa.float64()),
        ("images", pa.list_(pa.string())),
    ]
)
LOG = """
SELECT DISTINCT make_timestamp(timestamp * 1000) AS timestamp, user_id, parent_asin AS item_id, 'purchase' AS event
FROM reviews WHERE verified_purchase AND user_id IN (SELECT user_id FROM chosen)"""


def load(draft: Draft, source: Path, users: int | None) -> None:
    """Fill the draft from the directory ``source``; :class:`~moon_ops.errors.InputError` for a file or a field that is not there."""
    pages = sorted(p for p in source.glob("meta_*.jsonl*") if p.name.endswith((".jsonl", ".jsonl.gz")))
    if not pages:
        raise files.absent(source, "meta_<Category>.jsonl or .jsonl.gz")
    reviews = [_reviews_of(page) for page in pages]
    for path, names in (*((p, PAGE) for p in pages), *((p, REVIEW) for p in reviews)):
        files.require(path, names, next(_objects(path), {}))
    kinds = ", ".join(f"'{name}': '{kind}'" for name, kind in REVIEW.items())
    for path in reviews:
        with files.reading(path):
            draft.append("reviews", f"SELECT * FROM read_json({files.names([path])}, format = 'newline_delimited', columns = {{{kinds}}})")
    draft.sample("(SELECT user_id FROM reviews WHERE verified_purchase)", users)
    draft.make("log", LOG)
    of_chosen = draft.count("SELECT count(*) FROM reviews WHERE user_id IN (SELECT user_id FROM chosen)")
    draft.left_out = of_chosen - draft.count("SELECT count(*) FROM log")
    draft.add("catalogue", ITEMS.empty_table())
    for batch in _items(draft, pages):
        draft.add("catalogue", pa.Table.from_pylist(batch, ITEMS))


def _reviews_of(page: Path) -> Path:
    """The file of reviews beside a file of product pages, plain or compressed."""
    category = page.name.removeprefix("meta_").removesuffix(".gz")
    for name in (category, f"{category}.gz"):
        if (page.parent / name).is_file():
            return page.parent / name
    raise files.absent(page.parent, f"{category} or {category}.gz beside {page.name}")


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    """The file's objects, one after the other; :class:`InputError` naming the line after which there is none."""
    read = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for line in lines:
                found = json.loads(line) if line.strip() else {}
                if not isinstance(found, dict):
                    raise ValueError("not an object")
                read += 1
                if found:
                    yield found
    except (OSError, EOFError, ValueError, zlib.error) as broken:
        problem = f"{path} cannot be read after line {read} ({broken})"
        raise InputError(f"{problem}; nothing was imported", action="download it again") from broken


def _items(draft: Draft, pages: Sequence[Path]) -> Iterator[list[dict[str, Any]]]:
    """The items that were bought, in batches; a product with several pages has the first."""
    wanted = {item for (item,) in draft.database.sql("SELECT DISTINCT item_id FROM log").fetchall()}
    batch: list[dict[str, Any]] = []
    for path in pages:
        for page in _objects(path):
            if page.get("parent_asin") in wanted:
                wanted.remove(page["parent_asin"])
                batch.append(_item(page))
            if len(batch) == BATCH:
                yield batch
                batch = []
    if batch:
        yield batch


def _item(page: dict[str, Any]) -> dict[str, Any]:
    details = page.get("details")
    price = page.get("price")
    texts = [*_texts(page.get("features")), *_texts(page.get("description"))]
    return {
        "item_id": page["parent_asin"],
        "title": next(iter(_texts([page.get("title")])), None),
        "category": " > ".join(_texts(page.get("categories"))) or None,
        "brand": next(iter(_texts([page.get("store")])), None),
        "description": " ".join(texts) or None,
        "attributes": [(k, v) for k, v in details.items() if isinstance(v, str)] if isinstance(details, dict) else [],
        "price": float(price) if isinstance(price, int | float) and 0 <= price < float("inf") else None,
        "images": _picture(page.get("images")),
    }


def _texts(values: object) -> list[str]:
    """Those of a list's members that are texts and not blank."""
    return [v for v in values if isinstance(v, str) and v.strip()] if isinstance(values, list) else []


def _picture(images: object) -> list[str]:
    """The address of the main picture, or of the first, or none."""
    found = [image for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    found.sort(key=lambda image: image.get("variant") != "MAIN")
    addresses = [image[size] for image in found for size in SIZES if isinstance(image.get(size), str)]
    return [address for address in addresses if address.startswith(("http://", "https://"))][:1]
