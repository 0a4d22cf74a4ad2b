"""The report of a release: one page on which whoever is on call sees whether it is good, what it changes for users, and what to do.

It is drawn for every release, passed or failed, and lies with its run in MLflow as ``report/report.html``. Evidence is read as it stands in
the manifest, so that gates may come and go.
"""

from __future__ import annotations

import datetime as dt
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moon_ops.lake.lake import Lake
from moon_ops.metric_names import IMAGE_SEARCH, TEXT_SEARCH, against_champion, ctr, queries, recall
from moon_ops.registry.registry import Registry
from moon_ops.release import changes_shown, evidence, pictures
from moon_ops.release.changes import Changes, between
from moon_ops.release.gates import FAILED, PASSED, TOO_LITTLE
from moon_ops.release.page import LAST, PAGE, Report, number, picture, table, text
from moon_ops.release.verification import dimensions_of
from moon_ops.release.windows import Windows

log = logging.getLogger(__name__)

CLASSES = {PASSED: "passed", FAILED: "failed", TOO_LITTLE: "little"}
RUNBOOK = "docs/on-call.md in the repository of moon_ops"
SLICED = (recall(IMAGE_SEARCH), recall(TEXT_SEARCH), ctr("auc"))
Verdicts = Sequence[Mapping[str, Any]]


def filed(registry: Registry, run_id: str, lake: Lake, version: int, manifest: Mapping[str, Any], changed: Changes) -> tuple[Report, str]:
    """Draw the report and put it beside the run; the report and its address.

    The address is empty, with a warning in the log, if it could not be drawn or written: a release is never lost over its pictures.
    """
    made = Report(f"Release {version}", "", ())
    try:
        made = draw(lake, version, manifest, changed)
        with tempfile.TemporaryDirectory() as scratch:
            made.write(Path(scratch) / "report")
            return made, f"{registry.keep(run_id, Path(scratch) / 'report')}/{PAGE}"
    except Exception as fault:  # a full disk, a store that is away
        log.warning("release %d is registered without its report (%r)", version, fault)
        return made, ""


def draw(lake: Lake, version: int, manifest: Mapping[str, Any], changed: Changes, before: int | None = None) -> Report:
    """The report of release ``version``; ``before`` is the release that ``changed`` starts from, if not the one it was compared with."""
    verdicts, beside = manifest["evidence"], manifest["compared_with"]
    older = beside["release"] if before is None else before
    files: dict[str, bytes] = {}
    looks = _part("pictures", lambda: changes_shown.looks_of(lake, changed), {})
    names = (f"release {older}", f"release {version}")
    sections = (
        ("Gates", _part("gates", lambda: _gates(verdicts, beside["release"], manifest["metrics"]), "")),
        ("Differences with their 95 % intervals", _part("differences", lambda: _forest(manifest, files), "not drawn: see the log")),
        ("Slices", _part("slices", lambda: _slices(manifest, version), "")),
        ("What changes for users", _part("changes", lambda: changes_shown.section(changed, names, looks, files), "not drawn: see the log")),
        (LAST, _part("parts", lambda: _parts(manifest), "")),
        ("All figures", _part("figures", lambda: _figures(manifest["metrics"]), "")),
        ("Hashes", _part("hashes", lambda: _hashes(manifest), "")),
    )
    return Report(f"Release {version}", _head(version, manifest), sections, files)


def beside(lake: Lake, old: int, before: Mapping[str, Any], new: int, after: Mapping[str, Any]) -> Report:
    """The report of release ``new`` with what changes from release ``old`` to it; their manifests are ``before`` and ``after``."""
    encoders = (int(before["encoder"]["version"]), int(after["encoder"]["version"]))
    times = Windows(**{name: dt.datetime.fromisoformat(moment) for name, moment in after["windows"].items()})
    lengths = dimensions_of(before), dimensions_of(after)
    changed = between(lake, encoders, times, dt.datetime.fromisoformat(before["trained_until"]), dimensions=lengths)
    return draw(lake, new, after, changed, before=old)


def _part(name: str, make: Callable[[], Any], otherwise: Any) -> Any:
    """What ``make`` gives; if it fails, the page goes without this part."""
    try:
        return make()
    except Exception as fault:
        log.warning("the report's %s could not be drawn (%r)", name, fault)
        return otherwise


def _head(version: int, manifest: Mapping[str, Any]) -> str:
    """The verdict, and what to do."""
    verdicts, against = manifest["evidence"], manifest["compared_with"]["release"]
    found = PASSED if manifest["passed"] else evidence.outcome(verdicts)
    missed = ", ".join(v["gate"] for v in _sorted(verdicts) if not v["passed"] and v.get("blocks", True))
    said = {PASSED: "passed its gates", FAILED: f"failed {missed}", TOO_LITTLE: f"has too little data to tell {missed}"}[found]
    compared = (
        f"Compared with release {against}, the champion then." if against is not None else "The first release: compared with the floors."
    )
    click_model = f"moon-ctr {manifest['ctr']['version']}" if manifest["ctr"] else "no click model"
    made = f"moon-encoder {manifest['encoder']['version']}, {click_model}; made {evidence.utc(manifest['created'])}."
    return (
        f'<div class="head {CLASSES[found]}"><h1>Release {version} {text(said)}</h1><p>{compared} {text(made)}</p>'
        f"<p>{_todo(version, found)} Back: <code>moon rollback --reason &quot;…&quot;</code>. Runbook: {RUNBOOK}.</p>"
        "<p class='note'>MLflow's button Promote model copies a version and changes nothing that is served.</p></div>"
    )


def _todo(version: int, found: str) -> str:
    if found == PASSED:
        alias = f"move the alias <code>champion</code> of <code>moon-release</code> to version {version}"
        who = "Whoever may write to the registry may do so; who, when and why is recorded (<code>moon moves</code>)."
        return f"To serve it: <code>moon promote {version} --reason &quot;…&quot;</code>, or in MLflow {alias}. {who}"
    forced = f"<code>moon promote {version} --force --reason &quot;…&quot;</code>; your name and the reason are recorded."
    if found == FAILED:
        return f"Do not promote it: the command refuses, and a service does not load it. If it must be: {forced}"
    return f"Wait for more queries and measure it anew, or promote it with a reason: {forced}"


def _sorted(verdicts: Verdicts) -> list[Mapping[str, Any]]:
    """What stops a release first, and what only reports last."""
    order = [FAILED, TOO_LITTLE, PASSED]
    return sorted(verdicts, key=lambda v: (not v.get("blocks", True), order.index(_outcome(v))))


def _outcome(verdict: Mapping[str, Any]) -> str:
    said = verdict.get("outcome") or (PASSED if verdict["passed"] else FAILED)
    return said if said in CLASSES else (PASSED if verdict["passed"] else FAILED)


def _gates(verdicts: Verdicts, champion: int | None, metrics: Mapping[str, float]) -> str:
    rows = []
    for v in _sorted(verdicts):
        gap = ""
        if v.get("low") is not None and v.get("champion") is not None:
            gap = f"{number(v['value'] - v['champion'], sign=True)} [{number(v['low'], sign=True)}, {number(v['high'], sign=True)}]"
        said = f'<span class="badge {CLASSES[_outcome(v)]}">{text(_outcome(v))}</span>'
        if v.get("detectable") is not None and _outcome(v) == TOO_LITTLE:
            said += f"<br><span class='note'>a difference below {number(v['detectable'])} could not have been seen</span>"
        if not v.get("blocks", True):
            said += "<br><span class='note'>reported, stops nothing</span>"
        if v.get("missing"):
            said += f"<br><span class='note'>{text(v['missing'])}</span>"
        rows.append([text(v["gate"]), number(v["value"]), number(v.get("champion")), gap, text(v.get("rule", "")), said])
    old = f"release {champion}" if champion is not None else "champion"
    shown = table(["gate", "this release", old, "difference, 95 % interval", "must be", "verdict"], rows, numbers=(1, 2, 3))
    worth = metrics.get("exchange_rate/expected_auc_gain")
    if worth is not None:
        low, high = (number(metrics.get(f"exchange_rate/expected_auc_gain_{end}"), sign=True) for end in ("low", "high"))
        shown += f"<p>By the exchange rate, its recall should be worth {number(worth, sign=True)} of AUC [{low}, {high}].</p>"
    return shown


def _forest(manifest: Mapping[str, Any], files: dict[str, bytes]) -> str:
    gaps = [_gap(v) for v in _sorted(manifest["evidence"]) if v.get("low") is not None and v.get("champion") is not None]
    metrics, known = manifest["metrics"], {gap.name for gap in gaps}
    for name in SLICED:  # measured, but no gate
        value, low, high = (metrics.get(against_champion(name, end)) for end in ("", "_low", "_high"))
        if name not in known and value is not None and low is not None and high is not None:
            gaps.append(pictures.Gap(f"{name} (no gate)", value, low, high, None, False, ""))
    if not gaps:
        return "<p>None: nothing was measured on the same data as another release.</p>"
    with tempfile.TemporaryDirectory() as scratch:
        pictures.forest(gaps, Path(scratch) / "f.png")
        files["differences.png"] = (Path(scratch) / "f.png").read_bytes()
    against = manifest["compared_with"]["release"]
    told = f"Right of the line: more than release {against}. A gate fails in the red. Each row has a scale of its own."
    return f"<p>{told}</p>{picture(files['differences.png'], 'differences with their intervals')}"


def _gap(verdict: Mapping[str, Any]) -> pictures.Gap:
    """The gate fails on the side of its threshold where the value lies if it failed, else on the other."""
    value, threshold, champion = (verdict[name] for name in ("value", "threshold", "champion"))
    bad_above = value < threshold if verdict["passed"] else value > threshold
    return pictures.Gap(
        verdict["gate"], value - champion, verdict["low"], verdict["high"], threshold - champion, bad_above, _outcome(verdict)
    )


def _slices(manifest: Mapping[str, Any], version: int) -> str:
    metrics, old = manifest["metrics"], manifest["compared_with"].get("metrics") or {}
    rows = []
    for name in SLICED:
        places = sorted({key.partition(":")[2] for key in metrics if key.partition(":")[0] == name}, key=lambda w: (w != "", w))
        if len(places) < 2:
            continue
        for where in places:
            key = f"{name}:{where}" if where else name
            count = metrics.get(queries(name.partition("/")[0], where)) if name.startswith((IMAGE_SEARCH, TEXT_SEARCH)) else None
            gap = metrics[key] - old[key] if key in old else None
            shown = where.replace("_", " ") or "all"
            rows.append([text(name) if not where else "", text(shown), number(metrics[key]), number(old.get(key)), number(gap, sign=True)])
            rows[-1].append(f"{count:,.0f}" if count is not None else "")
    against = manifest["compared_with"]["release"]
    beside = f"release {against}" if against is not None else "champion"
    return table(["figure", "slice", f"release {version}", beside, "difference", "queries"], rows, numbers=(2, 3, 4, 5))


def _parts(manifest: Mapping[str, Any]) -> str:
    windows, index = manifest["windows"], manifest["index"]
    click_model = f"moon-ctr {manifest['ctr']['version']}" if manifest["ctr"] else "none"
    rows = [
        ("encoder", f"moon-encoder {manifest['encoder']['version']}"),
        ("click model", click_model),
        ("contract", manifest["contract_id"]),
        (
            "vectors",
            f"{manifest['embeddings']['rows']:,} in {manifest['embeddings']['table']}, version {manifest['embeddings']['version']}",
        ),
        ("index", f"{index['items']:,} items, {index['kind']}, {index['place']}"),
        ("features", f"Feast service {manifest['feature_service']}"),
        ("encoder trained until", evidence.utc(manifest["trained_until"])),
        ("encoder judged", f"{evidence.utc(windows['trained_until'])} to {evidence.utc(windows['end'])}"),
        ("click model judged", f"{evidence.utc(windows['ctr_until'])} to {evidence.utc(windows['end'])}"),
        ("made", evidence.utc(manifest["created"])),
    ]
    return table((), [[text(name), text(value)] for name, value in rows])


def _figures(metrics: Mapping[str, Any]) -> str:
    rows = [[text(name), number(value)] for name, value in sorted(metrics.items())]
    return f'<div class="figures">{table((), rows, numbers=(1,))}</div>'


def _hashes(manifest: Mapping[str, Any]) -> str:
    rows = [["index", text(manifest["index"]["sha256"])]]
    for part in ("encoder", "ctr"):
        rows += [[text(f"{part}: {file}"), text(value)] for file, value in ((manifest[part] or {}).get("sha256") or {}).items()]
    return table((), rows, kind="hashes")
