"""A checkpoint travels to the machine that exports it; its name is all that a scheduler carries."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from moon_ops.errors import ContractError, ServiceError, StageError
from moon_ops.lake.lake import Lake
from moon_ops.release import checkpoints
from moon_ops.settings import Settings


@pytest.fixture
def machines(tmp_path: Path) -> tuple[Settings, Settings]:
    lake = Lake(f"file://{tmp_path / 'shared'}")
    return Settings(home=tmp_path / "first", lake=lake), Settings(home=tmp_path / "second", lake=lake)


@pytest.fixture
def trained(machines: tuple[Settings, Settings]) -> Path:
    place = machines[0].home / "checkpoints" / "mini-0123456789"
    (place / "1_Pooling").mkdir(parents=True)
    for name in ("training.json", "model.safetensors", "1_Pooling/config.json", "pixels-24.u8"):
        (place / name).write_text(name)
    return place


def test_it_is_found_where_it_was_trained(machines: tuple[Settings, Settings], trained: Path) -> None:
    assert checkpoints.find(machines[0], checkpoints.keep(machines[0], trained)) == trained


def test_another_machine_fetches_it_without_scratch_files(machines: tuple[Settings, Settings], trained: Path) -> None:
    first, second = machines
    name = checkpoints.keep(first, trained)
    assert name == "mini-0123456789"
    (second.home / "checkpoints" / name).mkdir(parents=True)  # of a training that was killed there
    place = checkpoints.find(second, name)
    assert place.parent == second.home / "checkpoints"
    found = sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())
    assert found == ["1_Pooling/config.json", "model.safetensors", "training.json"]
    assert (place / "training.json").read_text() == "training.json"
    assert not list(first.home.rglob("*files.json"))


def test_one_that_was_damaged_on_the_way_is_refused(machines: tuple[Settings, Settings], trained: Path) -> None:
    first, second = machines
    name = checkpoints.keep(first, trained)
    next(Path(first.lake.uri.removeprefix("file://")).rglob("model.safetensors")).write_text("cut")
    with pytest.raises(ContractError, match="has sha256"):
        checkpoints.find(second, name)
    assert not (second.home / "checkpoints" / name).exists()


def test_one_that_nobody_has_trained_is_an_error(machines: tuple[Settings, Settings]) -> None:
    with pytest.raises(StageError, match=r"there is no checkpoint mini-9, .*→ train it again"):
        checkpoints.find(machines[1], "mini-9")


def test_a_store_that_is_away_is_said_to_be_away(machines: tuple[Settings, Settings], trained: Path) -> None:
    first, _ = machines
    Path(first.lake.uri.removeprefix("file://")).write_text("no directory")
    with pytest.raises(ServiceError, match="does not answer"):
        checkpoints.keep(first, trained)


def test_with_a_lake_in_a_directory_nothing_is_copied(tmp_path: Path, trained: Path) -> None:
    alone = Settings(home=trained.parents[1])
    assert checkpoints.find(alone, checkpoints.keep(alone, trained)) == trained
    assert not (trained.parents[1] / "lake").exists()


def test_old_ones_leave_the_store(machines: tuple[Settings, Settings], trained: Path) -> None:
    first, second = machines
    name, now = checkpoints.keep(first, trained), dt.datetime.now(dt.UTC)
    assert checkpoints.tidy(first, dt.timedelta(days=7), now + dt.timedelta(days=6)) == 0
    assert checkpoints.tidy(first, dt.timedelta(0), now + dt.timedelta(days=1)) == 0, "it may wait for its export"
    assert checkpoints.find(second, name).is_dir()
    assert checkpoints.tidy(first, dt.timedelta(days=7), now + dt.timedelta(days=8)) == 1
    assert not [path for path in Path(first.lake.uri.removeprefix("file://")).rglob("*") if path.is_file()]
    assert checkpoints.tidy(first, dt.timedelta(days=7), now + dt.timedelta(days=8)) == 0
    assert checkpoints.find(first, name) == trained
