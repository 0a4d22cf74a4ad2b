"""Make a release: one encoder, its vectors, its index and its click model under one version, with the evidence for or against it.

The candidate and the champion are measured on the same queries and the same impressions, in the same process. A release that fails
its gates is still registered: its evidence is what the person who looks at it needs.
"""

from __future__ import annotations

import datetime as dt
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moon_ops.embeddings import features, vector_tables
from moon_ops.embeddings.index import ItemIndex
from moon_ops.errors import LeakError, StageError
from moon_ops.inputs.contract import file_sha256, require_same
from moon_ops.metric_names import PARITY
from moon_ops.publication import marks, places, publication
from moon_ops.recipes.gates import Gates
from moon_ops.recipes.reading import recipe
from moon_ops.registry.registry import CHAMPION, CTR, ENCODER, RELEASE, Registry, manifest_of
from moon_ops.release import clicks, evaluation, evidence, expected_gain, registration, served, stages
from moon_ops.release.comparison import Measured, as_numbers, differences
from moon_ops.release.gates import Verdict, judge
from moon_ops.release.windows import Windows
from moon_ops.settings import VARIANTS, Settings

FILES = {  # of a registered model: what answers requests, and the weights it was exported from
    ENCODER: ("model.safetensors", "tower.onnx", "trunk.onnx", "tokenizer.json", "contract.json"),
    CTR: ("model.safetensors", "model.onnx", "vocabulary.json", "ctr.json"),
}


@dataclass(frozen=True)
class Release:
    """A registered release: its version, its verdicts, and whether it may be promoted."""

    version: int
    passed: bool
    verdicts: list[Verdict]
    metrics: dict[str, float]
    champion: int | None
    champion_metrics: dict[str, float] | None


def measure(
    settings: Settings, encoder: int, ctr: int | None, windows: Windows, *, baseline: Path | None = None, oracle: Path | None = None
) -> Measured:
    """Every figure a gate or a report reads: recall, parity and, with a click model, its metrics."""
    registry = Registry(settings)
    searches = evaluation.evaluate(settings, encoder, windows)
    found = {PARITY: float(registry.tags(ENCODER, encoder)["parity_cosine"]), **searches.metrics}
    if ctr is None:
        return Measured(found, searches)
    figures, scored = clicks.judged_ctr(settings, encoder, registry.fetch(CTR, ctr), windows, baseline=baseline, oracle=oracle)
    return Measured({**found, **figures}, searches, scored)


def release(
    settings: Settings,
    encoder: int,
    ctr: int | None,
    windows: Windows,
    *,
    now: dt.datetime,
    baseline: Path | None = None,
    oracle: Path | None = None,
    extra: dict[str, float] | None = None,
) -> Release:
    """Measure, judge and register a release, and let the alias ``candidate`` point to it. ``extra`` figures go into the evidence.

    Raises :class:`~moon_ops.errors.ContractError` if the click model was trained on another encoder's vectors.
    """
    registry = Registry(settings)
    champion = _judged_against(settings, registry)
    candidate = measure(settings, encoder, ctr, windows, baseline=baseline, oracle=oracle)
    known = manifest_of(registry, champion) if champion else {}
    beside = _champion_measured(settings, known, windows, now) if champion else None
    champion_metrics, gaps = beside.metrics if beside else None, differences(candidate, beside)
    metrics = {**candidate.metrics, **(extra or {}), **as_numbers(gaps)}
    metrics |= expected_gain.in_auc(settings, metrics, champion_metrics)
    verdicts = judge(recipe(Gates, "gates", settings.models), metrics, champion_metrics, gaps, known.get("debts", {}))
    passed = all(v.passed for v in verdicts)
    manifest = {
        **_parts(settings, registry, encoder, ctr),
        "windows": {name: moment.isoformat() for name, moment in asdict(windows).items()},
        "created": now.isoformat(),
        "passed": passed,
        "evidence": [asdict(v) for v in verdicts],
        "debts": {v.gate: v.debt for v in verdicts},
        "metrics": metrics,
        "compared_with": {"release": champion, "metrics": champion_metrics},
    }
    with registration.registering(settings, registry, now):
        version = _registered(settings, registry, manifest)
    return Release(version, passed, verdicts, metrics, champion, champion_metrics)


def _registered(settings: Settings, registry: Registry, manifest: dict[str, Any]) -> int:
    """The new version of ``moon-release``, to which the alias ``candidate`` points now; its rows of vectors are kept by a tag."""
    encoder, ctr = manifest["encoder"]["version"], manifest["ctr"]["version"] if manifest["ctr"] else None
    champion = manifest["compared_with"]["release"]
    run_id = registry.start_run(f"{registration.RUN}{encoder}", {"encoder": encoder, "ctr": ctr, "champion": champion})
    registry.log(run_id, manifest["metrics"])
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        tags = {"encoder": str(encoder), "ctr": str(ctr or ""), "contract_id": manifest["contract_id"]}
        version = registry.register(RELEASE, run_id, Path(scratch), {**tags, **evidence.tags(manifest)})
    registration.complete(settings, registry, version, manifest)
    registry.finish(run_id)  # last: a run that is open tells that its release was killed
    return version


def _parts(settings: Settings, registry: Registry, encoder: int, ctr: int | None) -> dict[str, Any]:
    """What the release consists of; every part's contract is checked against the encoder's."""
    contract = registry.tags(ENCODER, encoder)["contract_id"]
    require_same(contract, vector_tables.contract_of(settings.lake, encoder), what="encoder and embeddings table")
    header = ItemIndex.open(places.index_place(settings, encoder)).header
    require_same(contract, header.contract_id, what="encoder and index")
    table = settings.lake.open(vector_tables.table_name(encoder))
    parts: dict[str, Any] = {
        "contract_id": contract,
        "trained_until": registry.tags(ENCODER, encoder)["trained_until"],
        "encoder": _part(registry, ENCODER, encoder),
        "embeddings": {"table": vector_tables.table_name(encoder), "version": table.version, "rows": table.count_rows()},
        "index": {"place": f"index/v{encoder}", "sha256": header.sha256, "kind": header.kind, "items": header.items},
        "feature_service": features.service_name(encoder),
        "ctr": None,
    }
    if ctr is not None:
        require_same(contract, registry.tags(CTR, ctr)["contract_id"], what="encoder and click model")
        parts["ctr"] = _part(registry, CTR, ctr)
    return parts


def _part(registry: Registry, name: str, version: int) -> dict[str, Any]:
    """A model's version and the sha256 of every file that an answer depends on."""
    directory = registry.fetch(name, version)
    variants = sorted(file.name for variant in VARIANTS[1:] for file in directory.glob(f"*.{variant}.*")) if name == ENCODER else []
    return {"version": version, "sha256": {file: file_sha256(directory / file) for file in (*FILES[name], *variants)}}


def _judged_against(settings: Settings, registry: Registry) -> int | None:
    """The release that is served, which a candidate has to follow: the champion, unless that cannot be served."""
    try:
        return served.choose(settings, registry).release
    except StageError:
        return registry.alias(CHAMPION)


def _champion_measured(settings: Settings, manifest: dict[str, Any], windows: Windows, now: dt.datetime) -> Measured:
    """The champion's figures on the candidate's windows; those it was released with if it was trained into these windows."""
    ctr, encoder = manifest["ctr"]["version"] if manifest["ctr"] else None, int(manifest["encoder"]["version"])
    stages.embed(settings, encoder, now=now)  # it is judged on the catalogue of today, as it would be served
    if marks.published_versions(settings, encoder) != marks.lake_versions(settings, encoder):
        publication.publish(settings, encoder, now=now)
    try:
        return measure(settings, encoder, ctr, windows)
    except LeakError:
        return Measured({**manifest["metrics"], "recorded": 1.0})
