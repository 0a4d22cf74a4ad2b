"""The record of moves: one wins, a killed one is finished, and there is always a way back to the last good release."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import astuple, replace
from typing import Any

import pytest
from by_hand import FAILED, WISH, Make, aliases, said

from moon_ops.errors import GateError, StageError
from moon_ops.registry import moves as record
from moon_ops.registry.moves import moves
from moon_ops.registry.registry import CANDIDATE, CHAMPION, PREVIOUS, Registry, manifest_of
from moon_ops.release import promotion
from moon_ops.release.verification import verify
from moon_ops.settings import Settings


def test_the_first_release_is_champion_and_there_is_no_way_back(copied: Settings, registry: Registry) -> None:
    assert aliases(registry) == {CHAMPION: 1, PREVIOUS: None}
    assert registry.alias(CANDIDATE) == 1
    with pytest.raises(StageError, match=r"no previous release to roll back to \(champion: 1\)"):
        promotion.rollback(copied, WISH)
    assert aliases(registry) == {CHAMPION: 1, PREVIOUS: None}


def test_promotion_and_rollback_move_the_aliases_and_are_recorded(copied: Settings, registry: Registry, make_release: Make) -> None:
    assert make_release() == 2
    assert promotion.promote(copied, 2, WISH).before == 1
    assert aliases(registry) == {CHAMPION: 2, PREVIOUS: 1}
    moved = promotion.rollback(copied, WISH)
    assert (moved.before, moved.after) == (2, 1)
    assert aliases(registry) == {CHAMPION: 1, PREVIOUS: 2}
    assert said(registry) == [("promote", None, 1), ("promote", 1, 2), ("rollback", 2, 1)]
    last = moves(registry)[-1]
    assert (last.by, last.at, last.why, len(last.evidence), last.done) == (*astuple(WISH), 64, True)
    assert last.told() == "release 1 rolled back to in place of 2 by on-call@laptop, 2026-06-02T03:00:00+00:00: tried"


def test_a_second_rollback_does_not_return_to_what_was_left(copied: Settings, registry: Registry, make_release: Make) -> None:
    """Two people roll back at the same time: the second is told, and --again goes further back, not forward."""
    for number in (2, 3):
        assert make_release(compared_with={"release": number - 1}) == number
        promotion.promote(copied, number, WISH)
    assert promotion.rollback(copied, WISH).after == 2
    with pytest.raises(StageError, match=r"the last move was a rollback already \(release 2 rolled back to in place of 3 by .*--again"):
        promotion.rollback(copied, WISH)
    assert promotion.rollback(copied, WISH, again=True, dry_run=True).after == 1
    assert aliases(registry) == {CHAMPION: 2, PREVIOUS: 3}, "a dry run moves nothing"
    assert promotion.rollback(copied, WISH, again=True).after == 1
    with pytest.raises(StageError, match=r"no previous release to roll back to \(champion: 1\)"):
        promotion.rollback(copied, WISH, again=True)
    assert promotion.rollback(copied, WISH, to=3).after == 3, "whoever names it gets it"


def test_a_promotion_in_mlflow_keeps_the_way_back(copied: Settings, registry: Registry, make_release: Make) -> None:
    make_release()
    registry.point(CHAMPION, 2)  # what the button in the UI does
    moved = promotion.rollback(copied, WISH)
    assert (moved.before, moved.after, aliases(registry)) == (2, 1, {CHAMPION: 1, PREVIOUS: 2})
    assert said(registry) == [("promote", None, 1), ("noticed", 1, 2), ("rollback", 2, 1)]
    assert moves(registry)[1].by == promotion.IN_MLFLOW


def test_after_a_deleted_alias_a_rollback_brings_back_what_ran(copied: Settings, registry: Registry, make_release: Make) -> None:
    make_release()
    promotion.promote(copied, 2, WISH)
    registry.drop(CHAMPION)
    with pytest.raises(GateError, match="release 1, but release 2 is champion now"):
        promotion.promote(copied, make_release(compared_with={"release": 1}), WISH)
    assert promotion.rollback(copied, WISH).after == 2


def test_a_release_that_was_never_served_is_no_way_back(copied: Settings, registry: Registry, make_release: Make) -> None:
    """An alias moved by hand to a release that failed: nobody served it, so it does not enter the record."""
    make_release(evidence=[FAILED], passed=False)
    registry.point(CHAMPION, 2)
    assert promotion.rollback(copied, WISH).after == 1
    assert said(registry) == [("promote", None, 1), ("rollback", 2, 1)]


def test_a_home_of_before_gets_a_record(unrecorded: Settings, registry: Registry, make_release: Make) -> None:
    """Its aliases are all that is known of it."""
    make_release()
    registry.point(PREVIOUS, 1)
    registry.point(CHAMPION, 2)
    assert promotion.rollback(unrecorded, WISH).after == 1
    assert said(registry) == [("noticed", None, 1), ("noticed", 1, 2), ("rollback", 2, 1)]


def test_a_failed_gate_is_overridden_by_name_and_with_a_reason(copied: Settings, registry: Registry, make_release: Make) -> None:
    make_release(evidence=[FAILED], passed=False)
    with pytest.raises(GateError, match="a gate is overridden only with a reason → say why"):
        promotion.promote(copied, 2, replace(WISH, why=" "), force=True)
    assert promotion.promote(copied, 2, WISH, force=True).after == 2
    assert moves(registry)[-1].told().startswith("release 2 promoted in place of 1 (forced) by on-call@laptop")
    verify(copied, registry, manifest_of(registry, 2), forced=2 in promotion.admitted(moves(registry)))
    promotion.rollback(copied, WISH)
    assert promotion.promote(copied, 2, WISH).after == 2, "once admitted, it stays so"


def test_promoting_the_champion_again_keeps_the_way_back(copied: Settings, registry: Registry, make_release: Make) -> None:
    make_release()
    promotion.promote(copied, 2, WISH)
    assert promotion.promote(copied, 2, WISH).before == 2
    assert aliases(registry) == {CHAMPION: 2, PREVIOUS: 1}


@pytest.mark.parametrize("killed_at", ["claim", PREVIOUS, CHAMPION, "finished"])
def test_a_move_killed_at_any_step_is_finished_by_the_next_command(
    copied: Settings, registry: Registry, make_release: Make, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    make_release()
    point, claim, finished = Registry.point, record.claim, record.finished

    def killed_point(self: Registry, alias: str, version: int) -> None:
        if alias == killed_at:
            raise KeyboardInterrupt
        point(self, alias, version)

    def killed_after(step: Callable[..., Any], name: str) -> Callable[..., Any]:
        def stopped(*given: Any) -> Any:
            if name == "finished" == killed_at:
                raise KeyboardInterrupt
            made = step(*given)
            if name == "claim" == killed_at:
                raise KeyboardInterrupt
            return made

        return stopped

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "point", killed_point)
        patch.setattr(record, "claim", killed_after(claim, "claim"))
        patch.setattr(record, "finished", killed_after(finished, "finished"))
        with pytest.raises(KeyboardInterrupt):
            promotion.promote(copied, 2, WISH)
    assert registry.alias(CHAMPION) in (1, 2)
    assert promotion.rollback(copied, WISH, dry_run=True).before == 2, "what was begun is done"
    assert aliases(registry) == {CHAMPION: 2, PREVIOUS: 1}
    assert said(registry) == [("promote", None, 1), ("promote", 1, 2)]


FORTY = """
import multiprocessing, pathlib, sys
from moon_ops.errors import GateError
from moon_ops.release import promotion
from moon_ops.settings import Settings

def ask(number, barrier, answers):
    wish = promotion.Wish(f"on-call {number}", "2026-06-02T03:00:00+00:00")
    settings = Settings.from_environment(pathlib.Path(sys.argv[1]))
    barrier.wait()
    try:
        said = "moved" if promotion.promote(settings, 2 + number % 2, wish).move else "it is champion already"
    except GateError as fault:
        said = fault.problem
    answers.put(said)

forks = multiprocessing.get_context("fork")
barrier, answers = forks.Barrier(40), forks.Queue()
processes = [forks.Process(target=ask, args=(number, barrier, answers)) for number in range(40)]
for process in processes:
    process.start()
print(*(answers.get(timeout=100) for _ in processes), sep="\\n")
"""


def test_forty_processes_promote_at_once(copied: Settings, registry: Registry, make_release: Make) -> None:
    """Twenty for release 2, twenty for release 3: one wins, and all others are told; nobody meets a locked database."""
    assert (make_release(), make_release()) == (2, 3)
    asked = subprocess.run([sys.executable, "-c", FORTY, copied.home], capture_output=True, text=True, check=True, timeout=120)
    answers = asked.stdout.splitlines()
    told = [answer for answer in answers if answer != "moved"]
    assert (len(answers), len(told)) == (40, 39), asked.stdout + asked.stderr
    assert all(re.search("champion already|compared with release 1, but release|somebody else was quicker", answer) for answer in told)
    assert said(registry)[-1][:2] == ("promote", 1)
    assert aliases(registry) == {CHAMPION: moves(registry)[-1].release, PREVIOUS: 1}


def test_of_two_machines_that_move_at_once_one_wins(copied: Settings, registry: Registry, make_release: Make) -> None:
    """They share no lock: both have read the record before either writes."""
    assert (make_release(), make_release()) == (2, 3)
    known = moves(registry)
    first, second = (promotion._entry(registry, "promote", n, 1, WISH, known) for n in (2, 3))
    assert promotion._move(registry, first, dry_run=False).after == 2
    with pytest.raises(GateError, match="somebody else was quicker: release 2 promoted in place of 1"):
        promotion._move(registry, second, dry_run=False)
    assert said(registry) == [("promote", None, 1), ("promote", 1, 2)]
