"""The registry on a fresh SQLite file: versions, their files and tags, and aliases."""

from __future__ import annotations

import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from moon_ops.errors import ServiceError, StageError
from moon_ops.registry.registry import CANDIDATE, CHAMPION, CTR, ENCODER, EXPERIMENT, PREVIOUS, RELEASE, Registry
from moon_ops.settings import Settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings.from_environment(tmp_path_factory.mktemp("registry") / "home")


@pytest.fixture(scope="module")
def registry(settings: Settings) -> Registry:
    return Registry(settings)


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """A directory with a file and one in a directory below."""
    (tmp_path / "part" / "below").mkdir(parents=True)
    (tmp_path / "part" / "model.bin").write_bytes(b"weights")
    (tmp_path / "part" / "below" / "note.txt").write_text("note")
    return tmp_path / "part"


def files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_nothing_is_there_at_first(registry: Registry) -> None:
    assert [registry.alias(name) for name in (CANDIDATE, CHAMPION, PREVIOUS)] == [None, None, None]
    assert registry.newest(ENCODER) is None


def test_more_metrics_than_mlflow_takes_at_once(registry: Registry) -> None:
    run = registry.start_run("many", {})
    registry.log(run, {f"tasks/of/many{n}": n for n in range(1001)})
    assert len(registry.client.get_run(run).data.metrics) == 1001


def test_everything_lies_under_the_home(registry: Registry, settings: Settings, part: Path) -> None:
    run = registry.start_run("place", {})
    registry.register("moon-place", run, part, {})
    assert registry.fetch("moon-place", 1).is_relative_to(settings.home / "mlartifacts")
    assert (settings.home / "mlflow.db").is_file()


def test_what_is_registered_is_what_is_fetched(registry: Registry, part: Path) -> None:
    run = registry.start_run("export", {"recipe": "moon-nano"})
    tags = {"contract_id": "c-one", "seed": "0"}
    assert registry.register(ENCODER, run, part, tags) == 1
    assert files(registry.fetch(ENCODER, 1)) == {"model.bin": b"weights", "below/note.txt": b"note"}
    assert registry.tags(ENCODER, 1) == tags
    registry.tag(ENCODER, 1, {"seed": "7", "more": "x"})
    assert registry.tags(ENCODER, 1) == {"contract_id": "c-one", "seed": "7", "more": "x"}


def test_versions_count_up_and_keep_their_files(registry: Registry, part: Path) -> None:
    first = registry.register(CTR, registry.start_run("one", {}), part, {})
    (part / "model.bin").write_bytes(b"other weights")
    second = registry.register(CTR, registry.start_run("two", {}), part, {})
    assert (first, second, registry.newest(CTR)) == (1, 2, 2)
    assert [files(registry.fetch(CTR, n))["model.bin"] for n in (1, 2)] == [b"weights", b"other weights"]


def test_an_unknown_version_is_an_error(registry: Registry, part: Path) -> None:
    registry.register("moon-once", registry.start_run("one", {}), part, {})
    for name, version in (("moon-once", 2), ("moon-never", 1)):
        with pytest.raises(StageError, match=rf"{name} has no version {version} \(there are: .*\) → name one of these"):
            registry.tags(name, version)
        with pytest.raises(StageError, match=f"{name} has no version {version}"):
            registry.fetch(name, version)


def test_aliases_point_to_releases_and_move(registry: Registry, part: Path) -> None:
    one, two = (registry.register(RELEASE, registry.start_run("release", {}), part, {}) for _ in range(2))
    registry.point(CHAMPION, one)
    assert (registry.alias(CHAMPION), registry.alias(PREVIOUS)) == (one, None)
    registry.point(CHAMPION, two)
    assert registry.alias(CHAMPION) == two


def test_a_report_is_attached_to_the_run_of_a_version(registry: Registry, part: Path, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("<h1>Release</h1>")
    version = registry.register("moon-thing", registry.start_run("release", {}), part, {})
    registry.attach("moon-thing", version, tmp_path / "report")
    assert (registry.fetch("moon-thing", version).parent / "report" / "index.html").read_text() == "<h1>Release</h1>"
    assert "index.html" not in str(files(registry.fetch("moon-thing", version)))


def test_metrics_and_parameters_of_a_run(registry: Registry) -> None:
    run = registry.start_run("train", {"seed": 3, "recipe": "moon-nano"}, {"kind": "test"})
    registry.log(run, {"loss": 2.0}, 10)
    registry.log(run, {"loss": 1.5, "image_search/recall@10": 0.25, "hardness/+0.5": 0.75, "hardness/-0.5": 0.125}, 20)
    registry.finish(run)
    found = registry.client.get_run(run)
    assert found.data.params == {"seed": "3", "recipe": "moon-nano"}
    assert found.data.metrics == {"loss": 1.5, "image_search/recall_at_10": 0.25, "hardness/0.5": 0.75, "hardness/-0.5": 0.125}
    assert found.data.tags["kind"] == "test"
    assert (found.info.run_name, found.info.status) == ("train", "FINISHED")
    assert [(m.step, m.value) for m in registry.client.get_metric_history(run, "loss")] == [(10, 2.0), (20, 1.5)]


def test_a_failed_run_is_marked(registry: Registry) -> None:
    run = registry.start_run("train", {})
    registry.finish(run, failed=True)
    assert registry.client.get_run(run).info.status == "FAILED"


def test_opening_it_again_finds_the_same_things(registry: Registry, settings: Settings, part: Path) -> None:
    version = registry.register("moon-again", registry.start_run("one", {}), part, {"a": "b"})
    again = Registry(settings)
    assert again.tags("moon-again", version) == {"a": "b"}
    assert again.experiment_id == registry.experiment_id
    assert [e.name for e in again.client.search_experiments()].count(EXPERIMENT) == 1


def test_a_server_that_does_not_answer_is_an_error(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ServiceError, match=r"MOON_TRACKING_URI = http://127.0.0.1:9: MLflow does not answer"):
        Registry(settings.replace(tracking_uri="http://127.0.0.1:9"))


def test_a_password_in_the_address_is_not_repeated(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in the error, not in what it came from, and not in a log."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away_from = settings.replace(tracking_uri="http://moon:geheim@127.0.0.1:9")
    with pytest.raises(ServiceError, match=r"MOON_TRACKING_URI = http://\*\*\*@127.0.0.1:9: MLflow does not answer") as away:
        Registry(away_from)
    assert "geheim" not in "".join(traceback.format_exception(away.value)) + caplog.text


def test_opening_one_says_nothing(tmp_path: Path) -> None:
    """Whatever Feast has done to the filters: MLflow's tables warn of themselves when they are first imported."""
    code = "import feast, pathlib\nfrom moon_ops.registry.registry import Registry\nfrom moon_ops.settings import Settings\n"
    code += f"Registry(Settings(home=pathlib.Path({str(tmp_path / 'home')!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Warning" not in done.stderr
