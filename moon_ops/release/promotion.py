"""Promotion is moving the alias ``champion`` on ``moon-release``; rollback is moving it back. Nothing is recomputed.

Every move is written down first (:mod:`moon_ops.registry.moves`), and counts if nobody else was quicker; then the aliases follow. Whoever
comes next finishes a move that was killed in between. Who moves the alias in MLflow is noted when that is noticed.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from moon_ops.errors import GateError, MoonError, StageError
from moon_ops.files import locked
from moon_ops.registry import moves as record
from moon_ops.registry.moves import Kind, Move, Record
from moon_ops.registry.registry import CHAMPION, PREVIOUS, Registry, manifest_of
from moon_ops.release import freshness, refusals
from moon_ops.release.freshness import Freshness
from moon_ops.release.verification import verify
from moon_ops.settings import Settings
from moon_ops.telemetry.stages import stage

IN_MLFLOW, BEFORE = "somebody in MLflow", "somebody before the record began"


@dataclass(frozen=True)
class Wish:
    """Who asks for a move, when (ISO 8601), and why."""

    by: str
    at: str
    why: str = ""


@dataclass(frozen=True)
class Moved:
    """The champion before and after; ``move`` is None where nothing was to be done, or was only to be shown.

    ``freshness``: how far the vectors of the one after lay behind the catalogue, before it was served; None where nothing was to be done.
    ``unchecked``: what of the one after could not be checked, because the lake cannot be reached.
    """

    before: int | None
    after: int
    move: Move | None
    freshness: Freshness | None = None
    unchecked: str = ""


@stage("promote")
def promote(settings: Settings, version: int, wish: Wish, *, force: bool = False, dry_run: bool = False) -> Moved:
    """Make release ``version`` the champion, and the champion ``previous``.

    Raises :class:`GateError` if its evidence does not pass or was made against another champion (not with ``force``, which needs a reason),
    or if somebody else moves at the same moment; :class:`ContractError` if its parts are not what its manifest says.
    Promoting the champion again changes nothing.
    """
    if force and not wish.why.strip():
        raise GateError("a gate is overridden only with a reason", action="say why: `moon promote N --force --reason TEXT`")
    registry = Registry(settings)
    with _alone(settings):
        known, alias = settle(settings, registry, wish)
        before = known[-1].release if known else alias  # what is served, wherever the alias points
        unchecked = checked(settings, registry, version, known, forced=force)
        if force and not dry_run:
            refusals.forget(settings, release=version)
        if alias == before == version:
            return Moved(before, version, None, unchecked=unchecked)
        judged = manifest_of(registry, version)["compared_with"]["release"]
        if judged != before and not force and version not in record.way_back(known, before):
            raise GateError(
                f"release {version} was compared with release {judged}, but release {before} is champion now: nobody knows which is better",
                action="release it again with `moon release`, or go back with `moon rollback`",
            )
        move = _entry(registry, "promote", version, before, wish, known)
        return _told(settings, registry, replace(move, forced=force), unchecked, dry_run=dry_run)


@stage("rollback")
def rollback(
    settings: Settings, wish: Wish, *, to: int | None = None, again: bool = False, dry_run: bool = False, leaving: int | None = None
) -> Moved:
    """Go back to the release that was served last before the champion and has not been left by a rollback itself, or to release ``to``.

    Raises :class:`StageError` if there is none, if the last move was a rollback (two people may be at it) and not ``again``, or if another
    release than ``leaving`` is champion by now.
    """
    registry = Registry(settings)
    with _alone(settings):
        known, before = settle(settings, registry, wish)
        if leaving is not None and before != leaving:
            raise StageError(f"release {before} is champion by now, not {leaving}", action="look at `moon moves`")
        last = known[-1] if known else None
        if last is not None and last.kind == "rollback" and last.release == before and not again and to is None:
            raise StageError(f"the last move was a rollback already ({last.told()})", action="pass --again to go back one more")
        target, unchecked = _target(settings, registry, known, before, to)
        if target == before:
            return Moved(before, target, None, unchecked=unchecked)
        entry = _entry(registry, "rollback", target, before, wish, known)
        return _told(settings, registry, entry, unchecked, dry_run=dry_run)


def note(settings: Settings, registry: Registry, wish: Wish) -> None:
    """Finish a killed move, and write down one that was made in MLflow."""
    with _alone(settings):
        settle(settings, registry, wish)


def settle(settings: Settings, registry: Registry, wish: Wish) -> tuple[Record, int | None]:
    """The moves and the champion, as they are once a killed move is finished and a move made in MLflow is noted."""
    known, alias = record.moves(registry), registry.alias(CHAMPION)
    if known and not known[-1].done:
        if alias in (known[-1].before, known[-1].release):
            follow(registry, known[-1])
        record.finished(registry, known[-1])
        known, alias = record.moves(registry), registry.alias(CHAMPION)
    if not known and (previous := registry.alias(PREVIOUS)) not in (None, alias):
        _note(settings, registry, int(previous or 0), None, wish, known)
        known = record.moves(registry)
    last = known[-1].release if known else None
    if alias is not None and alias != last and _note(settings, registry, alias, last, wish, known):
        known = record.moves(registry)
    return known, alias


def _note(settings: Settings, registry: Registry, found: int, before: int | None, wish: Wish, known: Record) -> bool:
    """Write down that somebody has made ``found`` the champion in MLflow; not of a release that cannot be served, and so never was."""
    try:
        checked(settings, registry, found, known)
    except MoonError:
        return False
    noticed = _entry(registry, "noticed", found, before, Wish(IN_MLFLOW if known else BEFORE, wish.at), known)
    move = record.claim(registry, noticed)
    if move is None:
        return False
    if before is not None:
        registry.point(PREVIOUS, before)
    record.finished(registry, move)
    return True


def checked(settings: Settings, registry: Registry, release: int, known: Sequence[Move], *, forced: bool = False) -> str:
    """:func:`verify` of a release; what it leaves unchecked. One that has been champion needs no lake: the way back must be open."""
    been = any(move.release == release for move in known)
    return verify(settings, registry, manifest_of(registry, release), forced=forced or release in admitted(known), without_lake=been)


def admitted(known: Sequence[Move]) -> set[int]:
    """The releases that somebody promoted in spite of a failed gate, by name and with a reason."""
    return {move.release for move in known if move.forced}


def follow(registry: Registry, move: Move) -> None:
    """Let the aliases say what the record says; what the alias named and nobody ever served is not ``previous``."""
    if move.before in {known.release for known in record.moves(registry) if known.number != move.number}:
        registry.point(PREVIOUS, move.before)
    registry.point(CHAMPION, move.release)


def _entry(registry: Registry, kind: Kind, to: int, before: int | None, wish: Wish, known: Record) -> Move:
    told = json.dumps(manifest_of(registry, to), sort_keys=True).encode()
    return Move(kind, to, before, wish.by, wish.at, wish.why, hashlib.sha256(told).hexdigest(), follows=known.newest)


def _told(settings: Settings, registry: Registry, wanted: Move, unchecked: str, *, dry_run: bool) -> Moved:
    """Make the move; how fresh the release is has been asked before it, unless the lake is known to be away: that may take long."""
    encoder = int(manifest_of(registry, wanted.release)["encoder"]["version"])
    behind = Freshness(encoder, unknown="the lake cannot be read")
    if not unchecked:
        behind = freshness.of(settings, encoder, dt.datetime.fromisoformat(wanted.at).astimezone(dt.UTC))
    return replace(_move(registry, wanted, dry_run=dry_run), freshness=behind, unchecked=unchecked)


def _move(registry: Registry, wanted: Move, *, dry_run: bool) -> Moved:
    if dry_run:
        return Moved(wanted.before, wanted.release, None)
    move = record.claim(registry, wanted)
    if move is None:
        last = record.moves(registry)[-1]
        raise GateError(f"somebody else was quicker: {last.told()}", action="look at `moon status`, and ask again if you still want it")
    follow(registry, move)
    record.finished(registry, move)
    newest = record.moves(registry)[-1]
    if newest.number != move.number:  # somebody has moved on since: the aliases are to say what is true last
        follow(registry, newest)
    return Moved(move.before, move.release, move)


def _target(settings: Settings, registry: Registry, known: Sequence[Move], champion: int | None, to: int | None) -> tuple[int, str]:
    """The release to go back to, the newest of the way back that can be served; and what of it could not be checked."""
    ways = record.way_back(known, champion)
    if to is not None:
        return to, checked(settings, registry, to, known)
    faults = []
    for release in ways:
        try:
            return release, checked(settings, registry, release, known)
        except MoonError as fault:
            faults.append(f"release {release}: {fault.problem}")
    left = [str(release) for release in dict.fromkeys(move.release for move in reversed(known)) if release not in (*ways, champion)]
    problem = f"there is no previous release to roll back to (champion: {champion or 'none'})" + "".join(f"; {fault}" for fault in faults)
    problem += f"; {', '.join(left)} {'was' if len(left) == 1 else 'were'} left by a rollback" if left else ""
    raise StageError(problem, action="promote another release, or name one with --to")


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """One move at a time on this machine, or on all that share a server of locks; without one the record tells who was first."""
    settings.home.mkdir(parents=True, exist_ok=True)
    with locked(settings.home / "moves.lock"), settings.lake.turn("moves"):
        yield
