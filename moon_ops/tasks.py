"""The stages as a scheduler calls them: times come in as ISO 8601, numbers go out, everything else lies in the lake and the registry.

Each function is one task of a DAG in ``dags/`` and may be run again. What takes seconds to import (Feast, torch) they import themselves.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from moon_ops.ctr.impressions import has_click_sequences
from moon_ops.embeddings.due import due
from moon_ops.errors import GateError, InputError, StageError
from moon_ops.lake import drops, ids
from moon_ops.lake.ingest import Feed, ingest
from moon_ops.publication import places, sharing
from moon_ops.recipes.gates import Gates
from moon_ops.recipes.reading import recipe
from moon_ops.registry import pages
from moon_ops.registry.encoders import encoder_version
from moon_ops.registry.registry import CANDIDATE, CHAMPION, PREVIOUS, Registry, manifest_of
from moon_ops.release import checkpoints, evidence, promotion, served, stages, telling, verification
from moon_ops.release.status import active_items
from moon_ops.release.windows import Windows, windows
from moon_ops.settings import Settings
from moon_ops.startup import start, without

log = logging.getLogger(__name__)


def train(as_of: str, recipe: str, seed: int) -> str:
    """Train on what was known at ``as_of``; the checkpoint's name."""
    settings = _settings()
    times = windows(settings.lake, end=_time(as_of))
    trained = stages.train(settings, recipe, trained_until=times.trained_until, seed=seed)
    kept = checkpoints.keep(settings, Path(trained.checkpoint))
    telling.made(settings, "train", checkpoint=kept)
    return kept


def export(checkpoint: str) -> int:
    """Export and register a checkpoint; the encoder's version."""
    settings = _settings()
    encoder = stages.export(settings, checkpoints.find(settings, checkpoint)).encoder
    telling.made(settings, "export", checkpoint=checkpoint, encoder=encoder)
    return encoder


def embed(encoder: int, as_of: str) -> int:
    """Embed what has no vector yet; the encoder's version again, for the task that follows."""
    settings = _settings()
    for report in stages.embed(settings, encoder, now=_time(as_of)):
        log.info("%s: %d new, %d in all", report.table, report.embedded, report.total)
    telling.made(settings, "embed", encoder=encoder)
    return encoder


def publish(encoder: int, as_of: str) -> int:
    """Hand an encoder's vectors over to Feast, the tables and the index, and complete killed erasures; the encoder's version again."""
    publication, settings = _publication(), _settings()
    _finish_erasures(settings, as_of)
    log.info("%s", publication.publish(settings, encoder, now=_time(as_of)))
    telling.published(settings, encoder, _time(as_of))
    return encoder


def ctr(encoder: int, as_of: str, recipe: str, seed: int) -> int | None:
    """Train a click model; its version, None for a shop without click sequences."""
    from moon_ops.release import clicks

    settings = _settings()
    if not has_click_sequences(settings.lake):
        log.warning("the shop has no click sequences of known users: the release has no click model")
        return None
    _, version = clicks.train_ctr(settings, encoder, recipe, _windows(settings, encoder, as_of), seed=seed)
    telling.made(settings, "ctr", encoder=encoder, ctr=version)
    return version


def release(encoder: int, ctr_version: int | None, as_of: str) -> int:
    """Measure, judge and register a release; its version, whether it passed or not."""
    from moon_ops.release import manifest

    settings = _settings()
    made = manifest.release(settings, encoder, ctr_version, _windows(settings, encoder, as_of), now=_time(as_of))
    for verdict in made.verdicts:
        log.info("%s", verdict)
    telling.judged(settings, encoder, ctr_version, made.version, made.verdicts)
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
    telling.made(settings, "promote", release=version)
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
    moved = promotion.promote(settings, version, promotion.Wish(who, as_of, why))
    telling.made(settings, "promote", release=version)
    return moved.move is not None


def page(model: str, version: int, file: str = "") -> str:
    """The page in MLflow of a version's run, or of one of its files; empty where ``MOON_MLFLOW_PAGES`` names none."""
    return pages.page(_settings(), model, version, file)


def served_encoder() -> int | None:
    """The encoder of what is served: the champion's, or that of the last good release in its place; None before the first promotion."""
    return _encoder_to_serve(_settings())


def other_releases() -> list[int]:
    """The releases beside the one that is served that may be soon: champion (where another is served in its place), candidate, previous."""
    settings = _settings()
    registry = Registry(settings)
    releases = [version for alias in (CHAMPION, CANDIDATE, PREVIOUS) if (version := registry.alias(alias)) is not None]
    choice = served.to_serve(settings)
    return list(dict.fromkeys(version for version in releases if choice is None or version != choice.release))


def refresh(encoder: int | None, as_of: str) -> int | None:
    """Embed what has no vector yet and hand it over; the encoder again, for the task that follows."""
    return None if encoder is None else publish(embed(encoder, as_of), as_of)


def refresh_release(release: int, as_of: str) -> int:
    """Refresh the encoder of a release that is not served, and check it; the encoder. What is wrong with it fails this task alone."""
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
    from moon_ops.release import examination

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
        telling.taken_in(drop.name, report, as_of)
        found["directories"] += 1
        found["changed"] += report.items + report.updated + report.withdrawn
        found["refused"] += sum(report.refused.values())
    if found["directories"]:
        telling.made(settings, "ingest")
    if broken:
        more = f"; and {len(broken) - 1} more" if len(broken) > 1 else ""
        problem = f"a directory in MOON_INBOX was not taken in: {broken[0]}{more}"
        raise InputError(problem, action="mend it; it is tried again when it changes")
    return found


def embed_for_champion(as_of: str) -> int:
    """Embed new items for the champion; how many, 0 without a champion (or if an attempt before this one has embedded them)."""
    settings = _settings()
    encoder = _encoder_to_serve(settings, as_of)
    if encoder is None:
        return 0
    settings = settings.replace(engine="local")  # of a few items: a cluster takes longer to begin
    items, _ = stages.embed(settings, encoder, now=_time(as_of))
    telling.made(settings, "embed", encoder=encoder)
    return items.embedded


def publish_for_champion(as_of: str) -> bool:
    """Publish for the champion if the lake has changed since the last publication; whether it did.

    What was published is read from the tables, not from the task before: a retry that embeds nothing still publishes, and so do a new
    price and a deletion.
    """
    publication, settings = _publication(), _settings()
    _finish_erasures(settings, as_of)
    encoder = _encoder_to_serve(settings, as_of)
    if encoder is None or sharing.is_current(settings, encoder, _time(as_of)):
        return False
    log.info("%s", publication.publish(settings, encoder, now=_time(as_of), behaviour=False))
    telling.published(settings, encoder, _time(as_of))
    return True


def maintain(keep_days: float, as_of: str) -> dict[str, int]:
    """Compact the lake, and remove old versions and checkpoints of its store; how many are gone."""
    from moon_ops.publication import maintenance

    settings, keep = _settings(), dt.timedelta(days=keep_days)
    done = maintenance.maintain(settings, keep=keep, now=_time(as_of))
    for kept in done:
        log.info("%s", kept)
    return {
        "files": sum(k.fragments - k.fragments_after for k in done),
        "versions": sum(k.versions_removed for k in done),
        "checkpoints": checkpoints.tidy(settings, keep, _time(as_of)),
    }


def _settings() -> Settings:
    """What the environment says. A task is the entry point of its process: MLflow is imported after this, when a registry is asked."""
    start()
    settings = Settings.from_environment()
    telling.begin(settings)
    places.require_lake(settings)  # with its disk unmounted a task would begin a second one
    return settings


def _finish_erasures(settings: Settings, as_of: str) -> None:
    _publication()  # first, as erasures import Feast, too
    from moon_ops.publication import erasure

    for receipt in erasure.finish(settings, now=_time(as_of)):
        log.warning("completed the erasure of %s %s, which had been killed", receipt.kind, receipt.shop_id)


def _publication() -> ModuleType:
    """Imported without torch and transformers, for which Feast looks: seconds of each new item's way into the index."""
    with without("torch", "transformers"):
        from moon_ops.publication import publication
    return publication


def _encoder_to_serve(settings: Settings, as_of: str | None = None) -> int | None:
    """The encoder of what is served: the champion's, or that of the last good release where services refuse the champion at ``as_of``."""
    choice = served.to_serve(settings, now=_time(as_of) if as_of else None)
    return None if choice is None else served.encoder_of(choice)


def _windows(settings: Settings, encoder: int, as_of: str) -> Windows:
    return windows(settings.lake, end=_time(as_of), seen_until=encoder_version(settings, encoder).trained_until)


def _time(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)
