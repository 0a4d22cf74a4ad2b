"""The registry read without MLflow's client: what it says is what the client says, and a move of either is seen by the other."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from moon_ops.errors import StageError
from moon_ops.registry.file import SCHEMAS, RegistryFile
from moon_ops.registry.registry import CHAMPION, ENCODER, RELEASE, Registry
from moon_ops.settings import Settings


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home whose registry holds three releases, the second one deleted, and an encoder."""
    settings = Settings.from_environment(tmp_path_factory.mktemp("filled") / "home")
    registry, part = Registry(settings), tmp_path_factory.mktemp("part")
    (part / "file").write_text("content")
    for number in range(3):
        registry.register(RELEASE, registry.start_run("release", {}), part, {"passed": "true", "number": str(number)})
    registry.client.delete_model_version(RELEASE, "2")
    registry.register(ENCODER, registry.start_run("export", {}), part, {"contract_id": "c-one"})
    return settings


def opened(settings: Settings) -> RegistryFile:
    found = RegistryFile.known(settings.tracking_uri.get_secret_value())
    assert found is not None, f"MLflow's tables have another schema than {SCHEMAS}: try them, and name the new one there"
    return found


def test_it_says_what_the_client_says(filled: Settings) -> None:
    file, client = opened(filled), Registry(filled).client
    for name in (RELEASE, ENCODER):
        found = client.search_model_versions(f"name = '{name}'")
        assert file.versions(name) == sorted(int(v.version) for v in found)
        for version in found:
            number = int(version.version)
            assert file.tags(name, number) == client.get_model_version(name, version.version).tags
            assert file.place(name, number) == client.get_model_version_download_uri(name, version.version)
    assert file.versions(RELEASE) == [1, 3]
    assert file.versions("moon-never") == []


def test_a_move_of_either_is_seen_by_the_other(filled: Settings) -> None:
    file, client = opened(filled), Registry(filled).client
    assert file.alias(RELEASE, "first") is None
    file.point(RELEASE, "first", 1)
    assert client.get_model_version_by_alias(RELEASE, "first").version in (1, "1")
    file.point(RELEASE, "first", 3)
    assert int(client.get_model_version_by_alias(RELEASE, "first").version) == 3
    client.set_registered_model_alias(RELEASE, "first", "1")
    assert file.alias(RELEASE, "first") == 1
    client.delete_registered_model_alias(RELEASE, "first")
    assert file.alias(RELEASE, "first") is None


def test_an_alias_of_a_deleted_version_points_to_nothing(filled: Settings) -> None:
    file = opened(filled)
    with sqlite3.connect(file.path) as tables:
        tables.execute(
            "INSERT INTO registered_model_aliases (name, alias, version, workspace) VALUES (?, 'gone', 2, 'default')", (RELEASE,)
        )
    assert file.alias(RELEASE, "gone") is None


def test_the_registry_needs_no_client_to_read_and_move(filled: Settings) -> None:
    registry = Registry(filled)
    registry.point(CHAMPION, 3)
    assert (registry.alias(CHAMPION), registry.newest(RELEASE), registry.tags(ENCODER, 1)) == (3, 3, {"contract_id": "c-one"})
    assert (registry.fetch(RELEASE, 3) / "file").read_text() == "content"
    with pytest.raises(StageError, match=r"moon-release has no version 2 \(there are: 1, 3\)"):
        registry.tags(RELEASE, 2)
    assert "client" not in vars(registry)


@pytest.mark.parametrize("damage", ["another schema", "no tables", "no database", "absent", "a server", "an encoded path"])
def test_what_is_not_known_is_left_to_the_client(filled: Settings, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "mlflow.db"
    uri = f"sqlite:///{path}"
    if damage == "another schema":
        path.write_bytes(opened(filled).path.read_bytes())
        with sqlite3.connect(path) as tables:
            tables.execute("UPDATE alembic_version SET version_num = 'newer'")
    elif damage == "no tables":
        sqlite3.connect(path).close()
        path.touch()
    elif damage == "no database":
        path.write_text("this is a text, and no database of any kind" * 100)
    elif damage == "a server":
        uri = "http://127.0.0.1:1"
    elif damage == "an encoded path":
        uri = opened(filled).path.as_uri().replace("file://", "sqlite:///").replace("mlflow", "mlfl%6fw")
    assert RegistryFile.known(uri) is None
    assert damage != "absent" or not path.exists()
