"""Places and secrets from the environment.

Everything that an embedded run writes lies under ``MOON_HOME``. In production the same variables name an object store, Redis and an
MLflow server. Every ``MOON_`` variable is a field of :class:`Settings`, and nothing else reads one.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from moon_ops import shard_places
from moon_ops.dealing import ENGINES, Deal, dealer
from moon_ops.errors import SettingsError
from moon_ops.lake.lake import Lake, place
from moon_ops.processor import cores
from moon_ops.telemetry.logs import KINDS as LOGS
from moon_ops.telemetry.logs import LINES

PREFIX = "MOON_"
BEHAVIORS = 100  # of a user's last clicks that the features show by default; a click model may read fewer
VARIANTS = ("fp32", "int8", "fp16")  # of an encoder's graphs
MOST = {
    "port": 65535,
    "behaviors": 10_000,
    "dimensions": 100_000,
    "queue": 10_000,
    "processes": 256,
    "loaders": 64,
    "index_shards": 1024,
}  # of whole numbers that have a greatest value
RANGES = {  # of other numbers: the least and the greatest
    "index_gb": (1e-6, 10_000.0),
    "pictures_gb": (0.0, 100_000.0),
    "rows_gb": (0.0, 100_000.0),
    "request_seconds": (0.1, 600.0),
    "drain_seconds": (0.1, 600.0),
    "canary_latency_ratio": (1.0, 1000.0),
    "canary_overlap": (0.0, 1.0),
    "alert_errors": (0.0, 1.0),
    "alert_slow_ms": (1.0, 600_000.0),
    "alert_recall_drop": (0.0, 1.0),
    "alert_drift": (0.0, 100.0),
    "probe_minutes": (0.1, 1440.0),
    "rollback_minutes": (1.0, 1440.0),
}
PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE / "assets" if (PACKAGE / "assets").is_dir() else PACKAGE.parent  # of models/, dags/, …: in a wheel, or a checkout


class Settings(BaseModel):
    """Where things are. :meth:`from_environment` reads the variables; made by hand, nothing is read, and what is not named is embedded.

    A secret is never shown; :func:`shown` says of an address what may be. Raises :class:`SettingsError`, which names the variable.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True, validate_default=True)

    home: Path = Path(".moon")
    locks: SecretStr = SecretStr("")  # a Postgres server that keeps several machines apart; empty: there is one machine
    lake: Annotated[Lake, NoDecode] = Field(default_factory=lambda known: Lake(str(known["home"] / "lake")))
    tracking_uri: SecretStr = Field(default_factory=lambda known: SecretStr(f"sqlite:///{known['home'] / 'mlflow.db'}"))  # or http(s)://…
    mlflow_pages: str = ""  # where people open MLflow, for links in Airflow; empty: no links
    redis: SecretStr = SecretStr("")  # host:port of the online store, and its password; empty: SQLite
    feast_registry: SecretStr = SecretStr("")  # SQLAlchemy's address of Feast's registry; empty: SQLite
    models: Path = ROOT / "models"
    inbox: Path | None = None  # the drop zone of moon_ingest: a directory in the ingest layout, or of such directories
    tasks: str = "here"  # where the DAGs' heavy tasks run: read by dags/moon_isolation.py
    engine: str = ENGINES[0]  # where parts of a long work are done
    workers: int = Field(default_factory=lambda: min(cores(), 8))
    processes: int = 1  # of a service, on one port
    host: str = "127.0.0.1"
    port: int = 8321
    queue: int = 20  # requests that a service works on at once, those that wait included; one more is told to come again
    request_seconds: float = 10.0  # in which a request is answered, once it has been read
    drain_seconds: float = 20.0  # that a service which is told to end takes for what it has accepted
    variant: str = VARIANTS[0]  # of an encoder's graphs
    index_gb: float = 2.0  # of memory, 10^9 bytes each, that an index may take in a process; a larger catalogue gets shorter codes
    index_shards: int = 1  # indexes that a publication makes of one; a process may hold some of them, and has index_gb for each
    index_shard: str = ""  # the numbers of those that a service holds in memory, e.g. 0,2, or none; empty: all
    index_peers: str = ""  # services that hold others: 1=http://host:8321,2=http://…
    index_key: SecretStr = SecretStr("")  # the API key by which these know this service; empty: they want none
    loaders: int | None = None  # processes that make an encoder's training batches; none: one where there are more than two cores
    pictures_gb: float = 20.0  # of disk, 10^9 bytes each, for decoded pictures of a training; others are decoded when they are needed
    rows_gb: float = 20.0  # of disk, 10^9 bytes each, for rows of click models that are kept for the next training; 0: none are
    dimensions: int = 0  # of each vector that a release's searches compare: the first ones; 0: all of them
    behaviors: int = BEHAVIORS  # how many of a user's last clicks the features show
    log: str = LINES  # how each line of the log is written
    repair: bool = False  # whether a service moves an alias back that names a release which cannot be served
    canary_latency_ratio: float = 3.0  # times the champion's median that a candidate may take for logged queries
    canary_overlap: float = 0.0  # least share of the champion's first results that a candidate must find; 0: never refused for it
    alert_errors: float = 0.05  # share of requests that may fail
    alert_slow_ms: float = 2000.0  # that 95 % of requests may take
    alert_recall_drop: float = 0.2  # by which recall@10 of known answers may fall
    alert_drift: float = 0.25  # of scores against those of the first hour, population stability index
    probe_minutes: float = 10.0  # between two looks at known answers
    auto_rollback: bool = False  # whether a service goes back by itself when a new release fails or finds less
    rollback_minutes: float = 30.0  # after a switch, in which it may
    items_token: SecretStr = SecretStr("")  # who may send new items to the service; empty: nobody
    api_keys: Path | None = None  # the file of API keys, hashed, which several machines may share; none: keys.json in the home
    open: bool = False  # whether a service answers searches and scores to who shows no key, wherever it listens
    alert_webhook: SecretStr = SecretStr("")  # an address that a failed DAG is posted to; empty: none
    alert_email: str = ""  # whom it is mailed to, by Airflow's connection smtp_default
    webhook_secret: SecretStr = SecretStr("")  # with which MLflow signs its webhooks; empty: none are taken

    @classmethod
    def from_environment(cls, home: Path | None = None, *, looking: bool = False) -> Settings:
        """What the variables say, an empty one being as good as none; ``home`` wins over ``MOON_HOME``.

        Who is only ``looking`` needs no home to write to.
        """
        read = _Environment() if home is None else _Environment(home=home)
        settings = Settings.model_validate(dict(read))
        if not looking:
            settings.require_writable()
        return settings

    @property
    def index_bytes(self) -> int:
        """``index_gb`` in bytes."""
        return int(self.index_gb * 1e9)

    @property
    def deal(self) -> Deal:
        """Who works on the parts of a long work: the engine, here with as many workers as there are threads."""
        return dealer(self.engine, self.workers)

    @property
    def held_shards(self) -> tuple[int, ...] | None:
        """The numbers in ``index_shard``, ascending; None for all."""
        return shard_places.numbers(self.index_shard)

    @property
    def peers(self) -> dict[int, str]:
        """The address of the service for each shard in ``index_peers``."""
        return shard_places.addresses(self.index_peers)

    @property
    def picture_bytes(self) -> int:
        """``pictures_gb`` in bytes."""
        return int(self.pictures_gb * 1e9)

    @property
    def row_bytes(self) -> int:
        """``rows_gb`` in bytes."""
        return int(self.rows_gb * 1e9)

    def require_writable(self) -> None:
        """:class:`SettingsError` for a home in which nothing can be kept."""
        nearest = next(p for p in (self.home, *self.home.parents) if p.exists())
        if not os.access(nearest, os.W_OK):
            raise SettingsError(f"MOON_HOME = {self.home} cannot be written to", action="name a directory that you may write to")

    def replace(self, **fields: Any) -> Settings:
        """The same with other ``fields``; what was derived from another field stays as it is."""
        return Settings.model_validate({**dict(self), **fields})

    @field_validator("home")
    @classmethod
    def _directory(cls, home: Path) -> Path:
        at = home.absolute()
        if at.exists() and not at.is_dir():
            raise SettingsError(f"MOON_HOME = {at} is a file, so nothing can be kept there", action="name a directory")
        return at

    @field_validator("locks")
    @classmethod
    def _postgres(cls, locks: SecretStr) -> SecretStr:
        if locks.get_secret_value() and not re.match(r"postgres(ql)?(\+\w+)?://", locks.get_secret_value()):
            problem = f"MOON_LOCKS = {shown(locks)!r} is no address of a Postgres server"
            raise SettingsError(problem, action="set MOON_LOCKS to e.g. postgresql://user:password@host/database, or leave it empty")
        return locks

    @field_validator("lake", mode="before")
    @classmethod
    def _address(cls, lake: object) -> object:
        return Lake(place(lake)) if isinstance(lake, str) else lake

    @field_validator("lake")
    @classmethod
    def _locked(cls, lake: Lake, info: ValidationInfo) -> Lake:
        """The lake takes its turns where the settings say."""
        return dataclasses.replace(lake, locks=info.data.get("locks", SecretStr("")))

    @field_validator("tracking_uri")
    @classmethod
    def _readable(cls, uri: SecretStr) -> SecretStr:
        """SQLAlchemy reads three characters of an address otherwise: the registry would lie elsewhere, or nowhere."""
        value = uri.get_secret_value()
        strange = next((sign for sign in "%?#" if value.startswith("sqlite:") and sign in value), None)
        if strange:
            problem = f"MOON_TRACKING_URI = {value} has a {strange}, which a SQLite address cannot hold"
            raise SettingsError(problem, action="name a place without it, as MOON_HOME or here")
        return uri

    @field_validator("redis")
    @classmethod
    def _servers(cls, redis: SecretStr) -> SecretStr:
        """As Feast wants a Redis: ``host:port``, several with commas, and options such as ``password=…``."""
        value = redis.get_secret_value()
        servers = [part for part in value.split(",") if "=" not in part]
        named = all(re.fullmatch(r"[\w.-]+:\d{1,5}", server) and int(server.rpartition(":")[2]) <= 65535 for server in servers)
        if value and not (servers and named):
            raise SettingsError(f"MOON_REDIS = {shown(redis)!r} is not host:port", action="set MOON_REDIS to e.g. localhost:6379")
        return redis

    @field_validator("workers", "processes", "port", "queue", "behaviors", "index_shards", mode="before")
    @classmethod
    def _whole(cls, value: object, info: ValidationInfo) -> int:
        name = str(info.field_name)
        usual = cls.model_fields[name].get_default(call_default_factory=True)
        return whole(PREFIX + name.upper(), value, usual, MOST.get(name))

    @field_validator("dimensions", mode="before")
    @classmethod
    def _length(cls, value: object) -> int:
        return 0 if str(value) == "0" else whole(f"{PREFIX}DIMENSIONS", value, 64, MOST["dimensions"])

    @field_validator("loaders", mode="before")
    @classmethod
    def _some(cls, value: object) -> int | None:
        return None if value is None else 0 if str(value) == "0" else whole(f"{PREFIX}LOADERS", value, 1, MOST["loaders"])

    @field_validator(*RANGES, mode="before")
    @classmethod
    def _number(cls, value: object, info: ValidationInfo) -> float:
        name = str(info.field_name)
        usual, (least, most) = cls.model_fields[name].default, RANGES[name]
        try:
            number = float(str(value))
        except ValueError:
            number = math.nan
        if not least <= number <= most:
            problem = f"{variable(name)} = {str(value)!r} is not a number from {least:g} to {most:g}"
            raise SettingsError(problem, action=f"set {variable(name)} to e.g. {usual:g}")
        return number

    @field_validator("repair", "auto_rollback", "open", mode="before")
    @classmethod
    def _yes_or_no(cls, value: object, info: ValidationInfo) -> bool:
        known, name = {"true": True, "1": True, "yes": True, "on": True}, variable(str(info.field_name))
        known |= {"false": False, "0": False, "no": False, "off": False}
        if str(value).lower() not in known:
            raise SettingsError(f"{name} = {value!r} is neither yes nor no", action=f"set {name} to yes or no")
        return known[str(value).lower()]

    @field_validator("index_shard", "index_peers")
    @classmethod
    def _shards(cls, value: str, info: ValidationInfo) -> str:
        check = shard_places.check_numbers if info.field_name == "index_shard" else shard_places.check_addresses
        return check(variable(str(info.field_name)), value, info.data.get("index_shards", 1))

    @field_validator("tasks")
    @classmethod
    def _somewhere(cls, tasks: str) -> str:
        if not re.fullmatch(r"here|(python|docker|pod):.+", tasks):
            problem = f"MOON_TASKS = {tasks!r} says not where tasks run"
            raise SettingsError(problem, action="set MOON_TASKS to here, python:/path/to/python, docker:IMAGE or pod:IMAGE")
        return tasks

    @field_validator("mlflow_pages")
    @classmethod
    def _opened(cls, pages: str) -> str:
        if pages and not re.match(r"https?://[^/]", pages):
            problem = f"MOON_MLFLOW_PAGES = {pages!r} is no address that a browser opens"
            raise SettingsError(problem, action="set MOON_MLFLOW_PAGES to e.g. http://localhost:5000, or leave it empty")
        return pages

    @field_validator("variant", "log", "engine")
    @classmethod
    def _known(cls, chosen: str, info: ValidationInfo) -> str:
        name, known = variable(str(info.field_name)), {"variant": VARIANTS, "log": LOGS, "engine": ENGINES}[str(info.field_name)]
        if chosen not in known:
            raise SettingsError(f"{name} = {chosen!r} is not one of {', '.join(known)}", action=f"set {name} to one of these")
        return chosen


class _Environment(BaseSettings, Settings):
    """Settings whose missing fields are read from the variables."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="ignore")


def shown(address: SecretStr) -> str:
    """An address for a message: without user and password, and without the values of its options."""
    bare = re.sub(r"^(?!\w[\w+.-]*:///)(\w[\w+.-]*://)?.*@", r"\1***@", address.get_secret_value())
    return re.sub(r"=.+", "=***", bare)  # whatever follows: a password may hold the sign between two options


def variable(field: str) -> str:
    """The environment variable of a field, e.g. ``port`` → ``MOON_PORT``."""
    return PREFIX + field.upper()


def unknown_variables() -> dict[str, str]:
    """Variables that look like ours and are none, and the most similar one of ours, or an empty text."""
    known = {field.upper(): variable(field) for field in Settings.model_fields}  # compared without the prefix, which is half of a short one
    strange = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known.values())
    near = {name: difflib.get_close_matches(name.upper().removeprefix(PREFIX), known, n=1) for name in strange}
    return {name: known[found[0]] if found else "" for name, found in near.items()}


def whole(name: str, value: object, usual: int, most: int | None = None) -> int:
    """A variable's value as a whole number from 1 to ``most``; :class:`SettingsError`, with the ``usual`` one, if it is something else."""
    text = str(value)
    if not text.isdecimal() or int(text) < 1:
        raise SettingsError(f"{name} = {text!r} is not a whole number from 1", action=f"set {name} to e.g. {usual}")
    if most is not None and int(text) > most:
        raise SettingsError(f"{name} = {text!r} is above {most}", action=f"set {name} to e.g. {usual}")
    return int(text)
