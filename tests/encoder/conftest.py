"""A small encoder over a few texts, made once; and the smallest recipe, with the tiny shop's pairs and pixels."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TEXTS = ["red cotton dress", "blue leather boots", "green ceramic mug for tea", "dotted lamp", "striped t-shirt, size M"] * 8
UNTIL = dt.datetime(2026, 1, 16, tzinfo=dt.UTC)
RECIPE: dict[str, Any] = {
    "name": "least",
    "family": "smolvlm",
    "vocabulary": 700,
    "inputs": {"picture_size": 16, "max_pictures": 2, "max_text_tokens": 32},
    "vision": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4},
    "text": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2},
    "training": {"batch": 8, "learning_rate": 2e-3, "warmup_steps": 1},
}


@pytest.fixture(scope="session")
def encoder() -> Any:
    from moon_ops.encoder.model import build
    from moon_ops.recipes.encoder import EncoderRecipe
    from moon_ops.recipes.reading import recipe
    from moon_ops.settings import ROOT

    return build(recipe(EncoderRecipe, "moon-nano", ROOT / "models"), TEXTS, seed=0).eval()


@pytest.fixture(scope="session")
def least() -> Callable[..., Any]:
    """The smallest recipe: ``least(stage2a={"steps": 3}, training={"chunk": 2})``; tables are merged."""
    from pydantic import TypeAdapter

    from moon_ops.recipes.encoder import EncoderRecipe

    def make(**tables: Any) -> EncoderRecipe:
        merged = {name: {**RECIPE.get(name, {}), **value} if isinstance(value, dict) else value for name, value in tables.items()}
        return TypeAdapter(EncoderRecipe).validate_python({**RECIPE, **merged})

    return make


@dataclass
class World:
    """What stages are made of. Do not train ``encoder``: copy it."""

    encoder: Any
    pairs: Any
    rows: list[dict[str, Any]]
    store: Any


@pytest.fixture(scope="session")
def world(lake: Any, least: Any, tmp_path_factory: pytest.TempPathFactory) -> World:
    from moon_ops.encoder.model import build
    from moon_ops.encoder.pairs import behaviour
    from moon_ops.encoder.pixels import PixelStore
    from moon_ops.encoder.pretrain import corpus as prompts
    from moon_ops.encoder.train import corpus
    from moon_ops.lake.tables import items_as_of

    pairs = behaviour(lake, UNTIL)
    made = build(least(), [*corpus(pairs), *prompts()], seed=0).eval()
    store = PixelStore.over(lake, pairs.image_ids(), 16, Path(tmp_path_factory.mktemp("pixels")) / "pixels.u8")
    return World(made, pairs, items_as_of(lake, UNTIL).to_pylist(), store)
