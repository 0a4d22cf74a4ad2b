"""What differs between two releases, from their manifests alone: parts, figures, verdicts. It opens no table and no model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from moon_ops.metric_names import ANSWERS, NEIGHBOURS, against_champion, overlap
from moon_ops.release import evidence

Manifest = Mapping[str, Any]
BESIDE = ("_id_only", "_oracle", "_gain", "_untrained", "_against_champion", "_detectable")  # figures that are not the release's own


def diff(old: int, before: Manifest, new: int, after: Manifest) -> dict[str, Any]:
    """From release ``old`` to release ``new``; ``before`` and ``after`` are their manifests.

    ``figures`` has for each name the old value, the new one, their difference and, where it is known, its 95 % interval. They were counted
    on the same queries and impressions (``same_data``) if one release was compared with the other when it was made.
    """
    first, second, same = _figures(old, before, new, after)
    figures = {}
    for name in sorted({*first, *second}):
        values = first.get(name), second.get(name)
        if values[0] is None and name in before["metrics"]:  # it was not measured again beside the other
            values = before["metrics"][name], values[1]
        elif values[1] is None and name in after["metrics"]:
            values = values[0], after["metrics"][name]
        gap = None if None in values else values[1] - values[0]  # type: ignore[operator]
        figures[name] = [*values, gap, *_interval(name, old, new, before, after)]
    compared = after["compared_with"]["release"] == old
    return {
        "releases": [old, new],
        "verdicts": [_verdicts(before), _verdicts(after)],
        "compared_with": [before["compared_with"]["release"], after["compared_with"]["release"]],
        "parts": {name: [one, other] for (name, one), other in zip(_parts(before).items(), _parts(after).values(), strict=True)},
        "same_data": same,
        "figures": figures,
        "changes": (after.get("diff") or {}).get("figures", {}) if compared else {},
    }


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """:func:`diff` for people: verdicts, parts that differ, figures side by side. Slices and models beside the release are in JSON."""
    old, new = found["releases"]
    for release, verdicts, against in zip(found["releases"], found["verdicts"], found["compared_with"], strict=True):
        missed = [f"{v['gate']} {v['outcome']}" for v in verdicts["gates"] if not v["passed"]]
        beside = "the floors" if against is None else f"release {against}"
        yield f"release {release:<4} {verdicts['outcome']}, compared with {beside}{': ' if missed else ''}{'; '.join(missed)}"
    yield ""
    differ = {name: pair for name, pair in found["parts"].items() if pair[0] != pair[1]}
    yield f"{'part':<24} {f'release {old}':<26} release {new}"
    for name, (one, other) in differ.items():
        yield f"{name:<24} {_short(one):<26} {_short(other)}"
    if not differ:
        yield "no part differs"
    yield ""
    yield f"{'figure':<32} {f'release {old}':>12} {f'release {new}':>12} {'difference':>12}   95 % interval"
    for name, (one, other, gap, low, high) in found["figures"].items():
        if ":" not in name and not any(word in name for word in BESIDE) and name.partition("/")[0] not in (ANSWERS, NEIGHBOURS):
            interval = f"   [{low:+.4f}, {high:+.4f}]" if low is not None else ""
            yield f"{name:<32} {_number(one):>12} {_number(other):>12} {_number(gap, '+'):>12}{interval}".rstrip()
    if not found["same_data"]:
        yield "The figures were counted when each was made, not on the same queries and impressions."
    if shared := {name: found["changes"][key] for name, key in _SHARED.items() if key in found["changes"]}:
        yield ""
        yield "in common: " + ", ".join(f"{100 * share:.0f} % of {name}" for name, share in shared.items())


_SHARED = {"the first 10 answers": overlap(ANSWERS), "the 10 nearest items": overlap(NEIGHBOURS)}


def _figures(old: int, before: Manifest, new: int, after: Manifest) -> tuple[Mapping[str, float], Mapping[str, float], bool]:
    """The figures of both, on the same data where one was the champion beside which the other was measured."""
    beside = {number: manifest["compared_with"] for number, manifest in ((new, after), (old, before))}
    if beside[new]["release"] == old and (theirs := beside[new].get("metrics")):
        return theirs, after["metrics"], "recorded" not in theirs
    if beside[old]["release"] == new and (theirs := beside[old].get("metrics")):
        return before["metrics"], theirs, "recorded" not in theirs
    return before["metrics"], after["metrics"], old == new


def _interval(name: str, old: int, new: int, before: Manifest, after: Manifest) -> tuple[float | None, float | None]:
    """Of the difference, where one release was measured beside the other; the other way round it is turned."""
    ends = tuple(against_champion(name, end) for end in ("_low", "_high"))
    if after["compared_with"]["release"] == old:
        return after["metrics"].get(ends[0]), after["metrics"].get(ends[1])
    if before["compared_with"]["release"] == new and ends[0] in before["metrics"]:
        return 0.0 - before["metrics"][ends[1]], 0.0 - before["metrics"][ends[0]]
    return None, None


def _verdicts(manifest: Manifest) -> dict[str, Any]:
    keys = ("gate", "value", "champion", "rule", "low", "high", "blocks")
    gates = [{key: v[key] for key in keys if key in v} | _said(v) for v in manifest["evidence"]]
    return {"outcome": "passed" if manifest["passed"] else evidence.outcome(manifest["evidence"]), "gates": gates}


def _said(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Evidence of before knew only passed and not."""
    return {"passed": verdict["passed"], "outcome": verdict.get("outcome") or ("passed" if verdict["passed"] else "failed")}


def _parts(manifest: Manifest) -> dict[str, Any]:
    """What a release is made of, a line each; the same names for every release."""
    windows, click_model, index = manifest["windows"], manifest["ctr"], manifest["index"]
    return {
        "encoder": f"moon-encoder {manifest['encoder']['version']}",
        "click model": f"moon-ctr {click_model['version']}" if click_model else "none",
        "contract": manifest["contract_id"],
        "trained until": evidence.utc(manifest["trained_until"]),
        "judged from": evidence.utc(windows["trained_until"]),
        "judged until": evidence.utc(windows["end"]),
        "made": evidence.utc(manifest["created"]),
        "vectors": f"{manifest['embeddings']['rows']:,}",
        "index": f"{index['kind']}, {index['items']:,} items"
        + (f", the first {index['dimensions']} numbers of each vector" if index.get("dimensions") else ""),
        "index sha256": index["sha256"],
        **{
            f"weights of {name}": ((manifest[name] or {}).get("sha256") or {}).get("model.safetensors", "none")
            for name in ("encoder", "ctr")
        },
    }


def _weights(part: Manifest | None) -> str:
    return str(part["sha256"].get("model.safetensors", "none")) if part else "none"


def _short(value: Any) -> str:
    """A hash by its beginning."""
    return f"{value[:12]}…" if len(str(value)) == 64 else str(value)


def _number(value: float | None, sign: str = "") -> str:
    if value is None or not math.isfinite(value):
        return ""
    whole = value == int(value) and abs(value) >= 10
    return f"{value:{sign},.0f}" if whole else f"{value:{sign}.4f}"
