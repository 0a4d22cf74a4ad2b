"""``moon verify``: everything that is wrong with what is served is found, named with what to do, and nothing is changed."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moon_ops import tasks
from moon_ops.cli import doctor
from moon_ops.cli.trial import running
from moon_ops.errors import StageError
from moon_ops.lake.ingest import ingest
from moon_ops.registry.moves import ENTRY
from moon_ops.registry.registry import CHAMPION, CTR, ENCODER, MOVES, RELEASE, Registry, manifest_of
from moon_ops.release import examination, served
from moon_ops.release.examination import Finding, examine
from moon_ops.release.promotion import Wish, promote, rollback
from moon_ops.release.status import status
from moon_ops.settings import Settings

ANN = Wish("ann", "2026-06-01T03:00:00+00:00", "tried")


def found(settings: Settings, now: dt.datetime, url: str = "") -> dict[str, tuple[str, bool]]:
    return {finding.part: (finding.problem, finding.grave) for finding in examine(settings, now=now, url=url)}


def moon(settings: Settings, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moon_ops.cli", *words, "--home", str(settings.home)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_home_that_is_whole(copied: Settings, now: dt.datetime) -> None:
    assert examine(copied, now=now) == []
    assert tasks_verify(copied, now) == 0


def test_a_home_at_its_beginning_is_no_fault(fresh_mlflow: Path, now: dt.datetime) -> None:
    assert examine(Settings.from_environment(fresh_mlflow.parent), now=now) == [
        Finding(
            "champion",
            "there is no champion release",
            "run `moon rollback`, or `moon promote RELEASE`; for a first release `moon demo`",
            grave=False,
        )
    ]


def tasks_verify(settings: Settings, now: dt.datetime) -> int:
    """What the nightly DAG's task does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOON_HOME", str(settings.home))
        return tasks.verify(now.isoformat())


@pytest.mark.parametrize(("model", "file"), [(ENCODER, "trunk.onnx"), (CTR, "model.onnx"), (RELEASE, "manifest.json")])
@pytest.mark.parametrize("how", ["missing", "changed"])
def test_a_file_that_is_missing_or_changed(copied: Settings, registry: Registry, now: dt.datetime, model: str, file: str, how: str) -> None:
    place = registry.fetch(model, 1) / file
    if how == "missing":
        place.unlink()
    elif model == RELEASE:
        place.write_text(json.dumps({**manifest_of(registry, 1), "created": "another day"}))
    else:
        place.write_bytes(place.read_bytes() + b"\0")
    wrong = [finding for finding in examine(copied, now=now) if finding.grave]
    assert wrong
    assert any(file in finding.problem or "manifest of release 1 is not the one" in finding.problem for finding in wrong)
    with pytest.raises(StageError, match="release 1"):
        tasks_verify(copied, now)
    checks = {name: good for name, good, _ in doctor.examine(copied, now)}
    assert not all(checks.values())
    if model != RELEASE:
        assert file in status(copied)["serving"]["degraded"]


def test_an_index_that_is_gone_or_of_another_publication(copied: Settings, now: dt.datetime) -> None:
    before = examination.places.index_place(copied, 1).resolve()
    for file in ("index.json", "index.faiss"):
        content = (before / file).read_bytes()
        (before / file).write_bytes(content[:-9] + b"}" * 9)
        assert found(copied, now)["release 1 (champion) (candidate)"][1] is True
        (before / file).write_bytes(content)
    shutil.rmtree(before)
    assert found(copied, now)["release 1 (champion) (candidate)"][0].startswith("there is no index at ")


def test_the_alias_against_what_is_served(copied: Settings, registry: Registry, now: dt.datetime, make_release: Callable[..., int]) -> None:
    good, bad = make_release(), make_release(passed=False)
    promote(copied, good, ANN)
    (copied.home / "served.json").unlink(missing_ok=True)
    served.remember(copied, served.parts_of(copied, registry, 1), "2026-06-01")
    problem, grave = found(copied, now)["served"]
    assert (problem, grave) == (f"a service of this home has loaded release 1 last, 2026-06-01; release {good} is to be served", False)
    registry.point(CHAMPION, bad)
    problem, grave = found(copied, now)["champion"]
    assert problem.startswith(f"release {bad} is not served: the release did not pass its gates")
    assert problem.endswith(f"release {good} is to be served in its place")
    assert grave
    assert found(copied, now)["moves"] == (
        f"the alias `champion` says {bad}, the record {good}: somebody has moved it in MLflow",
        False,
    )


def test_a_running_service_is_asked(copied: Settings, now: dt.datetime, make_release: Callable[..., int]) -> None:
    with running(copied) as client:
        url = str(client.base_url)
        assert "service" not in found(copied, now, url)
        telling = moon(copied, "verify", "--url", url, "--json")
        assert (telling.returncode, json.loads(telling.stdout)) == (0, {"whole": True, "findings": []})
        follow = pytest.MonkeyPatch()
        follow.setattr(served, "choose", lambda *_, **__: (_ for _ in ()).throw(StageError("tried", action="nothing")))
        assert found(copied, now, url)["service"] == (f"{url} serves release 1, not None", True)
        follow.undo()
    assert found(copied, now, url)["service"][0].startswith(f"{url}/ready does not answer as a service does")


def test_a_move_that_was_killed(copied: Settings, now: dt.datetime, make_release: Callable[..., int]) -> None:
    release = make_release()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Registry, "point", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            promote(copied, release, ANN)
    problem, grave = found(copied, now)["moves"]
    assert problem.startswith("move 2 was killed before the alias followed: release 2 promoted in place of 1 by ann")
    assert not grave
    rollback(copied, ANN)
    assert "moves" not in found(copied, now)


def test_a_record_that_cannot_be_read(copied: Settings, registry: Registry, now: dt.datetime) -> None:
    registry.tag(MOVES, 1, {ENTRY: "edited by hand"})
    (finding,) = examine(copied, now=now)
    assert (finding.part, finding.grave) == ("moves", True)
    assert finding.told().startswith("moves: entry 1 cannot be read, and is passed over: somebody has edited it → put its tag `move`")


def test_what_killed_commands_have_left_is_mended_by_the_doctor(copied: Settings, registry: Registry, now: dt.datetime) -> None:
    (copied.home / "receipts").mkdir(exist_ok=True)
    item = copied.lake.read("items", ["item_id"])["item_id"][0].as_py()
    (copied.home / "receipts" / f"{item}.begun.json").write_text('{"places": {}, "users": []}')
    registry.start_run("release of encoder 1", {})
    (copied.home / "feature_store" / "feature_store.yaml").unlink()
    assert {part: grave for part, (_, grave) in found(copied, now).items()} == {"erasures": True, "registry": True}
    bad = moon(copied, "doctor")
    assert bad.returncode == 1
    assert {line.split()[1] for line in bad.stdout.splitlines() if line.startswith("BAD")} >= {"erasures", "registry", "feature_store"}
    mended = moon(copied, "doctor", "--repair")
    assert [line for line in mended.stdout.splitlines() if line.startswith("done")] == [
        f"done wrote {copied.home}/feature_store/feature_store.yaml",
        f"done completed the erasure of item {item}",
        "done closed 'release of encoder 1', which left no release",
    ]
    assert mended.returncode == 0, mended.stdout
    assert item not in copied.lake.read("items", ["item_id"])["item_id"].to_pylist()
    assert examine(copied, now=now) == []


def test_the_doctor_tells_of_a_clock_that_is_behind(copied: Settings, now: dt.datetime, make_shop: Callable[..., Path]) -> None:
    ingest(make_shop(items=[{"item_id": 9, "title": "Hat"}]), copied.lake, now=now + dt.timedelta(days=30))
    checks = {name: (good, detail) for name, good, detail in doctor.examine(copied, now)}
    assert checks["clock"][0] is False
    assert checks["clock"][1].startswith("1 item, 9, was learned at a time that lies ahead of this clock, 2026-07-01T00:00Z")


def test_a_finding_in_one_line() -> None:
    assert Finding("release 1", "it is broken", "mend it").told() == "release 1: it is broken → mend it"
