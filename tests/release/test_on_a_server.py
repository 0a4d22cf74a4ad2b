"""Moves through a real MLflow server: the record's numbers are the server's, and an alias moved in its UI is noticed."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from by_hand import WISH, Make, aliases, said

from moon_ops.errors import GateError
from moon_ops.registry.moves import moves
from moon_ops.registry.registry import CHAMPION, PREVIOUS, Registry
from moon_ops.release import promotion
from moon_ops.serving.follower import Follower
from moon_ops.settings import Settings


def test_moves_through_a_server(through_server: Settings, make_release: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promoted by the command, in the UI, and by twelve machines at once; the record is complete, and a service follows."""
    for _ in range(4):
        make_release()
    registry, follower = Registry(through_server), Follower(through_server)
    assert said(registry) == [("promote", None, 1)], "what was recorded without a server is there"
    follower.follow()
    assert (follower.champion().version, follower.refused) == (1, "")
    promotion.promote(through_server, 2, WISH)
    registry.client.set_registered_model_alias("moon-release", CHAMPION, "3")  # the UI's request
    follower.follow()
    assert follower.champion().version == 3
    assert said(registry)[1:] == [("promote", 1, 2), ("noticed", 2, 3)]
    assert promotion.rollback(through_server, WISH).after == 2
    assert aliases(registry) == {CHAMPION: 2, PREVIOUS: 3}
    promotion.rollback(through_server, WISH, to=1)
    monkeypatch.setattr(promotion, "_alone", lambda _settings: contextlib.nullcontext())  # machines share no lock

    def ask(number: int) -> str:
        try:
            return "moved" if promotion.promote(through_server, 4 + number % 2, WISH).move else "it is champion already"
        except GateError as fault:
            return fault.problem

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))
    assert answers.count("moved") == 1, answers
    last = moves(registry)[-1]
    assert (last.kind, last.before, last.release in (4, 5)) == ("promote", 1, True)
    assert aliases(registry) == {CHAMPION: last.release, PREVIOUS: 1}
