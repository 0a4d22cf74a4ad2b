"""Releases in MLflow: encoders, click models and releases as versions of plain files, and the aliases that say which one is served.

A version is a directory of ONNX graphs, safetensors and JSON; nothing is ever pickled. The same code works on a SQLite file and on an
MLflow server. Registered models: ``moon-encoder``, ``moon-ctr``, ``moon-release``; aliases on the last: ``candidate``, ``champion``,
``previous``. MLflow is the registry itself: this class only fixes where files lie and what a missing alias means.
"""

from __future__ import annotations

import datetime as dt
import json
import random
import shutil
import tempfile
import time
import warnings
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from moon_ops.errors import ServiceError, StageError
from moon_ops.files import locked, put, sync
from moon_ops.metric_names import stored
from moon_ops.registry import moved
from moon_ops.registry.discreet import AwayError, Discreet
from moon_ops.registry.file import RegistryFile
from moon_ops.registry.tables import opened
from moon_ops.settings import Settings, shown

ENCODER, CTR, RELEASE, ALIGNMENT = "moon-encoder", "moon-ctr", "moon-release", "moon-alignment"
CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
MOVES = "moon-moves"  # not a model: the record of what was champion
EXPERIMENT = "moon"
LONGEST = 5000  # characters of a description
PAGE = 1000  # versions asked for at a time
MOST_METRICS = 1000  # that MLflow takes at once
APPENDS, PAUSE_SECONDS = 40, 0.5  # attempts to get a number when many want one, and the longest pause between two


class Registry:
    """The MLflow registry of one ``MOON_HOME`` or of a server. Versions are whole numbers from 1."""

    def __init__(self, settings: Settings) -> None:
        self.home, self.uri = settings.home, settings.tracking_uri.get_secret_value()
        self.name = shown(settings.tracking_uri)  # for messages
        self.embedded = self.uri.startswith("sqlite:")
        moved.settle(self.uri, self.home)
        self.file = RegistryFile.known(self.uri)
        if self.embedded and self.file is None:
            self._require_sound()
        if self.file is None:
            self.experiment_id  # noqa: B018 - a registry that does not answer is an error now, not in the middle of a stage

    def _require_sound(self) -> None:
        """:class:`ServiceError` for a registry's file that is gone or broken: an empty one in its place would forget every release."""
        place = Path(self.uri.removeprefix("sqlite:///"))
        files = self.home / "mlartifacts"
        if not place.is_file() and files.is_dir() and any(files.iterdir()):
            problem = f"{place} is gone, but {files} holds the files of what was registered there"
            raise ServiceError(problem, action="bring it back from a backup; to begin anew, move the files away")
        if place.is_file() and place.stat().st_size and not RegistryFile.is_database(place):
            raise ServiceError(f"{place} is no SQLite database: it is broken, or cut off", action="bring it back from a backup")

    @cached_property
    def client(self) -> Any:
        """MLflow's client, connected when it is first needed: its import takes six CPU-seconds. Raises :class:`ServiceError`."""
        try:
            if not self.embedded:
                return Discreet(self._connected(self.uri), self.name)
            self.home.mkdir(parents=True, exist_ok=True)
            with locked(self.home / "mlflow.lock"):  # two first uses at once leave a broken database
                return opened(self.uri, self._connected)
        except self._missing as unreachable:
            raise self._away(unreachable) from unreachable

    def _connected(self, uri: str) -> Any:
        import mlflow

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The ``noload`` loader strategy")  # of MLflow's tables, under SQLAlchemy 2.1
            return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)

    @cached_property
    def experiment_id(self) -> str:
        """The experiment ``moon``; :class:`ServiceError` if MLflow does not answer."""
        try:
            return self._experiment()
        except self._missing as unreachable:
            raise self._away(unreachable) from unreachable

    @property
    def _missing(self) -> Any:
        from mlflow.exceptions import MlflowException

        return MlflowException

    def _away(self, unreachable: Any) -> ServiceError:
        problem = f"MOON_TRACKING_URI = {self.name}: MLflow does not answer ({unreachable.error_code})"
        return ServiceError(problem, action="start it, or correct the address")

    def start_run(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str] | None = None) -> str:
        """A new run in the experiment ``moon``; its id."""
        from mlflow.entities import Param

        moved.settle(self.uri, self.home)  # a service may be older than its home's place
        run = self.client.create_run(self.experiment_id, run_name=name, tags=dict(tags or {}))
        self.client.log_batch(run.info.run_id, params=[Param(k, str(v)) for k, v in params.items()])
        return str(run.info.run_id)

    def log(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Metrics of one step, under the names that MLflow takes (:func:`moon_ops.metric_names.stored`)."""
        from mlflow.entities import Metric

        stamp = int(time.time() * 1000)
        named = [Metric(stored(name), float(value), stamp, step) for name, value in metrics.items()]
        for start in range(0, len(named), MOST_METRICS):
            self.client.log_batch(run_id, metrics=named[start : start + MOST_METRICS])

    def reopen(self, run_id: str) -> bool:
        """Let a run that was killed or failed go on; false if there is no such run any more."""
        try:
            self.client.update_run(run_id, status="RUNNING")
        except self._missing:
            return False
        return True

    def finish(self, run_id: str, *, failed: bool = False) -> None:
        """Close the run."""
        self.client.set_terminated(run_id, status="FAILED" if failed else "FINISHED")

    def running(self) -> dict[str, tuple[str, dt.datetime]]:
        """The runs that nobody has closed, by id: their name, and when they began."""
        if self.file is not None:
            found = self.file.running()
        else:
            runs = self.client.search_runs([self.experiment_id], "attributes.status = 'RUNNING'", max_results=PAGE)
            found = {run.info.run_id: (run.info.run_name, run.info.start_time) for run in runs}
        return {run_id: (name, dt.datetime.fromtimestamp(begun / 1000, dt.UTC)) for run_id, (name, begun) in found.items()}

    def register(self, name: str, run_id: str, directory: Path, tags: Mapping[str, str]) -> int:
        """Store the directory with the run and make it the next version of model ``name``; the version's number."""
        moved.settle(self.uri, self.home)
        self._know(name)
        place = name.removeprefix("moon-")
        self.client.log_artifacts(run_id, str(directory), place)
        source = self.client.get_run(run_id).info.artifact_uri.rstrip("/") + "/" + place
        if source.startswith("/"):
            sync(Path(source))  # before a version names it
        version = self.client.create_model_version(name, source=source, run_id=run_id, tags=dict(tags), await_creation_for=0)
        return int(version.version)

    def attach(self, name: str, version: int, directory: Path) -> None:
        """Add a directory of pictures to the run that made a version, e.g. its report."""
        self.keep(self.client.get_model_version(name, str(version)).run_id or "", directory)

    def keep(self, run_id: str, directory: Path) -> str:
        """Add a directory to a run, under its name; its address there."""
        self.client.log_artifacts(run_id, str(directory), directory.name)
        return f"{self.client.get_run(run_id).info.artifact_uri.rstrip('/')}/{directory.name}"

    def fetch(self, name: str, version: int) -> Path:
        """A directory with the version's files: where they lie (do not write there), or a download from a server, made once."""
        self.tags(name, version)  # a version that does not exist is an error before anything is downloaded
        location = self.file.place(name, version) if self.file else self.client.get_model_version_download_uri(name, str(version))
        if self.embedded and location.startswith("mlflow-artifacts:/"):  # written through a server on this very home
            location = str(self.home / "mlartifacts" / location.removeprefix("mlflow-artifacts:/").lstrip("/"))
        if self.embedded and location.startswith("/"):
            return Path(moved.here(self.home, location))
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        repository: Any = get_artifact_repository(location, tracking_uri=self.uri, registry_uri=self.uri)
        if self.embedded:
            return Path(repository.download_artifacts(""))
        target = self.home / "downloads" / name / str(version)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=target.parent))  # two threads may fetch it at once
            Discreet(repository, self.name).download_artifacts("", dst_path=str(partial))
            try:
                put(partial, target)
            except OSError:  # somebody else on this machine was faster
                if not target.exists():
                    raise
                shutil.rmtree(partial)
        return target

    def tags(self, name: str, version: int) -> dict[str, str]:
        """The version's tags; :class:`StageError` if there is no such version."""
        found, there = self._tags(name, version)
        if found is None:
            known = ", ".join(map(str, there[-10:])) or "none"
            raise StageError(f"{name} has no version {version} (there are: {known})", action="name one of these")
        return found

    def _tags(self, name: str, version: int) -> tuple[dict[str, str] | None, list[int]]:
        """The version's tags, or None and the versions that there are."""
        if self.file is not None:
            there = self.file.versions(name)
            return (self.file.tags(name, version), there) if version in there else (None, there)
        try:
            return dict(self.client.get_model_version(name, str(version)).tags), []
        except self._missing:
            return None, sorted(int(found.version) for found in self.client.search_model_versions(f"name = '{name}'"))

    def describe(self, name: str, version: int, text: str) -> None:
        """What MLflow's page of a version says, in Markdown."""
        self.client.update_model_version(name, str(version), text[:LONGEST])

    def tag(self, name: str, version: int, tags: Mapping[str, str]) -> None:
        """Add tags to a version."""
        for key, value in tags.items():
            if self.file is not None and version in self.file.versions(name):
                self.file.tag(name, version, key, value)
                continue
            self.client.set_model_version_tag(name, str(version), key, value)

    def entries(self, name: str) -> dict[int, dict[str, str]]:
        """The tags of all versions of a model, by number; none if there is no such model."""
        if self.file is not None:
            return {version: self.file.tags(name, version) for version in self.file.versions(name)}
        found, token = dict[int, dict[str, str]](), None
        while True:
            page = self.client.search_model_versions(f"name = '{name}'", max_results=PAGE, page_token=token)
            found |= {int(version.version): dict(version.tags) for version in page}
            token = page.token
            if not token:
                return found

    def append(self, name: str, about: int, tags: Mapping[str, str], description: str) -> int:
        """A new version that holds no files of its own and is ``about`` a release; it gets the next number, which nobody else gets."""
        source = f"models:/{RELEASE}/{about}"  # a server takes no other address without a run
        if self.file is not None:
            return self.file.append(name, source, tags, description)
        self._know(name)
        for left in reversed(range(APPENDS)):
            try:
                made = self.client.create_model_version(name, source, tags=dict(tags), description=description, await_creation_for=0)
                return int(made.version)
            except (self._missing, AwayError) as fault:  # MLflow itself gives up after three, when many write at once
                if not left or (isinstance(fault, AwayError) and not fault.answered):
                    raise
                time.sleep(random.uniform(0, PAUSE_SECONDS))
        raise AssertionError("the last attempt returns or raises")

    def _know(self, name: str) -> None:
        try:
            self.client.create_registered_model(name)
        except self._missing as known:
            if known.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def newest(self, name: str) -> int | None:
        """The highest version of the model, None if it has none. For people who ask what there is; stages are given versions."""
        if self.file is not None:
            return max(self.file.versions(name), default=None)
        try:
            found = self.client.search_model_versions(f"name = '{name}'")
        except self._missing:
            return None
        return max((int(v.version) for v in found), default=None)

    def alias(self, alias: str) -> int | None:
        """The release version that the alias points to, or None."""
        if self.file is not None:
            return self.file.alias(RELEASE, alias)
        try:
            return int(self.client.get_model_version_by_alias(RELEASE, alias).version)
        except self._missing as absent:
            if absent.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
                return None
            raise

    def drop(self, alias: str) -> None:
        """Take an alias away."""
        self.client.delete_registered_model_alias(RELEASE, alias)

    def point(self, alias: str, version: int) -> None:
        """Let the alias point to a release version."""
        if self.file is not None and version in self.file.versions(RELEASE):
            self.file.point(RELEASE, alias, version)
        else:
            self.client.set_registered_model_alias(RELEASE, alias, str(version))

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        place = str(self.home / "mlartifacts") if self.embedded else None  # a server has a place of its own
        try:
            return str(self.client.create_experiment(EXPERIMENT, artifact_location=place))
        except self._missing as known:  # another process was quicker
            found = self.client.get_experiment_by_name(EXPERIMENT)
            if found is None:
                raise known
            return str(found.experiment_id)


def manifest_of(registry: Registry, version: int) -> dict[str, Any]:
    """The manifest of a release version."""
    path = registry.fetch(RELEASE, version) / "manifest.json"
    if not path.is_file():
        raise StageError(
            f"{RELEASE} {version} has no manifest.json: it was not made by `moon release`", action="register it with `moon release`"
        )
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError as broken:
        raise StageError(f"manifest.json of {RELEASE} {version} is broken ({broken})", action="promote another release") from broken
    return content
