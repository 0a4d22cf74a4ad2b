"""The released encoder, and another one: the same graphs under a contract of its own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from moon_ops.embeddings.runtime import Runtime
from moon_ops.inputs.contract import Contract
from moon_ops.recipes.encoder import EncoderRecipe, Inputs, Training
from moon_ops.registry.registry import ENCODER, Registry
from moon_ops.settings import Settings

if TYPE_CHECKING:
    from moon_ops.encoder.model import Encoder


@pytest.fixture(scope="session")
def encoder_directory(released: Settings) -> Path:
    return Registry(released).fetch(ENCODER, 1)


@pytest.fixture(scope="session")
def runtime(encoder_directory: Path) -> Runtime:
    return Runtime(encoder_directory, threads=1)


@pytest.fixture(scope="session")
def core_encoder() -> Encoder:
    """A small encoder that reads each picture twice, whole and as the crop of its core region. It has learned nothing."""
    from moon_ops.encoder.model import build

    chosen = EncoderRecipe(
        name="core",
        family="smolvlm",
        inputs=Inputs(picture_size=32, max_text_tokens=16, core_region="saliency"),
        training=Training(batch=2, learning_rate=1e-3),
        vocabulary=400,
        vision={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8},
        text={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2},
    )
    return build(chosen, ["red dress", "blue boots"] * 8, seed=0).eval()


@pytest.fixture(scope="session")
def core_directory(core_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from moon_ops.encoder.export import export

    place = tmp_path_factory.mktemp("core")
    core_encoder.save(place)
    assert export(place).min_cosine > 0.9999
    return place


@pytest.fixture(scope="session")
def core_runtime(core_directory: Path) -> Runtime:
    return Runtime(core_directory, threads=1)


@pytest.fixture
def copy_of_encoder(encoder_directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(encoder_directory, tmp_path / "encoder"))


@pytest.fixture
def other_runtime(copy_of_encoder: Path) -> Runtime:
    replace(Contract.load(copy_of_encoder), precision="fp16").save(copy_of_encoder)
    return Runtime(copy_of_encoder, threads=1)
