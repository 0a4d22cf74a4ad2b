"""Settings: what is wrong is named with its value and its rule, when it is read."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from moon_ops import errors
from moon_ops.errors import (
    ContractError,
    GateError,
    InputError,
    InstallError,
    LeakError,
    MoonError,
    ServiceError,
    SettingsError,
    StageError,
)
from moon_ops.settings import RANGES, ROOT, Settings, shown, unknown_variables, variable

MODELS = ROOT / "models"
SECRETS = ("tracking_uri", "redis", "feast_registry", "items_token", "webhook_secret", "locks", "alert_webhook", "index_key")


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
    assert settings.tracking_uri.get_secret_value() == f"sqlite:///{tmp_path}/.moon/mlflow.db"
    assert (settings.redis.get_secret_value(), settings.models, settings.inbox) == ("", MODELS, None)
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
    assert Settings.from_environment().redis.get_secret_value() == value


@pytest.mark.parametrize("value", ["bogus", "../x"])
def test_a_variant_is_one_of_three(clean: pytest.MonkeyPatch, value: str) -> None:
    clean.setenv("MOON_VARIANT", value)
    with pytest.raises(SettingsError, match=r"MOON_VARIANT = .* is not one of fp32, int8, fp16"):
        Settings.from_environment()


@pytest.mark.parametrize(("name", "value"), [("TASKS", "nonsense"), ("TASKS", "docker:"), ("MLFLOW_PAGES", "mlflow:5000")])
def test_where_tasks_run_and_pages_are_is_checked(clean: pytest.MonkeyPatch, name: str, value: str) -> None:
    clean.setenv(f"MOON_{name}", value)
    with pytest.raises(SettingsError, match=rf"MOON_{name} = '{value}' .* → set MOON_{name} to"):
        Settings.from_environment()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SHARD", "1;2", r"MOON_INDEX_SHARD = '1;2' does not name shards → set MOON_INDEX_SHARD to e\.g\. 0,2"),
        ("SHARD", "none,1", r"does not name shards"),
        ("SHARD", "0,4", r"names shard 4, and MOON_INDEX_SHARDS = 4: they begin with 0 → give all services and jobs the same"),
        (
            "PEERS",
            "http://one:8321",
            r"MOON_INDEX_PEERS = .* does not name shards and the services that hold them → set .* 1=http://host:8321",
        ),
        ("PEERS", "1=ftp://one", r"does not name shards and the services"),
        ("PEERS", "1=http://user:word@one", r"does not name shards and the services"),
        ("SHARD", ",", r"MOON_INDEX_SHARD = ',' does not name shards"),
        ("PEERS", "1=http://one:x", r"MOON_INDEX_PEERS = '1=http://one:x' is no address → set"),
        ("PEERS", "1=http:///", r"is no address"),
        ("PEERS", "1=http://one?x=1", r"does not name shards and the services"),
        ("PEERS", "1=http://one,1=http://two", r"names a shard twice → give one address for each"),
        ("PEERS", "4=http://one", r"MOON_INDEX_PEERS = .* names shard 4"),
        ("SHARDS", "0", r"MOON_INDEX_SHARDS = '0' is not a whole number from 1"),
        ("SHARDS", "1025", r"MOON_INDEX_SHARDS = '1025' is above 1024"),
    ],
)
def test_shards_and_who_holds_them_are_checked(clean: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    clean.setenv("MOON_INDEX_SHARDS", "4")
    clean.setenv(f"MOON_INDEX_{name}", value)
    with pytest.raises(SettingsError, match=said):
        Settings.from_environment()


def test_a_service_holds_all_shards_some_or_none(clean: pytest.MonkeyPatch) -> None:
    assert (Settings().held_shards, Settings().peers) == (None, {})
    assert Settings(index_shard="none").held_shards == ()
    assert Settings(index_shards=3, index_shard=" 2, 1").held_shards == (1, 2)


def test_every_variable_is_read(clean: pytest.MonkeyPatch) -> None:
    given = {"HOME": "/data/moon", "LAKE": "s3://shop/lake", "TRACKING_URI": "http://mlflow:5000", "REDIS": "redis:6379"}
    given |= {"MODELS": "/etc/moon", "INBOX": "/data/inbox", "WORKERS": "3", "HOST": "0.0.0.0", "PORT": "80"}
    given |= {"FEAST_REGISTRY": "postgresql://feast/moon", "VARIANT": "int8", "BEHAVIORS": "7", "ITEMS_TOKEN": "a-token", "REPAIR": "yes"}
    numbers = {"CANARY_LATENCY_RATIO": "5", "CANARY_OVERLAP": "0.1", "ALERT_ERRORS": "0.02", "ALERT_SLOW_MS": "500"}
    numbers |= {
        "PICTURES_GB": "1.5",
        "ROWS_GB": "0.25",
        "ALERT_RECALL_DROP": "0.3",
        "ALERT_DRIFT": "0.5",
        "PROBE_MINUTES": "2",
        "ROLLBACK_MINUTES": "15",
        "INDEX_GB": "0.5",
    }
    given |= numbers | {"AUTO_ROLLBACK": "on", "WEBHOOK_SECRET": "a-secret", "LOCKS": "postgresql://moon:secret@postgres/moon"}
    given |= {"MLFLOW_PAGES": "https://mlflow.example.com", "TASKS": "pod:moon-train:1"}
    given |= {"ALERT_WEBHOOK": "https://chat.example.com/hook", "ALERT_EMAIL": "oncall@example.com", "LOG": "json"}
    given |= {"PROCESSES": "3", "QUEUE": "16", "REQUEST_SECONDS": "5", "DRAIN_SECONDS": "9"}
    given |= {"API_KEYS": "/etc/moon/keys.json", "OPEN": "yes", "DIMENSIONS": "32", "LOADERS": "4", "ENGINE": "ray"}
    given |= {"INDEX_SHARDS": "4", "INDEX_SHARD": "2,0", "INDEX_PEERS": "1=http://one:8321, 3=https://three/moon/", "INDEX_KEY": "moon_1_k"}
    assert {f"MOON_{name}" for name in given} == {variable(field) for field in Settings.model_fields}
    for name, value in given.items():
        clean.setenv(f"MOON_{name}", value)
    settings = Settings.from_environment()
    assert (settings.dimensions, settings.loaders, settings.picture_bytes, settings.row_bytes) == (32, 4, 1_500_000_000, 250_000_000)
    assert (settings.variant, settings.behaviors, settings.repair, settings.auto_rollback) == ("int8", 7, True, True)
    assert (settings.log, settings.engine) == ("json", "ray")
    assert {name: getattr(settings, name.lower()) for name in numbers} == {name: float(value) for name, value in numbers.items()}
    assert {name: getattr(settings, name).get_secret_value() for name in SECRETS} == {name: given[name.upper()] for name in SECRETS}
    assert (settings.home, settings.models, settings.inbox) == (Path("/data/moon"), Path("/etc/moon"), Path("/data/inbox"))
    assert settings.lake.uri == "s3://shop/lake"
    assert (settings.mlflow_pages, settings.tasks) == ("https://mlflow.example.com", "pod:moon-train:1")
    assert settings.index_bytes == 500_000_000
    assert (settings.index_shards, settings.held_shards) == (4, (0, 2))
    assert settings.peers == {1: "http://one:8321", 3: "https://three/moon"}
    assert (settings.processes, settings.queue, settings.request_seconds, settings.drain_seconds) == (3, 16, 5.0, 9.0)
    assert (settings.api_keys, settings.open) == (Path("/etc/moon/keys.json"), True)
    assert (settings.workers, settings.host, settings.port) == (3, "0.0.0.0", 80)


def test_an_empty_variable_is_as_good_as_none(clean: pytest.MonkeyPatch) -> None:
    plain = Settings.from_environment()
    for field in Settings.model_fields:
        clean.setenv(variable(field), "")
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


def test_a_length_of_vectors_is_a_whole_number_or_none(clean: pytest.MonkeyPatch) -> None:
    for value, length in (("0", 0), ("", 0), ("32", 32)):
        clean.setenv("MOON_DIMENSIONS", value)
        assert Settings.from_environment().dimensions == length
    for value in ("-1", "half", "0.5"):
        clean.setenv("MOON_DIMENSIONS", value)
        with pytest.raises(
            SettingsError, match=rf"MOON_DIMENSIONS = '{value}' is not a whole number from 1 → set MOON_DIMENSIONS to e\.g\. 64"
        ):
            Settings.from_environment()


def test_processes_that_make_batches_are_a_whole_number_none_of_them_or_as_many_as_there_are_cores_for(clean: pytest.MonkeyPatch) -> None:
    for value, count in (("0", 0), ("3", 3), ("", None)):
        clean.setenv("MOON_LOADERS", value)
        assert Settings.from_environment().loaders == count
    for value in ("-1", "two", "65"):
        clean.setenv("MOON_LOADERS", value)
        with pytest.raises(SettingsError, match=rf"MOON_LOADERS = '{value}' is .* → set MOON_LOADERS to e\.g\. 1"):
            Settings.from_environment()


def test_a_port_that_does_not_exist_is_named(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("MOON_PORT", "65535")
    assert Settings.from_environment().port == 65535
    clean.setenv("MOON_PORT", "65536")
    with pytest.raises(SettingsError, match="MOON_PORT = '65536' is above 65535"):
        Settings.from_environment()


@pytest.mark.parametrize(
    ("field", "value"), [("alert_errors", "5%"), ("alert_errors", "1.5"), ("canary_latency_ratio", "0.5"), ("probe_minutes", "nan")]
)
def test_a_limit_outside_its_range_is_named(clean: pytest.MonkeyPatch, field: str, value: str) -> None:
    clean.setenv(variable(field), value)
    least, most = RANGES[field]
    with pytest.raises(SettingsError, match=rf"{variable(field)} = '{value}' is not a number from {least:g} to {most:g} → set"):
        Settings.from_environment()


def test_a_home_that_is_a_file_is_named(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    clean.setenv("MOON_HOME", str(tmp_path / "file"))
    with pytest.raises(SettingsError, match=r"MOON_HOME = .*/file is a file, so nothing can be kept there → name a directory"):
        Settings.from_environment()


def test_made_by_hand_nothing_is_read(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clean.setenv("MOON_REDIS", "redis:6379")
    clean.setenv("MOON_LAKE", "s3://shop/lake")
    settings = Settings(home=tmp_path)
    assert (settings.redis.get_secret_value(), settings.lake.uri) == ("", str(tmp_path / "lake"))
    with pytest.raises(SettingsError, match="MOON_PORT = '0' is not a whole number from 1"):
        Settings(home=tmp_path, port=0)
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 80  # type: ignore[misc]


def test_a_changed_copy_is_checked_too(clean: pytest.MonkeyPatch) -> None:
    settings = Settings.from_environment().replace(items_token="a-token", workers=1)
    assert (settings.items_token.get_secret_value(), settings.workers) == ("a-token", 1)
    with pytest.raises(SettingsError, match="MOON_VARIANT"):
        settings.replace(variant="bogus")


def test_settings_survive_the_way_to_another_process(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("MOON_REDIS", "redis:6379,password=geheim")
    settings = Settings.from_environment()
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_secrets_are_never_shown(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("MOON_REDIS", "redis:6379,password=geheim")
    clean.setenv("MOON_TRACKING_URI", "http://moon:geheim@mlflow:5000")
    clean.setenv("MOON_FEAST_REGISTRY", "postgresql+psycopg2://moon:geheim@feast/moon")
    clean.setenv("MOON_ITEMS_TOKEN", "geheim")
    clean.setenv("MOON_INDEX_KEY", "geheim")
    clean.setenv("MOON_WEBHOOK_SECRET", "geheim")
    clean.setenv("MOON_LOCKS", "postgresql://moon:geheim@postgres/moon")
    clean.setenv("MOON_ALERT_WEBHOOK", "https://chat.example.com/geheim")
    settings = Settings.from_environment()
    assert all(getattr(settings, name).get_secret_value() for name in SECRETS)
    for text in (repr(settings), str(settings), str(settings.lake), f"{settings.model_dump()}", settings.model_dump_json()):
        assert "geheim" not in text
    with pytest.raises(ValidationError) as wrong:
        Settings(home=settings.home, items_token=["geheim"])
    assert "geheim" not in str(wrong.value)


@pytest.mark.parametrize("value", ["redis://:ge,h/e@im@redis:6379", "geheim@redis:6379", "password=geheim", "redis:6379,password=ge,heim"])
def test_a_wrong_address_is_named_without_its_password(clean: pytest.MonkeyPatch, value: str) -> None:
    clean.setenv("MOON_REDIS", value)
    with pytest.raises(SettingsError) as wrong:
        Settings.from_environment()
    assert not re.search(r"ge,?h|heim|e@im", str(wrong.value))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://mlflow:5000", "http://mlflow:5000"),
        ("http://moon:p@ss@mlflow:5000", "http://***@mlflow:5000"),
        ("sqlite:////data/a@b/mlflow.db", "sqlite:////data/a@b/mlflow.db"),
        ("postgresql://moon@feast/moon?password=p&ssl=1", "postgresql://***@feast/moon?password=***"),
    ],
)
def test_what_is_shown_of_an_address(address: str, said: str) -> None:
    assert shown(SecretStr(address)) == said


def test_a_misspelt_variable_is_found(clean: pytest.MonkeyPatch) -> None:
    assert unknown_variables() == {}
    clean.setenv("MOON_REDIS_URL", "redis:6379")
    clean.setenv("MOON_PORT", "80")
    clean.setenv("MOON_ZZZ", "")
    assert unknown_variables() == {"MOON_REDIS_URL": "MOON_REDIS", "MOON_ZZZ": ""}


@pytest.mark.parametrize("kind", [SettingsError, InputError, StageError, ContractError, LeakError, GateError, InstallError, ServiceError])
def test_an_error_keeps_its_action_across_processes(kind: type[MoonError]) -> None:
    sent = pickle.loads(pickle.dumps(kind("steps = -1", action="correct it")))
    assert type(sent) is kind
    assert (sent.problem, sent.action, str(sent)) == ("steps = -1", "correct it", "steps = -1 → correct it")
    assert kind.__name__ in str(errors.__doc__)  # the tree is drawn there


@pytest.mark.parametrize("name", ["MOON_REPAIR", "MOON_AUTO_ROLLBACK"])
@pytest.mark.parametrize("value", ["maybe", "2"])
def test_a_switch_is_yes_or_no(clean: pytest.MonkeyPatch, name: str, value: str) -> None:
    clean.setenv(name, value)
    with pytest.raises(SettingsError, match=rf"{name} = .* is neither yes nor no → set {name} to yes or no"):
        Settings.from_environment()


@pytest.mark.parametrize("place", ["a%41b", "what?", "a#b"])
def test_a_place_that_a_database_cannot_have_is_refused(clean: pytest.MonkeyPatch, tmp_path: Path, place: str) -> None:
    """SQLAlchemy reads these characters of an address otherwise: the registry would lie elsewhere, or nowhere."""
    with pytest.raises(SettingsError, match=r"MOON_TRACKING_URI = .*, which a SQLite address cannot hold → name a place without it"):
        Settings.from_environment(tmp_path / place)
