"""Make a release: one encoder, its vectors, its index and its click model under one version, with the evidence for or against it.

The candidate and the champion are measured on the same queries and the same impressions, in the same process. A release that fails
its gates is still registered: its evidence is what the person who looks at it needs.
"""

from __future__ import annotations

import datetime as dt
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moon_ops.ctr.alignment import Alignment
from moon_ops.ctr.metrics import Difference
from moon_ops.embeddings import features, index_shards, vector_tables
from moon_ops.errors import LeakError, StageError
from moon_ops.inputs.contract import file_sha256, require_same
from moon_ops.metric_names import PARITY
from moon_ops.publication import marks, narrow, places, publication, sharing
from moon_ops.recipes.gates import Gates
from moon_ops.recipes.reading import recipe
from moon_ops.registry.registry import CHAMPION, CTR, ENCODER, RELEASE, Registry, manifest_of
from moon_ops.release import (
    aligning,
    changes,
    clicks,
    evaluation,
    evidence,
    expected_gain,
    index_recall,
    operation,
    recall,
    registration,
    report,
    served,
    serving_cost,
    stages,
)
from moon_ops.release.aligning import Shipped
from moon_ops.release.comparison import Measured, as_numbers, differences
from moon_ops.release.gates import AUC, Verdict, judge
from moon_ops.release.page import Report
from moon_ops.release.serving_cost import Made
from moon_ops.release.verification import dimensions_of
from moon_ops.release.windows import Windows
from moon_ops.settings import VARIANTS, Settings
from moon_ops.telemetry import traces
from moon_ops.telemetry.stages import stage

FILES = {  # of a registered model: what answers requests, and the weights it was exported from
    ENCODER: ("model.safetensors", "tower.onnx", "trunk.onnx", "tokenizer.json", "contract.json"),
    CTR: ("model.safetensors", "model.onnx", "vocabulary.json", "ctr.json"),
}


@dataclass(frozen=True)
class Release:
    """A registered release: its version, its verdicts, and whether it may be promoted; its report, and where that lies (empty: nowhere)."""

    version: int
    passed: bool
    verdicts: list[Verdict]
    metrics: dict[str, float]
    champion: int | None
    champion_metrics: dict[str, float] | None
    report: Report = field(default_factory=lambda: Report("", "", ()))
    report_at: str = ""


@dataclass(frozen=True)
class Beside:
    """What a report shows beside a release: the ID-only click model ``baseline``, a simulated shop's ``oracle``, further ``figures``."""

    baseline: Path | None = None
    oracle: Path | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


def measure(
    settings: Settings,
    encoder: int,
    ctr: int | None,
    windows: Windows,
    *,
    shown: Beside | None = None,
    through: Alignment | None = None,
    dimensions: int = 0,
) -> Measured:
    """Every figure a gate or a report reads: recall (of the first ``dimensions`` of each vector, if these are searched), parity and, with a
    click model (``through`` a map, if it is of another encoder), its metrics."""
    registry = Registry(settings)
    searches = evaluation.evaluate(settings, encoder, windows, dimensions)
    found = {PARITY: float(registry.tags(ENCODER, encoder)["parity_cosine"]), **searches.metrics}
    found |= index_recall.figures(settings, encoder, dimensions)
    if ctr is None:
        return Measured(found, searches, dimensions=dimensions)
    model, beside = registry.fetch(CTR, ctr), shown or Beside()
    figures, scored = clicks.judged_ctr(settings, encoder, model, windows, baseline=beside.baseline, oracle=beside.oracle, through=through)
    return Measured({**found, **figures}, searches, scored, dimensions)


@stage("release")
def release(
    settings: Settings,
    encoder: int,
    ctr: int | None,
    windows: Windows,
    *,
    now: dt.datetime,
    shown: Beside | None = None,
    aligned: bool = False,
) -> Release:
    """Measure, judge and register a release, and let the alias ``candidate`` point to it. What is ``shown`` beside goes into the evidence.

    Raises :class:`~moon_ops.errors.ContractError` if the click model was trained on another encoder's vectors (not if ``aligned``: then it
    reads the vectors through a map).
    """
    registry = Registry(settings)
    sharing.fetch(settings, encoder)
    found = _compared(settings, (encoder, ctr), windows, now, shown or Beside(), aligned=aligned)
    debts, champion_metrics = found.known.get("debts", {}), found.beside.metrics if found.beside else None
    metrics = {**found.candidate.metrics, **operation.figures(settings, encoder, ctr, windows, now=now), **as_numbers(found.gaps)}
    metrics |= {**found.changed.figures, **(shown.figures if shown else {}), **(found.shipped.figures if found.shipped else {})}
    metrics |= expected_gain.in_auc(settings, metrics, champion_metrics)
    gates = recipe(Gates, "gates", settings.models)
    verdicts = judge(gates, metrics, champion_metrics, found.gaps, debts, variant=settings.variant)
    manifest = {
        "passed": not any(v.stops for v in verdicts),
        "evidence": [asdict(v) for v in verdicts],
        "metrics": metrics,
        "searches": searches_of(found.candidate),
        "notes": _notes(metrics, champion_metrics, found.gaps.get(AUC)),
        "compared_with": {"release": found.champion, "metrics": champion_metrics},
        "diff": {"release": found.champion, "figures": found.changed.figures, "notes": found.changed.notes},
        "debts": {v.gate: v.debt for v in verdicts},
        "created": now.isoformat(),
        "windows": {name: moment.isoformat() for name, moment in asdict(windows).items()},
        **_parts(settings, registry, encoder, ctr, found),
        **({"traceparent": made_in} if (made_in := traces.traceparent()) else {}),
    }
    with registration.registering(settings, registry, now):
        return _registered(settings, registry, manifest, verdicts, found.changed)


@dataclass(frozen=True)
class _Compared:
    """A candidate and the champion that it has to follow, with its manifest; ``shipped``: the map between their encoders."""

    champion: int | None
    known: dict[str, Any]
    candidate: Measured
    beside: Measured | None
    gaps: dict[str, Difference]
    changed: changes.Changes
    shipped: Shipped | None


def _compared(
    settings: Settings, made: tuple[int, int | None], windows: Windows, now: dt.datetime, shown: Beside, *, aligned: bool
) -> _Compared:
    """Measure the candidate ``made`` of an encoder and a click model, and the champion on the same queries and impressions."""
    encoder, ctr = made
    champion, known = _judged_against(settings, Registry(settings))
    shipped = aligning.for_release(settings, encoder, ctr, known, windows, wanted=aligned)
    dimensions = narrow.asked(settings, encoder)
    candidate = measure(settings, encoder, ctr, windows, shown=shown, through=shipped.through if shipped else None, dimensions=dimensions)
    beside = _champion_measured(settings, known, windows, now) if champion else None
    others = (*_versions(known), beside) if beside else None
    candidate, beside = _with_costs(settings, (encoder, ctr, candidate), others)
    shipped = aligning.with_costs(settings, shipped, candidate, windows, (encoder, others[1] if others else None))
    changed = _changed(settings, encoder, known, candidate, windows)
    return _Compared(champion, known, candidate, beside, differences(candidate, beside), changed, shipped)


def _changed(settings: Settings, encoder: int, known: dict[str, Any], candidate: Measured, windows: Windows) -> changes.Changes:
    """What changes for users from the champion, whose manifest is ``known``, to the candidate."""
    encoders = (int(known["encoder"]["version"]), encoder) if known else None
    until = dt.datetime.fromisoformat(known["trained_until"]) if known else None
    queries = candidate.searches.queries if candidate.searches else None
    return changes.tried(settings.lake, encoders, windows, until, queries, (dimensions_of(known), candidate.dimensions))


def _registered(
    settings: Settings, registry: Registry, manifest: dict[str, Any], verdicts: list[Verdict], changed: changes.Changes
) -> Release:
    """The new version of ``moon-release``, to which the alias ``candidate`` points now, with its report.

    The report is there before the version is, under the number that comes next; its rows of vectors are kept by a tag.
    """
    encoder, ctr = manifest["encoder"]["version"], manifest["ctr"]["version"] if manifest["ctr"] else None
    champion = manifest["compared_with"]["release"]
    run_id = registry.start_run(f"{registration.RUN}{encoder}", {"encoder": encoder, "ctr": ctr, "champion": champion})
    registry.log(run_id, manifest["metrics"])
    expected = (registry.newest(RELEASE) or 0) + 1
    drawn, at = report.filed(registry, run_id, settings.lake, expected, manifest, changed)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        tags = {"encoder": str(encoder), "ctr": str(ctr or ""), "contract_id": manifest["contract_id"]}
        version = registry.register(RELEASE, run_id, Path(scratch), {**tags, **evidence.tags(manifest)})
    if version != expected:  # somebody else has registered one meanwhile
        drawn, at = report.filed(registry, run_id, settings.lake, version, manifest, changed)
    registration.complete(settings, registry, version, manifest)
    registry.finish(run_id)  # last: a run that is open tells that its release was killed
    passed, beside = bool(manifest["passed"]), manifest["compared_with"]
    return Release(version, passed, verdicts, manifest["metrics"], champion, beside["metrics"], drawn, at)


def searches_of(measured: Measured) -> dict[str, Any]:
    """What a service may offer of the vectors, for the manifest: the prefixes, each with its figures and whether it is certified, and from
    which cosine on an item is relevant to a picture and to a text.
    """
    if measured.searches is None:
        return {"prefixes": [], "relevance": {}}
    found = measured.searches
    sound = recall.certified(found.prefixes)
    prefixes = [{**asdict(one), "certified": one.dim in sound} for one in found.prefixes]
    return {"prefixes": prefixes, "relevance": {kind: asdict(one) for kind, one in found.relevance.items()}}


def _parts(settings: Settings, registry: Registry, encoder: int, ctr: int | None, found: _Compared) -> dict[str, Any]:
    """What the release consists of; every part's contract is checked against the encoder's."""
    contract, shipped, dimensions = registry.tags(ENCODER, encoder)["contract_id"], found.shipped, found.candidate.dimensions
    require_same(contract, vector_tables.contract_of(settings.lake, encoder), what="encoder and embeddings table")
    place = places.index_place(settings, encoder, dimensions)
    header = index_shards.verified(place)
    require_same(contract, header.contract_id, what="encoder and index")
    table = settings.lake.open(vector_tables.table_name(encoder))
    parts: dict[str, Any] = {
        "contract_id": contract,
        "trained_until": registry.tags(ENCODER, encoder)["trained_until"],
        "encoder": _part(registry, ENCODER, encoder),
        "embeddings": {"table": vector_tables.table_name(encoder), "version": table.version, "rows": table.count_rows()},
        "index": {
            **{"place": f"index/{place.name}", "sha256": header.sha256, "kind": header.kind, "items": header.items},
            **({"dimensions": dimensions} if dimensions else {}),
        },
        "feature_service": features.service_name(encoder),
        "ctr": None,
    }
    if ctr is not None:
        read = contract if shipped is None or not shipped.used else shipped.alignment.old
        require_same(read, registry.tags(CTR, ctr)["contract_id"], what="encoder and click model")
        parts["ctr"] = _part(registry, CTR, ctr)
    return {**parts, "alignment": aligning.register(registry, shipped)}


def _part(registry: Registry, name: str, version: int) -> dict[str, Any]:
    """A model's version and the sha256 of every file that an answer depends on."""
    directory = registry.fetch(name, version)
    variants = sorted(file.name for variant in VARIANTS[1:] for file in directory.glob(f"*.{variant}.*")) if name == ENCODER else []
    return {"version": version, "sha256": {file: file_sha256(directory / file) for file in (*FILES[name], *variants)}}


def _judged_against(settings: Settings, registry: Registry) -> tuple[int | None, dict[str, Any]]:
    """The release that is served, which a candidate has to follow, and its manifest: the champion, unless that cannot be served."""
    try:
        choice = served.choose(settings, registry)
    except StageError:
        champion = registry.alias(CHAMPION)
        return champion, manifest_of(registry, champion) if champion else {}
    return choice.release, choice.parts.manifest


def _champion_measured(settings: Settings, manifest: dict[str, Any], windows: Windows, now: dt.datetime) -> Measured:
    """The champion's figures on the candidate's windows; those it was released with if it was trained into these windows."""
    (encoder, ctr), dimensions = _versions(manifest), dimensions_of(manifest)
    stages.embed(settings, encoder, now=now)  # it is judged on the catalogue of today, as it would be served
    sharing.fetch(settings, encoder)
    if marks.published_versions(settings, encoder) != marks.lake_versions(settings, encoder):
        publication.publish(settings, encoder, now=now)
    try:
        return measure(settings, encoder, ctr, windows, through=aligning.of(Registry(settings), manifest), dimensions=dimensions)
    except LeakError:
        return Measured({**manifest["metrics"], "recorded": 1.0}, dimensions=dimensions)


def _versions(manifest: dict[str, Any]) -> tuple[int, int | None]:
    """A release's encoder and click model."""
    return int(manifest["encoder"]["version"]), int(manifest["ctr"]["version"]) if manifest["ctr"] else None


def _with_costs(settings: Settings, candidate: Made, champion: Made | None) -> tuple[Measured, Measured | None]:
    """Both with what they cost on the serving path."""
    found = serving_cost.with_costs(settings, [candidate] if champion is None else [candidate, champion])
    return found[0], None if champion is None else found[1]


def _notes(metrics: dict[str, float], champion: dict[str, float] | None, gap: Difference | None) -> list[str]:
    """What whoever reads the evidence should know, and no gate says."""
    found = [expected_gain.disagreement(metrics, gap), index_recall.note(metrics)]
    if champion is not None and "recorded" in champion:
        found.append("the champion was trained into these windows: its figures are those it was released with, without intervals or slices")
    return [note for note in found if note]
