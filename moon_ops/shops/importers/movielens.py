"""MovieLens 100K (GroupLens): 100,000 ratings of 1,682 films by 943 people, with posters and plots where you have them.

https://grouplens.org/datasets/movielens/100k/. SOURCE is its directory ``ml-100k``, or the one that holds it. What is read::

    u.data       user, film, stars, seconds since 1970; tabs between
    u.item       film | title | release date | | address | a flag for each genre; Latin-1
    u.genre      name | number of the flag
    u.user       user | age | gender | occupation | zip code; may be missing

The data set has neither pictures nor texts. Both may be put beside these files, or beside ``ml-100k``::

    posters/<film>.jpg      also .jpeg, .png, .webp; named by the film's number in u.item
    plots.csv               a header with the columns movie_id and plot; UTF-8

Serves a catalogue of pictures and texts with what users liked. There are no impressions and no queries, so there is no click model, and
no stage that contrasts queries with items. A rating becomes a click at its time, and one of 4 or 5 stars a purchase as well; the stars
stay as the own column ``rating`` of events.
A film's category is the rarest of its genres, because two films in five are dramas; all of them are the attribute ``genres``. Of people
age, gender and occupation become own columns; the zip code is not read.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from moon_ops.errors import InputError
from moon_ops.shops.importers import files
from moon_ops.shops.importers.shop import Draft

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
FLAGS = 5  # the columns of u.item before the genres
LIKED = 4  # stars
PLOT = ("movie_id", "plot")
YEAR = re.compile(r"\d{4}$")
ITEMS = pa.schema(
    [
        *(("item_id", pa.int64()), ("title", pa.string()), ("category", pa.string()), ("description", pa.string())),
        ("attributes", pa.map_(pa.string(), pa.string())),
    ]
)
PEOPLE = pa.schema([("user_id", pa.int64()), ("age", pa.int64()), ("gender", pa.string()), ("occupation", pa.string())])
RATINGS = "{'user_id': 'BIGINT', 'item_id': 'BIGINT', 'rating': 'BIGINT', 'seconds': 'BIGINT'}"
LOG = f"""
SELECT make_timestamp(seconds * 1000000) AS timestamp, user_id, item_id, event, rating
FROM ratings, (VALUES ('click', 1), ('purchase', {LIKED})) AS kinds(event, least)
WHERE rating >= least AND user_id IN (SELECT user_id FROM chosen)"""


def load(draft: Draft, source: Path, users: int | None) -> None:
    """Fill the draft from the directory ``source``; :class:`~moon_ops.errors.InputError` for a file that is not there or not as it says."""
    place = source / "ml-100k" if (source / "ml-100k" / "u.data").is_file() else source
    for name in ("u.data", "u.item", "u.genre"):
        if not (place / name).is_file():
            raise files.absent(source, f"{name}, or ml-100k/{name}")
    with files.reading(place / "u.data"):
        read = f"read_csv({files.names([place / 'u.data'])}, header = false, delim = '\t', columns = {RATINGS})"
        draft.make("ratings", f"SELECT * FROM {read}")
    draft.sample("ratings", users)
    draft.make("log", LOG)
    plots = next((path for path in (place / "plots.csv", source / "plots.csv") if path.is_file()), None)
    draft.add("catalogue", pa.Table.from_pylist(_films(place, _plots(plots) if plots else {}), ITEMS))
    if (place / "u.user").is_file():
        draft.add("known", pa.Table.from_pylist(list(_people(place / "u.user")), PEOPLE))
    if posters := next((path for path in (place / "posters", source / "posters") if path.is_dir()), None):
        there = {int(p.stem): p for p in sorted(posters.iterdir()) if p.suffix.lower() in ENDINGS and p.stem.isdecimal()}
        draft.picture_of = lambda item: (there.get(item), f"images/{item}{there[item].suffix.lower()}" if item in there else "")


def _rows(path: Path, least: int) -> Iterator[tuple[int, list[str]]]:
    """The lines of a file with ``|`` between cells, each with its number; :class:`InputError` for one of fewer than ``least`` cells."""
    for number, line in enumerate(path.read_text(encoding="latin-1").splitlines(), 1):
        cells = line.split("|")
        if line.strip() and (len(cells) < least or (least > 2 and not cells[0].isdecimal())):
            problem = f"{path}, line {number}: {line[:60]!r} is no line of {path.name}; nothing was imported"
            raise InputError(problem, action="download it again")
        if line.strip():
            yield number, cells


def _films(place: Path, plots: dict[int, str]) -> list[dict[str, Any]]:
    """Each film as an item."""
    genres = {int(cells[1]): cells[0] for _, cells in _rows(place / "u.genre", 2) if cells[1].strip().isdecimal()}
    read = list(_rows(place / "u.item", FLAGS + len(genres)))
    flags = {cells[0]: [genres[n] for n in sorted(genres) if n and cells[FLAGS + n].strip() == "1"] for _, cells in read}
    common = Counter(genre for found in flags.values() for genre in found)
    films = []
    for _, cells in read:
        found, year = flags[cells[0]], YEAR.search(cells[2].strip())
        said = {"genres": " ".join(found), "released": year[0] if year else ""}
        films.append(
            {
                "item_id": int(cells[0]),
                "title": cells[1].strip(),
                "category": min(found, key=lambda genre: (common[genre], genre), default=None),
                "description": plots.get(int(cells[0])),
                "attributes": [(name, value) for name, value in said.items() if value],
            }
        )
    return films


def _plots(path: Path) -> dict[int, str]:
    """The plots by film; a row without a number or a text is none."""
    files.csv_columns(path, PLOT)
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = [(row["movie_id"] or "", " ".join((row["plot"] or "").split())) for row in csv.DictReader(lines)]
    except (UnicodeDecodeError, csv.Error) as broken:
        raise files.unreadable(path, broken) from broken
    return {int(film): plot for film, plot in rows if film.strip().isdecimal() and plot}


def _people(path: Path) -> Iterator[dict[str, Any]]:
    for _, (user, age, gender, occupation, *_) in _rows(path, 4):
        yield {"user_id": int(user), "age": int(age) if age.isdecimal() else None, "gender": gender, "occupation": occupation}
