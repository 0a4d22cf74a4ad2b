"""Making a release: measured beside the champion, registered with its evidence, and its parts named by their sha256."""

from __future__ import annotations

import datetime as dt
import shutil
from pathlib import Path

import lance
import pytest

from moon_ops.errors import ContractError
from moon_ops.inputs.contract import file_sha256
from moon_ops.metric_names import catalogue, leakage, serving, space
from moon_ops.registry.encoders import encoder_version
from moon_ops.registry.registry import CANDIDATE, CHAMPION, CTR, ENCODER, Registry, manifest_of
from moon_ops.release.gates import AUC, PARITY, RECALL, TEXT_RECALL
from moon_ops.release.manifest import FILES, Beside, release
from moon_ops.release.windows import Windows, windows
from moon_ops.settings import Settings


@pytest.fixture
def times(copied: Settings) -> Windows:
    return windows(copied.lake, trained_until=encoder_version(copied, 1).trained_until)


def test_a_second_release_is_compared_with_the_champion(copied: Settings, times: Windows, now: dt.datetime) -> None:
    """Of the same parts: so all its figures are the champion's, and it passes by the tolerance."""
    made = release(copied, 1, 1, times, now=now, shown=Beside(figures={"mine": 0.5}))
    registry = Registry(copied)
    manifest = manifest_of(registry, made.version)
    first = manifest_of(registry, 1)
    assert (made.version, made.passed, made.champion) == (2, True, 1)
    main = [(PARITY, None), (RECALL, made.metrics[RECALL]), (AUC, made.metrics[AUC])]
    assert [(v.gate, v.champion) for v in made.verdicts][:3] == main
    judged = {v.gate for v in made.verdicts}
    assert {serving("embed_ms"), serving("score_ms"), serving("bytes")} <= judged
    assert {catalogue("in_index"), catalogue("lag_hours"), space("pair_cosine"), leakage("click_model"), TEXT_RECALL} <= judged
    assert made.metrics[catalogue("with_vector")] == 1.0
    assert made.champion_metrics is not None
    assert made.metrics[serving("bytes")] == made.champion_metrics[serving("bytes")]
    assert not [v for v in made.verdicts if v.blocks and not v.passed]
    assert made.metrics[AUC] == pytest.approx(first["metrics"][AUC], abs=1e-6)
    assert made.metrics[RECALL] == first["metrics"][RECALL]
    assert manifest["metrics"] == made.metrics
    assert manifest["metrics"]["mine"] == 0.5
    assert [v["blocks"] for v in manifest["evidence"]] == [v.blocks for v in made.verdicts]
    assert manifest["compared_with"] == {"release": 1, "metrics": made.champion_metrics}
    assert {k: manifest[k] for k in ("encoder", "ctr", "index", "contract_id")} == {
        k: first[k] for k in ("encoder", "ctr", "index", "contract_id")
    }
    assert (registry.alias(CANDIDATE), registry.alias(CHAMPION)) == (2, 1)
    tags = lance.dataset(copied.lake.address("embeddings/v1")).tags.list()
    assert tags["release-2"]["version"] == manifest["embeddings"]["version"]


def test_the_manifest_names_every_file_that_answers(released: Settings) -> None:
    registry = Registry(released)
    manifest = manifest_of(registry, 1)
    for name, part in ((ENCODER, manifest["encoder"]), (CTR, manifest["ctr"])):
        directory = registry.fetch(name, part["version"])
        assert part["sha256"] == {file: file_sha256(directory / file) for file in FILES[name]}
        assert {p.name for p in directory.iterdir() if p.suffix == ".onnx"} <= set(part["sha256"])
    assert manifest["passed"] is True
    assert manifest["trained_until"] == encoder_version(released, 1).trained_until.isoformat()
    assert manifest["embeddings"]["rows"] == manifest["index"]["items"] == 115


def test_a_champion_that_knows_the_window_keeps_the_figures_it_was_released_with(
    copied: Settings, times: Windows, now: dt.datetime
) -> None:
    """The candidate may look at a window that the champion was trained into."""
    registry = Registry(copied)
    run = registry.start_run("later encoder", {})
    tags = registry.tags(ENCODER, 1)
    registry.register(ENCODER, run, registry.fetch(ENCODER, 1), tags)
    registry.tag(ENCODER, 1, {"trained_until": times.end.isoformat()})
    _publish_as(copied, 2)
    made = release(copied, 2, None, times, now=now)
    first = manifest_of(registry, 1)["metrics"]
    costs = {name for name in first if name.startswith(serving(""))}
    assert made.champion_metrics is not None
    assert {name: value for name, value in made.champion_metrics.items() if name not in costs} == {
        **{name: value for name, value in first.items() if name not in costs},
        "recorded": 1.0,
    }
    assert serving("embed_ms") in made.champion_metrics, "what it costs is measured beside the candidate"
    assert serving("score_ms") not in made.champion_metrics, "it has scored nothing in this window"
    assert manifest_of(registry, made.version)["notes"] == [
        "the champion was trained into these windows: its figures are those it was released with, without intervals or slices"
    ]
    assert AUC not in made.metrics


def _publish_as(settings: Settings, version: int) -> None:
    """Encoder 1's vectors, index and table under another version: it is the same encoder."""
    for place in ("lake/embeddings/v1.lance", "index/v1", "tables/items-v1"):
        source = Path(settings.home / place)
        shutil.copytree(source.resolve(), source.with_name(source.name.replace("1", str(version), 1)))


def test_a_click_model_of_another_encoder_is_refused(copied: Settings, times: Windows, now: dt.datetime) -> None:
    registry = Registry(copied)
    registry.tag(CTR, 1, {"contract_id": "c-other"})
    with pytest.raises(ContractError, match=r"encoder and click model: contract c-[0-9a-f]+ was about to meet contract c-other"):
        release(copied, 1, 1, times, now=now)
    assert registry.alias(CANDIDATE) == 1


def test_a_release_that_fails_is_registered_with_its_evidence(copied: Settings, times: Windows, now: dt.datetime, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for recipe in copied.models.glob("*.toml"):
        text = recipe.read_text().replace("parity_floor = 0.999", "parity_floor = 1.0").replace("recall_floor = 0.10", "recall_floor = 1.0")
        (tmp_path / "models" / recipe.name).write_text(text)
    registry = Registry(copied)
    registry.client.delete_registered_model_alias("moon-release", CHAMPION)
    made = release(copied.replace(models=tmp_path / "models"), 1, None, times, now=now)
    assert (made.version, made.passed, made.champion) == (2, False, 1), "compared with what is served, also without an alias"
    evidence = {v["gate"]: v["passed"] for v in manifest_of(registry, 2)["evidence"]}
    assert evidence[RECALL] is False
    tags = registry.tags("moon-release", 2)
    assert (tags["passed"], tags["gate"]) == ("false", "failed")
    page = registry.client.get_model_version("moon-release", "2").description
    assert page.startswith("**Release 2: ❌ failed** (compared with release 1)")
    assert "| image_search/recall@10 |" in page
    assert registry.alias(CANDIDATE) == 2
