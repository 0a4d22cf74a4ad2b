"""The lake is away at night: what answers requests lies in the home, so one can go back. Nothing new is promoted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from by_hand import WISH, Make, aliases

from moon_ops.errors import MoonError, ServiceError, StageError
from moon_ops.lake.lake import Lake
from moon_ops.registry.registry import CHAMPION, PREVIOUS, Registry
from moon_ops.release import promotion
from moon_ops.serving.follower import Follower
from moon_ops.settings import Settings

UNCHECKED = "checked were the files of the models, the index and the table in MOON_HOME alone"


@pytest.fixture
def lakeless(copied: Settings, make_release: Make) -> Settings:
    """Release 2 is champion, 1 was; release 3 never was. Then the lake's disk is gone."""
    promotion.promote(copied, make_release(), WISH)
    make_release(compared_with={"release": 2})
    (copied.home / "lake").rename(copied.home / "away")
    return copied


def test_a_rollback_warns_and_goes_back(lakeless: Settings, registry: Registry) -> None:
    command = [sys.executable, "-m", "moon_ops.cli", "rollback", "--reason", "tried", "--json", "--home", str(lakeless.home)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, aliases(registry)) == (0, {CHAMPION: 1, PREVIOUS: 2}), done.stderr
    gone = f"the lake at {lakeless.home / 'lake'} has no table 'embeddings/v1' yet, and no items"
    assert f"warning: release 1: {gone}; {UNCHECKED}\n" in done.stderr
    assert json.loads(done.stdout)["unchecked"].endswith(UNCHECKED)


def test_what_has_been_champion_may_be_again_and_nothing_else(lakeless: Settings, registry: Registry) -> None:
    with pytest.raises(StageError, match="has no table 'embeddings/v1' yet"):
        promotion.promote(lakeless, 3, WISH)
    with pytest.raises(StageError, match="has no table 'embeddings/v1' yet"):
        promotion.rollback(lakeless, WISH, to=3)
    registry.point(CHAMPION, 3)  # in MLflow
    assert promotion.rollback(lakeless, WISH).after == 2, "nobody has served release 3"
    moved = promotion.promote(lakeless, 1, WISH)
    assert (moved.before, moved.after, moved.unchecked.endswith(UNCHECKED)) == (2, 1, True)


def test_a_file_that_is_not_what_it_was_is_found_without_the_lake(lakeless: Settings, registry: Registry) -> None:
    with (registry.fetch("moon-encoder", 1) / "trunk.onnx").open("ab") as stream:
        stream.write(b" ")
    with pytest.raises(MoonError, match=r"trunk\.onnx of moon-encoder 1 has sha256"):
        promotion.rollback(lakeless, WISH)
    assert registry.alias(CHAMPION) == 2


def test_a_store_that_refuses_is_the_same(lakeless: Settings, registry: Registry) -> None:
    """As an object store whose address does not answer: Lance says an error, and not that there is no table."""
    (lakeless.home / "lake").write_text("a file where the lake was")
    with pytest.raises(ServiceError, match=r"the lake at .* cannot be read"):
        Lake(lakeless.lake.uri).open("items")
    with pytest.raises(ServiceError, match=r"the lake at .* cannot be read"):
        promotion.promote(lakeless, 3, WISH)
    moved = promotion.rollback(lakeless, WISH)
    assert (moved.after, registry.alias(CHAMPION)) == (1, 1)
    assert moved.unchecked.startswith(f"the lake at {lakeless.lake.uri} cannot be read (")


def test_vectors_that_are_gone_from_a_lake_that_is_there_are_an_error(lakeless: Settings) -> None:
    (lakeless.home / "away").rename(lakeless.home / "lake")
    shutil.rmtree(lakeless.home / "lake" / "embeddings")
    with pytest.raises(StageError, match="has no table 'embeddings/v1' yet"):
        promotion.rollback(lakeless, WISH)


def test_a_service_starts_and_falls_back(lakeless: Settings, registry: Registry) -> None:
    (lakeless.home / "served.json").unlink(missing_ok=True)
    first = Follower(lakeless)
    first.follow()
    assert (first.state().serving, first.refused) == (2, "")
    registry.point(CHAMPION, 3)  # never served, so it would have to be checked
    (lakeless.home / "served.json").unlink()
    second = Follower(lakeless)
    second.follow()
    assert (second.state().serving, second.state().status) == (2, "degraded")
    assert "release 3 is not served: the lake at" in second.refused
