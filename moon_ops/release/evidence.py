"""What a person sees of a release in MLflow: a description in Markdown, and tags that the list of versions shows."""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moon_ops.metric_names import PARITY
from moon_ops.release.gates import AUC, FAILED, PASSED, RECALL, TEXT_RECALL, TOO_LITTLE, sentence, stopping

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


def outcome(evidence: Sequence[Mapping[str, Any]]) -> str:
    """Of all gates that block: failed if one failed, or else too little data if one could not tell."""
    found = [_outcome(verdict) for verdict in stopping(evidence)]
    return next((what for what in (FAILED, TOO_LITTLE) if what in found), PASSED)


def told(evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The verdicts that a person should see: the main gates, and of the others those that were not passed."""
    main = {PARITY, AUC, RECALL if any(v["gate"] == RECALL for v in evidence) else TEXT_RECALL}
    return [verdict for verdict in evidence if verdict["gate"] in main or _outcome(verdict) != PASSED]


def others(evidence: Sequence[Mapping[str, Any]]) -> str:
    """The rest in one sentence, by what they are about; empty if there is none."""
    shown = told(evidence)
    rest = Counter("slices" if v.get("low") is not None else v["gate"].partition("/")[0] for v in evidence if v not in shown)
    counted = ", ".join(f"{kind} {count}" for kind, count in rest.items())
    return f"{rest.total()} more gates passed ({counted})" if rest else ""


def lines(evidence: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """For the terminal: a line for each verdict that is told, and one for the rest."""
    for verdict in told(evidence):
        word = _outcome(verdict) if _outcome(verdict) == PASSED or verdict not in stopping(evidence) else "FAILED"
        blocks = "" if verdict.get("blocks", True) else " (does not block)"
        yield f"{word}  {sentence(verdict, 'must be')}{blocks}"
    if rest := others(evidence):
        yield f"passed  {rest}"


def summary(version: int, evidence: Sequence[Mapping[str, Any]], champion: int | None, report_at: str) -> Iterator[str]:
    """For the terminal, after a release was made: the verdict, each gate that is told, where the report lies, and what to do next."""
    found = outcome(evidence)
    beside = f"compared with release {champion}" if champion is not None else "the first release: compared with the floors"
    yield f"release     {version}: {found}, {beside}"
    yield from (f"gate        {line}" for line in lines(evidence))
    yield f"report      {report_at or 'none: the log says why'}"
    yield from (f"next        {step}" for step in _next(version, found))


def _next(version: int, found: str) -> Iterator[str]:
    forced = f'moon promote {version} --force --reason "…"'
    if found == PASSED:
        yield f"look at it: `MOON_PORT=8322 moon serve --release {version}`"
        yield f'promote it: `moon promote {version} --reason "…"`'
    elif found == TOO_LITTLE:
        yield f"wait for more queries and release it again; or promote it, with your name and a reason: `{forced}`"
    else:
        yield f"keep the champion, and train again; `moon explain {version}` shows each gate. If it must be: `{forced}`"


def description(version: int, manifest: Mapping[str, Any]) -> str:
    """The page of a release: verdict first, then each gate beside the champion, what it is made of, and what to do."""
    against = manifest["compared_with"]["release"]
    beside = f"compared with release {against}" if against is not None else "the first release: compared with the floors"
    lines = [f"**Release {version}: {SIGNS[outcome(manifest['evidence'])]}** ({beside})", "", f"{REPORT} {RUNBOOK}", ""]
    lines += ["| gate | this release | champion | difference, 95 % interval | must be | verdict |", "|---|---|---|---|---|---|"]
    lines += [_row(verdict) for verdict in told(manifest["evidence"])]
    undecided = [f"{v['gate']} {v['detectable']:.4f}" for v in manifest["evidence"] if _outcome(v) == TOO_LITTLE]
    if undecided:
        lines += ["", f"No difference below these could have been seen in these data: {', '.join(undecided)}."]
    lines += ["", f"{rest}."] if (rest := others(manifest["evidence"])) else []
    lines += [f"\nNote: {note}." for note in manifest.get("notes", ())]
    click_model = f"moon-ctr {manifest['ctr']['version']}" if manifest["ctr"] else "no click model"
    lines += ["", f"moon-encoder {manifest['encoder']['version']}, {click_model}, contract `{manifest['contract_id']}`, trained until"]
    lines[-1] += f" {manifest['trained_until'][:16]}; judged until {manifest['windows']['end'][:16]}."
    lines += ["", f"{NOT_THE_BUTTON} Back: `moon rollback`. Why: `moon explain {version}`."]
    return "\n".join(lines) + "\n"


def _row(verdict: Mapping[str, Any]) -> str:
    champion = "" if verdict["champion"] is None else f"{verdict['champion']:.4f}"
    gap = ""
    if verdict.get("low") is not None:
        gap = f"{verdict['value'] - verdict['champion']:+.4f} [{verdict['low']:+.4f}, {verdict['high']:+.4f}]"
    value = "not a number" if math.isnan(verdict["value"]) else f"{verdict['value']:.4f}"
    if missing := verdict.get("missing"):
        value = f"not measured: {missing}"
    return f"| {verdict['gate']} | {value} | {champion} | {gap} | {verdict['rule']} | {_sign(verdict)} |"


def _sign(verdict: Mapping[str, Any]) -> str:
    """What does not block is a warning at most."""
    if verdict.get("blocks", True) or _outcome(verdict) == PASSED:
        return SIGNS[_outcome(verdict)]
    return f"⚠️ {_outcome(verdict)}, does not block"


def _outcome(verdict: Mapping[str, Any]) -> str:
    """Evidence of before knew only passed and not."""
    return str(verdict.get("outcome") or (PASSED if verdict["passed"] else FAILED))
