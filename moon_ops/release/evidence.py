"""What a person sees of a release in MLflow: a description in Markdown, and tags that the list of versions shows."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from moon_ops.release.gates import AUC, FAILED, PASSED, RECALL, TEXT_RECALL, TOO_LITTLE

SIGNS = {PASSED: "✅ passed", FAILED: "❌ failed", TOO_LITTLE: "⚠️ too little data"}
REPORT = "With pictures: `report/report.html` among the artifacts of this version's source run."
RUNBOOK = "Runbook: `docs/on-call.md` of moon_ops."
NOT_THE_BUTTON = (
    "To serve this release, move the alias `champion` here, or run `moon promote`. MLflow's button *Promote model* copies a version and "
    "changes nothing that is served."
)


def tags(manifest: Mapping[str, Any]) -> dict[str, str]:
    """For the list of versions: the verdict of all gates together, the two figures that everybody asks for, and how old it is (UTC)."""
    metrics = manifest["metrics"]
    shown = {"recall_at_10": metrics.get(RECALL, metrics.get(TEXT_RECALL)), "auc": metrics.get(AUC)}
    found = {"gate": outcome(manifest["evidence"]), "passed": str(manifest["passed"]).lower()}
    found |= {name: utc(manifest[name]) for name in ("created", "trained_until")}
    return found | {name: f"{value:.4f}" for name, value in shown.items() if value is not None}


def utc(stamp: str) -> str:
    """A time of the manifest to the minute, as people read and lists sort it."""
    return f"{dt.datetime.fromisoformat(stamp).astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC"


def outcome(evidence: list[Mapping[str, Any]]) -> str:
    """Of all gates: failed if one failed, or else too little data if one could not tell."""
    found = [_outcome(verdict) for verdict in evidence]
    return next((what for what in (FAILED, TOO_LITTLE) if what in found), PASSED)


def description(version: int, manifest: Mapping[str, Any]) -> str:
    """The page of a release: verdict first, then each gate beside the champion, what it is made of, and what to do."""
    against = manifest["compared_with"]["release"]
    beside = f"compared with release {against}" if against is not None else "the first release: compared with the floors"
    lines = [f"**Release {version}: {SIGNS[outcome(manifest['evidence'])]}** ({beside})", "", f"{REPORT} {RUNBOOK}", ""]
    lines += ["| gate | this release | champion | difference, 95 % interval | must be | verdict |", "|---|---|---|---|---|---|"]
    lines += [_row(verdict) for verdict in manifest["evidence"]]
    undecided = [v for v in manifest["evidence"] if _outcome(v) == TOO_LITTLE]
    for verdict in undecided:
        lines += ["", f"{verdict['gate']}: no difference below {verdict['detectable']:.4f} could have been seen in these data."]
    click_model = f"moon-ctr {manifest['ctr']['version']}" if manifest["ctr"] else "no click model"
    lines += ["", f"moon-encoder {manifest['encoder']['version']}, {click_model}, contract `{manifest['contract_id']}`, trained until"]
    lines[-1] += f" {manifest['trained_until'][:16]}; judged until {manifest['windows']['end'][:16]}."
    lines += ["", NOT_THE_BUTTON, "", f"Back: `moon rollback`. Why: `moon explain {version}`."]
    return "\n".join(lines) + "\n"


def _row(verdict: Mapping[str, Any]) -> str:
    champion = "" if verdict["champion"] is None else f"{verdict['champion']:.4f}"
    gap = ""
    if verdict.get("low") is not None:
        gap = f"{verdict['value'] - verdict['champion']:+.4f} [{verdict['low']:+.4f}, {verdict['high']:+.4f}]"
    return f"| {verdict['gate']} | {verdict['value']:.4f} | {champion} | {gap} | {verdict['rule']} | {SIGNS[_outcome(verdict)]} |"


def _outcome(verdict: Mapping[str, Any]) -> str:
    """Evidence of before knew only passed and not."""
    return str(verdict.get("outcome") or (PASSED if verdict["passed"] else FAILED))
