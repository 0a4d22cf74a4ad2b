"""Which release is to be served: the champion; where that cannot be, the last good one. The same answer for service, DAGs and status.

What a service has loaded is remembered in ``MOON_HOME/served.json`` with all that it takes to load it again, so that a service can start
while MLflow is away.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moon_ops.errors import MoonError, StageError
from moon_ops.files import remembered, write_text
from moon_ops.registry import moves as record
from moon_ops.registry.discreet import AwayError
from moon_ops.registry.registry import ALIGNMENT, CHAMPION, CTR, ENCODER, PREVIOUS, Registry, manifest_of
from moon_ops.release import refusals
from moon_ops.release.promotion import checked
from moon_ops.release.verification import Parts, fetched, verify_files
from moon_ops.settings import Settings

log = logging.getLogger(__name__)
NO_CHAMPION = "there is no champion release"


@dataclass(frozen=True)
class Choice:
    """The release to serve; ``why`` it is not the one that is ``asked`` for, empty if it is."""

    parts: Parts
    asked: int | None
    why: str = ""

    @property
    def release(self) -> int:
        """Its number."""
        return self.parts.release


def parts_of(settings: Settings, registry: Registry, release: int, *, forced: bool = False) -> Parts:
    """The verified parts of a release; :class:`MoonError` for one that may not (unless ``forced``) or cannot be served."""
    manifest = manifest_of(registry, release)
    checked(settings, registry, release, record.moves(registry), forced=forced)
    return fetched(registry, release, manifest)


def choose(settings: Settings, registry: Registry, *, now: dt.datetime | None = None) -> Choice:
    """The champion, or the release that was served last and can be; :class:`StageError` if there is none.

    At ``now`` a champion that a service of this home refuses is not chosen, if there is another one; without it, for who tries anew, it is.
    Raises :class:`~moon_ops.errors.ServiceError` if the registry does not answer.
    """
    asked = registry.alias(CHAMPION)
    why, refused = NO_CHAMPION, None
    if asked is not None:
        try:
            parts = parts_of(settings, registry, asked)
            why = refusal(settings, asked, now) if now is not None else ""
            if not why:
                return Choice(parts, asked)
            refused = Choice(parts, asked)
        except AwayError:
            raise  # which says nothing of the release
        except MoonError as fault:
            why = f"release {asked} is not served: {fault}"
    for release in fallbacks(settings, registry, asked):
        try:
            return Choice(parts_of(settings, registry, release), asked, why)
        except AwayError:
            raise
        except MoonError:
            continue
    if refused is not None:
        return refused
    raise StageError(why, action="run `moon rollback`, or `moon promote RELEASE`; for a first release `moon demo`")


def to_serve(settings: Settings, *, now: dt.datetime | None = None) -> Choice | None:
    """What :func:`choose` finds, as a job asks; None before the first promotion. The log says where it is not the champion."""
    try:
        choice = choose(settings, Registry(settings), now=now)
    except StageError as none:
        log.warning("%s: nothing to embed with", none)
        return None
    if choice.why:
        log.error("release %d is served in place of %s, because %s", choice.release, choice.asked, choice.why)
    return choice


def refusal(settings: Settings, release: int, now: dt.datetime) -> str:
    """Why no service of this home serves the release, although it could be by its manifest; empty if one does, or none has refused it."""
    known = [one.told() for one in refusals.standing(settings, now) if one.release == release]
    return known[0] if known and since(settings)[0] != release else ""


def fallbacks(settings: Settings, registry: Registry, asked: int | None) -> Iterator[int]:
    """The releases to serve in place of one that cannot be, the first one first, each once."""
    moves, previous, remembered = record.moves(registry), registry.alias(PREVIOUS), recall(settings)
    known = [move.release for move in moves[-1:]]  # first, so that all machines serve the same
    known += ([remembered.release] if remembered is not None else []) + record.way_back(moves, asked)
    yield from (release for release in dict.fromkeys([*known, *([previous] if previous is not None else [])]) if release != asked)


def encoder_of(choice: Choice) -> int:
    """The version of the encoder of the release to serve."""
    return int(choice.parts.manifest["encoder"]["version"])


def remember(settings: Settings, parts: Parts, at: str) -> None:
    """Keep what is served, for the next start and for whoever asks."""
    place = _place(settings)
    before = remembered(place, "it is written anew") or {}
    if before.get("release") == parts.release and before.get("manifest") == parts.manifest:
        return
    home = settings.home.resolve()
    folders = {ENCODER: parts.encoder, CTR: parts.click_model, ALIGNMENT: parts.alignment}
    kept = {name: _relative(folder.resolve(), home) for name, folder in folders.items() if folder is not None}
    write_text(place, json.dumps({"release": parts.release, "since": at, "parts": kept, "manifest": parts.manifest}, indent=2) + "\n")


def recall(settings: Settings) -> Parts | None:
    """What was served last, if its files are still what they were; None if nothing is known, or it cannot be served."""
    place = _place(settings)
    try:
        kept: dict[str, Any] = json.loads(place.read_text())
        folders = {name: settings.home / folder for name, folder in kept["parts"].items()}
        parts = Parts(int(kept["release"]), kept["manifest"], folders[ENCODER], folders.get(CTR), folders.get(ALIGNMENT))
        verify_files(parts)
    except (OSError, ValueError, KeyError, TypeError, MoonError):
        return None
    return parts


def since(settings: Settings) -> tuple[int | None, str]:
    """The release that a service of this home has loaded last, and when; None if none ever has."""
    place = _place(settings)
    try:
        kept = json.loads(place.read_text())
        return int(kept["release"]), str(kept["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, ""


def _place(settings: Settings) -> Path:
    return settings.home / "served.json"


def _relative(folder: Path, home: Path) -> str:
    """A folder in the home by its place there, so that a home may be moved."""
    return str(folder.relative_to(home)) if folder.is_relative_to(home) else str(folder)
