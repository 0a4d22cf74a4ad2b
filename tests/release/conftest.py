"""A copy of the released home that a test may change, and a home in which the smallest recipe can be trained."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from moon_ops.registry.registry import Registry
from moon_ops.settings import Settings

MINI = """
family = "smolvlm"
vocabulary = 700

[inputs]
picture_size = 16
max_text_tokens = 16

[vision]
hidden_size = 32
intermediate_size = 32
num_hidden_layers = 1
num_attention_heads = 2
patch_size = 4

[text]
hidden_size = 32
intermediate_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 2

[training]
batch = 8
learning_rate = 2e-3
warmup_steps = 1

[stage1]
steps = 2

[stage2a]
steps = 12

[stage2b]
steps = 4
least_entities = 0
queue = 16
"""


@pytest.fixture(scope="session")
def fresh_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database without a run: making one takes longer than a small training."""
    settings = Settings.from_environment(tmp_path_factory.mktemp("mlflow"))
    Registry(settings)
    return settings.home / "mlflow.db"


@pytest.fixture
def workshop(lake: Any, fresh_mlflow: Path, tmp_path: Path) -> Settings:
    """A home of its own over the tiny shop's lake, and of recipes only ``mini``: all three stages, in a second or two."""
    models, home = tmp_path / "models", tmp_path / "home"
    models.mkdir()
    (models / "mini.toml").write_text(MINI)
    home.mkdir()
    shutil.copy(fresh_mlflow, home)
    return Settings.from_environment(home).replace(lake=lake, models=models, workers=1)
