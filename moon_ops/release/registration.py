"""How a release comes into the registry, and what is left of one that was killed meanwhile: the next command completes or closes it.

The run of a release is closed last. So one that is still running, while nobody registers, tells that something is missing: before the
version was made there is no release; after it, all that is missing follows from its manifest.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lance

from moon_ops.embeddings import vector_tables
from moon_ops.errors import MoonError
from moon_ops.files import TakenError, locked
from moon_ops.registry.moves import moves
from moon_ops.registry.registry import CANDIDATE, RELEASE, Registry, manifest_of
from moon_ops.release import evidence
from moon_ops.settings import Settings

RUN = "release of encoder "  # how the run of a release is named; then the encoder's number
LONGEST = dt.timedelta(hours=1)  # that a run may take of which this machine does not know whether it goes on
TAG = "release-"  # of the version of the vectors' table that a release was measured with; then its number


@contextlib.contextmanager
def registering(settings: Settings, registry: Registry, now: dt.datetime) -> Iterator[None]:
    """One release at a time; what a killed one has left is completed first."""
    with locked(settings.home / "release.lock"), settings.lake.turn("release"):
        _finish(settings, registry, _killed(registry, now))
        yield


def complete(settings: Settings, registry: Registry, version: int, manifest: dict[str, Any]) -> None:
    """All that a release needs besides its files: its page, its vectors' tag, and the alias ``candidate``. Again is fine."""
    registry.describe(RELEASE, version, evidence.description(version, manifest))
    keep_vectors(settings, version, manifest)
    waiting, been = registry.alias(CANDIDATE), {move.release for move in moves(registry)}
    if waiting is not None and waiting > version:  # a newer one has taken its place since
        return
    if manifest["passed"] or waiting is None or waiting in been or not manifest_of(registry, waiting)["passed"]:
        registry.point(CANDIDATE, version)  # one that failed takes no place from one that waits


def keep_vectors(settings: Settings, version: int, manifest: dict[str, Any]) -> None:
    """Tag the rows of vectors that the release was measured with; :class:`ValueError` if they are gone."""
    table, tag = lance.dataset(settings.lake.address(manifest["embeddings"]["table"])), f"{TAG}{version}"
    if tag not in table.tags.list():
        table.tags.create(tag, manifest["embeddings"]["version"])


def finish(settings: Settings, registry: Registry, now: dt.datetime) -> list[str]:
    """Complete or close what killed commands have left, unless somebody registers at the moment; what was done, a line each."""
    with contextlib.suppress(TakenError), locked(settings.home / "release.lock", patience=0), settings.lake.turn("release", patience=0):
        done = _finish(settings, registry, _killed(registry, now))
        for table, tag in _strange_tags(settings, registry):
            lance.dataset(settings.lake.address(table)).tags.delete(tag)
            done.append(f"took the tag {tag} from {table}: there is no such release")
        for version, manifest in _untagged(settings, registry):
            with contextlib.suppress(ValueError):  # these vectors are gone, and said to be
                keep_vectors(settings, version, manifest)
                done.append(f"tagged the vectors of release {version}")
        for run_id, name in _abandoned(settings, registry, now).items():
            registry.finish(run_id, failed=True)
            done.append(f"closed the run of '{name}' as failed")
        return done
    return []


def left(settings: Settings, registry: Registry, now: dt.datetime) -> list[str]:
    """What killed commands have left in registry and lake, a line each."""
    found = [f"'{name}' was killed: its run {run_id} is still open" for run_id, name in _killed(registry, now).items()]
    found += [f"'{name}' was killed: its run {run_id} is still open" for run_id, name in _abandoned(settings, registry, now).items()]
    found += [f"{table} has the tag {tag}, but there is no such release" for table, tag in _strange_tags(settings, registry)]
    return found + [f"the vectors of release {version} are not kept: their tag is missing" for version, _ in _untagged(settings, registry)]


def _finish(settings: Settings, registry: Registry, killed: dict[str, str]) -> list[str]:
    done = []
    for run_id, name in killed.items():
        made = registry.client.search_model_versions(f"name = '{RELEASE}' and run_id = '{run_id}'")
        version = int(made[0].version) if made else None
        if version is not None:
            with contextlib.suppress(ValueError):  # its vectors are gone: it is served no worse for that
                complete(settings, registry, version, manifest_of(registry, version))
        registry.finish(run_id, failed=version is None)
        done.append(f"closed '{name}', which left no release" if version is None else f"completed release {version}")
    return done


def _killed(registry: Registry, now: dt.datetime) -> dict[str, str]:
    """Runs of releases that nobody registers any more, by id. On a server another machine may be at it."""
    runs = {run_id: found for run_id, found in registry.running().items() if found[0].startswith(RUN)}
    return {run_id: name for run_id, (name, begun) in runs.items() if registry.embedded or begun + LONGEST <= now}


def _abandoned(settings: Settings, registry: Registry, now: dt.datetime) -> dict[str, str]:
    """Other runs that are open for long; a training says in a note beside its checkpoint that it can go on, and is left alone."""
    resumable = {note.read_text() for note in (settings.home / "checkpoints").glob("*.run")}
    runs = {run_id: found for run_id, found in registry.running().items() if run_id not in resumable}
    return {run_id: name for run_id, (name, begun) in runs.items() if not name.startswith(RUN) and begun + LONGEST <= now}


def _tags(settings: Settings) -> dict[str, set[str]]:
    """Of each table of vectors the tags that name a release."""
    lake = settings.lake
    names = [f"embeddings/{name}" for name in lake.under("embeddings")] if _there(settings) else []
    return {name: {tag for tag in lake.open(name).tags.list() if tag.startswith(TAG)} for name in names}


def _there(settings: Settings) -> bool:
    return "://" in settings.lake.uri or Path(settings.lake.uri, "embeddings").is_dir()


def _strange_tags(settings: Settings, registry: Registry) -> list[tuple[str, str]]:
    known = {f"{TAG}{version}" for version in registry.entries(RELEASE)}
    return [(table, tag) for table, tags in _tags(settings).items() for tag in sorted(tags - known)]


def _untagged(settings: Settings, registry: Registry) -> list[tuple[int, dict[str, Any]]]:
    """The releases whose vectors' table is there and does not have their tag."""
    tags, found = _tags(settings), []
    for version in sorted(registry.entries(RELEASE)):
        with contextlib.suppress(MoonError):  # what has no manifest is no release
            manifest = manifest_of(registry, version)
            table = vector_tables.table_name(int(manifest["encoder"]["version"]))
            if table in tags and f"{TAG}{version}" not in tags[table]:
                found.append((version, manifest))
    return found
