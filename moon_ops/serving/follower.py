"""Which champion a service keeps: it follows the alias, falls back on the last good release, and says what it serves and why.

Two threads: one asks the registry, which may hang for minutes; the other opens each new publication of what is served, which must not wait.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import socket
import threading
import time
from dataclasses import dataclass
from functools import cached_property

from moon_ops.errors import MoonError, ServiceError, StageError
from moon_ops.publication import sharing
from moon_ops.registry import moves as record
from moon_ops.registry.discreet import is_outage
from moon_ops.registry.registry import CHAMPION, Registry
from moon_ops.release import freshness, promotion, refusals, served
from moon_ops.release.promotion import Wish
from moon_ops.release.refusals import Refusal
from moon_ops.release.verification import Parts
from moon_ops.serving import canary
from moon_ops.serving.canary import Canary, Recent
from moon_ops.serving.champion import Champion, linked
from moon_ops.serving.peers import Peers
from moon_ops.serving.shelf import Shelf
from moon_ops.serving.stores import LAKE, Stores
from moon_ops.serving.withdrawals import Withdrawals
from moon_ops.settings import Settings
from moon_ops.telemetry.logs import fields
from moon_ops.telemetry.traces import span

log = logging.getLogger(__name__)
REFRESH_SECONDS = 0.25  # between looks at three links: new items are searchable that soon after their publication
AGAIN_SECONDS = 60.0  # until a release that was refused is looked at again
FETCH_SECONDS = 2.0  # where several machines publish
FILES_SECONDS = 5.0  # between looks at the files that a restart would load
PATIENCE_SECONDS = 10.0  # a registry that takes longer to answer is reported; at a start, what was served last is served meanwhile


@dataclass(frozen=True)
class State:
    """What a service says of itself: ``asked`` is the release that the alias names, ``why`` it serves another one or none."""

    serving: int | None
    asked: int | None
    why: str
    whole: bool = True  # whether all shards of its index have been reached since it began

    @property
    def status(self) -> str:
        """In a word."""
        return "unavailable" if self.serving is None or not self.whole else "degraded" if self.why else "ready"


class Follower:
    """Keeps a champion; one that cannot be loaded, or does badly on logged queries, is reported and not served."""

    fixed = False  # whether it serves one release, whatever the alias says

    def __init__(self, settings: Settings, *, every_seconds: float = 5.0) -> None:
        self.settings, self.every_seconds = settings, every_seconds
        self.current: Champion | None = None
        self.asked: int | None = None
        self.since: dt.datetime | None = None  # when this process began to serve what it serves
        self.canary: Canary | None = None  # of the last release that was to take the place of another
        self.recent, self.stores, self.shelf = Recent(), Stores(), Shelf(settings)
        self.withdrawals, self.peers = Withdrawals(settings, self.stores), Peers(settings, self.stores)
        self._why = self._stale = self._said = ""  # it serves another release; not the newest publication; and what was logged last
        self._gone = ""  # which files a restart would miss
        self._asking: float | None = None  # since when the registry has owed an answer
        self._again = 0.0  # when to try a release that was refused once more
        self._swap, self._stop, self._wake = threading.Lock(), threading.Event(), threading.Event()

    @cached_property
    def registry(self) -> Registry:
        """Connected when it is first asked: a service can start without it."""
        return Registry(self.settings)

    @property
    def refused(self) -> str:
        """Why what is asked for is not served; empty if it is."""
        return self.state().why

    def follow(self) -> None:
        """Load what is to be served, if that is not what is: the champion, or else the release that was served last and can be."""
        self._asking = time.monotonic()
        try:
            asked = self.registry.alias(CHAMPION)
            new, self.asked = asked != self.asked, asked
            if self.current is not None and self.current.version == asked:
                self._accepted()
                if new:
                    promotion.note(self.settings, self.registry, self._wish())
            elif new or self.current is None or time.monotonic() > self._again:
                self._load()
                self._again = time.monotonic() + AGAIN_SECONDS
        except MoonError as fault:
            self._refuse(str(fault), fault)
        except Exception as fault:  # the registry may be away for a while; what is served goes on, whatever it is
            known = is_outage(fault)
            what = str(fault) if known else f"{type(fault).__name__}: {fault}"
            self._refuse(f"the registry could not be asked for the champion: {what}", fault, known=known)
        finally:
            self._asking = None
        if self.current is None:
            self._remembered()

    def _load(self) -> None:
        choice = served.choose(self.settings, self.registry)
        if self.current is None or self.current.version != choice.release:
            made = self._opened(choice)
            if made is None:
                return
            self._serve(made)
        if not choice.why and self.current is not None and self.current.version == choice.release:
            self._accepted()
            promotion.note(self.settings, self.registry, self._wish())
        elif choice.why:
            self._refuse(choice.why, StageError(choice.why, action="look at `moon status`"))
            if self.settings.repair and choice.asked is not None:
                promotion.rollback(self.settings, self._wish(choice.why), to=choice.release)

    def _opened(self, choice: served.Choice) -> Champion | None:
        """The release loaded and tried; None with the reason in ``refused`` if it cannot be served while another one is."""
        before = self.current or self._last(choice)
        try:
            made = self._champion(choice.parts)
            self._asking = None  # it has answered
            self.peers.prepare(made.part, wait=self.current is not None)  # else there is nothing to go on with meanwhile
            self._try(made, before)
            return made
        except Exception as fault:  # whatever is wrong with a release, it must not end the one that is served
            self._refuse(f"release {choice.release} is not served: {fault}", fault)
            self._note_refusal(choice.release, fault)
            if before is not None:
                return None if before is self.current else before
        for release in served.fallbacks(self.settings, self.registry, choice.release):
            try:
                return self._champion(served.parts_of(self.settings, self.registry, release))
            except Exception as fault:
                log.warning("release %d is not served either: %s", release, fault)
        return None

    def _champion(self, parts: Parts) -> Champion:
        return Champion(self.settings, parts, self.shelf, self.peers)

    def _last(self, choice: served.Choice) -> Champion | None:
        """At a start: what was served before it, if the champion is another release, which is to be tried like any."""
        parts = None if choice.why or served.since(self.settings)[0] in (None, choice.release) else served.recall(self.settings)
        try:
            return None if parts is None else self._champion(parts)
        except Exception as fault:
            log.warning("release %s, which was served last, cannot be compared with: %s", parts and parts.release, fault)
            return None

    def _try(self, candidate: Champion, now: Champion | None) -> None:
        """Replay logged queries on what is served ``now`` and on the candidate; :class:`StageError` if it does badly."""
        if now is None:
            return
        behind = freshness.of(self.settings, candidate.encoder, dt.datetime.now(dt.UTC))
        if behind.warning():
            log.warning("release %d: %s", candidate.version, behind.warning())
        found = canary.replay(now, candidate, canary.draw(self.settings.lake, self.recent))
        returning = any(move.before == candidate.version for move in record.moves(self.registry))
        why = canary.refusal(found, self.settings, returning=returning)
        if self.canary is None or self.canary.candidate != found.candidate or not why:  # tried again each minute, told once
            log.info(found.told())
        self.canary = found
        if why:
            action = "it is tried again each minute; look at `canary` in /ready, then `moon rollback`, or mend it"
            raise StageError(why, action=action)

    def _remembered(self) -> None:
        """Serve what was served last, from this home alone."""
        parts = served.recall(self.settings)
        if parts is None:
            return
        try:
            self._serve(self._champion(parts))
        except Exception as fault:
            log.warning("release %d, which was served last, is not served either: %s", parts.release, fault)

    def _serve(self, champion: Champion) -> None:
        with self._swap:
            before, self.current = self.current, champion  # one assignment: a request sees the old or the new
            self.since, self._gone = (since := dt.datetime.now(dt.UTC)), ""
        made, facts = champion.manifest.get("traceparent", ""), {"release": champion.version, "encoder": champion.encoder}
        with span("serve_release", after=made, **facts), fields(**facts, contract_id=champion.contract_id, made_in=made):
            log.info("now serving release %d in place of %s", champion.version, before.version if before else "none")
        self._keep(champion, since)

    def _keep(self, champion: Champion, since: dt.datetime) -> None:
        """For the next start, and for whoever asks what is served."""
        served.remember(self.settings, champion.parts, since.isoformat(timespec="seconds"))

    def _accepted(self) -> None:
        """What is asked for is served."""
        self._why = self._said = ""
        with contextlib.suppress(OSError):  # a note that cannot be struck out counts for nothing soon
            refusals.forget(self.settings, by=self._name())

    def _note_refusal(self, release: int, fault: Exception) -> None:
        """Let the jobs and ``moon status`` know; one that cannot be written down is a refusal all the same."""
        what = fault.problem if isinstance(fault, MoonError) else f"{type(fault).__name__}: {fault}"
        try:
            refusals.note(self.settings, Refusal(release, what, dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), self._name()))
        except OSError as full:
            log.warning("that release %d is not served could not be written down (%s)", release, full)

    def _name(self) -> str:
        return f"{socket.gethostname()}:{self.settings.port}"

    def _wish(self, why: str = "") -> Wish:
        return Wish(f"moon serve on {socket.gethostname()}", dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), why)

    def _refuse(self, what: str, fault: Exception, *, known: bool = False) -> None:
        """Report a fault; it is logged once, however often it is met. ``known``: where it comes from tells nothing."""
        self._why = what
        if str(fault) != self._said:
            log.error(what, exc_info=not known and not isinstance(fault, MoonError))
        self._said = str(fault)

    def refresh(self) -> None:
        """Open the newest publication of what is served, if there is one since."""
        now = self.current
        if now is not None:
            self._fetch(now.encoder)
        if now is None or now.places == linked(self.settings, now.encoder, now.dimensions):
            return
        fresh = now.refreshed()
        with self._swap:
            if self.current is now:  # else another release has taken its place meanwhile
                self.current = fresh

    def _fetch(self, encoder: int) -> None:
        """What another machine has published; while the lake is away, what is here stays."""
        with contextlib.suppress(ServiceError), self.stores.asked(LAKE):
            sharing.fetch(self.settings, encoder)

    def state(self) -> State:
        """What is served, what is asked for, and why it is not the same."""
        late = 0.0 if self._asking is None else time.monotonic() - self._asking
        silent = f"the registry has not answered for {late:.0f} seconds" if late > PATIENCE_SECONDS else ""
        hangs = self.withdrawals.late
        away = self.stores.why() or (f"the lake has not answered for {hangs:.0f} seconds" if hangs > PATIENCE_SECONDS else "")
        waiting = self.peers.waiting(None if self.current is None else self.current.part)
        why = "; ".join(part for part in (self._why, self._stale, self._gone, away, waiting, silent) if part)
        return State(None if self.current is None else self.current.version, self.asked, why, whole=not waiting)

    def champion(self) -> Champion:
        """The champion being served; :class:`StageError` while there is none."""
        if self.current is None:
            raise StageError(self.refused or "the champion is being loaded", action="ask /ready again")
        return self.current

    def start(self) -> None:
        """Load once, then follow in the background until :meth:`stop`; a registry that hangs holds no start for long."""
        threading.Thread(target=self._ask, name="follow-champion", daemon=True).start()
        begun = time.monotonic()
        while self.current is None and not self._why and time.monotonic() - begun < PATIENCE_SECONDS:
            time.sleep(REFRESH_SECONDS / 10)
        if self.current is None:
            self._remembered()
        threading.Thread(target=self._open, name="open-publications", daemon=True).start()
        self.withdrawals.start(lambda: None if self.current is None else self.current.encoder)
        self.peers.start(lambda: None if self.current is None else self.current.part)

    def stop(self) -> None:
        """Stop following."""
        self._stop.set()
        self._wake.set()
        self.withdrawals.stop()
        self.peers.stop()

    def wake(self) -> None:
        """Ask the registry now: somebody says that an alias has moved. One word while it is being asked is enough."""
        self._wake.set()

    def _ask(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()  # before the registry is asked: what moves meanwhile is asked for again
            self.follow()
            self._wake.wait(self.every_seconds)

    def _open(self) -> None:
        looked = 0.0
        while not self._stop.wait(self._pause()):
            self.reopen()
            if time.monotonic() - looked > FILES_SECONDS:
                self.look_at_files()
                looked = time.monotonic()

    def _pause(self) -> float:
        """Between looks for a publication: another machine's is asked for over the network."""
        return FETCH_SECONDS if self.settings.lake.remote else REFRESH_SECONDS

    def look_at_files(self) -> None:
        """Report files of what is served that are gone or changed. It goes on from memory; a restart could not load it."""
        now = self.current
        gone = "" if now is None else now.changed()
        if now is None or (gone and now.places != linked(self.settings, now.encoder, now.dimensions)):  # a publication has replaced them
            return
        if gone and gone != self._gone:
            log.error("release %d: %s", now.version, gone)
        self._gone = gone

    def reopen(self) -> None:
        """:meth:`refresh`, and report what hinders it; what is served goes on, and it is tried again in a moment."""
        try:
            self.refresh()
            self._stale = ""
        except Exception as fault:
            if not self._stale:
                log.error("the newest publication is not served: %s", fault, exc_info=not isinstance(fault, MoonError))
            self._stale = f"the newest publication is not served: {fault}"
