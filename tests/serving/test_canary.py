"""Before the switch: logged queries are replayed on both releases, and a candidate that does badly is not served."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fastapi.testclient import TestClient
from onnx import numpy_helper

from moon_ops.inputs.contract import file_sha256
from moon_ops.lake.lake import Lake
from moon_ops.registry.registry import CHAMPION, CTR, Registry, manifest_of
from moon_ops.release import promotion
from moon_ops.serving import canary
from moon_ops.serving.app import create_app
from moon_ops.serving.canary import Canary, Logged, Queries, Recent, Side, draw, refusal, replay
from moon_ops.serving.champion import Hit
from moon_ops.serving.follower import Follower
from moon_ops.settings import Settings

WISH = promotion.Wish("on-call@laptop", "2026-06-02T03:00:00+00:00", "tried")
Make = Callable[..., int]


@dataclass
class Fake:
    """A release that finds the items it is given."""

    version: int
    found: Sequence[int] = tuple(range(10))
    fails_on: str = ""
    number: float = 0.5
    scorer: Any = None
    asked: list[str] = field(default_factory=list)

    def embed(self, text: str, picture: bytes | None) -> Any:
        self.asked.append(text)
        if self.fails_on and self.fails_on in text:
            raise ValueError(f"no {text}")
        return np.ones(2, np.float32)

    def search(self, vector: Any, k: int) -> list[Hit]:
        return [Hit(item, self.number) for item in self.found]

    def score(self, user_id: int, item_ids: Sequence[int], asked: Any) -> list[float]:
        return [self.number] * len(item_ids)


def queries(*texts: str) -> Queries:
    return Queries([Logged(text) for text in texts], [])


def canary_of(**changed: Any) -> Canary:
    same = Side(10.0, 20.0, 0.0)
    given = {"before": same, "after": same, "errors": 0, "both": 0, "not_finite": 0, "overlap": 1.0, "seconds": 1.0}
    return Canary(**{"candidate": 2, "champion": 1, "queries": 10, "scored": 0, **given, **changed})


def test_what_only_the_candidate_cannot_answer_is_its_fault() -> None:
    seen = replay(Fake(1, fails_on="broken"), Fake(2, fails_on="bro"), queries("lamp", "broken picture", "brown mug"))
    assert (seen.queries, seen.errors, seen.both, seen.overlap) == (3, 1, 1, 1.0)
    assert seen.first_fault == "ValueError: no brown mug"


def test_overlap_is_of_what_the_champion_found() -> None:
    seen = replay(Fake(1), Fake(2, found=[0, 1, 2, 77]), queries("lamp", "mug"))
    assert seen.overlap == pytest.approx(0.3)
    nothing = replay(Fake(1), Fake(2, found=[]), queries("lamp"))
    assert (nothing.overlap, nothing.before.empty, nothing.after.empty) == (0.0, 0.0, 1.0)
    assert replay(Fake(1, found=[]), Fake(2), queries("lamp")).overlap is None


def test_numbers_that_are_not_finite_are_counted() -> None:
    assert replay(Fake(1), Fake(2, number=float("nan")), queries("lamp", "mug")).not_finite == 2


def test_a_replay_ends_when_its_time_is_over() -> None:
    times = iter([0.0, 0.0, 4.0, 8.0, 12.0, 12.0])
    first = Fake(1)
    seen = replay(first, Fake(2), queries("a", "b", "c", "d", "e"), seconds=10.0, clock=lambda: next(times))
    assert (seen.queries, seen.cut) == (3, 2)
    assert first.asked == ["warm up", "a", "b", "c"]
    assert "time for 2 more was lacking" in seen.told()


@pytest.mark.parametrize(
    ("changed", "settings", "returning", "why"),
    [
        ({}, {}, False, ""),
        ({"errors": 1, "first_fault": "ValueError: no"}, {}, True, "a logged query that release 1 answers fails (ValueError: no)"),
        ({"not_finite": 1}, {}, True, "a logged query is answered with a number that is not finite"),
        ({"after": Side(1.0, 1.0, 1.0)}, {}, True, "no logged query finds an item, with release 1 they do"),
        ({"after": Side(59.0, 90.0, 0.0)}, {}, False, ""),  # 5.9 times, but not even 50 ms
        ({"after": Side(61.0, 90.0, 0.0)}, {}, False, "logged queries take more than 3 times as long"),
        ({"after": Side(61.0, 90.0, 0.0)}, {"canary_latency_ratio": 7}, False, ""),
        ({"after": Side(900.0, 900.0, 0.0)}, {}, True, ""),  # the way back is open
        ({"overlap": 0.0}, {}, False, ""),
        ({"overlap": 0.2}, {"canary_overlap": 0.3}, False, "less than 0.3 of what release 1 finds first is found"),
        ({"overlap": 0.2}, {"canary_overlap": 0.3}, True, ""),
    ],
)
def test_why_a_candidate_is_refused(changed: dict[str, Any], settings: dict[str, Any], returning: bool, why: str) -> None:
    said = refusal(canary_of(**changed), Settings(**settings), returning=returning)
    assert said.startswith(why) if why else said == ""


def test_queries_are_drawn_from_the_lake_and_from_the_last_requests(copied: Settings) -> None:
    recent = Recent()
    for number in range(40):
        recent.keep(f"request {number}", None)
    recent.keep("large", b"x" * (canary.MOST_BYTES + 1))
    found = draw(copied.lake, recent)
    assert [query.text for query in found.of_requests] == [f"request {number}" for number in range(8, 40)]
    assert len(found.of_lake) == canary.MOST
    assert {query.picture is not None for query in found.of_lake} == {True, False}
    assert all(query.user is not None for query in found.of_lake)
    assert found == draw(copied.lake, recent), "the same each time"


def test_without_a_lake_the_requests_are_what_there_is(tmp_path: Path) -> None:
    assert draw(Lake(str(tmp_path / "none")), Recent()) == Queries([], [])
    seen = replay(Fake(1), Fake(2), draw(Lake(str(tmp_path / "none")), Recent()))
    assert "no query has been logged yet" in seen.told()
    (tmp_path / "lake" / "queries.lance" / "_versions").mkdir(parents=True)
    (tmp_path / "lake" / "queries.lance" / "_versions" / "1.manifest").write_bytes(b"broken")
    assert "the lake's queries cannot be read" in draw(Lake(str(tmp_path / "lake")), Recent()).missing


def test_a_good_release_is_tried_and_served(
    copied: Settings, registry: Registry, make_release: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "moon_ops")
    with TestClient(create_app(copied)) as client:
        follower = client.app.state.follower  # type: ignore[attr-defined]
        client.post("/v1/search", data={"text": "red lamp"})
        promotion.promote(copied, make_release(), WISH)
        follower.follow()
        ready = client.get("/ready").json()
        assert (ready["release"], ready["status"]) == (2, "ready")
        seen = ready["canary"]
        assert (seen["candidate"], seen["champion"], seen["queries"], seen["errors"], seen["not_finite"]) == (2, 1, canary.MOST + 1, 0, 0)
        assert (seen["scored"], seen["overlap"]) == (canary.MOST, 1.0)
        assert 0 < seen["after"]["p50_ms"] <= seen["after"]["p95_ms"]
        assert "moon_canary_overlap 1.0" in client.get("/metrics").text
    told = [r.getMessage() for r in caplog.records if r.getMessage().startswith("canary of release 2 beside 1: 33 queries, 32 scored")]
    assert len(told) == 1
    assert "now serving release 2 in place of 1" in caplog.text


def broken(registry: Registry, tmp_path: Path) -> int:
    """A click model as moon-ctr 1 whose every weight is not a number; its version."""
    place = tmp_path / "broken"
    shutil.copytree(registry.fetch(CTR, 1), place)
    graph = onnx.load(place / "model.onnx")
    for weight in graph.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype == np.float32:
            weight.CopyFrom(numpy_helper.from_array(np.full_like(values, np.nan), weight.name))
    onnx.save(graph, place / "model.onnx")
    return registry.register(CTR, registry.start_run("broken", {}), place, registry.tags(CTR, 1))


def test_a_release_that_scores_no_numbers_is_not_served_and_a_rollback_mends_it(
    copied: Settings, registry: Registry, make_release: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    """Its gates passed, by the manifest; the first thing that it is asked shows what it is."""
    version = broken(registry, tmp_path)
    of_one = manifest_of(registry, 1)["ctr"]
    hashes = {file: file_sha256(registry.fetch(CTR, version) / file) for file in of_one["sha256"]}
    follower = Follower(copied)
    follower.follow()
    promotion.promote(copied, make_release(ctr={**of_one, "version": version, "sha256": hashes}), WISH)
    follower.follow()
    state = follower.state()
    assert (state.status, state.serving, state.asked) == ("degraded", 1, 2)
    assert "release 2 is not served: a logged query is answered with a number that is not finite → " in state.why
    assert follower.canary is not None
    assert follower.canary.not_finite > 0
    monkeypatch.setattr("moon_ops.serving.follower.AGAIN_SECONDS", 0.0)
    follower._again = 0.0
    follower.follow()
    assert len([r for r in caplog.records if "release 2 is not served" in r.getMessage()]) == 1, "tried again, told once"
    assert json.loads((copied.home / "served.json").read_text())["release"] == 1
    restarted = Follower(copied)
    restarted.follow()
    assert (restarted.state().serving, restarted.state().status) == (1, "degraded"), "a restart makes it no better"
    promotion.rollback(copied, WISH)
    follower.follow()
    assert (follower.state().status, registry.alias(CHAMPION)) == ("ready", 1)
