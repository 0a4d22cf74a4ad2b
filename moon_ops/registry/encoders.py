"""What the registry knows of an encoder."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from moon_ops.files import required
from moon_ops.registry.registry import ENCODER, Registry
from moon_ops.settings import Settings


@dataclass(frozen=True)
class EncoderVersion:
    """A registered encoder: its contract, the time from which on it has seen no behaviour, and the recipe it was trained by."""

    version: int
    contract_id: str
    trained_until: dt.datetime
    recipe: str


def encoder_version(settings: Settings, version: int) -> EncoderVersion:
    """What the registry knows of an encoder; :class:`StageError` if there is none of that number."""
    tags = Registry(settings).tags(ENCODER, version)
    return EncoderVersion(version, tags["contract_id"], dt.datetime.fromisoformat(tags["trained_until"]), tags.get("recipe", ""))


def prefixes(settings: Settings, version: int) -> Sequence[int]:
    """The lengths of which the encoder was trained to make vectors of their own, beside the whole one."""
    place = Registry(settings).fetch(ENCODER, version) / "recipe.json"
    about = required(place, "export the encoder again") if place.is_file() else {"training": {}}  # of an encoder that somebody else made
    found: Sequence[int] = about["training"].get("prefixes", ())
    return found
