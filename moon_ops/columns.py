"""The columns that a click model reads, each declared once: ingest's derived tables, Feast's views, training, scoring and the service
all read this list. A recipe adds columns of a shop's own by a line each in its table ``[features]``.

How a column's values become numbers is its ``kind``:

========== =================================================================================================
id          whole numbers; each known one has a row of an embedding table
category    texts; likewise
bucket      a number; ten ranges of equal share have a row each
number      a number, less its mean in training and divided by its standard deviation; 0 where it is missing
statistic   how often an item was shown, clicked, bought (see :func:`moon_ops.ctr.vocabulary.statistics`)
flag        true or false
list        texts, at most ``length``; each known one has a row of an embedding table, and the mean of the rows is read
words       the words of a text, hashed
========== =================================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked

from moon_ops.errors import SettingsError
from moon_ops.shapes import rule

Of = Literal["item", "user", "context"]
OWN_KINDS = ("number", "category", "list")  # of a shop's own columns
ROWS = ""  # in place of a view: the rows of impressions themselves
ITEM_VIEW, STATS_VIEW, USER_VIEW = "item_profile", "item_stats", "user_profile"
CLOCK = ("hour", "weekday")  # of the context, by UTC: read from the time of the impression, or of the request
SHOWN_AT = "shown_at"  # of an impression: its place in the list, which training may know and serving does not
COUNTED = ("position",)  # of the context: a column that every shop's events may have
TAKEN = (
    "label",
    "session_id",
    "event_timestamp",
    "created",
    "item_ids",
    "query_ids",
    "times",
    "embedding",
    "extra",
    SHOWN_AT,
)  # in joined rows


@dataclass(frozen=True)
class Feature:
    """One column of a click model: of whom it is known, and how it is read."""

    name: str
    of: Of
    kind: Literal["id", "category", "bucket", "number", "statistic", "flag", "list", "words"]
    column: str = ""  # in the shop's file, or in the view; empty: as the feature
    default: float | str | None = None  # stands where nothing is known
    length: int = 8  # values read of a list

    @property
    def source(self) -> str:
        """The column's name in the shop's file or the view."""
        return self.column or self.name

    @property
    def column_joined(self) -> str:
        """Its name in joined rows and views: a standard one's is that of its source, which is Feast's name for it, too."""
        return self.source if self in STANDARD else self.name

    @property
    def view(self) -> str:
        """The Feast view that has it; :data:`ROWS` for what comes with the impression."""
        item = STATS_VIEW if self.kind == "statistic" else ITEM_VIEW
        return {"item": item, "user": USER_VIEW, "context": ROWS}[self.of]


STANDARD = (  # what every shop has; ids, users and queries come with the impression
    Feature("item", "context", "id", "item_id"),
    Feature("user", "context", "id", "user_id"),
    Feature("query", "context", "id", "query_id"),
    Feature("spu", "item", "id", "spu_id"),
    Feature("category", "item", "category"),
    Feature("brand", "item", "category"),
    Feature("seller", "item", "id", "seller_id"),
    Feature("price", "item", "bucket"),
    Feature("impressions", "item", "statistic"),
    Feature("clicks", "item", "statistic"),
    Feature("purchases", "item", "statistic"),
    Feature("is_image", "context", "flag"),
    Feature("text", "context", "words"),
)
KNOWN = tuple(dict.fromkeys(name for f in STANDARD for name in (f.name, f.source)))


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class OwnColumn:
    """A line of a recipe's ``[features]``: a column that the shop's files have beyond the standard ones."""

    of: Of
    kind: Literal["number", "category", "list"]
    column: str = ""
    default: float | str | None = None
    length: int = 8

    def __post_init__(self) -> None:
        rule(1 <= self.length <= 64, "length", self.length, "from 1 to 64 values")
        if self.default is not None:
            fits = isinstance(self.default, str) == (self.kind != "number") and self.kind != "list"
            rule(fits, "default", self.default, "a number for kind = number, a text for kind = category, and absent for kind = list")

    def named(self, name: str) -> Feature:
        """The feature of this name; :class:`ValueError` for a name that something else has."""
        rule(re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name) is not None, "features", name, "named by small letters, digits and _")
        taken = name in KNOWN or name in TAKEN or name.endswith(("_id", "_vector", "_embedding")) or name.startswith("behavior")
        rule(not taken, "features", name, "named otherwise: a standard column has this name")
        return Feature(name, self.of, self.kind, self.column, self.default, self.length)


def id_features(own: Sequence[Feature] = ()) -> tuple[Feature, ...]:
    """The features with one row of an embedding table per example, in the order in which models read them."""
    return _of((*STANDARD, *own), "id", "category", "bucket")


def dense_features(own: Sequence[Feature] = ()) -> tuple[Feature, ...]:
    """The features that are numbers to the model, in the order in which models read them."""
    return _of((*STANDARD, *own), "statistic", "flag", "number")


def list_features(own: Sequence[Feature] = ()) -> tuple[Feature, ...]:
    """The features with several rows of an embedding table per example."""
    return _of(tuple(own), "list")


def by_view(own: Sequence[Feature] = ()) -> dict[str, list[Feature]]:
    """View → its features, :data:`ROWS` among them."""
    found: dict[str, list[Feature]] = {}
    for feature in (*STANDARD, *own):
        found.setdefault(feature.view, []).append(feature)
    return found


def _of(features: Iterable[Feature], *kinds: str) -> tuple[Feature, ...]:
    return tuple(feature for feature in features if feature.kind in kinds)


def together(some: Iterable[Sequence[Feature]]) -> tuple[Feature, ...]:
    """What several recipes declare, each feature once, by name; :class:`SettingsError` if two declare one name differently."""
    found: dict[str, Feature] = {}
    for feature in (feature for features in some for feature in features):
        same = found.setdefault(feature.name, feature)
        if (same.of, same.kind, same.source) != (feature.of, feature.kind, feature.source):
            problem = f"features.{feature.name} is declared twice: as {_told(same)}, and as {_told(feature)}"
            raise SettingsError(problem, action="give one of them another name")
    return tuple(found[name] for name in sorted(found))


def _told(feature: Feature) -> str:
    return f"the {feature.kind} {feature.source} of the {feature.of}"
