"""A database that is away is said to be away: nobody is sent to publish for it. What was never published is said to be that."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from feast import FeatureStore
from feast.errors import FeatureServiceNotFoundException
from sqlalchemy.exc import InterfaceError, OperationalError

from moon_ops.cli import stores
from moon_ops.embeddings import features
from moon_ops.errors import ServiceError, StageError, in_a_line
from moon_ops.settings import Settings

REFUSED = Exception('connection to server at "db" (10.0.0.7), port 5432 failed: Connection refused')
ADDRESS = "postgresql+psycopg://moon:geheim@db:5432/feast"


def asked(address: str, fault: Exception) -> Any:
    config = SimpleNamespace(registry=SimpleNamespace(path=address))
    return Mock(spec=FeatureStore, config=config, get_feature_service=Mock(side_effect=fault))


@pytest.mark.parametrize("kind", [OperationalError, InterfaceError])
def test_a_registry_that_does_not_answer_is_no_unpublished_encoder(kind: Any) -> None:
    with pytest.raises(ServiceError) as told:
        features.service(asked(ADDRESS, kind("SELECT 1", {}, REFUSED)), 1)
    assert told.value.problem.startswith("Feast's registry (postgresql+psycopg://***@db:5432/feast) does not answer: connection to server")
    assert told.value.action == "start it, or correct MOON_FEAST_REGISTRY"
    assert "geheim" not in str(told.value)


def test_what_was_never_published_is_and_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(StageError, match=r"no feature service ctr_v3 → run `moon publish --encoder 3`"):
        features.service(asked(ADDRESS, FeatureServiceNotFoundException("ctr_v3")), 3)
    with pytest.raises(TypeError, match="unhashable"):
        features.service(asked(ADDRESS, TypeError("unhashable type: 'list'")), 3)


def test_a_broken_registry_in_the_home_is_said(copied: Settings) -> None:
    place = copied.home / "feature_store" / "registry.db"
    store = features.open_store(copied)
    assert features.service(store, 1).name == "ctr_v1"
    with pytest.raises(StageError, match="no feature service ctr_v9"):
        features.service(store, 9)
    place.write_bytes(b"no database" * 1000)
    with pytest.raises(ServiceError, match=rf"Feast's registry \({place}\) cannot be read: file is not a database → `moon doctor` says"):
        features.open_store(copied)
    name, good, said = stores._feast(copied)
    assert (name, good) == ("feast", False)
    assert "is broken → remove it, and run `moon publish --full`" in said


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("postgresql+pg8000://moon:geheim@db/feast", "the driver for postgresql.pg8000://.{3}@db/feast is not installed .* → install it"),
        ("nonsense://moon:geheim@db/feast", "does not answer .NoSuchModuleError. → correct the address"),
        ("sqlite:////nowhere/at/all.db", "does not answer .OperationalError. → start it"),
    ],
)
def test_the_doctor_tells_a_driver_from_an_address_and_from_an_outage(copied: Settings, address: str, advice: str) -> None:
    from pydantic import SecretStr

    _, good, said = stores._feast(copied.replace(feast_registry=SecretStr(address)))
    assert not good
    assert re.search(advice, said), said
    assert "geheim" not in said


def test_a_fault_that_says_nothing_has_its_class_as_a_line(tmp_path: Path) -> None:
    assert in_a_line(KeyError()) == "KeyError"
    assert in_a_line(OSError("\n  gone\nmore")) == "  gone"
