"""A release that a service refused is known to all: the jobs work for what is served, `moon status` and `moon verify` say why."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest

from moon_ops import tasks
from moon_ops.registry.registry import Registry, manifest_of
from moon_ops.release import promotion, refusals, served
from moon_ops.release.examination import examine
from moon_ops.release.refusals import Refusal
from moon_ops.release.status import lines, status
from moon_ops.serving import canary
from moon_ops.serving import follower as following
from moon_ops.serving.follower import Follower
from moon_ops.settings import Settings

WISH = promotion.Wish("on-call@laptop", "2026-06-02T03:00:00+00:00", "tried")
SLOW = "logged queries take more than 3 times as long as with release 1"
Make = Callable[..., int]


def clock() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@pytest.fixture
def refusing(copied: Settings, make_release: Make, monkeypatch: pytest.MonkeyPatch) -> Follower:
    """A service of a busy machine: it serves release 1, release 2 is champion, and it refuses that for being slow."""
    monkeypatch.setattr(following, "AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(canary, "refusal", lambda *_, **__: SLOW)
    follower = Follower(copied)
    follower.follow()
    promotion.promote(copied, make_release(), WISH)
    follower.follow()
    assert (follower.state().serving, follower.state().asked) == (1, 2)
    return follower


def test_who_else_has_to_know_does(
    copied: Settings, registry: Registry, refusing: Follower, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (noted,) = refusals.all_of(copied)
    assert (noted.release, noted.reason, noted.by) == (2, SLOW, refusing._name())
    choice = served.choose(copied, registry, now=clock())
    assert (choice.release, choice.asked) == (1, 2)
    assert choice.why == noted.told() == f"release 2 is not served: the service on {noted.by} has refused it, {noted.at}: {SLOW}"
    monkeypatch.setenv("MOON_HOME", str(copied.home))
    tasks.embed_for_champion(clock().isoformat())
    assert "release 1 is served in place of 2, because release 2 is not served: the service on" in caplog.text
    found = status(copied, now=clock())
    assert (found["champion"]["release"], found["serving"]["release"]) == (2, 1)
    assert f"refused     {noted.told()}" in list(lines(found))
    (wrong,) = [finding for finding in examine(copied, now=clock()) if finding.part == "champion"]
    assert wrong.grave
    assert wrong.problem == f"{noted.told()}; release 1 is to be served in its place"


def test_it_is_tried_again_and_forgotten_once_it_is_served(
    copied: Settings, registry: Registry, refusing: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service itself asks for the champion, whatever is written down: the machine is idle by now."""
    monkeypatch.setattr(canary, "refusal", lambda *_, **__: "")
    refusing.follow()
    assert (refusing.state().serving, refusing.refused) == (2, "")
    assert refusals.all_of(copied) == []
    assert served.choose(copied, registry, now=clock()).release == 2


def test_a_rollback_ends_it(copied: Settings, refusing: Follower) -> None:
    promotion.rollback(copied, WISH)
    refusing.follow()
    assert (refusing.refused, refusals.all_of(copied)) == ("", [])


def test_a_service_that_runs_no_more_refuses_nothing(copied: Settings, registry: Registry, refusing: Follower) -> None:
    refusals.note(copied, Refusal(2, SLOW, (clock() - dt.timedelta(minutes=11)).isoformat(), refusing._name()))
    assert served.choose(copied, registry, now=clock()).release == 2
    assert status(copied, now=clock())["refused"] == []
    refusing.follow()
    assert served.choose(copied, registry, now=clock()).release == 1, "while it runs it says so anew"


def test_one_service_of_a_home_refuses_and_another_serves(copied: Settings, registry: Registry, refusing: Follower) -> None:
    """The jobs work for the one that serves what is asked for; `moon verify` names the other."""
    served.remember(copied, served.parts_of(copied, registry, 2), "2026-06-02T03:00:00+00:00")
    assert served.choose(copied, registry, now=clock()).why == ""
    (note,) = [finding for finding in examine(copied, now=clock()) if finding.part == "served"]
    assert (note.problem, note.grave) == (refusals.all_of(copied)[0].told(), False)
    refusals.note(copied, Refusal(2, "broken", clock().isoformat(), "other:8321"))
    assert {refusal.by for refusal in refusals.all_of(copied)} == {refusing._name(), "other:8321"}
    refusing.follow()
    refusals.forget(copied, by=refusing._name())
    assert [refusal.by for refusal in refusals.all_of(copied)] == ["other:8321"]


def test_who_insists_strikes_it_out(copied: Settings, registry: Registry, refusing: Follower) -> None:
    promotion.promote(copied, 2, WISH, force=True, dry_run=True)
    assert len(refusals.all_of(copied)) == 1
    assert promotion.promote(copied, 2, WISH, force=True).move is None, "it is champion already"
    assert refusals.all_of(copied) == []


def test_where_nothing_else_can_be_served_the_jobs_work_for_what_is_refused(copied: Settings, registry: Registry) -> None:
    """What keeps it from being loaded may be mended by the next publication."""
    refusals.note(copied, Refusal(1, "no index", clock().isoformat(), "host:8321"))
    choice = served.choose(copied, registry, now=clock())
    assert (choice.release, choice.why) == (1, "")


def test_a_release_that_cannot_be_loaded_is_refused_as_well(copied: Settings, registry: Registry, make_release: Make) -> None:
    follower = Follower(copied)
    follower.follow()
    promotion.promote(copied, make_release(contract_id=manifest_of(registry, 1)["contract_id"]), WISH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(following, "Champion", lambda *_: (_ for _ in ()).throw(RuntimeError("no memory")))
        follower.follow()
    assert [(refusal.release, refusal.reason) for refusal in refusals.all_of(copied)] == [(2, "RuntimeError: no memory")]


@pytest.mark.parametrize("content", ["{", "{}", "[1]", '[{"release": 1, "reason": "", "at": "yesterday", "by": ""}]', '[{"release": 1}]'])
def test_a_file_that_somebody_else_has_written_refuses_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "refused.json").write_text(content)
    settings = Settings(home=tmp_path)
    assert refusals.standing(settings, clock()) == []
    refusals.note(settings, Refusal(3, "x" * 900, clock().isoformat(), "host:8321"))
    assert [len(refusal.reason) for refusal in refusals.all_of(settings)] == [refusals.LONGEST]
