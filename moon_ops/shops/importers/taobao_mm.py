"""Taobao-MM (arXiv 2512.07216, MUSE): ad impressions of Taobao with up to 1,000 behaviours each and a 128-d vector per item.

https://huggingface.co/datasets/TaoBao-MM/Taobao-MM, 139 GB: 99 million rows, 8.8 million users. What is read of it::

    train/*.parquet  test/*.parquet      label_0 ([0, 1]: clicked), 129_1 (user), 205 (item), 206 (its category),
                                         150_2_180 and 151_2_180 (the behaviours' items and categories)
    raw/scl_embedding_int8_p90.parquet   205, 205_c (int8 [128])

Serves click models on vectors that are brought: there are neither texts nor pictures nor queries, so nothing trains an encoder. An
item's title is its id as published, and ``vectors.parquet``, which ``moon ingest`` does not read, holds the vectors. Some shards do:
without a ``test`` directory all rows are training rows. The whole log would be 8.7 billion clicks: take a sample of users.

From the authors' own code: the field names, that behaviours stand from old to new, that 0 means none, and that vectors are 127 times unit
vectors, cut to whole numbers. As others report of the files, and taken for true: the meaning of ``label_0``, and that the test rows are
later than the training rows. Not known: any time, so times are invented (:mod:`~moon_ops.shops.importers.histories`); what kinds of
behaviour the sequences mix, so all become clicks. Not every item has a vector (those cover 90 % of the behaviours). Fields 130_1 to
130_5, 213 and 214 have no place in the layout. Ids may be negative, and the layout's are not: a negative id becomes itself + 2^63, and
two items of which that makes one are an error.
"""

from __future__ import annotations

from pathlib import Path

from moon_ops.errors import InputError
from moon_ops.shops.importers import files, histories
from moon_ops.shops.importers.histories import POSITIVE
from moon_ops.shops.importers.shop import Draft

FIELDS = ("label_0", "129_1", "205", "206", "150_2_180", "151_2_180")
VECTORS = Path("raw", "scl_embedding_int8_p90.parquet")

SAMPLES = """
SELECT '{split}' AS split, "129_1" & {bits} AS user_id, "205" AS item_id, "206" AS category,
       CASE WHEN len(label_0) = 2 AND label_0[1] + label_0[2] = 1 THEN label_0[2] = 1
            ELSE error('label_0 = ' || label_0::VARCHAR || ' is neither [1, 0] nor [0, 1]') END AS clicked,
       "150_2_180" AS behaviours, "151_2_180" AS categories, {{'file': filename, 'row': file_row_number}} AS place
FROM read_parquet({files}, filename = true, file_row_number = true) WHERE "205" <> 0"""

SEEN = """
SELECT item, max(nullif(category, 0)) AS category FROM (
    SELECT row.item_id AS item, row.category AS category FROM (SELECT unnest(shown) AS row FROM visits)
    UNION ALL SELECT unnest(behaviours), unnest(categories) FROM visits)
WHERE item <> 0 GROUP BY item"""

CATALOGUE = f"""
SELECT item & {POSITIVE} AS item_id, min(item)::VARCHAR AS title, max(category)::VARCHAR AS category, count(*) AS ids
FROM seen GROUP BY ALL"""


def load(draft: Draft, source: Path, users: int | None) -> None:
    """Fill the draft from the directory ``source``; :class:`~moon_ops.errors.InputError` for a file or a field that is not there."""
    shards = {"train": sorted((source / "train").glob("*.parquet")), "judge": sorted((source / "test").glob("*.parquet"))}
    if not any(shards.values()):
        raise files.absent(source, "train/*.parquet and no test/*.parquet")
    if not (source / VECTORS).is_file():
        raise files.absent(source, str(VECTORS))
    files.parquet_columns([*shards["train"], *shards["judge"]], FIELDS)
    files.parquet_columns([source / VECTORS], ("205", "205_c"))
    parts = [SAMPLES.format(split=name, bits=POSITIVE, files=files.names(paths)) for name, paths in shards.items() if paths]
    draft.view("samples", " UNION ALL ".join(parts))
    histories.lay_out(draft, users)
    _catalogue(draft, source)
    known = "SELECT item FROM seen"
    path = files.names([source / VECTORS])
    draft.view("given", f'SELECT "205" & {POSITIVE} AS item_id, "205_c" AS embedding FROM read_parquet({path}) WHERE "205" IN ({known})')


def _catalogue(draft: Draft, source: Path) -> None:
    """Make relation ``catalogue`` of the items in rows and histories; the category is the largest id given for the item."""
    draft.make("seen", SEEN)
    draft.make("numbered", CATALOGUE)
    if twice := draft.database.sql("SELECT item_id, title FROM numbered WHERE ids > 1 LIMIT 1").fetchall():
        raise InputError(
            f"{source}: the items {twice[0][1]} and {twice[0][0]} would get the same id; nothing was imported",
            action="import another sample (--users)",
        )
    draft.view("catalogue", "SELECT * EXCLUDE (ids) FROM numbered")
