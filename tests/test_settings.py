"""Settings: what is wrong is named with its value and its rule, when it is read."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import pytest

from moon_ops import errors
from moon_ops.errors import (
    ContractError,
    GateError,
    InputError,
    LeakError,
    MoonError,
    ServiceError,
    SettingsError,
    StageError,
)
from moon_ops.settings import ROOT, Settings

MODELS = ROOT / "models"


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in [n for n in os.environ if n.startswith("MOON_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def test_without_an_environment_everything_lies_under_one_home(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = Settings.from_environment()
    assert settings.home == tmp_path / ".moon"
    assert settings.lake.uri == str(tmp_path / ".moon" / "lake")
    assert settings.tracking_uri == f"sqlite:///{tmp_path}/.moon/mlflow.db"
    assert (settings.redis, settings.models, settings.inbox) == ("", MODELS, None)
    assert (settings.host, settings.port) == ("127.0.0.1", 8321)
    assert 1 <= settings.workers <= 8
    assert list(tmp_path.iterdir()) == []  # reading settings makes nothing


@pytest.mark.parametrize("value", ["nonsense", "redis://127.0.0.1:6379", ":", "127.0.0.1:abc", "redis:70000", "password=x"])
def test_an_address_of_redis_has_a_host_and_a_port(clean: pytest.MonkeyPatch, value: str) -> None:
    clean.setenv("MOON_REDIS", value)
    with pytest.raises(SettingsError, match=r"MOON_REDIS = .* is not host:port → set MOON_REDIS to e\.g\. localhost:6379"):
        Settings.from_environment()


@pytest.mark.parametrize("value", ["redis:6379", "127.0.0.1:7000,127.0.0.1:7001,ssl=true,password=a:b/c"])
def test_addresses_as_feast_takes_them(clean: pytest.MonkeyPatch, value: str) -> None:
    clean.setenv("MOON_REDIS", value)
    assert Settings.from_environment().redis == value


@pytest.mark.parametrize("value", ["bogus", "../x"])
def test_a_variant_is_one_of_three(clean: pytest.MonkeyPatch, value: str) -> None:
    clean.setenv("MOON_VARIANT", value)
    with pytest.raises(SettingsError, match=r"MOON_VARIANT = .* is not one of fp32, int8, fp16"):
        Settings.from_environment()


def test_every_variable_is_read(clean: pytest.MonkeyPatch) -> None:
    given = {"HOME": "/data/moon", "LAKE": "s3://shop/lake", "TRACKING_URI": "http://mlflow:5000", "REDIS": "redis:6379"}
    given |= {"MODELS": "/etc/moon", "INBOX": "/data/inbox", "WORKERS": "3", "HOST": "0.0.0.0", "PORT": "80"}
    for name, value in given.items():
        clean.setenv(f"MOON_{name}", value)
    settings = Settings.from_environment()
    assert (settings.home, settings.models, settings.inbox) == (Path("/data/moon"), Path("/etc/moon"), Path("/data/inbox"))
    assert (settings.lake.uri, settings.tracking_uri, settings.redis) == ("s3://shop/lake", "http://mlflow:5000", "redis:6379")
    assert (settings.workers, settings.host, settings.port) == (3, "0.0.0.0", 80)


def test_an_empty_variable_is_as_good_as_none(clean: pytest.MonkeyPatch) -> None:
    plain = Settings.from_environment()
    for name in ("HOME", "LAKE", "TRACKING_URI", "REDIS", "MODELS", "INBOX", "WORKERS", "HOST", "PORT"):
        clean.setenv(f"MOON_{name}", "")
    assert Settings.from_environment() == plain


def test_a_home_that_is_named_wins_over_the_environment(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clean.setenv("MOON_HOME", "/elsewhere")
    settings = Settings.from_environment(tmp_path / "here")
    assert settings.home == tmp_path / "here"
    assert settings.lake.uri == str(tmp_path / "here" / "lake")


@pytest.mark.parametrize("name", ["MOON_WORKERS", "MOON_PORT"])
@pytest.mark.parametrize("value", ["eighty", "0", "-1", "8.5", " "])
def test_a_number_that_is_none_is_named(clean: pytest.MonkeyPatch, name: str, value: str) -> None:
    clean.setenv(name, value)
    with pytest.raises(SettingsError, match=rf"{name} = '{re.escape(value)}' is not a whole number from 1 → set {name} to e\.g\. \d+"):
        Settings.from_environment()


def test_a_port_that_does_not_exist_is_named(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("MOON_PORT", "65535")
    assert Settings.from_environment().port == 65535
    clean.setenv("MOON_PORT", "65536")
    with pytest.raises(SettingsError, match="MOON_PORT = '65536' is above 65535"):
        Settings.from_environment()


def test_a_home_that_is_a_file_is_named(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    clean.setenv("MOON_HOME", str(tmp_path / "file"))
    with pytest.raises(SettingsError, match=r"MOON_HOME = .*/file is a file, so nothing can be kept there → name a directory"):
        Settings.from_environment()


@pytest.mark.parametrize("kind", [SettingsError, InputError, StageError, ContractError, LeakError, GateError, ServiceError])
def test_an_error_keeps_its_action_across_processes(kind: type[MoonError]) -> None:
    sent = pickle.loads(pickle.dumps(kind("steps = -1", action="correct it")))
    assert type(sent) is kind
    assert (sent.problem, sent.action, str(sent)) == ("steps = -1", "correct it", "steps = -1 → correct it")
    assert kind.__name__ in str(errors.__doc__)  # the tree is drawn there
