"""A registry that is gone or broken is an error, never an empty one in its place."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest

from moon_ops.cli.doctor import examine
from moon_ops.errors import ServiceError
from moon_ops.registry.registry import CHAMPION, Registry
from moon_ops.settings import Settings


def test_a_lost_registry_is_not_replaced(copied: Settings, now: dt.datetime) -> None:
    (copied.home / "mlflow.db").unlink()
    with pytest.raises(ServiceError, match=r"mlflow.db is gone, but .*mlartifacts holds the files of what was registered .* from a backup"):
        Registry(copied)
    assert not (copied.home / "mlflow.db").exists()
    found = {name: (good, detail) for name, good, detail in examine(copied, now)}
    assert found["mlflow"][0] is False
    assert "is gone" in found["mlflow"][1]


@pytest.mark.parametrize("content", [b"no database, but long enough for one" * 99, b"SQLite format 3\x00" + b"\xff" * 4000])
def test_a_broken_registry_is_named(copied: Settings, content: bytes) -> None:
    (copied.home / "mlflow.db").write_bytes(content)
    with pytest.raises(ServiceError, match=r"mlflow.db is no SQLite database: it is broken, or cut off → bring it back from a backup"):
        Registry(copied)


def test_a_new_home_gets_a_registry(tmp_path: Path) -> None:
    assert Registry(Settings.from_environment(tmp_path / "new")).alias(CHAMPION) is None


def test_the_doctor_names_a_champion_that_cannot_be_served(
    copied: Settings, registry: Registry, make_release: Callable[..., int], now: dt.datetime
) -> None:
    assert {name: good for name, good, _ in examine(copied, now)}["champion"] is True
    registry.point(CHAMPION, make_release(passed=False))
    found = {name: (good, detail) for name, good, detail in examine(copied, now)}
    assert found["champion"][0] is False
    assert "release 2 is not served" in found["champion"][1]
