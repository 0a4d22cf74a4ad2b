"""Moves through a real MLflow server: the record's numbers are the server's, and an alias moved in its UI is noticed."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from by_hand import WISH, Make, aliases, said

from moon_ops.errors import GateError
from moon_ops.registry import discreet
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


def test_two_threads_fetch_a_version_at_once(through_server: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service and its follower are one process: each downloads into a directory of its own, and one of the two is kept."""
    together = threading.Barrier(2)

    class Both(discreet.Discreet):
        """Downloads when two are about to."""

        def download_artifacts(self, path: str, dst_path: str) -> str:
            together.wait(60)
            return str(self._part.download_artifacts(path, dst_path=dst_path))

    monkeypatch.setattr("moon_ops.registry.registry.Discreet", Both)
    registry = Registry(through_server)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: registry.fetch("moon-release", 1), range(2))
    assert first == second == through_server.home / "downloads" / "moon-release" / "1"
    assert (first / "manifest.json").is_file()
    assert [found.name for found in first.parent.iterdir()] == ["1"], "nothing of the other is left"
