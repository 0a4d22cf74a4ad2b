"""MicroLens (arXiv 2309.15379): short videos with titles and covers, and the MM-CTR challenge on its one million users.

https://github.com/westlake-repl/MicroLens and https://recsys.westlake.edu.cn/MicroLens_1M_MMCTR/. A directory holds either of two::

    *_pairs.csv            user, item, timestamp (milliseconds)
    *_title*.csv           item,title on each line, with or without a header, quotes not balanced; an English one is preferred
    *cover*/<item>.jpg     covers, where they were downloaded

    train.parquet, valid.parquet      user_id, item_id, item_seq (0 on the left for none), likes_level, views_level, label
    item_info.parquet                 item_id, item_tags, item_emb_d128; item 0 is none
    item_feature.parquet              item_id, item_title, …: the titles, where it was downloaded
    item_images/<item_id>.jpg         covers, where they were downloaded

The challenge's files may lie in ``MicroLens_1M_x1``, and the last two beside that directory. Ids of one are not ids of the other.

The pairs serve a catalogue of pictures and texts with the users' clicks; without impressions there is no click model, and without queries
no stage that contrasts them with items. A pair is somebody who commented on a video, as the paper says; it becomes a click. The challenge
serves click models: rows become impressions and clicks, item_emb_d128 becomes ``vectors.parquet``, which ``moon ingest`` does not read.
Its rows have no times, so these are invented (:mod:`~moon_ops.shops.importers.histories`). ``item_seq`` is taken to run from old to new,
as its padding suggests, and ``valid`` to be later than ``train``; neither is stated. likes_level and views_level have no place
in the layout; item_tags become one attribute. A video without a title is left out of the pairs; in the challenge its title is its id.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from moon_ops.errors import InputError
from moon_ops.shops.importers import files, histories
from moon_ops.shops.importers.shop import Draft

PAIRS = ("user", "item", "timestamp")
ROWS = ("user_id", "item_id", "item_seq", "label")
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
TITLE = re.compile(r'(\d+),\s*"?(.*?)"?\s*')  # a line of the titles; one that is no such line goes on with the title before it

LOG = """
SELECT DISTINCT make_timestamp(timestamp * 1000) AS timestamp, "user" AS user_id, item AS item_id, 'click' AS event
FROM pairs WHERE "user" IN (SELECT user_id FROM chosen)"""

SAMPLES = """
SELECT '{split}' AS split, user_id, item_id, NULL::BIGINT AS category, CASE WHEN label IN (0, 1) THEN label = 1
           ELSE error('label = ' || coalesce(label::VARCHAR, 'nothing') || ' is neither 0 nor 1') END AS clicked,
       item_seq::BIGINT[] AS behaviours, NULL::BIGINT[] AS categories, file_row_number AS place
FROM read_parquet({files}, file_row_number = true)"""

CATALOGUE = """
SELECT item_id, coalesce(nullif(trim({title}), ''), item_id::VARCHAR) AS title,
       CASE WHEN len(tags) > 0 THEN map(['tags'], [array_to_string(tags, ' ')]) END AS attributes
FROM (SELECT item_id, list_filter(any_value(item_tags::BIGINT[]), lambda tag: tag <> 0) AS tags FROM info
      WHERE item_id IN (SELECT item_id FROM log) GROUP BY item_id) {titles}"""


def load(draft: Draft, source: Path, users: int | None) -> None:
    """Fill the draft from the directory ``source``; :class:`~moon_ops.errors.InputError` for a file or a column that is not there."""
    inner = source / "MicroLens_1M_x1"
    rows = inner if (inner / "train.parquet").is_file() else source
    pairs = sorted(source.glob("*_pairs.csv"))
    if (rows / "train.parquet").is_file() and pairs:
        raise InputError(
            f"SOURCE = {source} holds {pairs[0].name} and train.parquet, whose ids differ; nothing was imported",
            action="move one of them elsewhere",
        )
    if (rows / "train.parquet").is_file():
        _challenge(draft, source, rows, users)
    elif pairs:
        _pairs(draft, source, pairs[0], users)
    else:
        raise files.absent(source, "*_pairs.csv and no train.parquet")


def _pairs(draft: Draft, source: Path, path: Path, users: int | None) -> None:
    titles = sorted(source.glob("*_title*.csv"), key=lambda p: (not p.stem.endswith("_en"), p.name))
    if not titles:
        raise files.absent(source, "*_title*.csv")
    files.csv_columns(path, PAIRS)
    kinds = "{'user': 'BIGINT', 'item': 'BIGINT', 'timestamp': 'BIGINT'}"
    with files.reading(path):
        draft.make("pairs", f"SELECT * FROM read_csv({files.names([path])}, header = true, delim = ',', types = {kinds})")
    draft.view("people", 'SELECT "user" AS user_id FROM pairs')
    draft.sample("people", users)
    draft.make("log", LOG)
    found = dict(_titles(titles[0]))  # of tens of thousands of videos
    ids = pa.array(list(found), pa.int64())
    draft.add("titles", pa.table({"item_id": ids, "title": pa.array(list(found.values()), pa.string())}))
    draft.view("catalogue", "SELECT * FROM titles")
    covers = next((p for p in sorted(source.iterdir()) if p.is_dir() and "cover" in p.name.lower()), None)
    _covers(draft, covers)


def _titles(path: Path) -> Iterator[tuple[int, str]]:
    """The titles by item; a header is no title. :class:`InputError` if the file is no text."""
    item, words = None, ""
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for line in lines:
                if found := TITLE.fullmatch(line.rstrip("\n")):
                    if item is not None:
                        yield item, words
                    item, words = int(found[1]), found[2]
                elif item is not None:
                    words = f"{words} {line.strip()}"
    except UnicodeDecodeError as broken:
        raise InputError(f"{path} is not UTF-8 ({broken}); nothing was imported", action="download it again") from broken
    if item is not None:
        yield item, words


def _challenge(draft: Draft, source: Path, rows: Path, users: int | None) -> None:
    splits = {"train": rows / "train.parquet", "judge": rows / "valid.parquet"}
    info = rows / "item_info.parquet"
    for path in (splits["judge"], info):
        if not path.is_file():
            raise files.absent(rows, path.name)
    files.parquet_columns(list(splits.values()), ROWS)
    files.parquet_columns([info], ("item_id", "item_tags", "item_emb_d128"))
    draft.view("samples", " UNION ALL ".join(SAMPLES.format(split=name, files=files.names([path])) for name, path in splits.items()))
    histories.lay_out(draft, users)
    draft.view("info", f"SELECT * FROM read_parquet({files.names([info])})")
    title, join = "NULL::VARCHAR", ""
    if texts := next((p for p in (rows / "item_feature.parquet", source / "item_feature.parquet") if p.is_file()), None):
        files.parquet_columns([texts], ("item_id", "item_title"))
        draft.view("texts", f"SELECT item_id, any_value(item_title) AS words FROM read_parquet({files.names([texts])}) GROUP BY item_id")
        title, join = "words", "LEFT JOIN texts USING (item_id)"
    draft.make("catalogue", CATALOGUE.format(title=title, titles=join))
    draft.view("given", "SELECT item_id, item_emb_d128 AS embedding FROM info")
    _covers(draft, next((p for p in (rows / "item_images", source / "item_images") if p.is_dir()), None))


def _covers(draft: Draft, covers: Path | None) -> None:
    """Say which file is a video's cover, if covers were downloaded."""
    if covers is not None:
        there = {int(p.stem): p for p in covers.iterdir() if p.suffix.lower() in ENDINGS and p.stem.isdecimal()}
        draft.picture_of = lambda item: (there.get(item), f"images/{item}{there[item].suffix.lower()}" if item in there else "")
