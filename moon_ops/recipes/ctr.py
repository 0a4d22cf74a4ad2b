"""The recipe of a click model: its network, its training, and the columns that it reads beside the standard ones."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass as checked

from moon_ops.columns import COUNTED, Feature, OwnColumn
from moon_ops.recipes.caps import SKEW, STRICT, Caps, Most
from moon_ops.shapes import rule

WithQuery = Literal["din+cos", "din+query", "din+cos+query", "raw+cos+query", "simtier+sata+cos+query"]
Extractor = Literal[WithQuery, "din", "raw", "simscore", "simtier", "sata", "make", "simtier+make", "simtier+sata", "cube"]
CubePart = Literal["items", "queries", "by_id", "fusion", "content", "cosines", "vectors", "match"]


@checked(frozen=True, config=STRICT)
class CtrRecipe:
    """A named click model: ``models/<name>.toml``."""

    name: str
    extractor: Extractor
    epochs: int  # at most
    batch: int
    learning_rate: float
    embedding_dim: int = 16
    hidden: tuple[int, ...] = (64, 32)
    behaviors: int = 20  # the user's last L clicked items
    top_k: int = 0  # of these only the ones whose content is most similar to the target's; 0: all
    validation: float = 0.1  # share of the impressions, the newest, that tells when to stop; 0: all epochs, on everything
    patience: int = 2  # looks at it, two an epoch, without a better AUC
    refit: bool = False  # then train anew on all impressions, the newest too, for as many steps a row
    pretrain_epochs: int = 4  # of MAKE's module
    without: tuple[CubePart, ...] = ()  # parts of CUBE that are left out, to measure what each is worth
    position: bool = False  # whether the place in the list explains a part of the clicks in training; scores never read it
    weight_decay: float = 1e-5
    dropout: float = 0.0
    device: Literal["cpu", "cuda", "auto"] = "cpu"  # that trains; auto: a GPU where there is one
    embedding_sharding: Literal["none", "rows"] = "none"  # of several processes each holds the whole table, or every so many-th row
    vectors: Literal["float32", "float16", "int8"] = "float32"  # as training holds them in memory; a half, or with int8 a quarter of it
    caps: Caps = field(default_factory=Caps)  # which events make rows
    most: Most = field(default_factory=lambda: Most(visitor=20_000))  # rows, of each
    click_skew: float = SKEW  # seconds that a click may be logged before its impression, where clocks differ
    features: dict[str, OwnColumn] = field(default_factory=dict)  # columns of the shop's own, beside the standard ones

    def __post_init__(self) -> None:
        rule(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        rule(self.batch >= 1, "batch", self.batch, "at least 1 row")
        rule(self.behaviors >= 1, "behaviors", self.behaviors, "at least 1")
        rule(0 <= self.top_k <= self.behaviors, "top_k", self.top_k, f"from 0 to behaviors = {self.behaviors}")
        rule(0 <= self.validation < 1, "validation", self.validation, "a share from 0, below 1")
        rule(not self.refit or self.validation > 0, "refit", self.refit, "false where validation = 0: all rows are trained on already")
        rule(self.patience >= 1, "patience", self.patience, "at least 1")
        rule(self.pretrain_epochs >= 0, "pretrain_epochs", self.pretrain_epochs, "at least 0")
        rule(0 < self.learning_rate < 1, "learning_rate", self.learning_rate, "between 0 and 1")
        rule(self.embedding_dim >= 1, "embedding_dim", self.embedding_dim, "at least 1")
        rule(all(width >= 1 for width in self.hidden), "hidden", self.hidden, "widths of at least 1")
        rule(0 <= self.dropout < 1, "dropout", self.dropout, "from 0, below 1")
        rule(0 <= self.click_skew <= 300, "click_skew", self.click_skew, "from 0 to 300 seconds")
        rule(not self.without or self.extractor == "cube", "without", self.without, "empty: only extractor = 'cube' has such parts")
        rule(not {"items", "queries"} <= set(self.without), "without", self.without, "without one of items and queries, not both")
        placed = [name for name, column in self.features.items() if (column.column or name) in COUNTED]
        rule(not (self.position and placed), "position", self.position, f"false where features.{'/'.join(placed)} reads the position, too")
        assert self.own is not None  # a name that something else has is an error here, not when it is first used

    @property
    def own(self) -> tuple[Feature, ...]:
        """The features that the table declares, by name."""
        return tuple(declared.named(name) for name, declared in sorted(self.features.items()))
