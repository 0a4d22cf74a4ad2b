"""Places and secrets from the environment, and named recipes from ``models/*.toml``.

Everything that an embedded run writes lies under ``MOON_HOME``. In production the same variables name an object store, Redis and an
MLflow server. A recipe is a frozen dataclass: a wrong key, a wrong type or a broken rule fails when it is read, with the rule.
"""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from moon_ops.errors import SettingsError
from moon_ops.lake.tables import Lake

STRICT = ConfigDict(extra="forbid")
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Settings:
    """Where things are. Made by :meth:`from_environment`; beside it only Feast's own configuration names variables."""

    home: Path
    lake: Lake
    tracking_uri: str  # MLflow: sqlite:///… or http(s)://…
    redis: str = ""  # host:port of the online store; empty: SQLite
    models: Path = ROOT / "models"
    inbox: Path | None = None  # a directory in the ingest layout that moon_new_items looks into
    workers: int = 2
    host: str = "127.0.0.1"
    port: int = 8321

    @classmethod
    def from_environment(cls, home: Path | None = None) -> Settings:
        """Read ``MOON_HOME``, ``MOON_LAKE``, ``MOON_TRACKING_URI``, ``MOON_REDIS``, ``MOON_MODELS``, ``MOON_INBOX``, ``MOON_WORKERS``,
        ``MOON_HOST``, ``MOON_PORT``; :class:`SettingsError` names the variable that is wrong.
        """
        at = (home or Path(os.environ.get("MOON_HOME") or ".moon")).absolute()
        if at.exists() and not at.is_dir():
            raise SettingsError(f"MOON_HOME = {at} is a file, so nothing can be kept there", action="name a directory")
        nearest = next(p for p in (at, *at.parents) if p.exists())
        if not os.access(nearest, os.W_OK):
            raise SettingsError(f"MOON_HOME = {at} cannot be written to", action="name a directory that you may write to")
        lake = os.environ.get("MOON_LAKE") or str(at / "lake")
        return cls(
            home=at,
            lake=Lake(lake if "://" in lake else str(Path(lake).absolute())),
            tracking_uri=os.environ.get("MOON_TRACKING_URI") or f"sqlite:///{at / 'mlflow.db'}",
            redis=os.environ.get("MOON_REDIS", ""),
            models=Path(os.environ.get("MOON_MODELS") or ROOT / "models"),
            inbox=Path(inbox) if (inbox := os.environ.get("MOON_INBOX")) else None,
            workers=whole("MOON_WORKERS", min(os.cpu_count() or 1, 8)),
            host=os.environ.get("MOON_HOST") or "127.0.0.1",
            port=whole("MOON_PORT", 8321, most=65535),
        )


def whole(name: str, default: int, most: int | None = None) -> int:
    """The environment variable ``name`` as a whole number from 1 to ``most``; :class:`SettingsError` if it is something else."""
    value = os.environ.get(name) or str(default)
    if not value.isdecimal() or int(value) < 1:
        raise SettingsError(f"{name} = {value!r} is not a whole number from 1", action=f"set {name} to e.g. {default}")
    if most is not None and int(value) > most:
        raise SettingsError(f"{name} = {value!r} is above {most}", action=f"set {name} to e.g. {default}")
    return int(value)


@checked(frozen=True, config=STRICT)
class Inputs:
    """What an encoder reads of an item or a query."""

    picture_size: int  # pixels, square
    max_pictures: int = 2
    max_text_tokens: int = 40

    def __post_init__(self) -> None:
        _rule(self.picture_size >= 16, "picture_size", self.picture_size, "at least 16 pixels")
        _rule(self.max_pictures >= 1, "max_pictures", self.max_pictures, "at least 1")
        _rule(self.max_text_tokens >= 4, "max_text_tokens", self.max_text_tokens, "at least 4 tokens")


@checked(frozen=True, config=STRICT)
class Training:
    """How an encoder is trained. Temperature = 1 / logit scale, learned from this start."""

    steps: int
    batch: int  # pairs per step; each one's item is a negative of all the others
    learning_rate: float  # AdamW, for embeddings, gains and biases; for everything if matrix_learning_rate is 0
    matrix_learning_rate: float = 0.0  # Muon, for the hidden matrices
    warmup_steps: int = 20
    weight_decay: float = 0.05
    temperature: float = 0.07
    pictures: int = 1  # of an item per step, drawn anew each time; production reads inputs.max_pictures
    text_dropout: float = 0.0  # share of items shown without their text, so that a photograph has to match a picture
    augment: bool = False  # turns, crops, flips and light, on pictures of both sides

    def __post_init__(self) -> None:
        _rule(self.steps >= 0, "steps", self.steps, "0 or more (0: an untrained encoder)")
        _rule(self.batch >= 2, "batch", self.batch, "at least 2: one pair has no negatives")
        _rule(0 < self.learning_rate < 1, "learning_rate", self.learning_rate, "between 0 and 1")
        _rule(0 <= self.matrix_learning_rate < 1, "matrix_learning_rate", self.matrix_learning_rate, "from 0, below 1")
        _rule(0 < self.temperature <= 1, "temperature", self.temperature, "above 0, at most 1")
        _rule(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "0 or more")
        _rule(self.pictures >= 1, "pictures", self.pictures, "at least 1")
        _rule(0 <= self.text_dropout < 1, "text_dropout", self.text_dropout, "from 0, below 1")


@checked(frozen=True, config=STRICT)
class EncoderRecipe:
    """A named encoder: ``models/<name>.toml``. Either ``checkpoint`` (a directory or a hub name) or ``vision`` and ``text`` are given."""

    name: str
    family: Literal["smolvlm"]
    inputs: Inputs
    training: Training
    checkpoint: str = ""
    revision: str = ""
    vocabulary: int = 4096  # tokens; only where the tokenizer is trained on the catalogue
    scale_factor: int = 2  # pixel shuffle: patches per picture / scale_factor² = tokens per picture
    vision: dict[str, int | float] = field(default_factory=dict)  # SmolVLMVisionConfig
    text: dict[str, int | float] = field(default_factory=dict)  # LlamaConfig

    def __post_init__(self) -> None:
        _rule(bool(self.checkpoint) != bool(self.vision and self.text), "checkpoint", self.checkpoint, "given, or else [vision] and [text]")
        if not self.vision:
            return
        _widths("vision", self.vision)
        _widths("text", self.text)
        patch = int(self.vision.get("patch_size", 16))
        side = self.inputs.picture_size // patch
        fits = self.inputs.picture_size % patch == 0 and side % self.scale_factor == 0
        _rule(
            fits, "inputs.picture_size", self.inputs.picture_size, f"a multiple of patch_size × scale_factor = {patch * self.scale_factor}"
        )
        _rule(self.vocabulary >= 300, "vocabulary", self.vocabulary, "at least 300: 256 bytes and the special tokens")


@checked(frozen=True, config=STRICT)
class CtrRecipe:
    """A named click model: ``models/<name>.toml``."""

    name: str
    extractor: Literal["din", "cube"]
    epochs: int
    batch: int
    learning_rate: float
    embedding_dim: int = 16
    hidden: tuple[int, ...] = (64, 32)
    behaviors: int = 20  # the user's last L clicked items
    weight_decay: float = 1e-5
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _rule(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        _rule(self.batch >= 1, "batch", self.batch, "at least 1 row")
        _rule(self.behaviors >= 1, "behaviors", self.behaviors, "at least 1")
        _rule(0 < self.learning_rate < 1, "learning_rate", self.learning_rate, "between 0 and 1")
        _rule(self.embedding_dim >= 1, "embedding_dim", self.embedding_dim, "at least 1")
        _rule(all(width >= 1 for width in self.hidden), "hidden", self.hidden, "widths of at least 1")
        _rule(0 <= self.dropout < 1, "dropout", self.dropout, "from 0, below 1")


@checked(frozen=True, config=STRICT)
class Gates:
    """What a release must reach: floors for the first one, and how far below the champion a later one may fall."""

    name: str
    recall_floor: float
    auc_floor: float
    recall_tolerance: float
    auc_tolerance: float
    parity_floor: float  # least cosine between eager and exported vectors

    def __post_init__(self) -> None:
        for name in ("recall_floor", "auc_floor", "recall_tolerance", "auc_tolerance", "parity_floor"):
            value = getattr(self, name)
            _rule(0 <= value <= 1, name, value, "between 0 and 1")


Recipe = TypeVar("Recipe", EncoderRecipe, CtrRecipe, Gates)


def recipe(kind: type[Recipe], name: str, models: Path, **override: Any) -> Recipe:
    """The recipe ``models/<name>.toml``; ``override`` replaces keys, e.g. ``training={"steps": 10}`` (tables are merged)."""
    path = models / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in models.glob("*.toml"))) or "none"
        raise SettingsError(f"there is no recipe '{name}' in {models} (there are: {known})", action="name one of these")
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text())
        for key, value in override.items():
            content[key] = {**content.get(key, {}), **value} if isinstance(value, dict) else value
        text = json.dumps({"name": name, **content}, default=str)
        return TypeAdapter(kind).validate_json(text, strict=True)  # from JSON, because a strict table would have to be a dataclass already
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as broken:
        raise SettingsError(f"{path} is not TOML ({broken})", action="mend the line it names") from broken
    except ValidationError as wrong:
        first = min(wrong.errors(), key=lambda error: error["type"] != "unexpected_keyword_argument")  # before the key that it misspells
        where = ".".join(str(part) for part in first["loc"]) or "recipe"
        detail = str(first.get("ctx", {}).get("error") or first["msg"])
        shown = "" if isinstance(first["input"], dict) else f" = {first['input']!r}"
        raise SettingsError(f"{path.name}: {where}{shown}: {detail}", action="correct the recipe") from wrong


WIDTHS = {
    "vision": {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size"},
    "text": {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"},
}


def _widths(table: str, given: dict[str, int | float]) -> None:
    """The keys that an architecture may set, and what must divide what: transformers itself ignores a misspelt key."""
    for name, value in given.items():
        _rule(name in WIDTHS[table], f"{table}.{name}", value, f"named as one of {', '.join(sorted(WIDTHS[table]))}")
        _rule(value >= 1, f"{table}.{name}", value, "at least 1")
    heads, width = int(given.get("num_attention_heads", 1)), int(given.get("hidden_size", 1))
    _rule(width % heads == 0, f"{table}.hidden_size", width, f"a multiple of num_attention_heads = {heads}")


def _rule(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise ValueError(f"{name} = {value!r} must be {rule}")
