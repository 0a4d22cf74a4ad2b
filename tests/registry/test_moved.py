"""A home that was moved works, and one that was copied reads and writes its own files alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from moon_ops.embeddings import features
from moon_ops.registry import moved
from moon_ops.registry.registry import CTR, ENCODER, RELEASE, Registry, manifest_of
from moon_ops.release.promotion import Wish, promote
from moon_ops.release.served import choose
from moon_ops.release.verification import verify
from moon_ops.settings import Settings


@pytest.fixture
def elsewhere(released: Settings, tmp_path: Path) -> Settings:
    """A copy of the released home, as it is: MLflow and Feast name the original's files."""
    shutil.copytree(released.home, tmp_path / "a copy", symlinks=True, ignore=shutil.ignore_patterns("shop-*", "checkpoints", "report"))
    return Settings.from_environment(tmp_path / "a copy")


def addresses(settings: Settings) -> set[str]:
    """Every absolute address in MLflow's file that is this home's or another's."""
    with contextlib.closing(sqlite3.connect(settings.home / "mlflow.db")) as tables:
        found = {str(value) for table, column in moved.ADDRESSES for (value,) in tables.execute(f"SELECT {column} FROM {table}")}
    return {address for address in found if f"/{moved.ROOT}" in address}


def listed(home: Path) -> set[Path]:
    return {path for path in home.rglob("*") if "__pycache__" not in path.parts}


def test_a_copied_home_reads_and_writes_its_own_files(elsewhere: Settings, released: Settings, tmp_path: Path) -> None:
    before, names = listed(released.home), addresses(released)
    assert all(address.startswith(str(released.home)) for address in addresses(elsewhere))
    registry = Registry(elsewhere)
    places = [registry.fetch(model, 1) for model in (ENCODER, CTR, RELEASE)]
    assert all(place.is_relative_to(elsewhere.home) and any(place.iterdir()) for place in places)
    assert all(address.startswith(str(elsewhere.home)) for address in addresses(elsewhere))

    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "manifest.json").write_text("{}")
    made = registry.register(RELEASE, registry.start_run("by hand", {}), tmp_path / "made", {})
    assert registry.fetch(RELEASE, made).is_relative_to(elsewhere.home)
    assert manifest_of(registry, made) == {}
    assert (listed(released.home), addresses(released)) == (before, names)


def test_a_moved_home_works_without_the_place_where_it_was(elsewhere: Settings, tmp_path: Path) -> None:
    (tmp_path / "later").mkdir()
    home = elsewhere.home.rename(tmp_path / "later" / "moved")
    with contextlib.closing(sqlite3.connect(home / "mlflow.db")) as tables, tables:  # as if the original were gone
        for table, column in moved.ADDRESSES:
            tables.execute(f"UPDATE {table} SET {column} = '/gone' || substr({column}, instr({column}, '/{moved.ROOT}'))")
    settings = Settings.from_environment(home)
    assert choose(settings, Registry(settings)).parts.encoder.is_relative_to(home)
    verify(settings, Registry(settings), manifest_of(Registry(settings), 1))
    assert promote(settings, 1, Wish("ann", "2026-06-01")).after == 1
    assert {address[: len(str(home))] for address in addresses(settings)} == {str(home)}


def test_mending_twice_changes_nothing(elsewhere: Settings, released: Settings) -> None:
    uri = elsewhere.tracking_uri.get_secret_value()
    assert moved.settle(uri, elsewhere.home) == str(released.home / "mlartifacts")
    content = (elsewhere.home / "mlflow.db").read_bytes()
    assert moved.settle(uri, elsewhere.home) == ""
    assert (elsewhere.home / "mlflow.db").read_bytes() == content


def test_a_home_by_another_name_is_not_moved(elsewhere: Settings, tmp_path: Path) -> None:
    Registry(elsewhere)
    (tmp_path / "link").symlink_to(elsewhere.home)
    linked = Settings.from_environment(tmp_path / "link")
    assert Registry(linked).fetch(RELEASE, 1).samefile(Registry(elsewhere).fetch(RELEASE, 1))
    assert all(address.startswith(str(elsewhere.home)) for address in addresses(elsewhere))


def test_a_registry_beside_its_home_is_left_alone(elsewhere: Settings, tmp_path: Path) -> None:
    shared = Path(shutil.move(elsewhere.home / "mlflow.db", tmp_path / "shared.db"))
    content = shared.read_bytes()
    assert moved.settle(f"sqlite:///{shared}", elsewhere.home) == ""
    assert shared.read_bytes() == content


def test_what_a_copy_once_wrote_into_the_original_is_brought_home(elsewhere: Settings, released: Settings, tmp_path: Path) -> None:
    """As the copy's registry names the original's place, MLflow's own client writes there."""
    original = tmp_path / "original"
    (original / moved.ROOT / "run" / "artifacts" / "release").mkdir(parents=True)
    (original / moved.ROOT / "run" / "artifacts" / "release" / "manifest.json").write_text('{"of": "the copy"}')
    with contextlib.closing(sqlite3.connect(elsewhere.home / "mlflow.db")) as tables, tables:
        for table, column in moved.ADDRESSES:
            tables.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(released.home), str(original)))
        place = str(original / moved.ROOT / "run" / "artifacts" / "release")
        tables.execute("UPDATE model_versions SET source = ?, storage_location = ? WHERE name = 'moon-release'", (place, place))
    assert manifest_of(Registry(elsewhere), 1) == {"of": "the copy"}
    assert Registry(elsewhere).fetch(RELEASE, 1) == elsewhere.home / moved.ROOT / "run" / "artifacts" / "release"


def test_feast_reads_this_home(elsewhere: Settings, released: Settings) -> None:
    store = features.open_store(elsewhere)
    views = store.list_feature_views()
    assert {view.name for view in views} >= {"item_profile", "user_behavior", "item_embedding_v1"}
    ours = f"{elsewhere.home}/lake/"
    assert all(view.batch_source.uri.startswith(ours) and Path(view.batch_source.uri).is_dir() for view in views)
    shown = [projection for service in store.list_feature_services() for projection in service.feature_view_projections]
    assert shown
    assert all(projection.batch_source.uri.startswith(ours) for projection in shown)
    registry = elsewhere.home / "feature_store" / "registry.db"
    content = registry.read_bytes()
    features.open_store(elsewhere)
    assert registry.read_bytes() == content, "it is mended once"
    assert str(released.home) not in (elsewhere.home / "feature_store" / "feature_store.yaml").read_text()


def test_another_user_may_open_the_feature_store_unless_it_holds_a_password(elsewhere: Settings) -> None:
    written = elsewhere.home / "feature_store" / "feature_store.yaml"
    written.chmod(0o600)  # as an older version left it
    features.open_store(elsewhere)
    assert written.stat().st_mode & 0o777 == 0o666 & ~umask()
    features.open_store(elsewhere.replace(redis="localhost:6379"))
    assert written.stat().st_mode & 0o777 == 0o666 & ~umask()
    features.open_store(elsewhere.replace(redis="localhost:6379,password=secret"))
    assert written.stat().st_mode & 0o777 == 0o600


def umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_a_read_only_home_can_be_looked_at(elsewhere: Settings, tmp_path: Path) -> None:
    place = tmp_path / "read only"
    place.mkdir()
    mount = subprocess.run(["mount", "-o", "bind,ro", str(elsewhere.home), str(place)], capture_output=True)
    if mount.returncode:
        pytest.skip("this machine mounts nothing")
    try:
        for command in (["status"], ["moves"], ["explain", "1"], ["verify"], ["doctor"]):
            told = moon(*command, "--home", str(place))
            assert (told.returncode, told.stderr) == (0, ""), command
        refused = moon("promote", "1", "--home", str(place))
        assert refused.returncode == 1
        assert refused.stderr == f"moon: MOON_HOME = {place} cannot be written to → name a directory that you may write to\n"
    finally:
        subprocess.run(["umount", str(place)], check=True)


def moon(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "moon_ops.cli", *words], capture_output=True, text=True)
