"""What a click model is trained on, coded once: for all processes of a training, for a run that goes on, and for the next recipes.

Rows are the same for recipes that ask for the same columns, caps and share of validation, whatever they do with them, and whatever the
vectors are. They are kept in ``MOON_HOME/prepared`` by what decides them: the files of the lake's tables, the window, what Feast shows,
what the recipe says of rows, and this code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moon_ops.ctr.behaviors import Clicks, Lengths
from moon_ops.ctr.dataset import Coded, Known, Rows, code
from moon_ops.ctr.kept import Kept, read_arrays, write_arrays
from moon_ops.ctr.vectors import Tables
from moon_ops.ctr.vocabulary import Vocabulary
from moon_ops.embeddings.as_of import Joined
from moon_ops.encoder.together import alone, each, once
from moon_ops.errors import InputError
from moon_ops.recipes.ctr import CtrRecipe

ROOMS = ("columns.py", "pieces.py", "ctr", "embeddings", "lake", "recipes")  # whose code decides what rows are
PACKAGES = ("numpy", "pyarrow", "duckdb", "pylance", "feast")
CLICKS = ("items", "categories", "queries", "item_ids", "query_ids")


@dataclass(frozen=True)
class Prepared:
    """Rows to train on, what they know, and what became of the events that they were made of."""

    vocabulary: Vocabulary
    rows: Rows
    events: dict[str, int]


class Source(Protocol):
    """Where a training has its rows from; it asks again, with another share of validation, when it refits."""

    def rows(self, recipe: CtrRecipe) -> Prepared:
        """All rows, as those that are trained on tell them; :class:`InputError` for a column of the shop's own of which none has a
        value: it may be misspelt."""


@dataclass(frozen=True)
class InMemory:
    """Impressions that are joined already."""

    joined: Joined
    tables: Tables
    events: dict[str, int]

    def rows(self, recipe: CtrRecipe) -> Prepared:
        """All rows."""
        vocabulary = Vocabulary.fit(_trained(self.joined, recipe), recipe.own)
        known = code(self.joined, vocabulary)
        return Prepared(vocabulary, known.rows(self.tables, recipe.behaviors, recipe.top_k), self.events)


@dataclass
class InFiles:
    """Impressions that are joined, by ``join``, if no rows like those asked for are ``kept``; ``identity``: what they would be made of."""

    join: Callable[[], tuple[Joined, dict[str, int]]]
    tables: Tables
    kept: Kept
    identity: Callable[[], Any]
    _joined: tuple[Joined, dict[str, int]] | None = None
    _joined_of: Any = None  # their identity

    def rows(self, recipe: CtrRecipe) -> Prepared:
        """All rows; of several processes the first makes them."""
        if alone() and not self.kept.limit:
            self._joined = self._joined or self.join()
            return InMemory(self._joined[0], self.tables, self._joined[1]).rows(recipe)

        def fill(place: Path) -> None:
            now = self.identity()  # of the lake as it is: what was joined of another one is not written under its name
            joined, events = self._joined if self._joined is not None and self._joined_of == now else self.join()
            self._joined, self._joined_of = ((joined, events), now) if recipe.refit else (None, None)  # a refit codes them once more
            vocabulary = Vocabulary.fit(_trained(joined, recipe), recipe.own)
            write(code(joined, vocabulary), vocabulary, events, place)

        def read(place: Path) -> Prepared:
            vocabulary, known, events = opened(place)
            return Prepared(vocabulary, known.rows(self.tables, recipe.behaviors, recipe.top_k), events)

        return through(self.kept, "rows", lambda: [self.identity(), decided_by(recipe)], fill, read)


def through(kept: Kept, kind: str, identity: Callable[[], Any], fill: Callable[[Path], None], read: Callable[[Path], Any]) -> Any:
    """What ``read`` makes of the directory that ``fill`` makes, if it is not kept; of several processes the first one fills, and all read.
    What other code has made is of another identity.

    Raises :class:`InputError` in all processes where one of them does not see the files.
    """
    found = kept.found(kind, lambda: [identity(), code_version()], fill)
    if alone():
        with found as place:
            return read(place)

    def seen() -> Any:
        if not place.is_dir():
            problem = f"a process does not see {place}, which the first process has written"
            raise InputError(problem, action="give all processes the same disk and the same MOON_HOME")
        return read(place)

    place = once(found.__enter__)
    try:
        return each(seen)
    finally:
        once(lambda: found.__exit__(None, None, None))


def decided_by(recipe: CtrRecipe) -> dict[str, Any]:
    """What a recipe says of rows, the rest being what is done with them."""
    names = ("caps", "most", "click_skew", "position", "validation", "features")
    return {name: value for name, value in asdict(recipe).items() if name in names}


@cache
def code_version() -> str:
    """A hash of the code that makes rows and vectors, and of the versions of what it uses."""
    found, package = hashlib.sha256(" ".join(map(version, PACKAGES)).encode()), Path(__file__).parents[1]
    for room in ROOMS:
        place = package / room
        for file in [place] if place.is_file() else sorted(place.rglob("*.py")):
            found.update(file.read_bytes())
    return found.hexdigest()


def trained_rows(count: int, recipe: CtrRecipe) -> int:
    """How many of ``count`` rows in time order are trained on; the newest others tell when to stop, and nothing is learned from them."""
    return count - int(recipe.validation * count)


def _trained(joined: Joined, recipe: CtrRecipe) -> Joined:
    """The rows to train on, in which each column of the shop's own has a value."""
    known = joined.head(trained_rows(len(joined), recipe))
    for feature in recipe.own:
        if known.column(feature.name).null_count == len(known):
            problem = f"features.{feature.name}: no impression trained on knows a value of the {feature.of}'s column {feature.source}"
            raise InputError(problem, action="check the column's name in the shop's files, run `moon ingest`, then `moon publish`")
    return known


def write(known: Known, vocabulary: Vocabulary, events: dict[str, int], place: Path) -> None:
    """Write rows and what they know into a directory."""
    arrays: dict[str, NDArray[Any]] = {"words": known.words, "ends": known.clicks.lengths.ends, "counts": known.clicks.lengths.counts}
    arrays |= {f"column {name}": column for name, column in known.columns.items()}
    arrays |= {f"clicks {name}": getattr(known.clicks, name) for name in CLICKS}
    arrays |= {f"at {name}": numbers for name, numbers in known.at.items()}
    for view, coded in known.coded.items():
        arrays |= {f"ids {view}": coded.ids, f"dense {view}": coded.dense}
        arrays |= {f"list {view} {name}": values for name, values in coded.lists.items()}
    ids = {name: some for name, some in vocabulary.values.items() if isinstance(some, np.ndarray)}
    arrays |= {f"known {name}": some for name, some in ids.items()} | {"item_category": vocabulary.item_category}
    values = {name: None if name in ids else some.tolist() for name, some in vocabulary.values.items()}
    write_arrays(place, arrays, {"events": events, "views": list(known.coded), "vocabulary": {"values": values, **vocabulary.about()}})


def opened(place: Path) -> tuple[Vocabulary, Known, dict[str, int]]:
    """What :func:`write` wrote; the arrays are mapped."""
    arrays, about = read_arrays(place)

    def named(prefix: str) -> dict[str, NDArray[Any]]:
        return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

    told = about["vocabulary"]
    values = {name: arrays[f"known {name}"] if texts is None else texts for name, texts in told["values"].items()}
    vocabulary = Vocabulary.told({**told, "values": values, "item_category": arrays["item_category"]})
    clicks = Clicks(Lengths(arrays["ends"], arrays["counts"]), **named("clicks "))
    coded = {view: Coded(arrays[f"ids {view}"], arrays[f"dense {view}"], named(f"list {view} ")) for view in about["views"]}
    known = Known(vocabulary.own, coded, arrays["words"], named("at "), clicks, named("column "))
    return vocabulary, known, about["events"]
