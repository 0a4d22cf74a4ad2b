"""The contract of an encoder: everything that makes two vectors comparable, and how an item or a query is laid out for it.

Training and production must read an item identically, and neither may import the other: this is the floor they both stand on.
B is the batch, L the tokens of its longest sequence, T the tokens of one picture.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moon_ops.errors import ContractError, InputError

SEPARATOR = " | "


@dataclass(frozen=True, slots=True)
class Sample:
    """What is to be embedded: a text, pictures by image id, or both."""

    text: str = ""
    image_ids: tuple[str, ...] = ()


def item_sample(item: dict[str, Any]) -> Sample:
    """An item row as the encoder reads it: five segments, title | category | brand | attributes | description, and its pictures.

    A segment that the row lacks stays empty, so the place of a token says what it is about (:mod:`moon_ops.encoder.experts`).
    """
    attributes = " ".join(value for _, value in item.get("attributes") or [])
    parts = (item["title"], " ".join(item.get("category") or []), item.get("brand"), attributes, item.get("description"))
    text = SEPARATOR.join((part or "").replace("|", "/") for part in parts)
    return Sample(text.rstrip(" |"), tuple(item.get("image_ids") or ()))


def title_of(sample: Sample) -> str:
    """The first segment of an item's text."""
    return sample.text.split(SEPARATOR, 1)[0]


def query_sample(query: dict[str, Any]) -> Sample:
    """A query row as the encoder reads it: its text, its picture, or both."""
    return Sample((query.get("text") or "").replace("|", "/"), (query["image_id"],) if query.get("image_id") else ())


@dataclass(frozen=True)
class Layout:
    """How pictures and text become one sequence: each picture's marks and T slots, then the text.

    The marks are those of the family's own processor; for SmolVLM ``<fake_token_around_image><global-img><image>×T
    <fake_token_around_image>``. With a ``core_region`` detector each picture is read twice, whole and as the detector's crop.
    """

    picture_size: int
    tokens_per_picture: int
    max_pictures: int
    max_text_tokens: int
    image_token_id: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    pad_token_id: int
    core_region: str = ""

    @classmethod
    def read(cls, content: dict[str, Any]) -> Layout:
        """From JSON, which knows lists only."""
        return cls(**{**content, "before": tuple(content["before"]), "after": tuple(content["after"])})

    @property
    def views(self) -> int:
        """How often a picture is read: once, or twice with the crop of its core region."""
        return 2 if self.core_region else 1

    @property
    def max_tokens(self) -> int:
        """The longest sequence: all pictures and ``max_text_tokens``. Where there are fewer pictures, a text may be longer."""
        return self.max_pictures * len(self.picture()) + self.max_text_tokens

    def picture(self) -> list[int]:
        """The token ids that stand for one picture, with all its views."""
        return [*self.before, *[self.image_token_id] * self.tokens_per_picture, *self.after] * self.views

    def batch(self, texts: Sequence[Sequence[int]], pictures: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """``input_ids`` and ``attention_mask``, both [B, L], from each sample's text tokens and number of pictures.

        Raises :class:`InputError` for a sample with neither text nor pictures.
        """
        rows = [(self.picture() * min(n, self.max_pictures) + list(t))[: self.max_tokens] for t, n in zip(texts, pictures, strict=True)]
        if not all(rows):
            raise InputError(
                f"sample {next(i for i, r in enumerate(rows) if not r)} has neither text nor a picture",
                action="give one of them",
            )
        length = max(len(row) for row in rows)
        ids = np.full((len(rows), length), self.pad_token_id, np.int64)
        mask = np.zeros_like(ids)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = row
            mask[at, : len(row)] = 1
        return ids, mask


@dataclass(frozen=True)
class Contract:
    """All that makes vectors comparable. Two vectors may be compared only if their ``contract_id`` is the same."""

    family: str
    dim: int
    layout: Layout
    weights: str  # sha256 of model.safetensors
    tokenizer: str  # sha256 of tokenizer.json
    graphs: dict[str, str]  # file → sha256
    golden_pixels: str  # sha256 of the pixels made of a fixed picture: changes if resizing changes
    pooling: str = "mean over text and picture tokens"
    normalized: bool = True
    precision: str = "fp32"
    golden_kinds: dict[str, str] = field(default_factory=dict)  # kind of picture → pixels that a tiny one becomes; empty: exported before

    @property
    def contract_id(self) -> str:
        """A short hash of all the fields, e.g. ``c-5f0c31d2a4be``. Contracts of before ``golden_kinds`` keep the id that they had."""
        content = {name: value for name, value in asdict(self).items() if value or name != "golden_kinds"}
        return "c-" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def save(self, directory: Path) -> None:
        """Write ``contract.json``."""
        (directory / "contract.json").write_text(json.dumps({"contract_id": self.contract_id, **asdict(self)}, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Contract:
        """Read ``contract.json``; :class:`ContractError` if it was edited or is not there."""
        path = directory / "contract.json"
        if not path.is_file():
            raise ContractError(f"{directory} holds no contract.json: it is not an exported encoder", action="run `moon export` first")
        try:
            content = json.loads(path.read_text())
            named = content.pop("contract_id")
            contract = cls(**{**content, "layout": Layout.read(content["layout"])})
        except (ValueError, KeyError, TypeError, AttributeError) as edited:
            raise ContractError(f"{path} is not a contract as it was written ({edited})", action="export the encoder again") from edited
        if contract.contract_id != named:
            raise ContractError(
                f"{path} says {named} but its content hashes to {contract.contract_id}",
                action="export the encoder again",
            )
        return contract


def require_same(left: str, right: str, *, what: str) -> None:
    """Refuse to combine two contracts, naming both."""
    if left != right:
        raise ContractError(
            f"{what}: contract {left} was about to meet contract {right}",
            action="use the vectors and models of one release",
        )


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
