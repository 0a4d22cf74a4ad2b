"""Whether all that a home or a server keeps is whole: what ``moon verify``, ``moon doctor`` and the night look at.

Nothing is changed here. Each finding says what is wrong and what to do; one that is not ``grave`` mends itself, or harms nobody.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from moon_ops.embeddings import index_shards
from moon_ops.errors import ContractError, MoonError, ServiceError, StageError
from moon_ops.publication import erasure, places
from moon_ops.registry import moves as record
from moon_ops.registry.registry import CANDIDATE, CHAMPION, MOVES, PREVIOUS, Registry, manifest_of
from moon_ops.release import refusals, registration, served
from moon_ops.release.verification import dimensions_of, verify
from moon_ops.settings import Settings
from moon_ops.telemetry.stages import stage

SECONDS = 10.0  # that a service may take to answer


@dataclass(frozen=True)
class Finding:
    """What is wrong with a part, and what to do."""

    part: str
    problem: str
    action: str
    grave: bool = True

    def told(self) -> str:
        """One line for people."""
        return f"{self.part}: {self.problem} → {self.action}"


def examine(settings: Settings, *, now: dt.datetime, url: str = "") -> list[Finding]:
    """All that is wrong with what is served, what it is made of, and what killed commands have left; ``url``: of a service to be asked.

    Raises :class:`ServiceError` if the registry does not answer.
    """
    registry = Registry(settings)
    return [
        *_alias(settings, registry, now, url),
        *_releases(settings, registry),
        *_record(registry),
        *_left(settings, registry, now),
    ]


def _alias(settings: Settings, registry: Registry, now: dt.datetime, url: str) -> Iterator[Finding]:
    """The champion against what is to be served, and against what is."""
    to_serve: int | None = None
    loaded, since = served.since(settings)
    try:
        choice = served.choose(settings, registry, now=now)
        to_serve = choice.release
        if choice.why:
            action = f"mend it, or make release {to_serve} champion: `moon rollback`"
            yield Finding("champion", f"{choice.why}; release {to_serve} is to be served in its place", action)
    except StageError as none:
        begun = bool(record.moves(registry)) or loaded is not None or registry.alias(CHAMPION) is not None
        yield Finding("champion", none.problem, none.action, grave=begun)  # before the first promotion nothing is to be served
    if loaded is not None and loaded != to_serve:
        problem = f"a service of this home has loaded release {loaded} last, {since}; release {to_serve} is to be served"
        yield Finding("served", problem, "if a service runs, look at its /ready, or ask it with --url", grave=False)
    for refusal in refusals.standing(settings, now):
        if refusal.release == to_serve:
            yield Finding("served", refusal.told(), "look at /ready of that service; another one serves the release", grave=False)
    if url:
        yield from _service(url, to_serve)


def _service(url: str, to_serve: int | None) -> Iterator[Finding]:
    """What a running service says of itself."""
    try:
        answer = httpx.get(f"{url.rstrip('/')}/ready", timeout=SECONDS, trust_env=False).json()
        serving, why = answer["release"], answer["refused"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as fault:
        yield Finding("service", f"{url}/ready does not answer as a service does ({fault})", "start it, or correct the address")
        return
    if answer.get("fixed"):
        problem = f"{url} serves release {serving} alone, whatever the alias says"
        yield Finding("service", problem, "ask another one; this was started with --release", grave=False)
    elif serving != to_serve:
        yield Finding("service", f"{url} serves release {serving}, not {to_serve}", "it follows within seconds; if not, restart it")
    if why:
        yield Finding("service", f"{url} is {answer['status']}: {why}", "look it up in docs/on-call.md")


def _releases(settings: Settings, registry: Registry) -> Iterator[Finding]:
    """The parts of every release that is served or may be soon, against their manifest: each file's sha256, vectors, index and table."""
    known = record.moves(registry)
    aliases = {alias: registry.alias(alias) for alias in (CHAMPION, PREVIOUS, CANDIDATE)}
    serving = {
        aliases[CHAMPION],
        aliases[PREVIOUS],
        *(move.release for move in known[-1:]),
    }  # a broken candidate harms nothing that is served
    wanted = [version for version in (*aliases.values(), *(move.release for move in known[-1:])) if version is not None]
    for release in dict.fromkeys(wanted):
        part = f"release {release}" + "".join(f" ({alias})" for alias, version in aliases.items() if version == release)
        try:
            manifest = manifest_of(registry, release)
            verify(settings, registry, manifest, forced=True)  # a candidate that failed its gates is no fault
            _same_items(settings, int(manifest["encoder"]["version"]), dimensions_of(manifest))
        except MoonError as fault:
            yield Finding(part, fault.problem, fault.action, grave=release in serving)


def _same_items(settings: Settings, encoder: int, dimensions: int) -> None:
    """:class:`ContractError` for an index that holds items of which the table has no vector: they are of different publications."""
    place = places.index_place(settings, encoder, dimensions)
    header, table = index_shards.verified(place), places.table(settings, "items", encoder)
    if header.items > len(table):
        problem = f"index/{place.name} holds {header.items} items, tables/items-v{encoder} only {len(table)}"
        raise ContractError(problem, action=f"run `moon publish --encoder {encoder} --full`")


def _record(registry: Registry) -> Iterator[Finding]:
    """The record of moves: readable, finished, of releases that are what they were when they were promoted, and what the alias says."""
    known = record.moves(registry)
    for number in known.unreadable:
        action = f"put its tag `{record.ENTRY}` in MLflow right, or delete version {number} of {MOVES}: what follows it counts all the same"
        yield Finding("moves", f"entry {number} cannot be read, and is passed over: somebody has edited it", action)
    for move in known:
        try:
            evidence = hashlib.sha256(json.dumps(manifest_of(registry, move.release), sort_keys=True).encode()).hexdigest()
        except MoonError as fault:
            yield Finding("moves", f"release {move.release} of move {move.number} cannot be read ({fault})", "bring it back from a backup")
            continue
        if move.evidence and evidence != move.evidence:
            problem = f"the manifest of release {move.release} is not the one that was promoted, {move.at}"
            yield Finding("moves", problem, "do not serve it; bring it back from a backup, or release it again")
    champion = registry.alias(CHAMPION)
    if known and not known[-1].done:
        problem = f"move {known[-1].number} was killed before the alias followed: {known[-1].told()}"
        yield Finding("moves", problem, "nothing: the next move, or a service, finishes it", grave=False)
    elif known and champion != known[-1].release:
        problem = f"the alias `champion` says {champion}, the record {known[-1].release}: somebody has moved it in MLflow"
        yield Finding("moves", problem, "nothing: a service, or the next move, writes it down", grave=False)


def _left(settings: Settings, registry: Registry, now: dt.datetime) -> Iterator[Finding]:
    """What killed commands have left."""
    for item in erasure.unfinished(settings):
        yield Finding("erasures", f"the erasure of item {item} was begun and not completed", f"run `moon erase {item}` again")
    for line in registration.left(settings, registry, now):
        yield Finding("registry", line, "run `moon doctor --repair`")


@stage("verify")
def require_whole(settings: Settings, *, now: dt.datetime) -> int:
    """:class:`StageError` that lists what is grave; how many other findings there are."""
    found = examine(settings, now=now)
    grave = [finding for finding in found if finding.grave]
    if grave:
        raise StageError("; ".join(finding.told() for finding in grave), action="see docs/on-call.md")
    return len(found)


def unreachable(fault: ServiceError) -> Finding:
    """A registry that does not answer, as a finding."""
    return Finding("registry", fault.problem, fault.action)
