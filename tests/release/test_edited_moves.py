"""Somebody has edited or deleted an entry of the record of moves in MLflow: all that follows it counts, and nobody is stopped."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from by_hand import WISH, Make, aliases, said

from moon_ops.errors import GateError
from moon_ops.registry import moves as record
from moon_ops.registry.moves import ENTRY, moves
from moon_ops.registry.registry import CHAMPION, MOVES, PREVIOUS, Registry
from moon_ops.release import promotion
from moon_ops.release.status import status
from moon_ops.serving.follower import Follower
from moon_ops.settings import Settings

MOVE = record.Move("promote", 2, 1, "ann", "2026-06-01T03:00:00+00:00", follows=1)


def promoted(settings: Settings, make_release: Make, count: int) -> None:
    """Releases 2 and following, each promoted in place of the one before."""
    for number in range(2, 2 + count):
        assert make_release(compared_with={"release": number - 1}) == number
        promotion.promote(settings, number, WISH)


@pytest.mark.parametrize(
    "content",
    [
        "edited by hand",
        "[]",
        "{}",
        json.dumps({**asdict(MOVE), "kind": "moved"}),
        json.dumps({**asdict(MOVE), "release": "2"}),
        json.dumps({**asdict(MOVE), "before": ""}),
        json.dumps({**asdict(MOVE), "at": "yesterday"}),
        json.dumps({**asdict(MOVE), "forced": "no"}),
    ],
)
def test_what_follows_an_entry_that_cannot_be_read_counts(registry: Registry, content: str) -> None:
    """Entry 2 is broken; 3 came too late when it was written, 4 followed 2."""
    for follows in (1, 1, 2):
        registry.append(MOVES, 1, {ENTRY: json.dumps(asdict(replace(MOVE, follows=follows)))}, "")
    assert [move.number for move in moves(registry)] == [1, 2, 4]
    registry.tag(MOVES, 2, {ENTRY: content})
    known = moves(registry)
    assert ([move.number for move in known], known.newest, known.unreadable) == ([1, 4], 4, [2])
    registry.client.delete_model_version(MOVES, "2")
    known = moves(registry)
    assert ([move.number for move in known], known.newest, known.unreadable) == ([1, 4], 4, [])


def test_one_that_came_too_late_does_not_take_its_place(registry: Registry) -> None:
    """The entry that won is the last of the record, and broken: whoever was told to have lost has lost."""
    for number in (2, 3):
        assert registry.append(MOVES, 1, {ENTRY: json.dumps(asdict(replace(MOVE, release=number)))}, "") == number
    record.finished(registry, moves(registry)[-1])
    registry.tag(MOVES, 2, {ENTRY: "{"})
    known = moves(registry)
    assert ([move.number for move in known], known.newest) == ([1], 2)
    claimed = record.claim(registry, replace(MOVE, follows=known.newest))
    assert claimed is not None
    assert [move.number for move in moves(registry)] == [1, 4]


def test_one_that_was_never_done_counts_for_nothing(registry: Registry) -> None:
    """It came too late, or was killed at once: the next one follows what came before."""
    registry.append(MOVES, 1, {ENTRY: "{"}, "")
    known = moves(registry)
    assert ([move.number for move in known], known.newest, known.unreadable) == ([1], 1, [2])
    assert record.claim(registry, replace(MOVE, follows=known.newest)) is not None


def test_commands_and_service_go_on(copied: Settings, registry: Registry, make_release: Make) -> None:
    """The middle one of three moves is broken, then the last one, too."""
    promoted(copied, make_release, 2)
    registry.tag(MOVES, 2, {ENTRY: "edited by hand"})
    assert said(registry) == [("promote", None, 1), ("promote", 2, 3)]
    assert status(copied)["last_move"].startswith("release 3 promoted in place of 2")
    assert promotion.rollback(copied, WISH, dry_run=True).after == 1, "that release 2 was served cannot be read any more"
    registry.tag(MOVES, 3, {ENTRY: "edited by hand"})
    follower = Follower(copied)
    follower.follow()
    assert (follower.champion().version, follower.refused) == (3, "")
    assert said(registry)[-1] == ("noticed", 1, 3), "as one that was made in MLflow"
    assert promotion.rollback(copied, WISH).after == 1
    assert aliases(registry) == {CHAMPION: 1, PREVIOUS: 3}
    with pytest.raises(GateError, match="compared with release 3, but release 1 is champion now"):
        promotion.promote(copied, make_release(compared_with={"release": 3}), WISH)
