"""A lake of this test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from moon_ops.lake.lake import Lake


@pytest.fixture
def empty(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))
