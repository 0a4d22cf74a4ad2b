"""A release that is killed while it is registered: the next command completes it, or closes what is no release."""

from __future__ import annotations

import datetime as dt
from typing import Any

import lance
import pytest

from moon_ops.registry.registry import CANDIDATE, RELEASE, Registry, manifest_of
from moon_ops.release import manifest as making
from moon_ops.release import registration
from moon_ops.release.changes import Changes
from moon_ops.settings import Settings

LATER = dt.timedelta(hours=2)


def register(settings: Settings, now: dt.datetime, **changed: Any) -> int:
    """A release of the parts of release 1, as ``moon release`` registers it once it is measured."""
    registry = Registry(settings)
    content = {**manifest_of(registry, 1), "compared_with": {"release": 1, "metrics": None}, **changed}
    with registration.registering(settings, registry, now):
        return making._registered(settings, registry, content, [], Changes()).version


def kept(settings: Settings) -> set[str]:
    return set(lance.dataset(settings.lake.address("embeddings/v1")).tags.list())


def described(registry: Registry, version: int) -> bool:
    return bool(registry.client.get_model_version(RELEASE, str(version)).description)


@pytest.mark.parametrize("step", ["start_run", "log", "register", "describe", "point", "finish"])
@pytest.mark.parametrize("mended_by", ["the next release", "moon doctor --repair"])
def test_killed_at_any_step_it_is_nothing_or_complete(copied: Settings, now: dt.datetime, step: str, mended_by: str) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Registry, step, killed)
        with pytest.raises(KeyboardInterrupt):
            register(copied, now)
    registry = Registry(copied)
    made = step in ("describe", "point", "finish")
    assert registry.newest(RELEASE) == (2 if made else 1)
    assert len(registration.left(copied, registry, now)) == (0 if step == "start_run" else 2 if step == "describe" else 1)

    if mended_by == "the next release":
        assert register(copied, now) == (3 if made else 2)
    else:
        done = registration.finish(copied, registry, now)
        assert done == (
            [] if step == "start_run" else ["completed release 2"] if made else ["closed 'release of encoder 1', which left no release"]
        )
    newest = registry.newest(RELEASE) or 0
    assert kept(copied) == {f"release-{version}" for version in range(1, newest + 1)}
    assert all(described(registry, version) for version in range(1, newest + 1))
    assert registry.alias(CANDIDATE) == (newest if newest > 1 else 1)
    assert registry.running() == {}
    assert registration.left(copied, registry, now) == []


def test_one_that_is_killed_and_failed_takes_no_place_from_one_that_waits(copied: Settings, now: dt.datetime) -> None:
    waiting = register(copied, now)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Registry, "finish", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            register(copied, now, passed=False)
    registration.finish(copied, Registry(copied), now)
    assert Registry(copied).alias(CANDIDATE) == waiting


def test_tags_follow_the_releases(copied: Settings, registry: Registry, now: dt.datetime) -> None:
    tags = lance.dataset(copied.lake.address("embeddings/v1")).tags
    tags.delete("release-1")
    tags.create("release-7", lance.dataset(copied.lake.address("embeddings/v1")).version)
    assert registration.left(copied, registry, now) == [
        "embeddings/v1 has the tag release-7, but there is no such release",
        "the vectors of release 1 are not kept: their tag is missing",
    ]
    assert registration.finish(copied, registry, now) == [
        "took the tag release-7 from embeddings/v1: there is no such release",
        "tagged the vectors of release 1",
    ]
    assert kept(copied) == {"release-1"}
    assert tags.list()["release-1"]["version"] == manifest_of(registry, 1)["embeddings"]["version"]


def test_a_run_that_is_open_for_long_was_killed_unless_it_can_go_on(copied: Settings, registry: Registry) -> None:
    now = dt.datetime.now(dt.UTC)
    killed, training = (registry.start_run(name, {}) for name in ("export", "train moon-nano"))
    (copied.home / "checkpoints").mkdir(exist_ok=True)
    (copied.home / "checkpoints" / "moon-nano-0.run").write_text(training)
    assert registration.left(copied, registry, now) == [], "it may be running"
    assert registration.left(copied, registry, now + LATER) == [f"'export' was killed: its run {killed} is still open"]
    assert registration.finish(copied, registry, now + LATER) == ["closed the run of 'export' as failed"]
    assert set(registry.running()) == {training}
    assert registry.client.get_run(killed).info.status == "FAILED"
