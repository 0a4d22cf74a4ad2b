"""The released encoder, and another one: the same graphs under a contract of its own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from moon_ops.embeddings.runtime import Runtime
from moon_ops.lake.contract import Contract
from moon_ops.release.registry import ENCODER, Registry
from moon_ops.settings import Settings


@pytest.fixture(scope="session")
def encoder_directory(released: Settings) -> Path:
    return Registry(released).fetch(ENCODER, 1)


@pytest.fixture(scope="session")
def runtime(encoder_directory: Path) -> Runtime:
    return Runtime(encoder_directory, threads=1)


@pytest.fixture
def copy_of_encoder(encoder_directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(encoder_directory, tmp_path / "encoder"))


@pytest.fixture
def other_runtime(copy_of_encoder: Path) -> Runtime:
    replace(Contract.load(copy_of_encoder), precision="fp16").save(copy_of_encoder)
    return Runtime(copy_of_encoder, threads=1)
