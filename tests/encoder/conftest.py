"""A small encoder over a few texts, made once."""

from __future__ import annotations

from typing import Any

import pytest

TEXTS = ["red cotton dress", "blue leather boots", "green ceramic mug for tea", "dotted lamp", "striped t-shirt, size M"] * 8


@pytest.fixture(scope="session")
def encoder() -> Any:
    from moon_ops.encoder.model import build
    from moon_ops.recipes import EncoderRecipe, recipe
    from moon_ops.settings import ROOT

    return build(recipe(EncoderRecipe, "moon-nano", ROOT / "models"), TEXTS, seed=0).eval()
