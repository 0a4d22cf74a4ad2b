"""The stages as a scheduler calls them: times come in as ISO 8601, numbers go out, everything else lies in the lake and the registry.

Each function is one task of a DAG in ``dags/`` and may be run again at any time.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moon_ops import alerts
from moon_ops.ctr.impressions import has_click_sequences
from moon_ops.embeddings.due import due
from moon_ops.errors import GateError, InputError, StageError
from moon_ops.lake import drops, ids
from moon_ops.lake.ingest import Feed, IngestReport, ingest
from moon_ops.publication import erasure, maintenance, places, publication, sharing
from moon_ops.recipes.gates import Gates
from moon_ops.recipes.reading import recipe
from moon_ops.registry.encoders import encoder_version
from moon_ops.registry.registry import CANDIDATE, CHAMPION, PREVIOUS, Registry, manifest_of
from moon_ops.release import checkpoints, clicks, evidence, examination, promotion, served, stages, verification
from moon_ops.release.manifest import release as make_release
from moon_ops.release.status import active_items
from moon_ops.release.windows import Windows, windows
from moon_ops.settings import Settings
from moon_ops.startup import start

log = logging.getLogger(__name__)


def train(as_of: str, recipe: str, seed: int) -> str:
    """Train on what was known at ``as_of``; the checkpoint's name."""
    settings = _settings()
    times = windows(settings.lake, end=_time(as_of))
    trained = stages.train(settings, recipe, trained_until=times.trained_until, seed=seed)
    return checkpoints.keep(settings, Path(trained.checkpoint))


def export(checkpoint: str) -> int:
    """Export and register a checkpoint; the encoder's version."""
    settings = _settings()
    return stages.export(settings, checkpoints.find(settings, checkpoint)).encoder


def embed(encoder: int, as_of: str) -> int:
    """Embed what has no vector yet; the encoder's version again, for the task that follows."""
    for report in stages.embed(_settings(), encoder, now=_time(as_of)):
        log.info("%s: %d new, %d in all", report.table, report.embedded, report.total)
    return encoder


def publish(encoder: int, as_of: str) -> int:
    """Hand an encoder's vectors over to Feast, the tables and the index, and complete killed erasures; the encoder's version again."""
    settings = _settings()
    _finish_erasures(settings, as_of)
    log.info("%s", publication.publish(settings, encoder, now=_time(as_of)))
    return encoder


def ctr(encoder: int, as_of: str, recipe: str, seed: int) -> int | None:
    """Train a click model; its version, None for a shop without click sequences."""
    settings = _settings()
    if not has_click_sequences(settings.lake):
        log.warning("the shop has no click sequences of known users: the release has no click model")
        return None
    _, version = clicks.train_ctr(settings, encoder, recipe, _windows(settings, encoder, as_of), seed=seed)
    return version


def release(encoder: int, ctr_version: int | None, as_of: str) -> int:
    """Measure, judge and register a release; its version, whether it passed or not."""
    settings = _settings()
    made = make_release(settings, encoder, ctr_version, _windows(settings, encoder, as_of), now=_time(as_of))
    for verdict in made.verdicts:
        log.info("%s", verdict)
    return made.version


def require_passed(version: int) -> int:
    """The release again; :class:`~moon_ops.errors.GateError` with each gate that it did not pass, which ends the run for all to see."""
    verification.require_passed(manifest_of(Registry(_settings()), version))
    return version


def promote(version: int, as_of: str) -> bool:
    """Promote a release that passed; False where a second person has to be asked first."""
    settings = _settings()
    if needs_second_person():
        log.warning("release %d waits for a second person: start the DAG moon_promote", version)
        return False
    promotion.promote(settings, version, promotion.Wish("moon_retrain", as_of, "its gates passed"))
    return True


def needs_second_person() -> bool:
    """Whether the shop's gates ask for a second person's approval."""
    return recipe(Gates, "gates", _settings().models).second_person


def promotable(version: int, as_of: str) -> dict[str, Any]:
    """The release, the candidate for 0, and its evidence in Markdown; :class:`~moon_ops.errors.GateError` if it may not be promoted."""
    settings = _settings()
    registry = Registry(settings)
    chosen = version or registry.alias(CANDIDATE)
    if chosen is None:
        raise StageError("there is no candidate", action="make a release, or name one in the parameter `release`")
    promotion.promote(settings, chosen, promotion.Wish("moon_promote", as_of), dry_run=True)
    return {"release": chosen, "evidence": evidence.description(chosen, manifest_of(registry, chosen))}


def promote_by(version: int, as_of: str, *, by: str, approved_by: str = "", why: str = "") -> bool:
    """Promote a release in somebody's name; with a second person where the gates ask for one. Whether it was not champion already."""
    settings = _settings()
    if needs_second_person() and approved_by in ("", by):
        both = f"started by {by} and approved by {approved_by or 'nobody'}"
        raise GateError(
            f"release {version} was not promoted: it was {both}, but two people must agree",
            action="let somebody else approve it, or set second_person = false in models/gates.toml",
        )
    who = f"{by}, approved by {approved_by}" if approved_by else by
    return promotion.promote(settings, version, promotion.Wish(who, as_of, why)).move is not None


def served_encoder() -> int | None:
    """The encoder of what is served: the champion's, or that of the last good release in its place; None before the first promotion."""
    return _encoder_to_serve(_settings())


def other_releases() -> list[int]:
    """The releases beside the one that is served that may be soon: champion (where another is served in its place), candidate, previous."""
    settings = _settings()
    registry = Registry(settings)
    releases = [version for alias in (CHAMPION, CANDIDATE, PREVIOUS) if (version := registry.alias(alias)) is not None]
    return list(dict.fromkeys(version for version in releases if version != _served_release(settings)))


def refresh(encoder: int | None, as_of: str) -> int | None:
    """Embed what has no vector yet and hand it over; the encoder again, for the task that follows."""
    return None if encoder is None else publish(embed(encoder, as_of), as_of)


def refresh_release(release: int, as_of: str) -> int:
    """Refresh the encoder of a release beside the one that is served, and check it; the encoder. What is wrong with the release fails this
    task alone."""
    settings = _settings()
    encoder = int(manifest_of(Registry(settings), release)["encoder"]["version"])
    if encoder != _encoder_to_serve(settings):
        refresh(encoder, as_of)
        require_complete([encoder], as_of)
    return encoder


def require_complete(encoders: Sequence[int | None], as_of: str) -> dict[str, int]:
    """Check against the lake that every item version known at ``as_of`` has its vector under each encoder; :class:`StageError` if not.

    What has come since is the next run's work, for all but the champion.
    """
    settings, known = _settings(), [encoder for encoder in encoders if encoder is not None]
    for encoder in known:
        missing = due(settings.lake, encoder, _time(as_of)).rows
        if missing.num_rows:
            (first,) = ids.named(settings.lake, "item", [missing["item_id"][0].as_py()])
            raise StageError(
                f"{missing.num_rows} item versions have no vector under encoder {encoder}, e.g. of item {first}",
                action="run the refresh again",
            )
    return {"encoders": len(known), "items": len(active_items(settings.lake, _time(as_of)))}


def verify(as_of: str) -> int:
    """Check that what is served is whole; :class:`StageError` that lists what is wrong; how many smaller findings there are."""
    return examination.require_whole(_settings(), now=_time(as_of))


def ingest_inbox(as_of: str, *, full_feed: bool = False, withdraw_at_most: float = 0.2) -> dict[str, int]:
    """Take what waits in ``MOON_INBOX`` into the lake, each directory once; how many there were, and how many items are new, changed or
    withdrawn (``changed``).

    ``full_feed``: an items file is the whole catalogue; of the items in sale it may withdraw the share ``withdraw_at_most``. One directory
    that cannot be used holds up no other; then :class:`~moon_ops.errors.InputError` names it, and it is not tried again before it changes.
    """
    settings, now, broken = _settings(), _time(as_of), list[str]()
    found = {"directories": 0, "changed": 0, "refused": 0}
    waiting = drops.waiting(settings.lake, settings.inbox, now, again=full_feed) if settings.inbox is not None else []
    for drop in waiting:
        try:
            report = ingest(drop.place, settings.lake, now=now, workers=settings.workers, feed=Feed(full_feed, withdraw_at_most))
        except InputError as fault:
            drops.note(settings.lake, drop, now, str(fault))
            broken.append(str(fault))
            continue
        drops.note(settings.lake, drop, now)
        _report(drop.name, report, as_of)
        found["directories"] += 1
        found["changed"] += report.items + report.updated + report.withdrawn
        found["refused"] += sum(report.refused.values())
    if broken:
        more = f"; and {len(broken) - 1} more" if len(broken) > 1 else ""
        problem = f"a directory in MOON_INBOX was not taken in: {broken[0]}{more}"
        raise InputError(problem, action="mend it; it is tried again when it changes")
    return found


def _report(name: str, report: IngestReport, as_of: str) -> None:
    """What was set aside is told, once: the directory is not read again before it changes."""
    if report.erased:
        log.info("erased before, and not taken in: %s", report.erased)
    for note in report.notes:
        log.warning("%s", note)
    if report.warning:
        log.warning("%s", report.warning)
    if report.refused or report.unread:
        what = f"set aside: {report.refused}, pictures not read: {report.unread}, the first: {report.first_refusal}"
        alerts.tell(f"MOON_INBOX/{name}: {what}; `moon quarantine` lists them", dag="moon_ingest", run=as_of, reason=what)


def embed_for_champion(as_of: str) -> int:
    """Embed new items for the champion; how many, 0 without a champion (or if an attempt before this one has embedded them)."""
    settings = _settings()
    encoder = _encoder_to_serve(settings, as_of)
    if encoder is None:
        return 0
    items, _ = stages.embed(settings, encoder, now=_time(as_of))
    return items.embedded


def publish_for_champion(as_of: str) -> bool:
    """Publish for the champion if the lake has changed since the last publication; whether it did.

    What was published is read from the tables, not from the task before: a retry that embeds nothing still publishes, and so do a new
    price and a deletion.
    """
    settings = _settings()
    _finish_erasures(settings, as_of)
    encoder = _encoder_to_serve(settings, as_of)
    if encoder is None or sharing.is_current(settings, encoder, _time(as_of)):
        return False
    log.info("%s", publication.publish(settings, encoder, now=_time(as_of), behaviour=False))
    return True


def maintain(keep_days: float, as_of: str) -> dict[str, int]:
    """Compact the lake and remove old versions; how many files and versions are gone."""
    done = maintenance.maintain(_settings(), keep=dt.timedelta(days=keep_days), now=_time(as_of))
    for kept in done:
        log.info("%s", kept)
    return {"files": sum(k.fragments - k.fragments_after for k in done), "versions": sum(k.versions_removed for k in done)}


def _settings() -> Settings:
    """What the environment says. A task is the entry point of its process: MLflow is imported after this, when a registry is asked."""
    start()
    settings = Settings.from_environment()
    places.require_lake(settings)  # with its disk unmounted a task would begin a second one
    return settings


def _finish_erasures(settings: Settings, as_of: str) -> None:
    for receipt in erasure.finish(settings, now=_time(as_of)):
        log.warning("completed the erasure of %s %s, which had been killed", receipt.kind, receipt.shop_id)


def _encoder_to_serve(settings: Settings, as_of: str | None = None) -> int | None:
    """The encoder of what a service serves: the champion's, or that of the last good release where the champion cannot be served, or
    services refuse it at ``as_of``."""
    choice = _choice(settings, as_of)
    return None if choice is None else served.encoder_of(choice)


def _served_release(settings: Settings) -> int | None:
    choice = _choice(settings)
    return None if choice is None else choice.release


def _choice(settings: Settings, as_of: str | None = None) -> served.Choice | None:
    try:
        choice = served.choose(settings, Registry(settings), now=_time(as_of) if as_of else None)
    except StageError as none:
        log.warning("%s: nothing to embed with", none)
        return None
    if choice.why:
        log.error("release %d is served in place of %s, because %s", choice.release, choice.asked, choice.why)
    return choice


def _windows(settings: Settings, encoder: int, as_of: str) -> Windows:
    return windows(settings.lake, end=_time(as_of), seen_until=encoder_version(settings, encoder).trained_until)


def _time(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)
